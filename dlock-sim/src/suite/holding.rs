//! How long a lock is held, and what is known of that.

use dlock::{CheckError, Loss, ReleaseOutcome};
use dlock_testkit::conformance::{Shown, Stage};
use tokio::time::{Instant, sleep, timeout};

use super::{assert_free_within, holders, key, locker, steady, steady_locker};

/// Belief ends first, then the lock is given back although the guard lives.
pub async fn a_lock_is_not_held_longer_than_at_most(stage: &Stage) -> Shown {
    let (locker, a, most) = (locker(stage).await, key(stage, "a"), stage.prompt());
    let asked = Instant::now();
    let guard = locker.lock(&a).hold_at_most(most).await.unwrap();
    let granted = Instant::now();
    assert!(guard.valid_until() <= granted + most);
    let lost = timeout(most + stage.patience().await, guard.lost()).await;
    assert_eq!(lost, Ok(Loss::HeldTooLong));
    assert!(asked.elapsed() >= most, "{:?}", asked.elapsed());
    if stage.in_virtual_time().await {
        assert!(granted.elapsed() <= most + stage.moment(), "{:?}", granted.elapsed());
    }
    assert_free_within(stage.patience().await, &locker, &a).await;
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    Ok(())
}

/// A short job is not run again by a machine whose clock is behind.
pub async fn a_lock_is_not_given_back_earlier_than_at_least(stage: &Stage) -> Shown {
    let (locker, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let (asked, least) = (Instant::now(), stage.prompt() * 3);
    let guard = locker.lock(&a).hold_at_least(least).await.unwrap();
    let given = guard.release().await;
    assert!(given == Ok(ReleaseOutcome::Deferred) || asked.elapsed() >= least, "{given:?}");
    for locker in [&other, &locker] {
        let early = locker.try_lock(&a).await.unwrap();
        assert!(early.is_none() || asked.elapsed() >= least, "free after {:?}", asked.elapsed());
    }
    let guard = timeout(least + stage.patience().await, std::future::IntoFuture::into_future(other.lock(&a)));
    guard.await.expect("it is given back in the end").unwrap().release().await.unwrap();
    assert!(asked.elapsed() >= least, "free after {:?}", asked.elapsed());
    Ok(())
}

/// For work that needs time to stop: `stop_before` moves the news, not the lock.
pub async fn stop_before_tells_ahead_of_the_deadline(stage: &Stage) -> Shown {
    let (locker, ahead) = (steady_locker(stage).await, steady(stage).await / 4);
    let guard = locker.lock(key(stage, "a")).stop_before(ahead).await.unwrap();
    let plain = locker.lock(key(stage, "b")).await.unwrap();
    let asked = Instant::now();
    let gap = plain.valid_until() - guard.valid_until();
    // Readings of the clock lie between.
    let slack = asked.elapsed() + stage.moment();
    assert!(guard.check().is_err() || (gap + slack >= ahead && gap <= ahead + slack), "{gap:?}");
    stage.cut().await?;
    guard.cancellation().cancelled().await;
    let early = Instant::now();
    assert!(guard.valid_until() <= Instant::now());
    assert!(plain.check().is_ok() || plain.valid_until() <= Instant::now());
    assert_eq!(plain.lost().await, Loss::Expired);
    assert!(plain.valid_until() <= Instant::now());
    if stage.in_virtual_time().await {
        let (gap, slack) = (early.elapsed(), stage.moment() / 10);
        assert!(gap + slack >= ahead && gap <= ahead + slack, "{gap:?}");
    }
    stage.heal().await;
    Ok(())
}

/// Is there lease enough for the next step?
pub async fn check_for_knows_how_much_is_left(stage: &Stage) -> Shown {
    let (locker, ttl) = (steady_locker(stage).await, steady(stage).await);
    let guard = locker.lock(key(stage, "a")).await.unwrap();
    assert_eq!(guard.check_for(ttl / 4), Ok(()));
    let refused = guard.check_for(ttl).unwrap_err();
    assert!(matches!(refused, CheckError::TooShort { .. }), "{refused:?}");
    assert!(guard.valid_until() <= Instant::now() + ttl);
    assert!(guard.remaining() < ttl);
    Ok(())
}

/// A witness that outlives its guard stops believing, and calls that no loss.
pub async fn a_release_is_no_loss_and_ends_belief(stage: &Stage) -> Shown {
    let (locker, a) = (steady_locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let (held, cancellation) = (guard.held(), guard.cancellation());
    let watcher = tokio::spawn({
        let held = held.clone();
        async move { held.lost().await }
    });
    sleep(stage.moment()).await;
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released), "being watched does not hinder a release");
    assert_eq!(held.check().unwrap_err().reason, Loss::Released);
    sleep(steady(stage).await + stage.moment()).await;
    assert!(!watcher.is_finished() && !cancellation.is_cancelled(), "a release is no loss, not even past the ttl");
    watcher.abort();
    assert_eq!(holders(&locker, &a).await, 0);
    Ok(())
}
