//! Shared locks and permits, as users hold them, on the store in memory in virtual time.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dlock::{ErrorKind, InvalidOptions, LockError, Locker};
use dlock_core::Mode;
use dlock_testkit::memory::Memory;
use support::{key, secs};
use tokio::task::JoinSet;

fn locker(memory: &Memory) -> Locker {
    Locker::new(memory.clone())
}

/// How many are inside, and how many there were at most.
#[derive(Debug, Default)]
struct Room {
    inside: AtomicUsize,
    most: AtomicUsize,
}

impl Room {
    fn enter(&self) -> usize {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        inside
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn readers_share_and_never_beside_a_writer() {
    let memory = Memory::queue();
    let (readers, writers) = (Arc::new(Room::default()), Arc::new(Room::default()));
    let mut tasks = JoinSet::new();
    for process in 0..3 {
        let locker = locker(&memory);
        for task in 0..20_u64 {
            let (locker, readers, writers) = (locker.clone(), Arc::clone(&readers), Arc::clone(&writers));
            tasks.spawn(async move {
                tokio::time::sleep(Duration::from_millis((task * 7 + process * 3) % 40)).await;
                let is_writer = task % 5 == 0;
                let guard = if is_writer { locker.lock("a").await } else { locker.shared("a").await }.unwrap();
                assert_eq!(guard.token().is_some(), is_writer, "no order separates those who share");
                let (mine, others) = if is_writer { (&writers, &readers) } else { (&readers, &writers) };
                assert!(mine.enter() == 1 || !is_writer);
                assert_eq!(others.inside.load(Ordering::SeqCst), 0);
                tokio::time::sleep(Duration::from_millis(5)).await;
                mine.leave();
                guard.release().await.unwrap();
            });
        }
    }
    tasks.join_all().await;
    assert!(readers.most.load(Ordering::SeqCst) > 5 && writers.most.load(Ordering::SeqCst) == 1, "{readers:?} {writers:?}");
    assert_eq!(memory.control().claims(), []);
}

#[tokio::test(start_paused = true)]
async fn as_many_permits_are_held_as_there_are_and_never_more() {
    let memory = Memory::queue();
    let room = Arc::new(Room::default());
    let mut tasks = JoinSet::new();
    for _ in 0..3 {
        let locker = locker(&memory);
        for _ in 0..10 {
            let (locker, room) = (locker.clone(), Arc::clone(&room));
            tasks.spawn(async move {
                let guard = locker.permits("a", 4).await.unwrap();
                assert_eq!((guard.token(), guard.mode()), (None, Mode::Permits(4.try_into().unwrap())));
                assert!(room.enter() <= 4);
                tokio::time::sleep(Duration::from_millis(5)).await;
                room.leave();
                guard.release().await.unwrap();
            });
        }
    }
    tasks.join_all().await;
    assert_eq!(room.most.load(Ordering::SeqCst), 4);
    assert_eq!(memory.control().claims(), []);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_writer_is_not_kept_out_by_readers_that_come_later() {
    let memory = Memory::queue();
    let (ours, theirs) = (locker(&memory), locker(&memory));
    let reading = ours.shared("a").await.unwrap();
    let writer = tokio::spawn({
        let theirs = theirs.clone();
        async move { theirs.lock("a").await.unwrap() }
    });
    tokio::time::sleep(secs(1)).await;
    assert!(ours.try_shared("a").await.unwrap().is_none(), "the writer came first");
    let later = tokio::spawn(async move { ours.shared("a").await.unwrap() });
    tokio::time::sleep(secs(1)).await;
    reading.release().await.unwrap();
    let writing = writer.await.unwrap();
    assert!(!later.is_finished());
    writing.release().await.unwrap();
    later.await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_shares_is_told_of_loss_and_leaves_nothing_like_any_other() {
    let memory = Memory::queue();
    let locker = locker(&memory);
    let guards = [locker.shared("a").await.unwrap(), locker.permits("b", 2).await.unwrap()];
    for session in memory.control().sessions() {
        memory.control().end_session(&session);
    }
    for guard in &guards {
        assert_eq!(guard.lost().await, dlock::Loss::SessionGone, "{guard:?}");
        assert!(guard.check().is_err());
    }
    let dropped = locker.shared("a").await.unwrap();
    drop(dropped);
    let report = locker.shutdown(secs(5)).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(memory.control().claims(), []);
}

#[tokio::test(start_paused = true)]
async fn permits_of_another_number_are_refused_with_both() {
    let memory = Memory::queue();
    let locker = locker(&memory);
    let held = locker.permits("a", 3).await.unwrap();
    let error = locker.permits("a", 5).await.unwrap_err();
    let LockError::Store { cause, .. } = &error else { panic!("{error:?}") };
    assert_eq!(cause.kind(), ErrorKind::Conflict);
    assert!(cause.to_string().contains("3 permits") && cause.to_string().contains("5 permits"), "{cause}");
    held.release().await.unwrap();
    locker.permits("a", 5).await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_store_does_not_grant_is_refused_before_anything_is_sent() {
    let memory = Memory::slot();
    let locker = locker(&memory);
    for refused in [locker.shared("a").await, locker.permits("a", 2).await] {
        let error = refused.unwrap_err();
        assert!(matches!(error, LockError::Options(InvalidOptions::NotGranted { .. })), "{error:?}");
    }
    let none = locker.permits("a", 0).await.unwrap_err();
    assert!(matches!(none, LockError::Options(InvalidOptions::NoPermits)), "{none:?}");
    assert_eq!(memory.control().all_calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_share_do_not_wait_for_one_another_in_their_process() {
    let memory = Memory::queue();
    let locker = locker(&memory);
    let guards = [locker.shared("a").await.unwrap(), locker.shared("a").await.unwrap(), locker.shared("a").await.unwrap()];
    assert_eq!(memory.control().claims().len(), 3);
    assert_eq!(memory.control().sessions().len(), 1);
    assert!(locker.try_lock("a").await.unwrap().is_none());
    drop(guards);
    let writing = locker.lock("a").await.unwrap();
    assert_eq!(writing.key(), &key("a"));
}
