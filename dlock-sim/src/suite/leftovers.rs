//! Nothing is left behind.

use std::future::IntoFuture;
use std::time::Duration;

use dlock::{ErrorKind, LockError, Loss, ReleaseOutcome};
use dlock_testkit::conformance::{Sent, Shown, Stage, poll_times};
use tokio::time::{Instant, sleep};

use super::{Party, assert_free_within, brief, brief_locker, holders, key, lapsed, locker, steady, steady_locker, within};

/// Wherever the future is dropped, and whatever was under way by then.
pub async fn an_acquisition_dropped_at_any_poll_leaves_nothing(stage: &Stage) -> Shown {
    let observer = locker(stage).await;
    for polls in 1..=12 {
        // A locker of its own for each, so that opening the session is dropped too.
        let (locker, a) = (locker(stage).await, key(stage, &format!("k{polls}")));
        let taken = poll_times(polls, stage.moment() / 50, locker.lock(&a).into_future()).await;
        drop(taken);
        assert_free_within(stage.patience().await * 2, &observer, &a).await;
        // Its gate is open too.
        locker.lock(&a).wait_at_most(stage.patience().await * 5).await.unwrap().release().await.unwrap();
    }
    Ok(())
}

/// The same of one that waits behind another.
pub async fn a_waiting_acquisition_dropped_at_any_poll_leaves_nothing(stage: &Stage) -> Shown {
    let (holder, next) = (locker(stage).await, locker(stage).await);
    for polls in 1..=12 {
        let (waiter, a) = (locker(stage).await, key(stage, &format!("k{polls}")));
        let guard = holder.lock(&a).await.unwrap();
        assert!(poll_times(polls, stage.moment() / 50, waiter.lock(&a).into_future()).await.is_none());
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
        let taken = next.lock(&a).wait_at_most(stage.patience().await * 2).await;
        taken.expect("a dropped waiter is in nobody's way").release().await.unwrap();
    }
    Ok(())
}

/// A lost reply is found out or undone, and costs neither the lock nor anything else.
async fn assert_found_out(stage: &Stage, call: Sent) -> Shown {
    let (locker, ttl, a) = (steady_locker(stage).await, steady(stage).await, key(stage, "a"));
    stage.lose_reply(call)?;
    let guard = locker.lock(&a).await.unwrap();
    sleep(ttl).await;
    assert_eq!(guard.check(), Ok(()));
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released), "also if it was applied the first time");
    assert_eq!(holders(&locker, &a).await, 0);
    // A session whose opening was not answered lapses, one that is retired is closed; neither is renewed.
    let lapsed = lapsed(stage, ttl).await;
    let began = Instant::now();
    while stage.sessions(locker.owner()).await? > 1 {
        assert!(began.elapsed() < lapsed, "a session is left");
        sleep(stage.moment()).await;
    }
    Ok(())
}

/// Of the opening of the session.
pub async fn a_lost_reply_to_an_opening_costs_nothing(stage: &Stage) -> Shown {
    assert_found_out(stage, Sent::Open).await
}

/// Of the claim.
pub async fn a_lost_reply_to_a_claim_costs_nothing(stage: &Stage) -> Shown {
    assert_found_out(stage, Sent::Claim).await
}

/// Of a renewal.
pub async fn a_lost_reply_to_a_renewal_costs_nothing(stage: &Stage) -> Shown {
    assert_found_out(stage, Sent::Renew).await
}

/// Of the release.
pub async fn a_lost_reply_to_a_release_costs_nothing(stage: &Stage) -> Shown {
    assert_found_out(stage, Sent::Release).await
}

/// Given up while its request was under way, and granted to another attempt since: the first never takes effect.
pub async fn a_claim_under_way_past_its_own_release_never_takes_effect(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    // The key has been there before, so that every store can fence.
    locker.lock(&a).await.unwrap().release().await.unwrap();
    let under_way = stage.hold(Sent::Claim)?;
    let waiting = tokio::spawn(locker.lock(&a).into_future());
    under_way.sent().await;
    waiting.abort();
    let guard = locker.lock(&a).wait_at_most(stage.patience().await * 10).await.unwrap();
    guard.release().await.unwrap();
    under_way.deliver().await;
    sleep(stage.moment()).await;
    assert_eq!(holders(&locker, &a).await, 0);
    assert_eq!(stage.sessions(locker.owner()).await?, 1, "in one and the same session");
    Ok(())
}

/// Repeated because it was not answered, and arriving when another holds the lock: it frees nobody's.
pub async fn a_release_under_way_never_frees_a_successor(stage: &Stage) -> Shown {
    let (locker, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    for successor in [&locker, &other] {
        let under_way = stage.hold(Sent::Release)?;
        let guard = locker.lock(&a).await.unwrap();
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released), "the second attempt");
        let later = successor.lock(&a).wait_at_most(stage.patience().await * 2).await.unwrap();
        under_way.deliver().await;
        sleep(stage.moment()).await;
        assert_eq!(holders(&other, &a).await, 1);
        assert_eq!(later.check(), Ok(()));
        assert_eq!(later.release().await, Ok(ReleaseOutcome::Released));
    }
    Ok(())
}

/// What is not released is given back when it is dropped.
pub async fn a_dropped_guard_is_given_back(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    drop(locker.lock(&a).await.unwrap());
    assert_free_within(stage.patience().await, &locker, &a).await;
    Ok(())
}

/// By a thread that knows of no runtime.
pub async fn a_guard_dropped_outside_a_runtime_is_given_back(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    std::thread::spawn(move || drop(guard)).join().unwrap();
    assert_free_within(stage.patience().await, &locker, &a).await;
    Ok(())
}

/// By a panic.
pub async fn a_guard_dropped_by_a_panic_is_given_back(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let panicking = tokio::spawn(async move {
        let _guard = guard;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panicking.await.unwrap_err().is_panic());
    assert_free_within(stage.patience().await, &locker, &a).await;
    Ok(())
}

/// Cut off, dropped, healed: given back in the end, and not renewed for ever.
pub async fn what_was_dropped_while_cut_off_is_given_back(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    stage.cut().await?;
    drop(guard);
    sleep(stage.moment() * 3).await;
    stage.heal().await;
    let observer = super::locker(stage).await;
    assert_free_within(stage.patience().await * 4, &observer, &a).await;
    Ok(())
}

/// Neither do attempts that failed: one client has one session.
pub async fn failed_attempts_leave_no_sessions(stage: &Stage) -> Shown {
    let (holder, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let _guard = holder.lock(&a).await.unwrap();
    let before = stage.sessions(holder.owner()).await?;
    for _ in 0..15 {
        assert!(other.try_lock(&a).await.unwrap().is_none());
        assert!(other.lock(&a).wait_at_most(stage.moment() / 10).await.is_err());
    }
    assert_eq!(stage.sessions(holder.owner()).await?, before + 1);
    Ok(())
}

/// The session goes with the last clone and the last guard.
pub async fn a_locker_that_is_dropped_takes_its_session_along(stage: &Stage) -> Shown {
    let alone = steady_locker(stage).await;
    let mut owner = alone.owner().to_owned();
    let guard = alone.lock(key(stage, "alone")).await.unwrap();
    drop(alone);
    sleep(steady(stage).await + stage.moment()).await;
    assert_eq!(guard.check(), Ok(()), "a guard keeps its session alive");
    drop(guard);
    for n in 0..10 {
        let locker = locker(stage).await;
        locker.owner().clone_into(&mut owner);
        let guard = locker.lock(key(stage, &format!("k{n}"))).await.unwrap();
        drop(locker);
        assert_eq!(guard.check(), Ok(()), "a guard keeps its lock");
    }
    let (began, patience) = (Instant::now(), stage.patience().await);
    while stage.sessions(&owner).await? > 0 {
        assert!(began.elapsed() < patience * 2, "a session is left");
        sleep(stage.moment() / 10).await;
    }
    Ok(())
}

/// What can be given back is, and what cannot is told, with the time it lapses.
pub async fn shutdown_gives_back_what_is_let_go_and_reports_what_is_not(stage: &Stage) -> Shown {
    let (locker, observer) = (steady_locker(stage).await, super::locker(stage).await);
    let kept = locker.lock(key(stage, "kept")).await.unwrap();
    let let_go = locker.lock(key(stage, "let-go")).await.unwrap();
    let waiting = tokio::spawn(locker.lock(key(stage, "kept")).into_future());
    let work = tokio::spawn(async move { let_go.guarded(std::future::pending::<()>()).await });
    sleep(stage.moment()).await;
    let report = locker.shutdown(stage.prompt() * 3).await;
    assert_eq!(report.given_back, [stage.key("let-go")]);
    assert_eq!(report.left.iter().map(|left| left.key.clone()).collect::<Vec<_>>(), [stage.key("kept")]);
    assert!(!report.is_clean());
    assert_eq!(work.await.unwrap().unwrap_err().reason, Loss::Shutdown);
    assert!(matches!(waiting.await.unwrap(), Err(LockError::ShutDown)));
    assert!(matches!(locker.lock(key(stage, "x")).await, Err(LockError::ShutDown)));
    assert_eq!(kept.check().unwrap_err().reason, Loss::Shutdown);
    assert_eq!(holders(&observer, &key(stage, "let-go")).await, 0);
    assert_eq!(holders(&observer, &key(stage, "kept")).await, 1, "not given away under a guard that lives");
    assert_free_within(report.left[0].lapses_within + stage.patience().await, &observer, &key(stage, "kept")).await;
    Ok(())
}

/// Also when it never locked, and twice.
pub async fn a_clean_shutdown_leaves_no_session_and_delays_nobody(stage: &Stage) -> Shown {
    let (unused, locker, other, a) =
        (Party::new(stage).await, super::locker(stage).await, super::locker(stage).await, key(stage, "a"));
    assert!(unused.locker.shutdown(stage.patience().await).await.is_clean());
    assert_eq!(unused.line.calls(), 0);
    let guard = locker.lock(&a).await.unwrap();
    let work = tokio::spawn(async move { guard.guarded(std::future::pending::<()>()).await });
    let waiter = tokio::spawn(other.lock(&a).into_future());
    sleep(stage.moment() * 3).await;
    for _ in 0..2 {
        assert!(locker.shutdown(stage.patience().await * 3).await.is_clean());
    }
    assert!(work.await.unwrap().is_err());
    let taken = tokio::time::timeout(stage.patience().await, waiter).await.expect("nobody is delayed by a shutdown").unwrap();
    assert!(taken.is_ok(), "{taken:?}");
    Ok(())
}

/// Perhaps is an answer: the release goes on in the background, and the caller is told when the lock lapses at the latest.
pub async fn a_release_that_is_not_answered_is_unknown_and_says_when_it_lapses(stage: &Stage) -> Shown {
    let (locker, a) = (brief_locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let lapses = brief(stage) * stage.harness().client().await.capabilities().lapses_within_ttls;
    stage.cut().await?;
    let began = Instant::now();
    let unknown = guard.release().await.unwrap_err();
    assert!(began.elapsed() <= Duration::from_secs(4) + stage.patience().await, "{:?}", began.elapsed());
    assert!(unknown.lapses_within <= lapses, "{unknown:?}");
    let observer = super::locker(stage).await;
    assert_free_within(unknown.lapses_within + stage.patience().await, &observer, &a).await;
    stage.heal().await;
    Ok(())
}

/// A store that cannot be reached is told as the cause, and serves the next request when it is back.
pub async fn a_store_that_fails_is_told_as_the_cause(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    stage.fail().await?;
    let error = locker.lock(&a).wait_at_most(stage.prompt() * 3).await.unwrap_err();
    let LockError::TimedOut { cause: Some(cause), .. } = &error else { panic!("{error:?}") };
    assert!(matches!(cause.kind(), ErrorKind::Transient | ErrorKind::Ambiguous | ErrorKind::Overloaded), "{cause:?}");
    stage.heal().await;
    let guard = locker.lock(&a).wait_at_most(stage.patience().await * 5).await.unwrap();
    assert_eq!(guard.check(), Ok(()));
    Ok(())
}

/// A key that is used for something else is told, and left alone.
pub async fn a_key_used_for_something_else_is_told(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    stage.put_foreign(&stage.key("a"), "data").await?;
    let error = locker.lock(&a).await.unwrap_err();
    assert!(matches!(&error, LockError::Store { cause, .. } if cause.kind() == ErrorKind::Conflict), "{error:?}");
    within(stage.patience().await, "left alone", async || holders(&locker, &a).await == 1).await;
    Ok(())
}
