//! From wanting to send a claim to sending it: the queue of those that are not in flight yet, as the machine and the user are told of it.

use std::sync::Arc;

use dlock_core::{AcquireAction, AcquireEvent, AcquireStep, BackendError, Chance, ErrorKind, Moment};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::Acquisition;
use super::attempt::{Attempt, over};
use crate::admission::{InFlight, Priority, Queued, Turn};
use crate::error::{LockError, StoreError};

/// What came of waiting to send a call.
pub(super) enum Sending {
    /// It is to be sent now, and may take until then.
    Now(InFlight, Moment),
    /// The session is not believed any more.
    SessionLost,
    /// The time is up, or the store answers nobody.
    TimeUp,
}

impl<'a> Acquisition<'a> {
    /// Wants to send the call of an action.
    pub(super) fn enter(&self, action: AcquireAction, attempt: &Attempt) -> Turn {
        match action {
            // An earlier copy of the claim may hold the key with nobody knowing.
            AcquireAction::Claim if !self.awaited && !attempt.machine.owes_release() => {
                self.engine.admission.enter(Priority::Fresh)
            }
            AcquireAction::Claim | AcquireAction::Confirm { .. } => self.engine.admission.enter(Priority::Awaited),
            AcquireAction::AwaitSession | AcquireAction::Wait { .. } | AcquireAction::Pause => Turn::Now(InFlight::default()),
        }
    }

    /// Waits until the call of these attempts, which have one session, may be sent.
    ///
    /// In a box, since hardly a call is queued and every one would carry it.
    pub(super) fn queue<'b>(
        &'b mut self,
        mut queued: Box<Queued>,
        attempts: &'b mut [Attempt],
    ) -> BoxFuture<'b, Result<Sending, LockError>>
    where
        'a: 'b,
    {
        let clock = self.engine.clock;
        let seat = attempts.iter().find_map(|attempt| attempt.seat.as_ref());
        let Some(session) = seat.map(|seat| Arc::clone(&seat.session)) else { return ready(Ok(Sending::SessionLost)).boxed() };
        async move {
            let before = self.error.take();
            loop {
                let Some(until) = tell(attempts, &AcquireEvent::Queued, clock.now()) else {
                    self.error = self.error.take().or(before);
                    return Ok(Sending::TimeUp);
                };
                let in_flight = tokio::select! {
                    biased;
                    // First what makes it pointless to send anything.
                    () = over(&session) => {
                        self.error = before;
                        return Ok(Sending::SessionLost);
                    }
                    waited = self.wait_until(until) => {
                        waited?;
                        queued.admitted().now_or_never()
                    }
                    in_flight = queued.admitted() => Some(in_flight),
                };
                let now = clock.now();
                if let Some(in_flight) = in_flight {
                    self.error = before;
                    let until = tell(attempts, &AcquireEvent::Sent, now);
                    return Ok(until.map_or(Sending::TimeUp, |until| Sending::Now(in_flight, until)));
                }
                // What an ended runtime left undone may be what is in flight.
                self.engine.keep_all(now);
                let (moved, in_time) = (queued.moved(), self.deadline.is_none_or(|deadline| now < deadline));
                let not_sent = || StoreError::new(not_sent(moved || !in_time));
                if in_time && !moved {
                    // What it was told itself says more.
                    self.error = Some(before.unwrap_or_else(not_sent));
                    return Ok(Sending::TimeUp);
                }
                self.error = Some(not_sent());
            }
        }
        .boxed()
    }
}

/// Why a call was not sent.
fn not_sent(moves: bool) -> BackendError {
    let message = if moves {
        "not sent yet: as many calls of this process are in flight as are sent at a time"
    } else {
        "not sent: as many calls of this process are in flight as are sent at a time, and none of them is answered"
    };
    BackendError::new(ErrorKind::Transient, message)
}

/// Tells all of them the same, and says until when that may go on; `None` when one of them is done.
fn tell(attempts: &mut [Attempt], event: &AcquireEvent, now: Moment) -> Option<Moment> {
    let mut until = Some(Moment::FAR_FUTURE);
    for attempt in attempts {
        until = match attempt.machine.step(event.clone(), now, Chance::MIDDLE) {
            AcquireStep::Do { until: limit, .. } => until.map(|until| until.min(limit)),
            AcquireStep::Done(_) => None,
        };
    }
    until
}
