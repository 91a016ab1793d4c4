//! Several keys: at once where the store can, and one after the other in the order of their names.
//!
//! Everybody takes them in the same order, so that nobody waits in a circle. What was got before one fails is undone like any other attempt.

use std::collections::BTreeSet;
use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    AcquireAction, AcquireEvent, AcquireStep, BackendError, Chance, Claim, Cursor, ErrorKind, FencingToken, Granted, Key, Lease,
    Moment, Place, SessionId, Standing, Together,
};
use futures_util::future::{self, FutureExt};

use super::Acquisition;
use super::admit::Sending;
use super::attempt::{Attempt, over};
use crate::admission::Turn;
use crate::engine::Engine;
use crate::error::{LockError, StoreError};
use crate::guard::LockGuard;
use crate::options::{LEAST_ATTEMPT, RequestOptions};
use crate::session::Session;

/// Acquires all of these keys, or says which one not.
///
/// Free to drop at any point: what was begun is undone in the background.
pub(crate) async fn acquire_all(
    engine: &Arc<Engine>,
    keys: &BTreeSet<Key>,
    options: &RequestOptions,
) -> Result<Vec<LockGuard>, LockError> {
    if engine.stopping.is_cancelled() {
        return Err(LockError::ShutDown);
    }
    let started = engine.clock.now();
    engine.keep_all(started);
    let acquisition = |key| Acquisition::new(engine, key, Place::Queue, options, started);
    let mut several = Several { acquisitions: keys.iter().map(acquisition).collect(), failures: 0, unsure: false, engine };
    loop {
        if let Some(guards) = several.contend().await? {
            return Ok(guards);
        }
        tokio::task::yield_now().await;
    }
}

struct Several<'a> {
    engine: &'a Arc<Engine>,
    acquisitions: Vec<Acquisition<'a>>,
    /// How often in a row it came to nothing.
    failures: u32,
    /// They were asked for at once, and nobody knows what came of it.
    unsure: bool,
}

/// An attempt that holds its key, and the number of its grant.
type Holding = (Attempt, FencingToken);

/// What came of asking for all at once.
enum Once {
    Held(Vec<Holding>),
    /// Nothing is at the store.
    Refused,
    /// It was not answered: what there may be of it is undone behind the gates.
    Perhaps(Option<StoreError>),
    /// It was not its turn in time.
    Unsent(Option<StoreError>),
}

impl Several<'_> {
    /// `None` when all has to begin anew: a session ended meanwhile, or nobody knows what came of the last question.
    async fn contend(&mut self) -> Result<Option<Vec<LockGuard>>, LockError> {
        // After a question without an answer, one by one: what fails for all may not for each.
        let once = if self.unsure { Once::Refused } else { self.at_once().await? };
        let (holding, since) = match once {
            Once::Held(holding) => (holding, self.engine.clock.now()),
            Once::Perhaps(cause) => {
                self.unsure = true;
                return self.pause(cause).await.map(|()| None);
            }
            Once::Unsent(cause) => return self.pause(cause).await.map(|()| None),
            Once::Refused => match self.one_by_one().await? {
                Some(holding) => holding,
                None => return Ok(None),
            },
        };
        if let Some((session, claims)) = self.unwatched(&holding, since)
            && self.finds_interference(&session, &claims).await
        {
            return Ok(None);
        }
        // The time to hold begins for all of them now.
        let now = self.engine.clock.now();
        let Some(limits) = self.acquisitions.first().map(|first| first.limits(now)) else { return Ok(Some(Vec::new())) };
        let mut guards = Vec::new();
        for (attempt, token) in holding {
            let Some(grant) = attempt.into_grant(token, now, limits) else { return Ok(None) };
            guards.push(LockGuard::new(grant, Arc::clone(self.engine)));
        }
        Ok(Some(guards))
    }

    /// In the order of their names, each with its turn at the gate, and since when the first is held; `None` when a session ended meanwhile.
    async fn one_by_one(&mut self) -> Result<Option<(Vec<Holding>, Moment)>, LockError> {
        let (mut holding, mut sessions) = (Vec::<Holding>::new(), Vec::new());
        let mut since = None;
        for acquisition in &mut self.acquisitions {
            // Whoever waits for what is held waits for the rest too.
            acquisition.awaited |= !holding.is_empty();
            let turn = async {
                // Who is told to wait is never sent away.
                let pass = acquisition.pass(true).await?;
                acquisition.hold(pass).await
            };
            let got = tokio::select! {
                biased;
                () = any_over(&sessions) => return Ok(None),
                got = turn => got,
            };
            #[cfg(dlock_planted)]
            if got.is_err() && Bug::PartialMultiLock.is_on() {
                holding.drain(..).for_each(std::mem::forget);
            }
            let Some((attempt, token, now)) = got? else { continue };
            sessions.extend(attempt.seat.as_ref().map(|seat| Arc::clone(&seat.session)));
            holding.push((attempt, token));
            since = since.or(Some(now));
        }
        Ok(Some((holding, since.unwrap_or(Moment::ORIGIN))))
    }

    /// Those that nobody looked after while the last were waited for, if that took as long as it takes to the next audit otherwise.
    fn unwatched(&self, holding: &[Holding], since: Moment) -> Option<(SessionId, Vec<Granted>)> {
        let long = self.engine.clock.now().saturating_since(since) >= self.engine.options.ttl / 3;
        if !long || !self.engine.backend.capabilities().audits {
            return None;
        }
        let granted = |(attempt, token): &Holding| {
            let seat = attempt.seat.as_ref()?;
            Some((seat.id.clone(), Granted { claim: Arc::clone(&seat.claim), token: *token }))
        };
        let granted: Vec<_> = holding.iter().filter_map(granted).collect();
        let (session, _) = granted.first().cloned()?;
        Some((session, granted.into_iter().map(|(_, granted)| granted).collect()))
    }

    /// Whether one of them was taken away.
    async fn finds_interference(&self, session: &SessionId, claims: &[Granted]) -> bool {
        let clock = self.engine.clock;
        let until = clock.now().plus(Lease::attempt(self.engine.options.ttl).max(LEAST_ATTEMPT));
        tokio::select! {
            biased;
            found = self.engine.backend.audit(session, claims) => found.is_ok_and(|found| !found.is_empty()),
            // The audits of a held lock go on from here.
            () = clock.sleep_until(until) => false,
        }
    }

    /// Before anything is asked again, as after any failure.
    async fn pause(&mut self, cause: Option<StoreError>) -> Result<(), LockError> {
        self.failures += 1;
        for acquisition in &mut self.acquisitions {
            acquisition.error = cause.clone().or(acquisition.error.take());
        }
        let Some(first) = self.acquisitions.first_mut() else { return Ok(()) };
        let (clock, deadline) = (self.engine.clock, first.deadline);
        if deadline.is_some_and(|deadline| clock.now() >= deadline) {
            return Err(first.timed_out());
        }
        let Some(pause) = first.options.retry.pause(self.failures, Chance(fastrand::u32(..))) else {
            let unknown = || StoreError::new(BackendError::new(ErrorKind::Ambiguous, "the store did not answer"));
            return Err(LockError::Store { key: first.key.clone(), cause: cause.unwrap_or_else(unknown) });
        };
        let until = clock.now().plus(pause);
        tokio::select! {
            biased;
            error = first.interrupted(deadline) => Err(error),
            () = clock.sleep_until(until) => Ok(()),
        }
    }
}

/// Returns when one of these is not believed any more.
async fn any_over(sessions: &[Arc<Session>]) {
    if sessions.is_empty() {
        return future::pending().await;
    }
    future::select_all(sessions.iter().map(|session| over(session).boxed())).await;
}

impl Several<'_> {
    /// Asks for all in one request, where the store takes as many.
    async fn at_once(&mut self) -> Result<Once, LockError> {
        let Self { engine, acquisitions, .. } = self;
        let most = engine.backend.capabilities().claims_at_once.unwrap_or(0);
        if acquisitions.len() < 2 || acquisitions.len() > most {
            return Ok(Once::Refused);
        }
        // A closed gate is a key that somebody of this process has, or wants and came first.
        let passes = acquisitions.iter().map(|acquisition| engine.gates.try_pass(acquisition.key));
        let Some(passes) = passes.collect::<Option<Vec<_>>>() else { return Ok(Once::Refused) };
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
        let (in_flight, until) = match acquisitions[0].enter(AcquireAction::Claim, &attempts[0]) {
            Turn::Now(in_flight) => (in_flight, until),
            Turn::Later(queued) => match acquisitions[0].queue(queued, &mut attempts).await? {
                Sending::Now(in_flight, until) => (in_flight, until),
                Sending::SessionLost => return Ok(refused(attempts)),
                Sending::TimeUp => return Ok(Once::Unsent(acquisitions[0].error.take())),
            },
        };
        let answer = tokio::select! {
            biased;
            answer = engine.backend.claim_all(&id, &claims) => in_flight.answered(answer),
            () = over(&session) => return Ok(Once::Perhaps(None)),
            error = acquisitions[0].interrupted(None) => return Err(error),
            () = engine.clock.sleep_until(until) => return Ok(Once::Perhaps(None)),
        };
        let now = engine.clock.now();
        match answer {
            Ok(Together::Held { tokens }) if tokens.len() == attempts.len() => {
                for (attempt, token) in attempts.iter_mut().zip(&tokens) {
                    attempt.machine.step(AcquireEvent::Answered(Standing::Held { token: *token }), now, Chance::MIDDLE);
                }
                Ok(Once::Held(attempts.into_iter().zip(tokens).collect()))
            }
            Ok(Together::Held { .. }) => Ok(Once::Perhaps(None)),
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
            Err(error) => {
                let kind = error.kind();
                tracing::debug!(%error, ?kind, "several keys were not claimed at once");
                let said = StoreError::new(error);
                if kind == ErrorKind::Ambiguous {
                    return Ok(Once::Perhaps(Some(said)));
                }
                acquisitions[0].error = Some(said);
                Ok(refused(attempts))
            }
        }
    }
}

/// Nothing of these is at the store; their turns at the gates are over.
fn refused(attempts: Vec<Attempt>) -> Once {
    for mut attempt in attempts {
        // A refusal for now leaves a waiting claim with nothing to undo.
        let busy = Standing::Busy { holder: None, cursor: Cursor::default() };
        attempt.machine.step(AcquireEvent::Answered(busy), Moment::ORIGIN, Chance::MIDDLE);
    }
    Once::Refused
}

impl Acquisition<'_> {
    /// Gets a session and a claim for it, up to where it is to be sent, and says until when that may take; `None` when it comes to nothing, as
    /// whoever tries again will be told.
    async fn seat(&mut self, attempt: &mut Attempt) -> Result<Option<Moment>, LockError> {
        let mut event = AcquireEvent::Started;
        loop {
            let now = self.engine.clock.now();
            event = match attempt.machine.step(event, now, Chance(fastrand::u32(..))) {
                AcquireStep::Done(_) => return Ok(None),
                AcquireStep::Do { action: AcquireAction::Claim, until } => return Ok(Some(until)),
                AcquireStep::Do { action, until } => self.perform(attempt, action, now, until).await?,
            };
        }
    }
}
