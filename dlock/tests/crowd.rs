//! More calls than a backend sends at a time: what is not sent yet loses nothing by it. In virtual time, but where a runtime ends.
#![allow(missing_docs)]

mod support;

use std::error::Error;
use std::future::IntoFuture;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock::{ErrorKind, LockError, LockGuard, Locker, ReleaseOutcome, ReleaseUnknown, RetryPolicy};
use dlock_testkit::memory::{Call, Memory, Outage, Profile};
use futures_util::stream::{self, StreamExt};
use support::{locker, pass, secs};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How long a call takes that is delayed.
const EACH: Duration = Duration::from_millis(10);
/// How long a release waits for a store that does not answer.
const IN_VAIN: Duration = Duration::from_millis(4_100);

/// A store of each kind to which so many calls are sent at a time. One of them is left to releases.
fn stores(at_a_time: usize) -> [(Memory, Locker); 2] {
    [Profile::Queue, Profile::Slot].map(|profile| {
        let memory = Memory::builder(profile).calls_in_flight(NonZeroUsize::new(at_a_time)).build();
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

async fn give_back(guards: Vec<LockGuard>) -> Vec<Result<ReleaseOutcome, ReleaseUnknown>> {
    let mut tasks = JoinSet::new();
    for guard in guards {
        tasks.spawn(guard.release());
    }
    tasks.join_all().await
}

/// Lets that many others claim keys of their own, each of which takes its time; they are asked before anything that comes later.
fn crowd(memory: &Memory, locker: &Locker, others: usize) -> tokio::task::JoinHandle<Vec<LockGuard>> {
    delay(memory, Call::Claim, others);
    let locker = locker.clone();
    tokio::spawn(async move { hold(&locker, others).await })
}

fn cause(error: &LockError) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn thousands_are_sent_a_few_at_a_time_each_once_and_none_gives_up() {
    const KEYS: u32 = 6_600;
    for (memory, locker) in stores(11) {
        delay(&memory, Call::Claim, KEYS as usize);
        let begun = Instant::now();
        let guards = hold(&locker, KEYS as usize).await;
        assert_eq!(begun.elapsed(), EACH * KEYS / 10, "several times as long as one attempt may take");
        delay(&memory, Call::Release, KEYS as usize);
        let begun = Instant::now();
        assert!(give_back(guards).await.iter().all(|released| *released == Ok(ReleaseOutcome::Released)));
        assert_eq!(begun.elapsed(), EACH * KEYS / 11);
        assert!(begun.elapsed() > IN_VAIN);
        let calls = [Call::Claim, Call::Release].map(|call| memory.control().calls(call));
        assert_eq!(calls, [u64::from(KEYS); 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_waits_for_no_claim() {
    for (memory, locker) in stores(2) {
        let guard = locker.lock("held").await.unwrap();
        let crowd = crowd(&memory, &locker, 1_000);
        pass(EACH * 10 + EACH / 2).await;
        let begun = Instant::now();
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(!crowd.is_finished());
        drop(crowd.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_that_its_turn_may_have_come_goes_before_those_who_only_came() {
    for (memory, locker) in stores(3) {
        let elsewhere = memory.control().hold_elsewhere(&support::key("wanted"), "other").unwrap();
        let waiter = tokio::spawn(locker.lock("wanted").into_future());
        pass(EACH).await;
        let crowd = crowd(&memory, &locker, 1_000);
        pass(EACH * 10).await;
        let begun = Instant::now();
        elsewhere.release();
        let guard = waiter.await.unwrap().unwrap();
        assert!(begun.elapsed() <= EACH * 3, "after {:?}", begun.elapsed());
        assert!(!crowd.is_finished());
        drop((guard, crowd.await.unwrap()));
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_answered_a_queue_delays_no_news() {
    for (memory, locker) in stores(2) {
        let guards = hold(&locker, 40).await;
        memory.control().outage(Some(Outage::Hanging));
        let begun = Instant::now();
        assert!(give_back(guards).await.iter().all(Result::is_err));
        assert_eq!(begun.elapsed(), IN_VAIN, "as if each were the only one");
        memory.control().outage(None);
        pass(secs(10)).await;
        assert_eq!(memory.control().claims(), [], "it went on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_turn_does_not_come_as_nothing_is_answered_fails_and_leaves_nothing() {
    for (memory, locker) in stores(2) {
        locker.ready(secs(1)).await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        // The first is in flight, and once its attempt is over the second is.
        let mut ahead = Vec::new();
        for key in ["a", "b"] {
            ahead.push(tokio::spawn(locker.lock(key).into_future()));
            pass(EACH).await;
        }
        let once = RetryPolicy::default().attempts(1);
        let begun = Instant::now();
        let failed = locker.lock("c").retry(once).await.unwrap_err();
        assert!(begun.elapsed() >= secs(2) && begun.elapsed() < secs(3));
        assert!(matches!(&failed, LockError::Store { cause, .. } if cause.kind() == ErrorKind::Transient), "{failed:?}");
        assert!(cause(&failed).contains("none of them is answered"), "{failed:?}");
        memory.control().outage(None);
        for lock in ahead {
            lock.await.unwrap().unwrap().release().await.unwrap();
        }
        assert_eq!(memory.control().calls(Call::Release), 2, "of the two ahead");
    }
}

#[tokio::test(start_paused = true)]
async fn whose_time_ends_before_its_turn_is_told_so_and_leaves_nothing() {
    for (memory, locker) in stores(2) {
        locker.ready(secs(1)).await.unwrap();
        let crowd = crowd(&memory, &locker, 1_000);
        pass(EACH / 2).await;
        let (most, begun) = (secs(3), Instant::now());
        let waiting = async { locker.lock("a").wait_at_most(most).await.map(drop) };
        let several =
            async { locker.lock_all(["b", "c"]).wait_at_most(most).retry(RetryPolicy::default().attempts(1)).await.map(drop) };
        let tried = async {
            let late = locker.try_lock("d").await.map(drop);
            assert_eq!(begun.elapsed(), secs(5), "as for a store that does not answer");
            late
        };
        let (waiting, several, tried) = tokio::join!(waiting, several, tried);
        for late in [waiting, several, tried] {
            let late = late.unwrap_err();
            assert!(matches!(late, LockError::TimedOut { .. }) && cause(&late).contains("not sent yet"), "{late:?}");
        }
        drop(crowd.await.unwrap());
        pass(secs(10)).await;
        assert_eq!(memory.control().calls(Call::Release), 1_000, "of the crowd alone");
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_claim_that_was_sent_at_last_is_not_hidden_by_its_time_in_the_queue() {
    for (memory, locker) in stores(2) {
        let crowd = crowd(&memory, &locker, 400);
        memory.control().hang_next(Call::Claim);
        pass(EACH / 2).await;
        let failed = locker.lock("a").retry(RetryPolicy::default().attempts(1)).await.unwrap_err();
        assert!(matches!(&failed, LockError::Store { cause, .. } if cause.kind() == ErrorKind::Ambiguous), "{failed:?}");
        drop(crowd.await.unwrap());
        pass(secs(1)).await;
        assert_eq!((memory.control().calls(Call::Release), memory.control().claims()), (401, Vec::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_taken_at_once_wait_for_one_turn() {
    for (memory, locker) in stores(2) {
        let crowd = crowd(&memory, &locker, 400);
        pass(EACH / 2).await;
        let begun = Instant::now();
        let all = locker.lock_all(["x", "y", "z"]).await.unwrap();
        assert!(begun.elapsed() > secs(3), "more than an attempt may take");
        assert_eq!(memory.control().calls(Call::Claim), 401);
        assert!(all.release().await.iter().all(|(_, released)| *released == Ok(ReleaseOutcome::Released)));
        drop(crowd.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_session_ends_takes_another() {
    for (memory, locker) in stores(2) {
        let crowd = crowd(&memory, &locker, 500);
        pass(secs(1)).await;
        let session = memory.control().sessions().pop().unwrap();
        memory.control().end_session(&session);
        let guards = crowd.await.unwrap();
        assert_eq!(guards.iter().filter(|guard| guard.check().is_ok()).count(), 401, "99 had the lock, and lost it");
        assert!(give_back(guards).await.iter().all(Result::is_ok));
        assert_eq!(memory.control().calls(Call::Claim), 501, "none but the one in flight is sent with a session that ended");
        pass(secs(1)).await;
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_reply_was_lost_has_its_time_also_in_a_queue() {
    for (memory, locker) in stores(2) {
        let guards = hold(&locker, 1_000).await;
        // It waits for nearly as long as an attempt may take, and after its lost attempt again.
        delay(&memory, Call::Release, 380);
        memory.control().hang_next(Call::Release);
        delay(&memory, Call::Release, 700);
        let released = give_back(guards).await;
        assert!(released.iter().all(|released| *released == Ok(ReleaseOutcome::Released)));
        assert_eq!((memory.control().calls(Call::Release), memory.control().claims()), (1_001, Vec::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn claims_that_nobody_polls_keep_no_release_waiting() {
    for (memory, locker) in stores(4) {
        delay(&memory, Call::Claim, 40);
        let held = Arc::new(Mutex::new(0));
        let locks = stream::iter(0..40).map(|n| locker.lock(format!("{n}")).into_future()).buffer_unordered(20);
        let locked = locks.for_each(|lock| {
            let held = Arc::clone(&held);
            async move {
                let guard = lock.unwrap();
                // Those that are buffered are not polled meanwhile, and have what they have.
                assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
                *held.lock().unwrap() += 1;
            }
        });
        timeout(secs(5), locked).await.unwrap();
        assert_eq!(*held.lock().unwrap(), 40);
    }
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_is_enough() {
    for (memory, locker) in stores(1) {
        delay(&memory, Call::Claim, 500);
        let guards = hold(&locker, 500).await;
        delay(&memory, Call::Release, 500);
        assert!(give_back(guards).await.iter().all(|released| *released == Ok(ReleaseOutcome::Released)));
        assert_eq!([Call::Claim, Call::Release].map(|call| memory.control().calls(call)), [500; 2]);
    }
}

#[test]
fn what_a_runtime_leaves_in_flight_when_it_ends_is_in_nobodys_way() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (memory, _) in stores(2) {
        let locker = Locker::builder(memory.clone()).ttl(secs(1)).build().unwrap();
        let first = runtime();
        first.block_on(async {
            locker.ready(secs(10)).await.unwrap();
            memory.control().hang_next(Call::Claim);
            let in_flight = tokio::spawn(locker.lock("a").into_future());
            pass(EACH).await;
            assert!(!in_flight.is_finished());
        });
        runtime().block_on(async {
            let waiting = tokio::spawn(locker.lock("b").into_future());
            pass(EACH).await;
            first.shutdown_background();
            timeout(secs(30), waiting).await.unwrap().unwrap().unwrap().release().await.unwrap();
            assert!(locker.shutdown(secs(20)).await.is_clean());
        });
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_no_claim_that_is_not_sent() {
    for (memory, locker) in stores(2) {
        let held = hold(&locker, 3).await;
        delay(&memory, Call::Claim, 100);
        let lock = |n| {
            let locker = locker.clone();
            async move { locker.lock(format!("more {n}")).await.map(drop) }
        };
        let locking: Vec<_> = (0..100).map(|n| tokio::spawn(lock(n))).collect();
        pass(EACH * 10 + EACH / 2).await;
        drop(held);
        let begun = Instant::now();
        let report = locker.shutdown(secs(10)).await;
        assert!(begun.elapsed() < secs(1), "{report:?}");
        let mut got = 0;
        for lock in locking {
            match lock.await.unwrap() {
                Ok(()) => got += 1,
                Err(error) => assert!(matches!(error, LockError::ShutDown), "{error}"),
            }
        }
        assert_eq!(got, 10);
        assert_eq!(memory.control().claims(), []);
    }
}
