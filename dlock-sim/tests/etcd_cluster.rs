//! The locker on three real members of etcd, of which some fall silent.
#![allow(missing_docs)]

mod etcd_support;

use std::time::Duration;

use dlock::{LockGuard, Locker, Loss, ReleaseOutcome};
use dlock_testkit::servers::EtcdCluster;
use etcd_support::at;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(15);

fn locker(cluster: &mut EtcdCluster, ttl: Duration) -> Locker {
    let endpoints: Vec<String> = cluster.members().iter().map(|member| member.address().to_string()).collect();
    at(&endpoints.iter().map(String::as_str).collect::<Vec<_>>(), ttl)
}

/// Waits until the lock is renewed: what is left of it grows.
async fn renewed(guard: &LockGuard) {
    let growing = async {
        let mut left = guard.remaining();
        loop {
            sleep(Duration::from_millis(20)).await;
            let now = guard.remaining();
            assert!(guard.check().is_ok(), "lost");
            if now > left {
                return;
            }
            left = now;
        }
    };
    timeout(TTL, growing).await.expect("it must be renewed before its ttl is over");
}

#[tokio::test]
async fn a_held_lock_outlives_silent_and_dead_members_and_the_restart_of_all() {
    let mut cluster = EtcdCluster::start(3).await.unwrap();
    let locker = locker(&mut cluster, TTL);
    let held = locker.lock("k").await.unwrap();
    renewed(&held).await;

    let led = cluster.elected().await.expect("a leader");
    cluster.members()[led].pause().unwrap();
    renewed(&held).await;
    cluster.members()[led].resume().unwrap();

    let led = cluster.elected().await.expect("a leader");
    cluster.members()[led].kill().unwrap();
    renewed(&held).await;
    cluster.members()[led].restart().await.unwrap();

    // Each is cut off once, and with it the one that is spoken to.
    for place in 0..3 {
        cluster.members()[place].pause().unwrap();
        renewed(&held).await;
        cluster.members()[place].resume().unwrap();
    }

    for member in cluster.members() {
        member.kill().unwrap();
    }
    let members = cluster.members().iter_mut().map(|member| Box::pin(member.restart()));
    for started in futures_util::future::join_all(members).await {
        started.unwrap();
    }
    renewed(&held).await;
    assert_eq!(held.release().await, Ok(ReleaseOutcome::Released));
}

#[tokio::test]
async fn what_cannot_be_kept_is_lost_on_time() {
    let mut cluster = EtcdCluster::start(3).await.unwrap();
    let ttl = Duration::from_secs(4);
    let locker = locker(&mut cluster, ttl);
    let held = locker.lock("k").await.unwrap();
    // No two of three are left.
    for member in &mut cluster.members()[..2] {
        member.kill().unwrap();
    }
    let killed = Instant::now();
    // A leader that has lost its followers answers renewals for an election timeout and a half; whoever leads next grants as much on top.
    let latest = ttl + Duration::from_millis(1_500);
    let believed = async {
        while held.check().is_ok() {
            // Looked at first, so that what comes between makes it no later.
            let believed_for = killed.elapsed() + held.remaining();
            assert!(believed_for <= latest, "believed for {believed_for:?}");
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (lost, ()) = timeout(4 * ttl, async { tokio::join!(held.lost(), believed) }).await.expect("it is believed for ever");
    assert_eq!(lost, Loss::Expired);
}
