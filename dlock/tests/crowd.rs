//! More calls than a backend sends at a time: what queues for its turn loses nothing by it. In virtual time.
#![allow(missing_docs)]

mod support;

use std::num::NonZeroUsize;
use std::time::Duration;

use dlock::{LockError, LockGuard, Locker, ReleaseOutcome, RetryPolicy};
use dlock_testkit::memory::{Call, Memory, Outage, Profile};
use support::{locker, pass, secs};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How long a call takes.
const EACH: Duration = Duration::from_millis(10);

/// A store of each kind to which so many calls are sent at a time.
fn stores(at_once: usize) -> [(Memory, Locker); 2] {
    [Profile::Queue, Profile::Slot].map(|profile| {
        let memory = Memory::builder(profile).calls_at_once(NonZeroUsize::new(at_once)).build();
        let locker = locker(&memory);
        (memory, locker)
    })
}

fn delay(memory: &Memory, call: Call, calls: usize) {
    for _ in 0..calls {
        memory.control().delay_next(call, EACH);
    }
}

/// Takes so many keys, all at once.
async fn hold(locker: &Locker, keys: usize) -> Vec<LockGuard> {
    let mut tasks = JoinSet::new();
    for n in 0..keys {
        let locker = locker.clone();
        tasks.spawn(async move { locker.lock(format!("{n}")).await.unwrap() });
    }
    tasks.join_all().await
}

#[tokio::test(start_paused = true)]
async fn thousands_are_sent_a_few_at_a_time_each_once_and_none_gives_up() {
    const KEYS: usize = 6_000;
    for (memory, locker) in stores(10) {
        let all = EACH * KEYS as u32 / 10;
        delay(&memory, Call::Claim, KEYS);
        let begun = Instant::now();
        let guards = hold(&locker, KEYS).await;
        assert_eq!(begun.elapsed(), all, "several times as long as one attempt may take");
        delay(&memory, Call::Release, KEYS);
        let (begun, mut tasks) = (Instant::now(), JoinSet::new());
        for guard in guards {
            tasks.spawn(guard.release());
        }
        for released in tasks.join_all().await {
            assert_eq!(released, Ok(ReleaseOutcome::Released));
        }
        assert_eq!(begun.elapsed(), all, "longer than a store may take that does not answer");
        let calls = [Call::Claim, Call::Release].map(|call| memory.control().calls(call));
        assert_eq!(calls, [KEYS as u64; 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_goes_before_all_claims_that_are_not_sent_yet() {
    for (memory, locker) in stores(2) {
        let guard = locker.lock("held").await.unwrap();
        delay(&memory, Call::Claim, 1_000);
        let (crowd, begun) = (hold(&locker, 1_000), Instant::now());
        let released = async {
            pass(EACH * 10 + EACH / 2).await;
            guard.release().await
        };
        let (_, (released, within)) = tokio::join!(crowd, async { (released.await, begun.elapsed()) });
        assert_eq!(released, Ok(ReleaseOutcome::Released));
        assert_eq!(within, EACH * 11, "those claims are waited for that were sent before");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_answered_a_queue_delays_no_news() {
    for (memory, locker) in stores(2) {
        let guards = hold(&locker, 40).await;
        memory.control().outage(Some(Outage::Hanging));
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for guard in guards {
            tasks.spawn(guard.release());
        }
        for released in tasks.join_all().await {
            assert!(released.is_err(), "{released:?}");
        }
        assert_eq!(begun.elapsed(), Duration::from_millis(4_100), "as if each were the only one");
        memory.control().outage(None);
        pass(secs(10)).await;
        assert_eq!(memory.control().claims(), [], "it went on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_never_sent_fails_like_one_that_was_and_leaves_nothing_to_undo() {
    let once = RetryPolicy::default().attempts(1);
    for (memory, locker) in stores(2) {
        locker.ready(secs(1)).await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        let crowd = tokio::spawn({
            let locker = locker.clone();
            async move { hold(&locker, 20).await }
        });
        pass(EACH).await;
        let failed = locker.lock("c").retry(once).await.unwrap_err();
        assert!(matches!(&failed, LockError::Store { .. }) && format!("{failed:?}").contains("none is answered"), "{failed:?}");
        let timed_out = locker.lock("c").wait_at_most(EACH).await.unwrap_err();
        assert!(matches!(&timed_out, LockError::TimedOut { .. }), "{timed_out}");
        assert!(timeout(EACH, locker.lock("c")).await.is_err());
        let several = locker.lock_all(["c", "d"]).wait_at_most(EACH).await.map(drop).unwrap_err();
        assert!(matches!(&several, LockError::TimedOut { .. }), "{several}");
        memory.control().outage(None);
        for guard in crowd.await.unwrap() {
            guard.release().await.unwrap();
        }
        assert_eq!(memory.control().calls(Call::Release), 20, "of the crowd alone");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_taken_at_once_queue_for_one_turn() {
    let (memory, locker) = stores(1).into_iter().last().unwrap();
    delay(&memory, Call::Claim, 500);
    let (crowd, begun) = (
        tokio::spawn({
            let locker = locker.clone();
            async move { hold(&locker, 400).await }
        }),
        Instant::now(),
    );
    pass(EACH).await;
    let all = locker.lock_all(["x", "y", "z"]).await.unwrap();
    assert_eq!(begun.elapsed(), EACH * 401, "four seconds, which is more than an attempt may take");
    assert_eq!(memory.control().calls(Call::Claim), 401);
    assert!(all.release().await.iter().all(|(_, released)| *released == Ok(ReleaseOutcome::Released)));
    drop(crowd.await.unwrap());
}
