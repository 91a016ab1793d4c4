//! What is logged: waits, long holds, suspicion and loss with their reason; and never a secret.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use dlock::{Locker, Loss};
use dlock_testkit::memory::{Memory, Outage};
use support::{TTL, key, pass, secs};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Everything that is logged on this thread, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn keep(&self) -> DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(self.clone())
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::NEW)
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
    }

    /// The lines that contain all of `parts`.
    fn count(&self, parts: &[&str]) -> usize {
        self.text().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_is_told_with_key_token_owner_and_reason() {
    let log = Log::default();
    let _kept = log.keep();
    let memory = Memory::slot();
    let locker = support::locker(&memory);
    let guard = locker.lock("orders/42").await.unwrap();
    memory.control().outage(Some(Outage::Hanging));
    assert_eq!(guard.lost().await, Loss::Expired);
    assert_eq!(log.count(&["WARN", "renewal late, locks suspect"]), 1, "{}", log.text());
    let token = format!("token={}", guard.token().unwrap());
    assert_eq!(log.count(&["WARN", "lock lost", "key=orders/42", &token, locker.owner(), "silent until the deadline"]), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_names_the_holder_and_each_report_comes_later() {
    let log = Log::default();
    let _kept = log.keep();
    let memory = Memory::queue();
    let _elsewhere = memory.control().hold_elsewhere(&key("a"), "db-7/311/migrate").unwrap();
    let waiting = tokio::spawn(support::locker(&memory).lock("a").into_future());
    pass(secs(9)).await;
    assert_eq!(log.count(&["still waiting"]), 0);
    pass(secs(91)).await;
    assert_eq!(log.count(&["INFO", "still waiting for lock", "key=a", "db-7/311/migrate"]), 4, "after 10, 20, 40 and 80 s");
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lock_held_for_long_is_told_once() {
    let log = Log::default();
    let _kept = log.keep();
    let memory = Memory::slot();
    let locker = support::locker(&memory);
    let _guard = locker.lock("a").await.unwrap();
    pass(secs(299)).await;
    assert_eq!(log.count(&["held for long"]), 0);
    pass(secs(600)).await;
    assert_eq!(log.count(&["INFO", "lock held for long", "key=a", "held_for=300"]), 1, "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_succeeds_again_is_told() {
    let log = Log::default();
    let _kept = log.keep();
    let memory = Memory::queue();
    let locker = support::locker(&memory);
    let guard = locker.lock("a").await.unwrap();
    pass(secs(4)).await;
    memory.control().outage(Some(Outage::Failing));
    pass(TTL / 4).await;
    memory.control().outage(None);
    pass(secs(2)).await;
    assert_eq!(log.count(&["WARN", "locks suspect"]), 1);
    assert_eq!(log.count(&["INFO", "renewed again, locks sound"]), 1);
    assert_eq!(guard.check(), Ok(()));
}

#[tokio::test]
async fn a_secret_never_reaches_a_log_or_an_error() {
    const SECRET: &str = "5ecre7-5ecre7-5ecre7";
    let log = Log::default();
    let _kept = log.keep();
    let url = format!("consul://user:{SECRET}@127.0.0.1:1/?token={SECRET}");
    let refused = dlock::connect(&url).await.unwrap_err();
    let options = dlock_consul::ConsulOptions::new().address("127.0.0.1:1").unwrap().token(SECRET);
    let locker = Locker::builder(dlock_consul::Consul::new(options).unwrap()).build().unwrap();
    let unreachable = locker.lock("a").wait_at_most(secs(2)).await.unwrap_err();
    let told = format!("{refused:?} {refused} {unreachable:?} {unreachable} {locker:?}");
    assert!(!told.contains(SECRET), "{told}");
    assert!(log.count(&["no session yet"]) > 0, "{}", log.text());
    assert!(!log.text().contains(SECRET), "{}", log.text());
}
