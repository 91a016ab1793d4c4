//! Several keys: at once where the store can, and one after the other in the order of their names.
//!
//! Everybody takes them in the same order, so that nobody waits in a circle. What was got before one fails is undone like any other attempt.

use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    AcquireAction, AcquireEvent, AcquireStep, Chance, Claim, Cursor, ErrorKind, FencingToken, Key, Moment, Place, Standing,
    Together,
};
use futures_util::future::{self, FutureExt};

use super::Acquisition;
use super::attempt::{Attempt, over};
use crate::engine::Engine;
use crate::error::{LockError, StoreError};
use crate::gate::Pass;
use crate::guard::LockGuard;
use crate::options::RequestOptions;
use crate::session::Session;

/// Acquires all of these keys, which are sorted and different, or says which one not.
///
/// Free to drop at any point: what was begun is undone in the background.
pub(crate) async fn acquire_all(engine: Arc<Engine>, keys: Vec<Key>, options: RequestOptions) -> Result<Vec<LockGuard>, LockError> {
    if engine.stopping.is_cancelled() {
        return Err(LockError::ShutDown);
    }
    engine.keep_all();
    let started = engine.clock.now();
    let acquisition = |key| Acquisition::new(Arc::clone(&engine), key, Place::Queue, options.clone(), started);
    let mut acquisitions: Vec<_> = keys.into_iter().map(acquisition).collect();
    loop {
        if let Some(guards) = contend(&engine, &mut acquisitions).await? {
            return Ok(guards);
        }
        tokio::task::yield_now().await;
    }
}

/// An attempt that holds its key, and the number of its grant.
type Holding = (Attempt, FencingToken);

/// What came of asking for all at once.
enum Once {
    Held(Vec<Holding>),
    /// Nothing is at the store; the passes come back.
    Refused(Vec<Pass>),
    /// It was not answered: what there may be of it is undone behind the gates.
    Perhaps,
}

/// `None` when all has to begin anew, since a session ended meanwhile.
async fn contend(engine: &Arc<Engine>, acquisitions: &mut [Acquisition]) -> Result<Option<Vec<LockGuard>>, LockError> {
    let mut passes = Vec::new();
    for acquisition in &mut *acquisitions {
        // Who is told to wait is never sent away.
        let Some(pass) = acquisition.pass(true).await? else { return Err(LockError::ShutDown) };
        passes.push(pass);
    }
    let holding = match at_once(engine, acquisitions, passes).await? {
        Once::Held(holding) => holding,
        Once::Perhaps => return Ok(None),
        Once::Refused(passes) => {
            let (mut holding, mut sessions) = (Vec::<Holding>::new(), Vec::new());
            for (acquisition, pass) in acquisitions.iter_mut().zip(passes) {
                let held = tokio::select! {
                    biased;
                    () = any_over(&sessions) => return Ok(None),
                    held = acquisition.hold(Some(pass)) => held,
                };
                #[cfg(dlock_planted)]
                if held.is_err() && Bug::PartialMultiLock.is_on() {
                    holding.drain(..).for_each(std::mem::forget);
                }
                holding.extend(held?);
                let seat = holding.last().and_then(|(attempt, _)| attempt.seat.as_ref());
                sessions.extend(seat.map(|seat| Arc::clone(&seat.session)));
            }
            holding
        }
    };
    // The time to hold begins for all of them now.
    let Some(limits) = acquisitions.first().map(Acquisition::limits) else { return Ok(Some(Vec::new())) };
    let mut guards = Vec::new();
    for (attempt, token) in holding {
        let Some(grant) = attempt.into_grant(token, limits) else { return Ok(None) };
        guards.push(LockGuard::new(grant, Arc::clone(engine)));
    }
    Ok(Some(guards))
}

/// Returns when one of these is not believed any more.
async fn any_over(sessions: &[Arc<Session>]) {
    if sessions.is_empty() {
        return future::pending().await;
    }
    future::select_all(sessions.iter().map(|session| over(session).boxed())).await;
}

/// Asks for all in one request, where the store takes as many.
async fn at_once(engine: &Arc<Engine>, acquisitions: &mut [Acquisition], passes: Vec<Pass>) -> Result<Once, LockError> {
    let most = engine.backend.capabilities().claims_at_once.unwrap_or(0);
    if acquisitions.len() < 2 || acquisitions.len() > most {
        return Ok(Once::Refused(passes));
    }
    let (mut attempts, mut until, mut seated) = (Vec::new(), Moment::FAR_FUTURE, true);
    for (acquisition, pass) in acquisitions.iter_mut().zip(passes) {
        let mut attempt = acquisition.attempt(Some(pass));
        match acquisition.seat(&mut attempt).await? {
            Some(limit) => until = until.min(limit),
            None => seated = false,
        }
        attempts.push(attempt);
    }
    let seats: Vec<_> = attempts.iter().filter_map(|attempt| attempt.seat.as_ref()).collect();
    let of_one_session = seats.iter().all(|seat| Arc::ptr_eq(&seat.session, &seats[0].session));
    if !seated || seats.len() < attempts.len() || !of_one_session {
        return Ok(refused(attempts));
    }
    let (session, id) = (Arc::clone(&seats[0].session), seats[0].id.clone());
    let claims: Vec<Claim> = seats.iter().map(|seat| Claim::clone(&seat.claim)).collect();
    let answer = tokio::select! {
        biased;
        answer = engine.backend.claim_all(&id, &claims) => answer,
        () = over(&session) => return Ok(Once::Perhaps),
        error = acquisitions[0].interrupted(None) => return Err(error),
        () = engine.clock.sleep_until(until) => return Ok(Once::Perhaps),
    };
    let now = engine.clock.now();
    match answer {
        Ok(Together::Held { tokens }) if tokens.len() == attempts.len() => {
            for (attempt, token) in attempts.iter_mut().zip(&tokens) {
                attempt.machine.step(AcquireEvent::Answered(Standing::Held { token: *token }), now, Chance::MIDDLE);
            }
            Ok(Once::Held(attempts.into_iter().zip(tokens).collect()))
        }
        Ok(Together::Busy { claim, holder }) => {
            if let Some(acquisition) = acquisitions.get_mut(claim) {
                acquisition.holder = holder;
            }
            Ok(refused(attempts))
        }
        Ok(Together::SessionGone) => {
            session.doubt();
            Ok(refused(attempts))
        }
        Err(error) if error.kind() != ErrorKind::Ambiguous => {
            tracing::debug!(%error, kind = ?error.kind(), "several keys were not claimed at once");
            acquisitions[0].error = Some(StoreError::new(error));
            Ok(refused(attempts))
        }
        Ok(Together::Held { .. }) | Err(_) => Ok(Once::Perhaps),
    }
}

/// Nothing of these is at the store.
fn refused(attempts: Vec<Attempt>) -> Once {
    let pass = |mut attempt: Attempt| {
        // A refusal for now leaves a waiting claim with nothing to undo.
        let busy = Standing::Busy { holder: None, cursor: Cursor::default() };
        attempt.machine.step(AcquireEvent::Answered(busy), Moment::ORIGIN, Chance::MIDDLE);
        attempt.pass.take()
    };
    Once::Refused(attempts.into_iter().filter_map(pass).collect())
}

impl Acquisition {
    /// Gets a session and a claim for it, up to where it is to be sent, and says until when that may take; `None` when it comes to nothing, as
    /// whoever tries again will be told.
    async fn seat(&mut self, attempt: &mut Attempt) -> Result<Option<Moment>, LockError> {
        let mut event = AcquireEvent::Started;
        loop {
            event = match attempt.machine.step(event, self.engine.clock.now(), Chance(fastrand::u32(..))) {
                AcquireStep::Done(_) => return Ok(None),
                AcquireStep::Do { action: AcquireAction::Claim, until } => return Ok(Some(until)),
                AcquireStep::Do { action, until } => self.perform(attempt, action, until).await?,
            };
        }
    }
}
