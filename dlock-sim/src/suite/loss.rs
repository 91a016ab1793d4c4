//! Being told, in time and with the reason.

use std::future::IntoFuture;
use std::time::Duration;

use dlock::{Fence, Held, LockError, LockGuard, Loss, ReleaseOutcome};
use dlock_core::{ClockSource, Lease};
use dlock_testkit::conformance::{NotShown, Sent, Shown, Stage};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use super::{Party, brief, brief_locker, holders, key, lapsed, locker, steady, steady_locker, within};

/// Belief ends within the ttl, and before the store can grant to another.
pub async fn silence_is_loss_before_the_store_forgets(stage: &Stage) -> Shown {
    let (locker, a) = (brief_locker(stage).await, key(stage, "a"));
    let asked = Instant::now();
    let guard = locker.lock(&a).await.unwrap();
    let granted = Instant::now();
    assert!(guard.valid_until() < granted + brief(stage));
    stage.cut().await?;
    let observer = super::locker(stage).await;
    assert_eq!(guard.lost().await, Loss::Expired);
    assert_told_in_time(stage, granted).await;
    let holders = holders(&observer, &a).await;
    // Whoever looks late may find it lapsed.
    assert!(holders == 1 || asked.elapsed() >= brief(stage), "the store still has it when belief ends");
    stage.heal().await;
    Ok(())
}

/// Where no machine that is busy comes between the deadline and who is told.
async fn assert_told_in_time(stage: &Stage, granted: Instant) {
    if stage.in_virtual_time().await {
        assert!(granted.elapsed() <= brief(stage), "{:?}", granted.elapsed());
    }
}

/// A store that hangs tells nothing, and needs not: the deadline is the holder's own.
pub async fn a_frozen_store_is_loss_at_the_local_deadline(stage: &Stage) -> Shown {
    let alone = stage.alone().await;
    let stage = alone.as_ref().unwrap_or(stage);
    let (locker, a) = (brief_locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let granted = Instant::now();
    assert!(guard.valid_until() < granted + brief(stage));
    stage.freeze().await?;
    let work = guard.guarded(std::future::pending::<()>()).await;
    assert_eq!(work.unwrap_err().reason, Loss::Expired);
    assert_told_in_time(stage, granted).await;
    let began = Instant::now();
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    let tried = locker.try_lock(key(stage, "other")).await;
    assert!(matches!(tried, Err(LockError::TimedOut { .. })), "{tried:?}");
    assert!(locker.inspect(&a).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(11) + stage.patience().await, "{:?}", began.elapsed());
    stage.heal().await;
    super::assert_free_within(lapsed(stage, brief(stage)).await, &super::locker(stage).await, &a).await;
    Ok(())
}

/// One renewal that hangs is dropped, and the next goes out.
pub async fn one_hung_renewal_costs_nothing(stage: &Stage) -> Shown {
    let (locker, ttl, a) = (steady_locker(stage).await, steady(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let hung = stage.hold(Sent::Renew)?;
    timeout(ttl, hung.sent()).await.expect("it renews within its ttl");
    sleep(ttl).await;
    assert_eq!(guard.check(), Ok(()));
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
    Ok(())
}

/// What is lost stays lost, whatever arrives later.
pub async fn late_success_does_not_bring_a_lost_lock_back(stage: &Stage) -> Shown {
    let (locker, a) = (brief_locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    stage.cut().await?;
    assert_eq!(guard.lost().await, Loss::Expired);
    stage.heal().await;
    for _ in 0..5 {
        sleep(stage.moment()).await;
        assert_eq!(guard.check().unwrap_err().reason, Loss::Expired);
    }
    let again = locker.lock(&a).wait_at_most(lapsed(stage, brief(stage)).await).await.unwrap();
    assert!(again.token() > guard.token());
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    assert_eq!(again.check(), Ok(()));
    Ok(())
}

/// Whoever is granted the lock next finds that its predecessor has already stopped believing.
pub async fn loss_is_told_before_the_successors_grant(stage: &Stage) -> Shown {
    let (holder, a) = (brief_locker(stage).await, key(stage, "a"));
    let guard = holder.lock(&a).await.unwrap();
    stage.cut().await?;
    let (other, witness) = (locker(stage).await, guard.held());
    let successor = other.lock(&a).wait_at_most(lapsed(stage, brief(stage)).await).await.unwrap();
    assert_eq!(witness.check().unwrap_err().reason, Loss::Expired);
    assert!(successor.token() > guard.token());
    stage.heal().await;
    Ok(())
}

/// A guard that is held for long enough to be watched, and the locker that holds it.
async fn watched(stage: &Stage) -> (Party, LockGuard) {
    let party = Party::with_ttl(stage, steady(stage).await).await;
    let guard = party.locker.lock(key(stage, "a")).await.unwrap();
    sleep(stage.moment() * 5).await;
    (party, guard)
}

/// Told as what it was, soon, and once and for all; the lock can be had again.
async fn assert_told(stage: &Stage, (party, guard): (Party, LockGuard), reasons: &[Loss]) {
    let capabilities = stage.harness().client().await.capabilities().clone();
    // A store that cannot be watched is asked with every renewal.
    let renewal = if capabilities.watched_claims.is_some() { Duration::ZERO } else { steady(stage).await / 2 };
    let reason = timeout(renewal + stage.patience().await, guard.lost()).await.expect("it is told soon");
    assert!(reasons.contains(&reason), "{reason:?}");
    assert!(guard.cancellation().is_cancelled());
    assert_eq!(guard.check().unwrap_err().reason, reason);
    assert_eq!(guard.lost().now_or_never(), Some(reason), "whoever asks later is told at once");
    let again = party.locker.lock(key(stage, "a")).wait_at_most(steady(stage).await * 3).await.unwrap();
    assert!(again.token() > guard.token());
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    assert_eq!(again.check(), Ok(()), "the release of the lost one frees nobody's lock");
    assert_eq!(again.release().await, Ok(ReleaseOutcome::Released));
}

async fn end_session_of(stage: &Stage, party: &Party, name: &str) -> Result<(), NotShown> {
    let seen = party.locker.inspect(key(stage, name)).await.unwrap();
    let session = seen.holders[0].session.clone().expect("a store that ends sessions says whose lock it is");
    stage.end_session(&session).await
}

/// By an operator, or by the store itself.
pub async fn an_ended_session_is_told(stage: &Stage) -> Shown {
    let (party, guard) = watched(stage).await;
    end_session_of(stage, &party, "a").await?;
    assert_told(stage, (party, guard), &[Loss::SessionGone]).await;
    Ok(())
}

/// By an operator.
pub async fn a_deleted_key_is_told(stage: &Stage) -> Shown {
    let (party, guard) = watched(stage).await;
    stage.delete(&stage.key("a")).await?;
    assert_told(stage, (party, guard), &[Loss::KeyDeleted]).await;
    Ok(())
}

/// By an operator.
pub async fn a_release_by_force_is_told(stage: &Stage) -> Shown {
    let (party, guard) = watched(stage).await;
    stage.release_by_force(&stage.key("a")).await?;
    // Where every claim has an entry of its own, taking a lock away is deleting that.
    assert_told(stage, (party, guard), &[Loss::TakenOver, Loss::KeyDeleted]).await;
    Ok(())
}

/// Interference with one lock costs no other of the same session.
pub async fn interference_with_one_lock_costs_no_other(stage: &Stage) -> Shown {
    let (party, guard) = watched(stage).await;
    let other = party.locker.lock(key(stage, "other")).await.unwrap();
    stage.delete(&stage.key("a")).await?;
    assert_eq!(guard.lost().await, Loss::KeyDeleted);
    sleep(steady(stage).await).await;
    assert_eq!(other.check(), Ok(()));
    assert_eq!(other.release().await, Ok(ReleaseOutcome::Released));
    Ok(())
}

/// Work is dropped at its next await when the lock is lost.
pub async fn guarded_work_is_dropped_at_the_loss(stage: &Stage) -> Shown {
    let (party, guard) = watched(stage).await;
    let work = tokio::spawn(async move { guard.guarded(std::future::pending::<()>()).await });
    end_session_of(stage, &party, "a").await?;
    let dropped = timeout(steady(stage).await + stage.patience().await, work).await.expect("it must be dropped").unwrap();
    assert_eq!(dropped.unwrap_err().reason, Loss::SessionGone);
    Ok(())
}

/// The same of work that is run under a lock.
pub async fn run_drops_the_work_on_loss(stage: &Stage) -> Shown {
    let (party, a) = (Party::with_ttl(stage, steady(stage).await).await, key(stage, "a"));
    let work = tokio::spawn(party.locker.lock(&a).run(|_| std::future::pending::<()>()));
    within(stage.patience().await * 2, "held", async || holders(&party.locker, &a).await == 1).await;
    sleep(stage.moment() * 5).await;
    end_session_of(stage, &party, "a").await?;
    let ran = timeout(steady(stage).await + stage.patience().await, work).await.expect("it must be dropped").unwrap();
    assert!(matches!(&ran, Err(dlock::RunError::Lost(lost)) if lost.reason == Loss::SessionGone), "{ran:?}");
    Ok(())
}

/// Nothing that only asks waits for the store.
pub async fn asking_whether_it_is_lost_never_blocks(stage: &Stage) -> Shown {
    let locker = locker(stage).await;
    let guard = locker.lock(key(stage, "a")).await.unwrap();
    stage.cut().await?;
    let began = std::time::Instant::now();
    assert!(futures_util::poll!(std::pin::pin!(guard.lost())).is_pending());
    assert!(!guard.cancellation().is_cancelled());
    assert_eq!(guard.check(), Ok(()));
    assert!(guard.remaining() > Duration::ZERO);
    // No call to a store that is silent is given up sooner.
    assert!(began.elapsed() < Lease::LONGEST_ATTEMPT, "{:?}", began.elapsed());
    stage.heal().await;
    Ok(())
}

/// A store that fails and comes back in time has cost nothing.
pub async fn errors_for_less_than_the_deadline_lose_nothing(stage: &Stage) -> Shown {
    let (locker, ttl, a) = (steady_locker(stage).await, steady(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    stage.fail().await?;
    sleep(ttl / 2).await;
    assert_eq!(guard.check(), Ok(()));
    stage.heal().await;
    sleep(ttl * 2).await;
    assert_eq!(guard.check(), Ok(()));
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
    Ok(())
}

/// Everything in this process stands still: nothing is renewed, no timer fires.
async fn stand_still(clock: ClockSource, time: Duration) {
    match clock {
        ClockSource::Runtime => tokio::time::advance(time).await,
        _ => std::thread::sleep(time),
    }
}

/// A holder that was paused past its deadline knows before it writes, and what it sends all the same is refused.
pub async fn a_holder_that_stood_still_knows_before_it_writes(stage: &Stage) -> Shown {
    let (here, other, a) = (brief_locker(stage).await, locker(stage).await, key(stage, "a"));
    let clock = stage.harness().client().await.capabilities().clock;
    let (fence, guard) = (Fence::new(), here.lock(&a).await.unwrap());
    let first = guard.token().expect("an exclusive lock has a token");
    fence.admit(first).unwrap();
    stand_still(clock, brief(stage) * 2 + stage.moment()).await;
    assert!(guard.check().is_err(), "before anything else has run");
    let written: Result<(), _> = guard.guarded(async { panic!("the work runs although the lock is lost") }).await;
    assert!(written.is_err());
    let successor = other.lock(&a).wait_at_most(lapsed(stage, brief(stage)).await).await.unwrap();
    fence.admit(successor.token().expect("an exclusive lock has a token")).unwrap();
    assert!(fence.admit(first).is_err(), "a past holder may not write any more");
    Ok(())
}

/// A lock that was lost and is given back late takes nothing from its successor.
pub async fn a_late_release_frees_no_successor(stage: &Stage) -> Shown {
    let (holder, a) = (brief_locker(stage).await, key(stage, "a"));
    let guard = holder.lock(&a).await.unwrap();
    stage.cut().await?;
    let successor = locker(stage).await.lock(&a).wait_at_most(lapsed(stage, brief(stage)).await).await.unwrap();
    stage.heal().await;
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::NotHeld));
    sleep(stage.moment() * 5).await;
    assert_eq!(successor.check(), Ok(()));
    assert_eq!(successor.release().await, Ok(ReleaseOutcome::Released));
    Ok(())
}

/// A waiter whose own session dies goes on with another, behind the same holder.
pub async fn a_waiter_whose_session_dies_goes_on_with_another(stage: &Stage) -> Shown {
    let (holder, party, a) = (locker(stage).await, Party::with_ttl(stage, steady(stage).await).await, key(stage, "a"));
    let guard = holder.lock(&a).await.unwrap();
    let own = party.locker.lock(key(stage, "own")).await.unwrap();
    let waiting = tokio::spawn(party.locker.lock(&a).into_future());
    sleep(stage.moment() * 5).await;
    end_session_of(stage, &party, "own").await?;
    assert_eq!(own.lost().await, Loss::SessionGone);
    sleep(stage.moment()).await;
    assert_eq!(guard.check(), Ok(()));
    assert!(!waiting.is_finished());
    let first = guard.token();
    guard.release().await.unwrap();
    let taken = timeout(steady(stage).await + stage.patience().await, waiting).await.expect("it is granted").unwrap().unwrap();
    assert!(taken.token() > first);
    assert_eq!(taken.check(), Ok(()));
    Ok(())
}

/// Whoever waits behind a holder that falls silent gets the lock when it lapses.
pub async fn a_waiter_behind_a_silent_holder_is_granted(stage: &Stage) -> Shown {
    let (holder, a) = (brief_locker(stage).await, key(stage, "a"));
    let witness: Held = {
        let guard = holder.lock(&a).await.unwrap();
        stage.cut().await?;
        // Cut off, so that its release does not arrive either.
        guard.held()
    };
    let taken = locker(stage).await.lock(&a).wait_at_most(lapsed(stage, brief(stage)).await).await.unwrap();
    assert!(taken.token() > witness.token());
    stage.heal().await;
    Ok(())
}
