//! Taking, waiting for, and giving back a lock, on both profiles of the store in memory, in virtual time.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock::{ErrorKind, InvalidOptions, Limits, LockError, Locker, Loss, ReleaseOutcome, RetryPolicy, RunError, TtlRange};
use dlock_testkit::memory::{Call, Memory, Profile};
use support::{TTL, key, locker, pass, secs, stores};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[tokio::test(start_paused = true)]
async fn a_free_lock_is_taken_held_and_given_back() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        assert_eq!(guard.check(), Ok(()));
        assert_eq!(memory.control().claims().len(), 1);
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
        assert!(memory.control().claims().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_held_for_as_long_as_it_is_wanted() {
    for (_memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        for _ in 0..100 {
            pass(secs(7)).await;
            assert_eq!(guard.check(), Ok(()));
            assert!(guard.remaining() > TTL / 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_finds_it_taken_here_without_a_request_and_elsewhere_with_one() {
    for (memory, locker) in stores() {
        let _guard = locker.lock("a").await.unwrap();
        let claims = memory.control().calls(Call::Claim);
        assert!(locker.try_lock("a").await.unwrap().is_none());
        assert_eq!(memory.control().calls(Call::Claim), claims);

        let other = support::locker(&memory);
        assert!(other.try_lock("a").await.unwrap().is_none());
        assert_eq!(memory.control().claims().len(), 1);
        assert_eq!(memory.control().calls(Call::Claim), claims + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_elsewhere_gets_it_at_once_with_a_greater_token() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let token = guard.token();
        let other = support::locker(&memory);
        let waiter = tokio::spawn(async move { other.lock("a").await.map(|guard| (guard.token(), Instant::now())) });
        pass(secs(40)).await;
        let released = Instant::now();
        guard.release().await.unwrap();
        let (later, at) = waiter.await.unwrap().unwrap();
        assert!(later > token);
        assert!(at - released < Duration::from_millis(5), "{:?}", at - released);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_in_time_and_names_the_holder() {
    for (memory, locker) in stores() {
        let _guard = locker.lock("a").await.unwrap();
        let other = Locker::builder(memory.clone()).ttl(TTL).name("second").build().unwrap();
        let begun = Instant::now();
        let error = other.lock("a").wait_at_most(secs(3)).await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), 3);
        let LockError::TimedOut { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
        assert_eq!(holder.owner(), Some(locker.owner()));
        assert!(error.to_string().contains(locker.owner()), "{error}");
        pass(secs(1)).await;
        assert_eq!(memory.control().claims().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn time_at_the_gate_counts() {
    for (_memory, locker) in stores() {
        let _guard = locker.lock("a").await.unwrap();
        let begun = Instant::now();
        assert!(matches!(locker.lock("a").wait_at_most(secs(2)).await, Err(LockError::TimedOut { .. })));
        assert_eq!(begun.elapsed().as_secs(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_can_be_cancelled() {
    for (memory, locker) in stores() {
        let _guard = locker.lock("a").await.unwrap();
        for waiter in [support::locker(&memory), locker.clone()] {
            let token = CancellationToken::new();
            let waiting = tokio::spawn(waiter.lock("a").cancel_on(token.clone()).into_future());
            pass(secs(1)).await;
            token.cancel();
            assert!(matches!(waiting.await.unwrap(), Err(LockError::Cancelled { .. })));
        }
        pass(secs(1)).await;
        assert_eq!(memory.control().claims().len(), 1, "{:?} {:?}", memory.control().claims(), memory.control().sessions());
    }
}

#[tokio::test(start_paused = true)]
async fn many_tasks_on_one_key_never_overlap_and_are_served_in_order() {
    for (memory, locker) in stores() {
        let inside = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..50 {
            let (locker, inside) = (locker.clone(), Arc::clone(&inside));
            tasks.spawn(async move {
                let guard = locker.lock("a").await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::time::sleep(Duration::from_millis(3)).await;
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                let token = guard.token();
                guard.release().await.unwrap();
                token
            });
        }
        let tokens = tasks.join_all().await;
        assert_eq!(tokens.len(), 50);
        let granted = memory.control().grants(&key("a"));
        assert!(granted.windows(2).all(|pair| pair[0].token < pair[1].token));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handover_within_a_process_costs_two_calls() {
    for (memory, locker) in stores() {
        locker.ready(secs(1)).await.unwrap();
        memory.control().reset_calls();
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let locker = locker.clone();
            tasks.spawn(async move {
                let guard = locker.lock("a").await.unwrap();
                guard.release().await.unwrap();
            });
        }
        tasks.join_all().await;
        assert_eq!(memory.control().calls(Call::Claim), 100);
        assert_eq!(memory.control().calls(Call::Release), 100);
        assert_eq!(memory.control().all_calls(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn many_local_turns_let_a_remote_waiter_in() {
    let memory = Memory::slot();
    let locker = locker(&memory);
    let guard = locker.lock("a").await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..200 {
        let locker = locker.clone();
        tasks.spawn(async move {
            let _guard = locker.lock("a").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        });
    }
    let remote = support::locker(&memory);
    let remote = tokio::spawn(async move { remote.lock("a").await.map(drop) });
    pass(secs(1)).await;
    drop(guard);
    tokio::time::timeout(secs(1), remote).await.expect("the remote waiter starves").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn concurrent_acquisitions_share_one_session() {
    for (memory, locker) in stores() {
        let mut tasks = JoinSet::new();
        for n in 0..20 {
            tasks.spawn(locker.lock(format!("k{n}")).into_future());
        }
        let guards = tasks.join_all().await;
        assert!(guards.iter().all(Result::is_ok));
        assert_eq!(memory.control().calls(Call::Open), 1);
        assert_eq!(memory.control().sessions().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_kept_by_whom_the_user_says() {
    let (memory, (keep, mut kept)) = (Memory::queue(), tokio::sync::mpsc::unbounded_channel());
    let locker = Locker::builder(memory.clone()).spawn_with(move |task| keep.send(task).unwrap()).build().unwrap();
    let mut acquiring = locker.lock("a").into_future();
    assert!(tokio::time::timeout(secs(1), &mut acquiring).await.is_err());
    assert_eq!(memory.control().all_calls(), 0, "nobody runs the task yet");
    tokio::spawn(kept.try_recv().unwrap());
    let guard = acquiring.await.unwrap();
    pass(secs(60)).await;
    assert_eq!(guard.check(), Ok(()));
    assert!(kept.try_recv().is_err(), "one task keeps one session");
}

#[tokio::test(start_paused = true)]
async fn run_gives_back_and_a_failed_release_does_not_hide_the_value() {
    for (memory, locker) in stores() {
        let value = locker.lock("a").run(|held| async move { held.token().is_some() }).await.unwrap();
        assert!(value);
        assert!(memory.control().claims().is_empty());
        for _ in 0..20 {
            memory.control().hang_next(Call::Release);
        }
        assert_eq!(locker.lock("a").run(|_| async { 5 }).await.unwrap(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn run_drops_the_work_on_loss() {
    for (memory, locker) in stores() {
        let work = locker.lock("a").run(|_| std::future::pending::<()>());
        let control = memory.control();
        let (outcome, ()) = tokio::join!(work, async {
            pass(secs(1)).await;
            assert!(control.expire_session_of(&key("a")));
        });
        let Err(RunError::Lost(lost)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(lost.reason, Loss::SessionGone);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_not_held_longer_than_at_most() {
    for (memory, locker) in stores() {
        let begun = Instant::now();
        let guard = locker.lock("a").hold_at_most(secs(5)).await.unwrap();
        assert_eq!(guard.lost().await, Loss::HeldTooLong);
        assert_eq!(begun.elapsed().as_secs(), 5);
        pass(Duration::from_millis(100)).await;
        assert!(memory.control().claims().is_empty(), "given back although the guard lives");
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_not_given_back_earlier_than_at_least() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").hold_at_least(secs(60)).await.unwrap();
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Deferred));
        let other = support::locker(&memory);
        pass(secs(58)).await;
        assert!(other.try_lock("a").await.unwrap().is_none());
        assert!(locker.try_lock("a").await.unwrap().is_none());
        pass(secs(3)).await;
        assert!(other.try_lock("a").await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn stop_before_tells_ahead_of_the_deadline() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").stop_before(secs(4)).await.unwrap();
        let plain = locker.lock("b").await.unwrap();
        memory.control().outage(Some(dlock_testkit::memory::Outage::Hanging));
        let begun = Instant::now();
        let token = guard.cancellation();
        token.cancelled().await;
        let early = begun.elapsed();
        assert_eq!(plain.check(), Ok(()));
        assert_eq!(plain.lost().await, Loss::Expired);
        let gap = begun.elapsed().saturating_sub(early);
        assert!(gap >= Duration::from_millis(3_990) && gap < Duration::from_millis(4_010), "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_to_stop_of_hold_at_most_is_not_given_away() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").hold_at_most(secs(10)).stop_before(secs(3)).await.unwrap();
        let begun = Instant::now();
        let other = support::locker(&memory);
        let waiter = tokio::spawn(async move {
            let guard = other.lock("a").await.unwrap();
            (Instant::now(), guard)
        });
        assert_eq!(guard.lost().await, Loss::HeldTooLong);
        assert_eq!(begun.elapsed().as_secs(), 7);
        let (at, _guard) = waiter.await.unwrap();
        assert_eq!((at - begun).as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_to_stop_ahead_of_the_deadline_is_not_given_away() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").stop_before(secs(5)).await.unwrap();
        let other = support::locker(&memory);
        let waiter = tokio::spawn(async move {
            let guard = other.lock("a").await.unwrap();
            (Instant::now(), guard)
        });
        pass(secs(1)).await;
        for _ in 0..100 {
            memory.control().fail_next(Call::Renew, ErrorKind::Transient);
        }
        assert_eq!(guard.lost().await, Loss::Expired);
        let told = Instant::now();
        let (at, _guard) = waiter.await.unwrap();
        assert!(at - told >= secs(4), "given to another {:?} after loss was told", at - told);
    }
}

#[tokio::test(start_paused = true)]
async fn who_stops_early_gives_the_lock_back_early() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").hold_at_most(secs(10)).stop_before(secs(3)).await.unwrap();
        guard.lost().await;
        drop(guard);
        pass(Duration::from_millis(10)).await;
        assert!(memory.control().claims().is_empty());
    }
}

#[tokio::test]
async fn a_tiny_hold_at_most_is_no_hot_loop() {
    let memory = Memory::queue();
    let locker = support::locker(&memory);
    let guard = locker.lock("a").hold_at_most(Duration::from_nanos(1)).await.unwrap();
    assert_eq!(guard.lost().await, Loss::HeldTooLong);
    assert_eq!(memory.control().calls(Call::Claim), 1);
}

/// A locker whose session is believed for so short a time only that a `stop_before` of 5 s has come.
async fn suspect() -> (Memory, Locker) {
    let memory = Memory::slot();
    let locker = support::locker(&memory);
    locker.ready(secs(1)).await.unwrap();
    for _ in 0..1000 {
        memory.control().fail_next(Call::Renew, ErrorKind::Transient);
    }
    pass(secs(11)).await;
    memory.control().reset_calls();
    (memory, locker)
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_a_suspect_session_is_granted_and_lost_at_once_to_who_needs_time() {
    let (memory, locker) = suspect().await;
    let guard = locker.lock("a").stop_before(secs(5)).await.unwrap();
    assert_eq!(guard.lost().await, Loss::Expired);
    assert_eq!(memory.control().calls(Call::Claim), 1, "asked in a loop");
}

#[tokio::test(start_paused = true)]
async fn a_try_does_not_say_taken_of_what_nobody_else_holds() {
    let (_memory, locker) = suspect().await;
    assert!(locker.try_lock("a").stop_before(secs(5)).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn check_for_knows_how_much_is_left() {
    for (_memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        assert_eq!(guard.check_for(secs(9)), Ok(()));
        assert!(guard.check_for(secs(15)).is_err());
        assert!(guard.valid_until() <= Instant::now() + TTL);
    }
}

#[tokio::test(start_paused = true)]
async fn a_witness_that_outlives_its_guard_stops_believing() {
    for (_memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let held = guard.held();
        guard.release().await.unwrap();
        assert_eq!(held.check().unwrap_err().reason, Loss::Released);
        let lost = tokio::time::timeout(secs(100), held.lost()).await;
        assert!(lost.is_err(), "a release is no loss");
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_and_holder_are_there_for_others_to_read() {
    for (_memory, locker) in stores() {
        let _guard = locker.lock("a").metadata("job", "nightly").await.unwrap();
        let seen = locker.inspect("a").await.unwrap();
        let holder = &seen.holders[0];
        assert_eq!(holder.owner(), Some(locker.owner()));
        assert!(holder.acquired_at().is_some_and(|at| at.ends_with('Z') && at.contains('T')));
        assert_eq!(holder.published.metadata().and_then(|metadata| metadata.get("job")), Some("nightly"));
        assert!(locker.inspect("b").await.unwrap().holders.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_store_cannot_take_is_refused_before_anything_is_sent() {
    let range = TtlRange { min: secs(10), max: secs(100) };
    let memory = Memory::builder(Profile::Slot).ttl_range(range).limits(Limits { key_bytes: 8, metadata_bytes: 1000 }).build();
    let error = Locker::builder(memory.clone()).ttl(secs(9)).build().unwrap_err();
    assert_eq!(error, InvalidOptions::TtlOutOfRange { ttl: secs(9), range });
    let locker = support::locker(&memory);
    let error = locker.lock("ninechars").await.unwrap_err();
    assert!(matches!(error, LockError::Options(InvalidOptions::KeyTooLong { bytes: 9, limit: 8 })), "{error}");
    assert!(locker.lock("eight888").await.is_ok());
    assert_eq!(memory.control().calls(Call::Claim), 1);
}

#[tokio::test(start_paused = true)]
async fn a_range_of_ttls_that_is_the_wrong_way_round_is_refused_and_no_panic() {
    let range = TtlRange { min: secs(100), max: secs(10) };
    let memory = Memory::builder(Profile::Slot).ttl_range(range).build();
    let error = Locker::builder(memory.clone()).build().unwrap_err();
    assert!(matches!(error, InvalidOptions::TtlOutOfRange { range: refused, .. } if refused == range), "{error}");
    _ = Locker::new(memory);
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_before_anything_is_sent() {
    for (memory, locker) in stores() {
        for name in ["", "a//b", "../a", "a\0"] {
            assert!(matches!(locker.lock(name).await, Err(LockError::Key(_))), "{name:?}");
            assert!(matches!(locker.try_lock(name).await, Err(LockError::Key(_))), "{name:?}");
        }
        let refused = |error: LockError| match error {
            LockError::Options(options) => options,
            other => panic!("{other:?}"),
        };
        let error = refused(locker.lock("a").metadata("owner", "me").await.unwrap_err());
        assert!(error.to_string().contains("reserved"), "{error}");
        let error = refused(locker.lock("a").metadata("big", "x".repeat(70_000)).await.unwrap_err());
        assert!(matches!(error, InvalidOptions::MetadataTooLarge { limit: 65_536, .. }), "{error}");
        let error = refused(locker.lock("a").stop_before(secs(14)).await.unwrap_err());
        assert!(matches!(error, InvalidOptions::StopBeforeTooLong { .. }), "{error}");
        let error = refused(locker.lock("a").hold_at_least(secs(9)).hold_at_most(secs(5)).await.unwrap_err());
        assert!(matches!(error, InvalidOptions::HoldAtLeastAboveMost { .. }), "{error}");
        let error = refused(locker.lock("a").hold_at_most(Duration::ZERO).await.unwrap_err());
        assert_eq!(error, InvalidOptions::HoldsNothing);
        let error = refused(locker.lock("a").hold_at_most(secs(2)).stop_before(secs(2)).await.unwrap_err());
        assert!(matches!(error, InvalidOptions::StopBeforeAboveHoldAtMost { .. }), "{error}");
        let error = refused(locker.lock("a").retry(RetryPolicy::default().factor(0)).await.unwrap_err());
        assert!(error.to_string().contains("at least 1"), "{error}");
        assert_eq!(memory.control().all_calls(), 0);
        let error = Locker::builder(memory.clone()).ttl(Duration::from_millis(10)).build().unwrap_err();
        assert!(matches!(error, InvalidOptions::TtlTooShort { .. }), "{error}");
        let error = Locker::builder(memory).ttl(secs(100_000)).build().unwrap_err();
        assert!(error.to_string().contains("set up for a ttl from"), "{error}");
    }
}
