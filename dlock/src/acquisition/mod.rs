//! The path from wanting a lock to holding it: every decision in the pure machine, every effect here.
//!
//! `lock` -> [`acquire`] -> `drive` (asks [`Acquire::step`] what to do) -> `perform` (one action, one call) -> the backend.

mod admit;
mod attempt;
mod several;

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    AcquireAction, AcquireEvent, AcquirePlan, AcquireStep, BackendError, Chance, Claim, ClaimId, ClaimsPerKey, FencingToken, Hint,
    Holder, Key, Lease, Metadata, Mode, Moment, Order, Place, Standing, Verdict, Woken,
};
use futures_util::FutureExt;
use futures_util::future::OptionFuture;

pub(crate) use several::acquire_all;

use self::admit::Sending;
use self::attempt::{Answer, Attempt, Seat, over};
use crate::admission::Turn;
use crate::engine::Engine;
use crate::error::{LockError, StoreError};
use crate::gate::Pass;
use crate::grant::{Grant, HoldLimits};
use crate::options::{HEAD_START, LEAST_ATTEMPT, LONGEST_WAIT, REPORT_HELD_AFTER, REPORT_WAITING_AFTER, RequestOptions, TRY_LIMIT};
use crate::session::Session;
use crate::stage::Stage;

/// Acquires a key, or says why not; `None` when it was only tried and another holds it.
///
/// Free to drop at any point: what was begun is undone in the background.
pub(crate) async fn acquire(
    engine: &Arc<Engine>,
    key: &Key,
    place: Place,
    options: &RequestOptions,
) -> Result<Option<Arc<Grant>>, LockError> {
    if engine.stopping.is_cancelled() {
        return Err(LockError::ShutDown);
    }
    let started = engine.clock.now();
    let mut acquisition = Acquisition::new(engine, key, place, options, started);
    let outcome = acquisition.contend().await;
    if let Err(error) = &outcome {
        tracing::debug!(key = %acquisition.key, %error, "not acquired");
    }
    outcome
}

/// Waits until there is a session that is believed.
pub(crate) async fn ready(engine: &Arc<Engine>, within: Duration) -> Result<(), LockError> {
    if engine.stopping.is_cancelled() {
        return Err(LockError::ShutDown);
    }
    let now = engine.clock.now();
    let (limit, session) = (now.plus(within), engine.session(now));
    let mut last = None;
    loop {
        let (stage, look) = session.stages.look();
        match stage {
            Stage::Ready(_) => return Ok(()),
            Stage::Opening { error, .. } => last = error.or(last),
            Stage::Refused(cause) => return Err(LockError::NoSession { cause: Some(cause) }),
            Stage::Over if engine.stopping.is_cancelled() => return Err(LockError::ShutDown),
            Stage::Over => return Err(LockError::NoSession { cause: last }),
        }
        tokio::select! {
            biased;
            () = session.stages.moved_since(look) => {}
            () = engine.clock.sleep_until(limit) => return Err(LockError::NoSession { cause: last }),
        }
    }
}

/// What stays the same over all attempts, and what was last heard.
struct Acquisition<'a> {
    engine: &'a Arc<Engine>,
    key: &'a Key,
    place: Place,
    options: &'a RequestOptions,
    metadata: Option<Arc<Metadata>>,
    acquired_at: Arc<str>,
    started: Moment,
    deadline: Option<Moment>,
    report_at: Moment,
    holder: Option<Holder>,
    error: Option<StoreError>,
    /// Others may wait for what it asks from now on: it was told that the key may be free, or other keys are held already.
    awaited: bool,
}

impl<'a> Acquisition<'a> {
    fn new(engine: &'a Arc<Engine>, key: &'a Key, place: Place, options: &'a RequestOptions, started: Moment) -> Self {
        let limit = if place == Place::Try { Some(TRY_LIMIT) } else { options.wait_at_most };
        Self {
            metadata: (!options.metadata.is_empty()).then(|| Arc::new(options.metadata.clone())),
            acquired_at: engine.wall_clock.now(),
            deadline: limit.map(|limit| started.plus(limit)),
            report_at: started.plus(REPORT_WAITING_AFTER),
            engine,
            key,
            place,
            options,
            started,
            holder: None,
            error: None,
            awaited: false,
        }
    }

    async fn contend(&mut self) -> Result<Option<Arc<Grant>>, LockError> {
        let mut tried = false;
        loop {
            let pass = if self.is_gated() {
                // Once it has tried, what keeps the gate closed may be what it has itself to undo.
                let Some(pass) = self.pass(tried).await? else { return Ok(None) };
                Some(pass)
            } else {
                None
            };
            tried = true;
            let Some((attempt, token, now)) = self.hold(pass).await? else { return Ok(None) };
            // Granted with a session that is not believed any more: it is given back, and another is tried.
            let Some(grant) = attempt.into_grant(token, now, self.limits(now)) else {
                tokio::task::yield_now().await;
                continue;
            };
            tracing::debug!(key = %self.key, %token, waited = ?now.saturating_since(self.started), "acquired");
            return Ok(Some(grant));
        }
    }

    fn attempt(&self, pass: Option<Pass>) -> Attempt {
        let plan = AcquirePlan {
            place: self.place,
            retry: self.options.retry,
            deadline: self.deadline,
            attempt: Lease::attempt(self.engine.options.ttl).max(LEAST_ATTEMPT),
            longest_wait: LONGEST_WAIT,
        };
        Attempt::new(plan, pass)
    }

    /// One run of the machine: what holds the key, its number, and when it was told; `None` when it was only tried and another has it.
    async fn hold(&mut self, pass: Option<Pass>) -> Result<Option<(Attempt, FencingToken, Moment)>, LockError> {
        let mut attempt = self.attempt(pass);
        let (verdict, now) = self.drive(&mut attempt).await?;
        match verdict {
            Verdict::Held { token } => Ok(Some((attempt, token, now))),
            Verdict::Busy => Ok(None),
            Verdict::TimedOut => Err(self.timed_out()),
            Verdict::Stopped => Err(LockError::ShutDown),
            Verdict::Failed(_) if attempt.seat.is_none() => Err(LockError::NoSession { cause: self.error.take() }),
            Verdict::Failed(kind) => {
                let unknown = || StoreError::new(BackendError::new(kind, "the store gave no reason"));
                let cause = self.error.take().unwrap_or_else(unknown);
                Err(LockError::Store { key: self.key.clone(), cause })
            }
        }
    }

    /// Whether only one of this process may contend for the key at a time.
    fn is_gated(&self) -> bool {
        // Those who share stand in line one by one, where the store tells them apart.
        self.options.mode == Mode::Exclusive || self.engine.backend.capabilities().claims_per_key == ClaimsPerKey::One
    }

    /// Waits at the gate of the key; a try does not, the first time.
    async fn pass(&mut self, again: bool) -> Result<Option<Pass>, LockError> {
        let (gates, key) = (&self.engine.gates, self.key);
        if let Some(pass) = gates.try_pass(key) {
            return Ok(Some(pass));
        }
        let clock = self.engine.clock;
        // What an ended runtime left undone may be what keeps the gate closed.
        self.engine.keep_all(clock.now());
        if self.place == Place::Try && !again {
            return Ok(None);
        }
        let mut passing = Box::pin(gates.pass(key));
        let pass = loop {
            let look_again = clock.now().plus(self.engine.options.ttl / 3);
            tokio::select! {
                biased;
                pass = &mut passing => break pass,
                error = self.interrupted(self.deadline) => match error {
                    // Another task of this process has it.
                    LockError::TimedOut { .. } if self.place == Place::Try => return Ok(None),
                    error => return Err(error),
                },
                // A runtime may also end meanwhile.
                () = clock.sleep_until(look_again) => self.engine.keep_all(clock.now()),
            }
        };
        if pass.yields() && self.engine.backend.capabilities().order == Order::Unordered {
            // This process had enough turns in a row; waiters elsewhere get a head start.
            let until = clock.now().plus(HEAD_START);
            tokio::select! {
                biased;
                () = clock.sleep_until(until) => {}
                error = self.interrupted(self.deadline) => return Err(error),
            }
        }
        Ok(Some(pass))
    }

    /// Lets the machine decide until it has, and says when. An error drops the attempt, which undoes it.
    async fn drive(&mut self, attempt: &mut Attempt) -> Result<(Verdict, Moment), LockError> {
        let mut event = AcquireEvent::Started;
        loop {
            let now = self.engine.clock.now();
            event = match attempt.machine.step(event, now, Chance(fastrand::u32(..))) {
                AcquireStep::Done(verdict) => return Ok((verdict, now)),
                AcquireStep::Do { action, until } => self.perform(attempt, action, now, until).await?,
            };
        }
    }

    /// One action, one call.
    async fn perform(
        &mut self,
        attempt: &mut Attempt,
        action: AcquireAction,
        now: Moment,
        until: Moment,
    ) -> Result<AcquireEvent, LockError> {
        if action == AcquireAction::AwaitSession || attempt.seat.is_none() {
            return self.take_seat(attempt, now, until).await;
        }
        let (in_flight, until) = match self.enter(action, attempt) {
            Turn::Now(in_flight) => (in_flight, until),
            Turn::Later(queued) => match self.queue(queued, slice::from_mut(attempt)).await? {
                Sending::Now(in_flight, until) => (in_flight, until),
                Sending::SessionLost => return Ok(AcquireEvent::SessionLost),
                Sending::TimeUp => return Ok(AcquireEvent::Elapsed),
            },
        };
        let Some(seat) = &attempt.seat else { return Ok(AcquireEvent::SessionLost) };
        let (backend, session) = (Arc::clone(&self.engine.backend), seat.id.clone());
        let (claim, place) = (Arc::clone(&seat.claim), self.place);
        attempt.claiming = action == AcquireAction::Claim;
        attempt.call = match action {
            AcquireAction::AwaitSession | AcquireAction::Pause => None,
            AcquireAction::Claim => {
                Some(async move { Answer::Standing(in_flight.answered(backend.claim(&session, &claim, place).await)) }.boxed())
            }
            AcquireAction::Confirm { cursor } => {
                Some(async move { Answer::Standing(in_flight.answered(backend.confirm(&session, &claim, cursor).await)) }.boxed())
            }
            AcquireAction::Wait { cursor } => {
                Some(async move { Answer::Woken(backend.wait(&session, &claim, cursor).await) }.boxed())
            }
        };
        let Some(seat) = &attempt.seat else { return Ok(AcquireEvent::SessionLost) };
        let call: OptionFuture<_> = attempt.call.as_mut().into();
        let event = tokio::select! {
            biased;
            Some(answer) = call => self.hear(answer, &seat.session),
            // The call stays under way: it is heard out before its claim is undone.
            () = over(&seat.session) => return Ok(AcquireEvent::SessionLost),
            waited = self.wait_until(until) => waited.map(|()| AcquireEvent::Elapsed)?,
        };
        attempt.call = None;
        Ok(event)
    }

    /// Gets a session that is believed, and a fresh claim for it.
    async fn take_seat(&mut self, attempt: &mut Attempt, now: Moment, until: Moment) -> Result<AcquireEvent, LockError> {
        attempt.leave_seat();
        // Its turn or the end of its session may be news to it before the shutdown is; another session would stay behind.
        if self.engine.stopping.is_cancelled() {
            return Err(LockError::ShutDown);
        }
        let session = self.engine.session(now);
        let enrolled = session.enrol();
        let mut failed = 0;
        loop {
            let (stage, look) = session.stages.look();
            match stage {
                Stage::Ready(id) => {
                    let claim = Arc::new(Claim {
                        id: ClaimId::from_bits(fastrand::u128(..)),
                        key: self.key.clone(),
                        mode: self.options.mode,
                        owner: Arc::clone(&self.engine.options.owner),
                        acquired_at: Arc::clone(&self.acquired_at),
                        metadata: self.metadata.clone(),
                    });
                    attempt.seat = Some(Seat { session, id, claim, enrolled });
                    return Ok(AcquireEvent::SessionReady);
                }
                Stage::Opening { failures, error: Some(error) } if failures > failed => {
                    failed = failures;
                    let kind = error.kind();
                    self.error = Some(error);
                    let step = attempt.machine.step(AcquireEvent::SessionFailed(kind), self.engine.clock.now(), Chance::MIDDLE);
                    if let AcquireStep::Done(_) = step {
                        return Ok(AcquireEvent::Elapsed);
                    }
                }
                Stage::Opening { .. } => {}
                Stage::Refused(error) => {
                    let kind = error.kind();
                    self.error = Some(error);
                    return Ok(AcquireEvent::SessionFailed(kind));
                }
                Stage::Over => return Ok(AcquireEvent::SessionLost),
            }
            let clock = self.engine.clock;
            let look_again = clock.now().plus(self.engine.options.ttl / 3);
            tokio::select! {
                biased;
                () = session.stages.moved_since(look) => {}
                error = self.interrupted(None) => return Err(error),
                () = clock.sleep_until(until) => return Ok(AcquireEvent::Elapsed),
                // The session's keeper may live on a runtime that nobody drives any more.
                () = clock.sleep_until(look_again) => self.engine.keep_all(clock.now()),
            }
        }
    }

    fn hear(&mut self, answer: Answer, session: &Session) -> AcquireEvent {
        match answer {
            Answer::Standing(Ok(standing)) => {
                match &standing {
                    Standing::Busy { holder, .. } | Standing::Waiting { holder, .. } => self.holder.clone_from(holder),
                    // Nobody else may claim with it until its keeper has heard it from the store too.
                    Standing::SessionGone => session.doubt(),
                    Standing::Held { .. } | Standing::Delayed { .. } | Standing::ClaimGone => {}
                }
                self.error = None;
                AcquireEvent::Answered(standing)
            }
            Answer::Woken(Ok(Woken { cursor, hint })) => {
                if let Hint::StillHeld { holder: Some(holder) } = &hint {
                    self.holder = Some(holder.clone());
                }
                self.error = None;
                self.awaited |= hint == Hint::MaybeFree;
                AcquireEvent::Woken { cursor, hint }
            }
            Answer::Standing(Err(error)) | Answer::Woken(Err(error)) => {
                tracing::debug!(key = %self.key, %error, kind = ?error.kind(), "call failed");
                let kind = error.kind();
                self.error = Some(StoreError::new(error));
                AcquireEvent::Failed(kind)
            }
        }
    }

    /// Returns when the caller or the locker wants no more of it.
    async fn interrupted(&mut self, deadline: Option<Moment>) -> LockError {
        match self.wait_until(deadline.unwrap_or(Moment::FAR_FUTURE)).await {
            Ok(()) => self.timed_out(),
            Err(error) => error,
        }
    }

    /// Returns at that moment, or with an error when the caller or the locker wants no more of it; reports a long wait in passing, by the same timer.
    async fn wait_until(&mut self, moment: Moment) -> Result<(), LockError> {
        let clock = self.engine.clock;
        loop {
            tokio::select! {
                biased;
                () = self.options.cancelled() => return Err(LockError::Cancelled { key: self.key.clone() }),
                () = self.engine.stopping.cancelled() => return Err(LockError::ShutDown),
                () = clock.sleep_until(moment.min(self.report_at)) => {
                    let now = clock.now();
                    if now >= moment {
                        return Ok(());
                    }
                    let waited = now.saturating_since(self.started);
                    let last_holder = self.holder.as_ref().and_then(Holder::owner);
                    let error = self.error.as_ref().map(tracing::field::display);
                    tracing::info!(key = %self.key, ?waited, last_holder, error, "still waiting for lock");
                    // Each report doubles the time to the next.
                    self.report_at = now.plus(waited.max(REPORT_WAITING_AFTER));
                }
            }
        }
    }

    fn timed_out(&mut self) -> LockError {
        LockError::TimedOut {
            key: self.key.clone(),
            waited: self.engine.clock.now().saturating_since(self.started),
            holder: self.holder.take().map(Box::new),
            cause: self.error.take(),
        }
    }

    /// The bounds on a hold that begins now.
    fn limits(&self, now: Moment) -> HoldLimits {
        let options = &self.options;
        HoldLimits {
            stop_before: options.stop_before,
            // The time to stop counts in: what runs under the lock is told so much before the lock is given back.
            hold_until: options.hold_at_most.map_or(Moment::FAR_FUTURE, |most| now.plus(most.saturating_sub(options.stop_before))),
            release_from: now.plus(options.hold_at_least),
            report_at: now.plus(REPORT_HELD_AFTER),
        }
    }
}
