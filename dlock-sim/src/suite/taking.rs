//! Taking a lock, waiting for it, and giving it back.

use std::future::IntoFuture;

use dlock::{InvalidOptions, LockError, Locker, Loss, ReleaseOutcome, RunError};
use dlock_testkit::conformance::{Shown, Stage};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Party, holders, key, locker, steady, steady_locker, within};

/// What everybody does.
pub async fn a_free_lock_is_taken_held_and_given_back(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    assert_eq!(guard.check(), Ok(()));
    assert_eq!(holders(&locker, &a).await, 1);
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
    assert_eq!(holders(&locker, &a).await, 0);
    Ok(())
}

/// For as long as it is wanted: renewals go on, and whoever waits gets it only then.
pub async fn a_lock_is_held_past_its_ttl(stage: &Stage) -> Shown {
    let (locker, other, a) = (steady_locker(stage).await, steady_locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let waiter = tokio::spawn(other.lock(&a).into_future());
    let (began, punctual, ttl) = (Instant::now(), stage.in_virtual_time().await, steady(stage).await);
    while began.elapsed() < ttl * 3 {
        sleep(stage.moment()).await;
        assert_eq!(guard.check(), Ok(()));
        assert!(!punctual || guard.remaining() > ttl / 2, "{:?}", guard.remaining());
    }
    assert!(!waiter.is_finished());
    guard.release().await.unwrap();
    let taken = timeout(stage.patience().await, waiter).await.expect("the waiter gets it now").unwrap();
    assert!(taken.is_ok(), "{taken:?}");
    Ok(())
}

/// Whoever only tries is told at once, by the gate of the process or by the store.
pub async fn a_try_finds_it_taken_here_without_a_call_and_elsewhere_with_one(stage: &Stage) -> Shown {
    let (here, elsewhere, a) = (Party::new(stage).await, Party::new(stage).await, key(stage, "a"));
    let _guard = here.locker.lock(&a).await.unwrap();
    elsewhere.locker.ready(stage.patience().await).await.unwrap();
    let calls = here.line.calls();
    assert!(here.locker.try_lock(&a).await.unwrap().is_none());
    assert_eq!(here.line.calls(), calls);
    let calls = elsewhere.line.calls();
    assert!(elsewhere.locker.try_lock(&a).await.unwrap().is_none());
    assert_eq!(elsewhere.line.calls(), calls + 1);
    assert_eq!(holders(&here.locker, &a).await, 1);
    Ok(())
}

/// Once it is free, a try gets it.
pub async fn a_try_takes_a_free_lock(stage: &Stage) -> Shown {
    let (one, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    for locker in [&one, &other, &one] {
        let guard = locker.try_lock(&a).await.unwrap().expect("it is free");
        guard.release().await.unwrap();
    }
    Ok(())
}

/// A handover between processes takes no longer than hearing of it.
pub async fn a_waiter_elsewhere_gets_it_at_once_with_a_greater_token(stage: &Stage) -> Shown {
    let (here, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let guard = here.lock(&a).await.unwrap();
    let first = guard.token();
    let waiting = other.lock(&a).into_future();
    let waiter = tokio::spawn(async move { (waiting.await, Instant::now()) });
    sleep(stage.moment() * 3).await;
    assert!(!waiter.is_finished());
    let released = Instant::now();
    guard.release().await.unwrap();
    let (taken, at) = timeout(stage.patience().await, waiter).await.expect("the waiter gets it now").unwrap();
    assert!(taken.unwrap().token() > first);
    let took = at - released;
    assert!(!stage.in_virtual_time().await || took < std::time::Duration::from_millis(5), "{took:?}");
    Ok(())
}

/// The time is kept, and the error says who is in the way.
pub async fn a_wait_ends_in_time_and_names_the_holder(stage: &Stage) -> Shown {
    let (here, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let guard = here.lock(&a).await.unwrap();
    let (wait, began) = (stage.prompt() * 3, Instant::now());
    let error = other.lock(&a).wait_at_most(wait).await.unwrap_err();
    let waited = began.elapsed();
    assert!(waited >= wait && waited < wait + stage.patience().await, "{waited:?}");
    let LockError::TimedOut { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
    assert_eq!(holder.owner(), Some(here.owner()));
    assert!(error.to_string().contains(here.owner()), "{error}");
    guard.release().await.unwrap();
    // What the wait kept is undone in the background.
    let patience = stage.patience().await;
    within(patience, "whoever gave up is in nobody's way", async || other.try_lock(&a).await.unwrap().is_some()).await;
    Ok(())
}

/// Waiting is waiting, wherever the queue is.
pub async fn time_at_the_gate_counts(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let _guard = locker.lock(&a).await.unwrap();
    let began = Instant::now();
    let error = locker.lock(&a).wait_at_most(stage.prompt()).await.unwrap_err();
    assert!(matches!(error, LockError::TimedOut { .. }), "{error:?}");
    let waited = began.elapsed();
    assert!(waited >= stage.prompt() && waited < stage.prompt() + stage.patience().await, "{waited:?}");
    Ok(())
}

/// At the gate of the process, and at the store.
pub async fn a_wait_can_be_cancelled(stage: &Stage) -> Shown {
    let (here, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let guard = here.lock(&a).await.unwrap();
    for waiter in [&here, &other] {
        let token = CancellationToken::new();
        let waiting = tokio::spawn(waiter.lock(&a).cancel_on(token.clone()).into_future());
        sleep(stage.moment()).await;
        token.cancel();
        let ended = timeout(stage.patience().await, waiting).await.expect("it ends when it is cancelled").unwrap();
        assert!(matches!(ended, Err(LockError::Cancelled { .. })), "{ended:?}");
    }
    guard.release().await.unwrap();
    let patience = stage.patience().await * 2;
    within(patience, "nobody waits any more", async || other.try_lock(&a).await.is_ok_and(|taken| taken.is_some())).await;
    Ok(())
}

/// Too late is never: not even a free lock is taken.
pub async fn a_request_that_was_cancelled_before_takes_nothing(stage: &Stage) -> Shown {
    let (party, a) = (Party::new(stage).await, key(stage, "a"));
    let token = CancellationToken::new();
    token.cancel();
    let waited = party.locker.lock(&a).cancel_on(token.clone()).await;
    assert!(matches!(waited, Err(LockError::Cancelled { .. })), "{waited:?}");
    let tried = party.locker.try_lock(&a).cancel_on(token).await;
    assert!(matches!(tried, Err(LockError::Cancelled { .. })), "{tried:?}");
    assert_eq!(holders(&party.locker, &a).await, 0);
    Ok(())
}

/// There is no re-entry: a task that asks again waits for itself, for as long as it likes.
pub async fn whoever_holds_a_lock_and_asks_again_waits_for_itself(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let guard = locker.lock(&a).await.unwrap();
    let again = locker.lock(&a).wait_at_most(stage.moment()).await;
    assert!(matches!(again, Err(LockError::TimedOut { .. })), "{again:?}");
    assert!(locker.try_lock(&a).await.unwrap().is_none());
    let waiting = tokio::spawn(locker.lock(&a).into_future());
    sleep(stage.moment()).await;
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released), "waiting for it does not hinder its release");
    assert!(waiting.await.unwrap().is_ok());
    Ok(())
}

/// One locker, many keys: what is held of one is nothing to another.
pub async fn locks_of_different_keys_do_not_wait_for_one_another(stage: &Stage) -> Shown {
    let locker = locker(stage).await;
    let mut guards = Vec::new();
    for name in ["a", "A", "a/b", "ab"] {
        guards.push(locker.lock(key(stage, name)).wait_at_most(stage.patience().await).await.unwrap());
    }
    guards.remove(0).release().await.unwrap();
    assert!(guards.iter().all(|guard| guard.check().is_ok()));
    assert_eq!(holders(&locker, &key(stage, "a/b")).await, 1);
    Ok(())
}

/// Two guards are two acquisitions, even of one request.
pub async fn two_guards_of_one_request_never_share_an_identity(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let request = locker.lock(&a);
    let first = request.clone().await.unwrap();
    let (claim, token) = (first.claim(), first.token());
    let witness = first.held();
    first.release().await.unwrap();
    let second = request.await.unwrap();
    assert_ne!(second.claim(), claim);
    assert!(second.token() > token);
    assert_eq!(witness.check().unwrap_err().reason, Loss::Released, "the witness of the first says nothing of the second");
    Ok(())
}

/// However many tasks begin at once, the process is one client.
pub async fn concurrent_acquisitions_share_one_session(stage: &Stage) -> Shown {
    let locker = locker(stage).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        tasks.spawn(locker.lock(key(stage, &format!("k{n}"))).into_future());
    }
    let guards = tasks.join_all().await;
    assert!(guards.iter().all(Result::is_ok));
    assert_eq!(stage.sessions(locker.owner()).await?, 1);
    Ok(())
}

/// Takes, works, gives back.
pub async fn run_gives_back_and_tells_the_value(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let value = locker.lock(&a).run(|held| async move { held.check().map(|()| 5) }).await.unwrap();
    assert_eq!(value, Ok(5));
    assert_eq!(holders(&locker, &a).await, 0);
    let tried = locker.try_lock(&a).run(|_| async { 6 }).await.unwrap();
    assert_eq!(tried, Some(6));
    Ok(())
}

/// Work that has no lock is not begun, and the caller told why.
pub async fn run_does_not_begin_without_the_lock(stage: &Stage) -> Shown {
    let (here, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let _guard = here.lock(&a).await.unwrap();
    let begun = std::cell::Cell::new(false);
    let ran = other.lock(&a).wait_at_most(stage.moment()).run(|_| async { begun.set(true) }).await;
    assert!(matches!(ran, Err(RunError::Lock(LockError::TimedOut { .. }))), "{ran:?}");
    let tried = other.try_lock(&a).run(|_| async { begun.set(true) }).await;
    assert!(matches!(tried, Ok(None)), "{tried:?}");
    assert!(!begun.get());
    Ok(())
}

/// What a holder says can be read by all.
pub async fn metadata_and_holder_are_there_for_others_to_read(stage: &Stage) -> Shown {
    let (here, other, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let _guard = here.lock(&a).metadata("job", "nightly \u{1f512}").await.unwrap();
    let seen = other.inspect(&a).await.unwrap();
    let holder = &seen.holders[0];
    assert_eq!(holder.owner(), Some(here.owner()));
    assert!(holder.acquired_at().is_some_and(|at| at.ends_with('Z') && at.contains('T')));
    assert_eq!(holder.published.metadata().and_then(|metadata| metadata.get("job")), Some("nightly \u{1f512}"));
    assert!(other.inspect(key(stage, "b")).await.unwrap().holders.is_empty());
    Ok(())
}

/// Mistakes are told before anything is sent.
pub async fn bad_input_is_refused_before_anything_is_sent(stage: &Stage) -> Shown {
    let Party { locker, line } = Party::new(stage).await;
    let limits = stage.harness().client().await.capabilities().limits;
    for name in ["", "a//b", "/a", "a/", "../a", "./a", "a\0", "a\nb", &"k".repeat(dlock::Key::MAX_BYTES + 1)] {
        assert!(matches!(locker.lock(name).await, Err(LockError::Key(_))), "{name:?}");
        assert!(matches!(locker.try_lock(name).await, Err(LockError::Key(_))), "{name:?}");
    }
    let refused = |error: LockError| match error {
        LockError::Options(options) => options,
        other => panic!("{other:?}"),
    };
    let error = refused(locker.lock("a").metadata("owner", "me").await.unwrap_err());
    assert!(error.to_string().contains("reserved"), "{error}");
    let error = refused(locker.lock("a").metadata("big", "x".repeat(limits.metadata_bytes)).await.unwrap_err());
    assert!(matches!(error, InvalidOptions::MetadataTooLarge { limit, .. } if limit == limits.metadata_bytes), "{error}");
    let error = refused(locker.lock("a").stop_before(locker.ttl()).await.unwrap_err());
    assert!(matches!(error, InvalidOptions::StopBeforeTooLong { .. }), "{error}");
    let (short, long) = (stage.moment(), stage.prompt());
    let error = refused(locker.lock("a").hold_at_least(long).hold_at_most(short).await.unwrap_err());
    assert!(matches!(error, InvalidOptions::HoldAtLeastAboveMost { .. }), "{error}");
    let error = refused(locker.lock("a").hold_at_most(std::time::Duration::ZERO).await.unwrap_err());
    assert_eq!(error, InvalidOptions::HoldsNothing);
    let range = stage.harness().client().await.capabilities().ttl;
    for ttl in [range.min / 2, range.max * 2] {
        let error = Locker::builder(line.clone()).ttl(ttl).build().unwrap_err();
        assert!(matches!(error, InvalidOptions::TtlTooShort { .. } | InvalidOptions::TtlOutOfRange { .. }), "{error}");
    }
    assert_eq!(line.calls(), 0);
    Ok(())
}
