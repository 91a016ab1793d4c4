//! How do I test my own service, without a server and without waiting?
//!
//! The tests below run on the in-memory store, in virtual time: `cargo test -p dlock-examples --bin test_your_code`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock::{Locker, RunError};

/// A report that must be sent by one machine only, and takes ten minutes.
struct Report {
    locker: Locker,
    sent: AtomicU32,
}

impl Report {
    /// Whether this machine sent it.
    async fn send(&self) -> Result<bool, RunError> {
        let sending = |_| async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            self.sent.fetch_add(1, Ordering::SeqCst);
        };
        Ok(self.locker.try_lock("report/monthly").run(sending).await?.is_some())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let report = Report { locker: dlock::connect("memory://reports").await?, sent: AtomicU32::new(0) };
    let soon = tokio::time::timeout(Duration::from_millis(200), report.send()).await;
    println!(
        "after 200 ms it is {}",
        if soon.is_ok() { "sent" } else { "still being sent: the tests do not wait, see them run with" }
    );
    println!("    cargo test -p dlock-examples --bin test_your_code");
    Ok(())
}

#[cfg(test)]
mod tests {
    use dlock::{Key, Loss};
    use dlock_testkit::memory::Memory;

    use super::*;

    fn machine(store: &Memory) -> Report {
        Report { locker: Locker::new(store.clone()), sent: AtomicU32::new(0) }
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_two_machines_sends_it() {
        let store = Memory::slot();
        let (one, two) = (machine(&store), machine(&store));
        let (first, second) = tokio::join!(one.send(), two.send());
        assert_ne!(first.unwrap(), second.unwrap(), "one does, the other does not");
        assert_eq!(one.sent.load(Ordering::SeqCst) + two.sent.load(Ordering::SeqCst), 1);
        assert!(store.control().claims().is_empty(), "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_skipped_while_another_program_holds_the_lock() {
        let store = Memory::slot();
        let elsewhere = store.control().hold_elsewhere(&Key::new("report/monthly").unwrap(), "legacy-cron");
        assert!(!machine(&store).send().await.unwrap());
        elsewhere.unwrap().release();
        assert!(machine(&store).send().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_when_the_lock_is_lost() {
        let store = Memory::slot();
        let report = machine(&store);
        let (outcome, ()) = tokio::join!(report.send(), async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            store.control().expire_session_of(&Key::new("report/monthly").unwrap());
        });
        assert!(matches!(outcome, Err(RunError::Lost(lost)) if lost.reason == Loss::SessionGone));
        assert_eq!(report.sent.load(Ordering::SeqCst), 0);
    }
}
