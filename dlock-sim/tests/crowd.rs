//! Thousands of locks and releases at once by the real clients, on a slow Consul and an etcd that is far away, in virtual time: none gives up.
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock::{LockGuard, Locker, ReleaseOutcome};
use dlock_consul::{Answer, Consul, ConsulOptions, Request, Transport, TransportError};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_sim::wire::consul::{FakeConsul, Rules, Store};
use dlock_sim::wire::etcd::FakeEtcd;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long a release waits for a store that does not answer.
const IN_VAIN: Duration = Duration::from_millis(4_100);
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

async fn hold(locker: &Locker, keys: usize) -> Vec<LockGuard> {
    locker.ready(Duration::from_secs(30)).await.unwrap();
    let mut locking = JoinSet::new();
    for n in 0..keys {
        let locker = locker.clone();
        locking.spawn(async move { locker.lock(format!("{n}")).await.expect("nobody else has it") });
    }
    locking.join_all().await
}

async fn give_back(guards: Vec<LockGuard>) {
    let (mut releasing, begun) = (JoinSet::new(), Instant::now());
    for guard in guards {
        releasing.spawn(guard.release());
    }
    assert!(releasing.join_all().await.iter().all(|released| *released == Ok(ReleaseOutcome::Released)));
    assert!(begun.elapsed() > IN_VAIN, "the last are released after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn none_of_thousands_gives_up_while_consul_answers() {
    const KEYS: usize = 2_000;
    // A claim in line is a ticket, and a lock once nobody is ahead. The first fourteen tickets are asked for twice: that the key is there is guessed, and
    // the others learn that it is not.
    for (fair, claims) in [(false, KEYS), (true, 2 * KEYS + 14)] {
        let consul = Mutex::new(FakeConsul::new(Store::new(Rules::default()), 7));
        let slow = Arc::new(Slow { consul, began: Instant::now(), transactions: AtomicUsize::new(0) });
        let consul = Consul::with_transport(&ConsulOptions::new().fair(fair), Arc::clone(&slow) as Arc<dyn Transport>);
        let locker = Locker::builder(consul).ttl(Duration::from_secs(15)).build().unwrap();
        let guards = hold(&locker, KEYS).await;
        assert_eq!(slow.transactions.swap(0, Ordering::Relaxed), claims, "fair: {fair}");
        give_back(guards).await;
        assert_eq!(slow.transactions.load(Ordering::Relaxed), KEYS, "fair: {fair}");
    }
}

#[tokio::test(start_paused = true)]
async fn none_of_thousands_gives_up_while_etcd_answers() {
    let etcd = FakeEtcd::start_at(Duration::from_millis(900));
    let backend = Etcd::with_dialer(&EtcdOptions::new(), etcd.dialer()).unwrap();
    let locker = Locker::builder(backend).ttl(Duration::from_secs(60)).build().unwrap();
    give_back(hold(&locker, 4_100).await).await;
}
