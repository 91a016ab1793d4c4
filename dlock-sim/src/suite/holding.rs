//! How long a lock is held, and what is known of that.

use dlock::{CheckError, Loss, ReleaseOutcome};
use dlock_testkit::conformance::{Shown, Stage};
use tokio::time::{Instant, sleep, timeout};

use super::{assert_free_within, brief, brief_locker, holders, in_virtual_time, key, locker};

/// Belief ends first, then the lock is given back although the guard lives.
pub async fn a_lock_is_not_held_longer_than_at_most(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).hold_at_most(stage.prompt()).await.unwrap();
    let began = Instant::now();
    assert_eq!(guard.lost().await, Loss::HeldTooLong);
    let held = began.elapsed();
    assert!(held + stage.moment() >= stage.prompt() && held <= stage.prompt() + stage.moment(), "{held:?}");
    assert_free_within(stage.prompt(), &locker, &a).await;
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    Ok(())
}

/// A short job is not run again by a machine whose clock is behind.
pub async fn a_lock_is_not_given_back_earlier_than_at_least(stage: &Stage) -> Shown {
    let (locker, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let began = Instant::now();
    let guard = locker.lock(&a).hold_at_least(stage.prompt()).await.unwrap();
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Deferred));
    assert!(other.try_lock(&a).await.unwrap().is_none());
    assert!(locker.try_lock(&a).await.unwrap().is_none());
    let guard = timeout(stage.prompt() * 2, std::future::IntoFuture::into_future(other.lock(&a)));
    guard.await.expect("it is given back in the end").unwrap().release().await.unwrap();
    assert!(began.elapsed() >= stage.prompt(), "free after {:?}", began.elapsed());
    Ok(())
}

/// For work that needs time to stop: `stop_before` moves the news, not the lock.
pub async fn stop_before_tells_ahead_of_the_deadline(stage: &Stage) -> Shown {
    let (locker, ahead) = (brief_locker(stage).await, brief(stage) / 4);
    let guard = locker.lock(key(stage, "a")).stop_before(ahead).await.unwrap();
    let plain = locker.lock(key(stage, "b")).await.unwrap();
    stage.cut().await?;
    guard.cancellation().cancelled().await;
    assert_eq!(plain.check(), Ok(()));
    let early = Instant::now();
    assert_eq!(plain.lost().await, Loss::Expired);
    let gap = early.elapsed();
    let slack = if in_virtual_time(stage).await { stage.moment() / 10 } else { stage.moment() };
    assert!(gap + slack >= ahead && gap <= ahead + slack, "{gap:?}");
    stage.heal().await;
    Ok(())
}

/// Is there lease enough for the next step?
pub async fn check_for_knows_how_much_is_left(stage: &Stage) -> Shown {
    let locker = brief_locker(stage).await;
    let guard = locker.lock(key(stage, "a")).await.unwrap();
    assert_eq!(guard.check_for(brief(stage) / 4), Ok(()));
    let refused = guard.check_for(brief(stage)).unwrap_err();
    assert!(matches!(refused, CheckError::TooShort { .. }), "{refused:?}");
    assert!(guard.valid_until() <= Instant::now() + brief(stage));
    assert!(guard.remaining() < brief(stage));
    Ok(())
}

/// A witness that outlives its guard stops believing, and calls that no loss.
pub async fn a_release_is_no_loss_and_ends_belief(stage: &Stage) -> Shown {
    let (locker, a) = (brief_locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let (held, cancellation) = (guard.held(), guard.cancellation());
    let watcher = tokio::spawn({
        let held = held.clone();
        async move { held.lost().await }
    });
    sleep(stage.moment()).await;
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released), "being watched does not hinder a release");
    assert_eq!(held.check().unwrap_err().reason, Loss::Released);
    sleep(brief(stage) + stage.moment()).await;
    assert!(!watcher.is_finished() && !cancellation.is_cancelled(), "a release is no loss, not even past the ttl");
    watcher.abort();
    assert_eq!(holders(&locker, &a).await, 0);
    Ok(())
}
