//! What only the store in memory can show of taking and holding a lock, on both profiles, in virtual time.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock::{ErrorKind, InvalidOptions, Limits, LockError, Locker, Loss, TtlRange};
use dlock_testkit::memory::{Call, Memory, Profile};
use support::{key, pass, secs, stores};
use tokio::task::JoinSet;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn many_tasks_on_one_key_never_overlap_and_are_served_in_order() {
    for (memory, locker) in stores() {
        let (inside, served) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = JoinSet::new();
        for n in 0..50 {
            let (locker, inside, served) = (locker.clone(), Arc::clone(&inside), Arc::clone(&served));
            tasks.spawn(async move {
                let guard = locker.lock("a").await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                served.lock().unwrap().push(n);
                tokio::time::sleep(Duration::from_millis(3)).await;
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                guard.release().await.unwrap();
            });
        }
        tasks.join_all().await;
        assert_eq!(*served.lock().unwrap(), (0..50).collect::<Vec<_>>());
        let granted = memory.control().grants(&key("a"));
        assert!(granted.windows(2).all(|pair| pair[0].token < pair[1].token));
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
