//! Several keys at once, as users hold them, on the store in memory in virtual time.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock::{InvalidOptions, LockError, Locker, Loss, OwnershipError, ReleaseOutcome, Requirement};
use dlock_testkit::memory::{Call, Memory};
use support::{key, secs, stores};
use tokio::task::JoinSet;
use tokio::time::Instant;

const KEYS: [&str; 3] = ["a", "b", "c"];

#[tokio::test(start_paused = true)]
async fn free_keys_are_taken_in_one_request_and_given_back_together() {
    for (memory, locker) in stores() {
        locker.ready(secs(1)).await.unwrap();
        memory.control().reset_calls();
        let guard = locker.lock_all(["c", "a", "b", "a"]).metadata("job", "merge").await.unwrap();
        assert_eq!(memory.control().calls(Call::Claim), 1);
        let keys: Vec<_> = guard.locks().iter().map(|held| held.key().to_string()).collect();
        assert_eq!(keys, KEYS, "sorted, and each once");
        for held in guard.locks() {
            assert!(held.token().is_some() && held.metadata().get("job") == Some("merge"), "{held:?}");
            assert!(locker.try_lock(held.key()).await.unwrap().is_none());
        }
        assert!(guard.get("b").is_some() && guard.get("d").is_none());
        assert_eq!(guard.check(), Ok(()));
        let outcomes = guard.release().await;
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Ok(ReleaseOutcome::Released)), "{outcomes:?}");
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_taken_key_is_waited_for_and_named_when_it_does_not_come() {
    for (memory, locker) in stores() {
        let other = Locker::new(memory.clone());
        let blocking = other.lock("b").await.unwrap();
        let (began, most) = (Instant::now(), Duration::from_millis(700));
        let error = locker.lock_all(KEYS).wait_at_most(most).await.unwrap_err();
        assert_eq!(began.elapsed(), most, "one budget for all");
        let LockError::TimedOut { key: culprit, waited, holder, .. } = error else { panic!("{error:?}") };
        assert_eq!((culprit, waited), (key("b"), most));
        assert_eq!(holder.unwrap().owner(), Some(other.owner()));
        tokio::time::sleep(secs(1)).await;
        assert_eq!(memory.control().claims().len(), 1, "what was got is given back");
        let (waiting, free) = tokio::join!(locker.lock_all(KEYS).into_future(), async {
            tokio::time::sleep(secs(1)).await;
            blocking.release().await.unwrap()
        });
        assert_eq!(free, ReleaseOutcome::Released);
        assert_eq!(waiting.unwrap().check(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn overlapping_sets_in_any_order_never_wait_in_a_circle_and_leave_nothing() {
    for (memory, _) in stores() {
        let inside: Arc<[AtomicU32; 6]> = Arc::default();
        let mut draws = fastrand::Rng::with_seed(7);
        let mut tasks = JoinSet::new();
        for task in 0..20 {
            let locker = Locker::new(memory.clone());
            let mut keys: Vec<usize> = (0..6).collect();
            draws.shuffle(&mut keys);
            keys.truncate(draws.usize(1..=4));
            let (inside, pause) = (Arc::clone(&inside), draws.u64(..20));
            tasks.spawn(async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                for _ in 0..5 {
                    let guard = locker.lock_all(keys.iter().map(|n| format!("k{n}"))).await.unwrap();
                    for n in &keys {
                        assert_eq!(inside[*n].fetch_add(1, Ordering::SeqCst), 0, "task {task}");
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    for n in &keys {
                        inside[*n].fetch_sub(1, Ordering::SeqCst);
                    }
                    drop(guard);
                }
                locker.shutdown(secs(5)).await
            });
        }
        let reports = tokio::time::timeout(secs(600), tasks.join_all()).await.expect("nobody waits for ever");
        assert!(reports.iter().all(dlock::ShutdownReport::is_clean), "{reports:?}");
        assert_eq!(memory.control().claims(), []);
        assert_eq!(memory.control().sessions(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_any_is_the_loss_of_all() {
    for (memory, locker) in stores() {
        let guard = locker.lock_all(KEYS).await.unwrap();
        let (held, cancelled) = (guard.held(), guard.cancellation());
        let work = tokio::spawn(async move { held.guarded(std::future::pending::<()>()).await });
        tokio::time::sleep(secs(1)).await;
        memory.control().delete(&key("b"));
        let lost = guard.lost().await;
        assert_eq!((lost.key.clone(), lost.reason), (key("b"), Loss::KeyDeleted));
        assert_eq!(work.await.unwrap(), Err(lost.clone()));
        cancelled.cancelled().await;
        assert_eq!(guard.check(), Err(lost));
        let outcomes = guard.release().await;
        assert_eq!(outcomes.len(), 3);
        tokio::time::sleep(secs(1)).await;
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_at_any_poll_leaves_nothing() {
    for taken in [None, Some("b")] {
        for polls in 0..30 {
            for (memory, locker) in stores() {
                let other = Locker::new(memory.clone());
                let blocking = match taken {
                    Some(taken) => Some(other.lock(taken).await.unwrap()),
                    None => None,
                };
                {
                    let mut request = std::pin::pin!(locker.lock_all(KEYS).into_future());
                    for _ in 0..polls {
                        if futures_util::poll!(&mut request).is_ready() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                drop(blocking);
                tokio::time::sleep(secs(2)).await;
                assert_eq!(memory.control().claims(), [], "{taken:?} dropped after {polls} polls");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_undone_and_asked_anew() {
    for (memory, locker) in stores() {
        for taken in [false, true] {
            memory.control().lose_reply_of_next(Call::Claim);
            let guard = locker.lock_all(KEYS).await.unwrap();
            assert_eq!(memory.control().claims().len(), 3, "{taken}");
            drop(guard);
            tokio::time::sleep(secs(1)).await;
            assert_eq!(memory.control().claims(), []);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_nothing_is_asked_with_pauses_and_given_up_by_the_policy() {
    for (memory, locker) in stores() {
        locker.ready(secs(1)).await.unwrap();
        memory.control().reset_calls();
        for _ in 0..3 {
            memory.control().fail_next(Call::Claim, dlock::ErrorKind::Ambiguous);
        }
        let began = Instant::now();
        let policy = dlock::RetryPolicy::fixed(secs(1)).attempts(2);
        let error = locker.lock_all(KEYS).retry(policy).await.unwrap_err();
        let LockError::Store { cause, .. } = &error else { panic!("{error:?}") };
        assert_eq!(cause.kind(), dlock::ErrorKind::Ambiguous);
        assert!(began.elapsed() >= secs(1) && memory.control().calls(Call::Claim) <= 4, "{:?}", began.elapsed());
        tokio::time::sleep(secs(20)).await;
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_not_yet_waited_for_are_in_nobodys_way() {
    for (memory, locker) in stores() {
        let other = Locker::new(memory.clone());
        let blocking = other.lock("a").await.unwrap();
        let waiting = tokio::spawn(locker.lock_all(KEYS).into_future());
        tokio::time::sleep(secs(1)).await;
        let free = locker.try_lock("c").await.unwrap();
        assert!(free.is_some(), "also for the same process");
        drop(free);
        blocking.release().await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().check(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_taken_away_while_the_rest_is_waited_for_is_taken_again() {
    for (memory, locker) in stores() {
        let other = Locker::new(memory.clone());
        let blocking = other.lock("c").await.unwrap();
        let waiting = tokio::spawn(locker.lock_all(KEYS).into_future());
        tokio::time::sleep(secs(20)).await;
        assert!(memory.control().release_by_force(&key("a")));
        let thief = other.lock("a").await.unwrap();
        blocking.release().await.unwrap();
        tokio::time::sleep(secs(1)).await;
        assert!(!waiting.is_finished(), "another holds one of them");
        thief.release().await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().check(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_one_cancels_what_runs_under_all_and_not_what_runs_under_another() {
    for (memory, locker) in stores() {
        let guard = locker.lock_all(KEYS).await.unwrap();
        let (all, lost, kept) = (guard.cancellation(), guard.locks()[0].cancellation(), guard.locks()[1].cancellation());
        tokio::time::sleep(secs(1)).await;
        memory.control().release_by_force(&key("a"));
        lost.cancelled().await;
        all.cancelled().await;
        assert!(!kept.is_cancelled());
        assert!(guard.cancellation().is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_the_rest_is_waited_for_begins_anew() {
    for (memory, locker) in stores() {
        let other = Locker::new(memory.clone());
        let blocking = other.lock("b").await.unwrap();
        let ours = |memory: &Memory| {
            let theirs =
                memory.control().claims().iter().find(|(held, ..)| *held == key("b")).map(|(_, session, _)| session.clone());
            memory.control().sessions().into_iter().find(|session| Some(session) != theirs.as_ref())
        };
        let waiting = tokio::spawn(locker.lock_all(KEYS).into_future());
        tokio::time::sleep(secs(1)).await;
        let session = ours(&memory).unwrap();
        memory.control().end_session(&session);
        tokio::time::sleep(secs(10)).await;
        blocking.release().await.unwrap();
        let guard = waiting.await.unwrap().unwrap();
        assert_eq!(guard.check(), Ok(()));
        assert_eq!(memory.control().claims().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_to_hold_begins_once_all_are_held() {
    for (memory, locker) in stores() {
        let other = Locker::new(memory.clone());
        let blocking = other.lock("c").await.unwrap();
        let waiting = tokio::spawn(locker.lock_all(KEYS).hold_at_most(secs(3)).into_future());
        tokio::time::sleep(secs(10)).await;
        blocking.release().await.unwrap();
        let guard = waiting.await.unwrap().unwrap();
        let began = Instant::now();
        assert_eq!(guard.lost().await.reason, Loss::HeldTooLong);
        assert_eq!(began.elapsed(), secs(3));
    }
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_before_anything_is_sent() {
    for (memory, locker) in stores() {
        let none = locker.lock_all::<&str>([]).await.unwrap_err();
        assert!(matches!(none, LockError::Options(InvalidOptions::NoKeys)), "{none:?}");
        let bad = locker.lock_all(["a", "//"]).await.unwrap_err();
        assert!(matches!(bad, LockError::Key(_)), "{bad:?}");
        assert_eq!(memory.control().all_calls(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn more_keys_than_the_store_takes_at_once_are_taken_one_by_one() {
    let memory = Memory::queue();
    let locker = Locker::new(memory.clone());
    let keys: Vec<String> = (0..40).map(|n| format!("k{n:02}")).collect();
    let value = locker.lock_all(&keys).run(|held| async move { held.locks().len() }).await.unwrap();
    assert_eq!(value, 40);
    tokio::time::sleep(secs(1)).await;
    assert_eq!(memory.control().claims(), []);
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_a_condition_for_as_long_as_it_is_the_present_one() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let ownership = guard.ownership().unwrap();
        assert!(memory.control().owns(&ownership));
        memory.control().release_by_force(&key("a"));
        let next = Locker::new(memory.clone()).lock("a").await.unwrap();
        assert!(!memory.control().owns(&ownership), "even where nobody has heard of it yet");
        assert!(memory.control().owns(&next.ownership().unwrap()));
        guard.lost().await;
        assert!(matches!(guard.ownership(), Err(OwnershipError::Lost(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_program_relies_on_is_said_at_start() {
    let (queue, slot) = (Locker::new(Memory::queue()), Locker::new(Memory::slot()));
    let needed =
        [Requirement::Fifo, Requirement::Shared, Requirement::Permits, Requirement::AllAtOnce(8), Requirement::GuardedWrites];
    assert_eq!(queue.require(needed), Ok(()));
    let unmet = slot.require(needed).unwrap_err();
    assert_eq!(unmet.missing, [Requirement::Fifo, Requirement::Shared, Requirement::Permits]);
    let told = unmet.to_string();
    assert!(told.contains("first come, first served") && told.contains("shared locks"), "{told}");
    let refused = Locker::builder(Memory::slot()).require([Requirement::Fifo]).build().unwrap_err();
    assert!(matches!(refused, InvalidOptions::Unmet(_)), "{refused:?}");
}
