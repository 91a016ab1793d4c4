//! What only the store in memory can show of loss, lost replies, dropped futures and runtimes, on both profiles, in virtual time.
#![allow(missing_docs)]

mod support;

use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::time::Duration;

use dlock::{ErrorKind, LockError, Locker, Loss, ReleaseOutcome};
use dlock_testkit::memory::{Call, Control, Memory, Outage, Profile};
use support::{TTL, key, pass, secs, stores};
use tokio::time::Instant;

/// Nothing of ours remains at the store.
fn assert_clean(control: &Control) {
    assert_eq!(control.claims(), [], "left behind");
}

#[tokio::test(start_paused = true)]
async fn guarded_work_is_dropped_when_the_store_hangs_and_no_call_hangs_longer_than_its_limit() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        let begun = Instant::now();
        let work = guard.guarded(std::future::pending::<()>()).await;
        assert_eq!(work.unwrap_err().reason, Loss::Expired);
        assert!(begun.elapsed() < TTL);
        let begun = Instant::now();
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
        assert!(matches!(locker.try_lock("b").await, Err(LockError::TimedOut { .. })));
        assert!(locker.inspect("b").await.is_err());
        assert!(begun.elapsed() <= secs(11), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_not_answered_is_unknown_and_says_when_it_lapses() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        let begun = Instant::now();
        let unknown = guard.release().await.unwrap_err();
        assert!(begun.elapsed() <= secs(5));
        assert!(unknown.lapses_within <= TTL * 2 && unknown.lapses_within > TTL);
        memory.control().outage(None);
        pass(secs(5)).await;
        assert_clean(&memory.control());
    }
}

#[tokio::test(start_paused = true)]
async fn beyond_sixteen_locks_interference_is_told_within_a_third_of_the_ttl() {
    for (memory, locker) in stores() {
        let mut guards = Vec::new();
        for n in 0..17 {
            guards.push(locker.lock(format!("k{n}")).await.unwrap());
        }
        pass(secs(20)).await;
        memory.control().delete(&key("k3"));
        let begun = Instant::now();
        assert_eq!(guards[3].lost().await, Loss::KeyDeleted);
        assert!(begun.elapsed() <= TTL / 3 + secs(1), "{:?}", begun.elapsed());
        assert_eq!(guards[4].check(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_idle_locks_cost_one_renewal_one_audit_and_one_waiting_call() {
    for (memory, locker) in stores() {
        let mut guards = Vec::new();
        for n in 0..1000 {
            guards.push(locker.lock(format!("k{n}")).await.unwrap());
        }
        pass(secs(60)).await;
        memory.control().reset_calls();
        pass(TTL * 4).await;
        // Renewals come every 4.5 to 5.5 s.
        let renewals = memory.control().calls(Call::Renew);
        assert!((10..=14).contains(&renewals), "{renewals}");
        assert!(memory.control().calls(Call::Audit) <= renewals);
        assert_eq!(memory.control().all_calls(), renewals + memory.control().calls(Call::Audit));
        drop(guards);
        pass(secs(1)).await;
        assert_clean(&memory.control());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_any_call_is_found_out_or_undone() {
    for call in [Call::Open, Call::Claim, Call::Renew, Call::Release] {
        for lose_request in [false, true] {
            for (memory, locker) in stores() {
                let control = memory.control();
                if lose_request {
                    control.lose_request_of_next(call);
                } else {
                    control.lose_reply_of_next(call);
                }
                let guard = locker.lock("a").await.unwrap();
                pass(secs(20)).await;
                assert_eq!(guard.check(), Ok(()));
                guard.release().await.unwrap();
                assert_clean(&control);
                assert_eq!(control.grants(&key("a")).len(), 1, "{call:?}: one acquisition is one grant");
                // A session whose opening was not answered lapses, and one that is retired closes; neither is renewed.
                pass(TTL * 2).await;
                assert!(control.sessions().len() <= 1, "{call:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_dropped_at_any_poll_leaves_nothing_within_two_seconds() {
    let mut finished = 0;
    // Free, taken all the time, and given back half-way so that the grant arrives while it is dropped.
    for (taken, given_back) in [(false, false), (true, false), (true, true)] {
        for polls in 1..40 {
            for (memory, locker) in stores() {
                let mut elsewhere = taken.then(|| memory.control().hold_elsewhere(&key("a"), "other").unwrap());
                for call in [Call::Open, Call::Claim, Call::Release] {
                    memory.control().delay_next(call, Duration::from_millis(20));
                }
                let half_way = || {
                    if given_back && let Some(elsewhere) = elsewhere.take() {
                        elsewhere.release();
                    }
                };
                finished += u32::from(poll_times(locker.lock("a").into_future(), polls, half_way).await);
                pass(secs(2)).await;
                let left = memory.control().claims().len();
                assert_eq!(left, usize::from(elsewhere.is_some()), "after {polls} polls");
            }
        }
    }
    assert!(finished > 40, "{finished} acquisitions were polled to their end");
}

/// Polls a future so many times, as its timers and the store allow, and drops it.
async fn poll_times(future: impl Future, polls: u32, mut half_way: impl FnMut()) -> bool {
    let mut future = pin!(future);
    for poll in 0..polls {
        if poll == polls / 2 {
            half_way();
        }
        if futures_util::poll!(&mut future).is_ready() {
            return true;
        }
        pass(Duration::from_millis(7)).await;
    }
    false
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_an_absent_key_that_is_under_way_past_a_deletion_is_not_kept_alive() {
    for (memory, locker) in stores() {
        let control = memory.control();
        let under_way = control.hold_next(Call::Claim);
        let waiting = tokio::spawn(locker.lock("a").into_future());
        pass(secs(1)).await;
        waiting.abort();
        pass(secs(5)).await;
        control.delete(&key("a"));
        under_way.deliver().expect("it was sent");
        pass(secs(1)).await;
        // On the slot profile nothing but the key's absence guarded it: its session was retired, so whatever arrives finds it gone.
        assert_clean(&control);
        assert!(locker.try_lock("a").await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_permission_lost_for_a_while_loses_nothing_and_one_never_given_is_told() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        for _ in 0..3 {
            memory.control().fail_next(Call::Renew, ErrorKind::Denied);
        }
        pass(secs(30)).await;
        assert_eq!(guard.check(), Ok(()));
        memory.control().fail_next(Call::Claim, ErrorKind::Denied);
        let Err(LockError::Store { cause, .. }) = locker.lock("b").await else { panic!("granted") };
        assert_eq!(cause.kind(), ErrorKind::Denied);

        let other = support::locker(&memory);
        memory.control().fail_next(Call::Open, ErrorKind::Denied);
        let Err(LockError::NoSession { cause: Some(cause) }) = other.lock("b").await else { panic!("granted") };
        assert_eq!(cause.kind(), ErrorKind::Denied);
        assert!(other.lock("b").await.is_ok(), "the next one asks again");
    }
}

#[test]
fn one_locker_serves_two_runtimes_one_after_the_other() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for memory in [Memory::queue(), Memory::slot()] {
        let locker = Locker::builder(memory.clone()).ttl(secs(3)).build().unwrap();
        let first = runtime();
        let guard = first.block_on(locker.lock("a").into_future()).unwrap();
        drop(first);
        drop(guard);
        assert_eq!(memory.control().claims().len(), 1, "nobody can give it back now");
        let second = runtime();
        let guard = second.block_on(locker.lock("a").wait_at_most(secs(30)).into_future()).unwrap();
        second.block_on(async {
            guard.release().await.unwrap();
            assert!(locker.shutdown(secs(20)).await.is_clean());
        });
        assert_eq!(memory.control().claims(), []);
        assert_eq!(memory.control().sessions().len(), 0);
    }
}

#[test]
fn whoever_waits_at_the_gate_gets_what_a_runtime_left_that_ended_meanwhile() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for memory in [Memory::queue(), Memory::slot()] {
        let locker = Locker::builder(memory).ttl(secs(1)).build().unwrap();
        let first = runtime();
        let guard = first.block_on(locker.lock("a").into_future()).unwrap();
        runtime().block_on(async {
            let mut waiting = Box::pin(locker.lock("a").wait_at_most(secs(30)).into_future());
            assert!(futures_util::poll!(&mut waiting).is_pending());
            first.shutdown_background();
            drop(guard);
            waiting.await.unwrap().release().await.unwrap();
            assert!(locker.shutdown(secs(20)).await.is_clean());
        });
    }
}

#[test]
fn a_guard_that_outlives_its_runtime_does_no_harm() {
    let memory = Memory::queue();
    let locker = Locker::new(memory);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.block_on(locker.lock("a").into_future()).unwrap();
    runtime.shutdown_background();
    assert_eq!(guard.check(), Ok(()));
    drop(guard);
    drop(locker);
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_never_renewed_for_ever() {
    for (memory, locker) in stores() {
        let other = locker.lock("other").await.unwrap();
        let guard = locker.lock("a").await.unwrap();
        // The release is refused for ever, while renewals go on.
        for _ in 0..1000 {
            memory.control().fail_next(Call::Release, ErrorKind::Denied);
        }
        drop(guard);
        pass(TTL * 2).await;
        assert_eq!(other.check(), Ok(()));
        drop(other);
        pass(TTL * 4).await;
        assert_clean(&memory.control());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_whose_release_failed_for_longer_than_the_ttl_is_given_back_once_the_store_heals() {
    for (memory, locker) in stores() {
        let leader = locker.lock("leader").await.unwrap();
        let guard = locker.lock("a").await.unwrap();
        for _ in 0..40 {
            memory.control().fail_next(Call::Release, ErrorKind::Denied);
        }
        drop(guard);
        pass(secs(100)).await;
        assert!(!memory.control().claims().iter().any(|(held, ..)| *held == key("a")), "still taken, by nobody");
        assert_eq!(leader.check(), Ok(()));
    }
}

#[test]
fn a_keeper_dropped_before_its_first_poll_is_started_again() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let memory = Memory::queue();
    let locker = support::locker(&memory);
    let first = runtime();
    first.block_on(async {
        let mut lock = std::pin::pin!(locker.lock("a").into_future());
        assert!(futures_util::poll!(&mut lock).is_pending());
    });
    drop(first);
    let outcome = runtime().block_on(async { locker.lock("a").wait_at_most(secs(3)).await.map(drop) });
    assert!(outcome.is_ok(), "{:?}", outcome.unwrap_err());
}

#[test]
fn a_lock_is_kept_from_a_second_runtime_while_the_first_is_not_driven() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let memory = Memory::builder(Profile::Queue).build();
    let locker = Locker::builder(memory.clone()).ttl(secs(6)).build().unwrap();
    let (idle, driven) = (runtime(), runtime());
    idle.block_on(async { locker.lock("a").await.unwrap().release().await.unwrap() });
    driven.block_on(async {
        // The keeper was promised to be heard of within a third of the ttl.
        tokio::time::sleep(secs(3)).await;
        let guard = locker.lock("a").await.unwrap();
        let renewals = memory.control().calls(Call::Renew);
        // By the third the session is older than its ttl.
        let renewed = async {
            while memory.control().calls(Call::Renew) < renewals + 3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(secs(30), renewed).await.expect("nobody renews it");
        assert_eq!(guard.check(), Ok(()));
        guard.release().await.unwrap();
    });
    // The first keeper finds that it was replaced, and leaves the session alone.
    idle.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
    driven.block_on(async { assert!(locker.try_lock("a").await.unwrap().is_some()) });
}

#[test]
fn cancellation_fires_on_another_runtime_than_the_keepers() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let memory = Memory::queue();
    let locker = Locker::builder(memory.clone()).ttl(Duration::from_millis(300)).build().unwrap();
    let first = runtime();
    let guard = first.block_on(locker.lock("a").into_future()).unwrap();
    drop(first);
    memory.control().outage(Some(Outage::Hanging));
    runtime().block_on(async { guard.cancellation().cancelled().await });
    assert!(guard.check().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_release_is_not_told_as_lost_before() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().lose_reply_of_next(Call::Release);
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_the_reason_even_if_the_audit_answers_before_the_renewal() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        pass(secs(1)).await;
        memory.control().delay_next(Call::Renew, Duration::from_millis(200));
        assert!(memory.control().expire_session_of(&key("a")));
        assert_eq!(guard.lost().await, Loss::SessionGone);
    }
}

#[tokio::test(start_paused = true)]
async fn work_guarded_by_a_witness_is_dropped_when_the_lock_is_given_back() {
    for (_, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let held = guard.held();
        let work = tokio::spawn(async move { held.guarded(std::future::pending::<()>()).await });
        pass(secs(1)).await;
        guard.release().await.unwrap();
        let begun = Instant::now();
        assert_eq!(work.await.unwrap().unwrap_err().reason, Loss::Released);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_told_apart_from_one_that_fails() {
    for (outage, told) in
        [(Outage::Hanging, "it did not answer in time"), (Outage::Failing, "no session could be opened at the store")]
    {
        for (memory, locker) in stores() {
            memory.control().outage(Some(outage));
            let error = locker.ready(secs(3)).await.unwrap_err();
            assert!(error.to_string().ends_with(told), "{error}");
            assert_eq!(std::error::Error::source(&error).is_some(), outage == Outage::Failing, "{error:?}");
        }
    }
}
