//! Two thousand locks and releases at once by the real Consul client on a slow Consul, in virtual time: none gives up, and none is sent twice.
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock::{Locker, ReleaseOutcome};
use dlock_consul::{Answer, Consul, ConsulOptions, Request, Transport, TransportError};
use dlock_sim::wire::consul::{FakeConsul, Rules, Store};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const KEYS: usize = 2_000;
/// So many claims are in flight at a time.
const CLAIMS: usize = 14;
/// How long Consul takes for a transaction.
const EACH: Duration = Duration::from_millis(40);

/// Answers what waits for nothing, after a while, and counts.
#[derive(Debug)]
struct Slow {
    consul: Mutex<FakeConsul>,
    began: Instant,
    /// Of those that lock or unlock something, which audits do not.
    transactions: AtomicUsize,
}

#[async_trait]
impl Transport for Slow {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        if FakeConsul::waits(&request).is_some() {
            return std::future::pending().await;
        }
        if request.target.starts_with("/v1/txn") {
            let locks = String::from_utf8_lossy(&request.body).contains("lock\"");
            self.transactions.fetch_add(locks.into(), Ordering::Relaxed);
            sleep(EACH).await;
        }
        Ok(self.consul.lock().await.answer(self.began.elapsed(), &request))
    }
}

#[tokio::test(start_paused = true)]
async fn none_of_thousands_gives_up_while_consul_answers() {
    // A claim in line is a ticket, and a lock once nobody is ahead.
    for (fair, claims) in [(false, 1), (true, 2)] {
        let consul = Mutex::new(FakeConsul::new(Store::new(Rules::default()), 7));
        let slow = Arc::new(Slow { consul, began: Instant::now(), transactions: AtomicUsize::new(0) });
        let consul = Consul::with_transport(&ConsulOptions::new().fair(fair), Arc::clone(&slow) as Arc<dyn Transport>);
        let locker = Locker::builder(consul).ttl(Duration::from_secs(15)).build().unwrap();
        locker.ready(Duration::from_secs(1)).await.unwrap();
        let mut locking = JoinSet::new();
        for n in 0..KEYS {
            let locker = locker.clone();
            locking.spawn(async move { locker.lock(format!("{n}")).await });
        }
        let guards: Vec<_> = locking.join_all().await.into_iter().map(|locked| locked.expect("nobody else has it")).collect();
        let sent = slow.transactions.swap(0, Ordering::Relaxed);
        // The first look at their keys, the others take theirs for absent as well.
        assert!((KEYS * claims..=KEYS * claims + CLAIMS).contains(&sent), "fair: {fair}: {sent}");
        let (mut releasing, began) = (JoinSet::new(), Instant::now());
        for guard in guards {
            releasing.spawn(guard.release());
        }
        for released in releasing.join_all().await {
            assert_eq!(released, Ok(ReleaseOutcome::Released));
        }
        assert!(began.elapsed() > Duration::from_millis(4_100), "longer than a release waits for a store that does not answer");
        assert_eq!(slow.transactions.load(Ordering::Relaxed), KEYS, "fair: {fair}");
    }
}
