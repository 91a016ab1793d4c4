//! One run of the machine, and what it owes the store.

use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    Acquire, AcquireEvent, AcquirePlan, BackendError, Chance, Claim, FencingToken, Moment, SessionId, Standing, Woken,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::gate::Pass;
use crate::grant::{Grant, HoldLimits};
use crate::session::{Enrolled, Owed, Session};
use crate::stage::Stage;

/// What a call to the store brought.
pub(super) enum Answer {
    Standing(Result<Standing, BackendError>),
    Woken(Result<Woken, BackendError>),
}

/// One run of the machine; undone when dropped, unless it became a grant.
pub(super) struct Attempt {
    pub(super) machine: Acquire,
    pub(super) pass: Option<Pass>,
    pub(super) seat: Option<Seat>,
    pub(super) call: Option<BoxFuture<'static, Answer>>,
    /// Whether the call under way is one that may change the store.
    pub(super) claiming: bool,
}

/// The session an attempt claims with, and its claim there.
pub(super) struct Seat {
    pub(super) session: Arc<Session>,
    pub(super) id: SessionId,
    pub(super) claim: Arc<Claim>,
    /// Keeps the session from being closed as idle.
    #[allow(dead_code)] // held, not read
    pub(super) enrolled: Enrolled,
}

/// Returns when the session is not believed any more.
pub(super) async fn over(session: &Session) {
    while let (Stage::Ready(_), look) = session.stages.look() {
        session.stages.moved_since(look).await;
    }
}

impl Attempt {
    pub(super) fn new(plan: AcquirePlan, pass: Option<Pass>) -> Self {
        Self { machine: Acquire::new(plan), pass, seat: None, call: None, claiming: false }
    }

    pub(super) fn into_grant(mut self, token: FencingToken, now: Moment, limits: HoldLimits) -> Option<Arc<Grant>> {
        let seat = self.seat.as_ref()?;
        match seat.session.grant(Arc::clone(&seat.claim), token, now, limits, self.machine.is_unanswered(), self.pass.take()) {
            Ok(grant) => {
                self.seat = None;
                Some(grant)
            }
            Err(pass) => {
                self.pass = pass;
                None
            }
        }
    }

    /// Gives up the session it has, but not its turn at the gate: what it claimed is undone beside.
    pub(super) fn leave_seat(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.owe(&seat, None);
        }
    }

    fn owe(&mut self, seat: &Seat, pass: Option<Pass>) {
        if !self.machine.owes_release() {
            return;
        }
        // A wait changes nothing at the store; only a claim is worth hearing out.
        let under_way = self.call.take().filter(|_| self.claiming).map(|call| call.map(drop).boxed());
        let unanswered = self.machine.is_unanswered();
        seat.session.owe();
        seat.session.hand_in(Owed { claim: Arc::clone(&seat.claim), pass, under_way, from: Moment::ORIGIN, unanswered });
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(seat) = self.seat.take() else { return };
        #[cfg(dlock_planted)]
        if Bug::DropForgets.is_on() {
            return;
        }
        self.machine.step(AcquireEvent::Stopped, Moment::ORIGIN, Chance::MIDDLE);
        let pass = self.pass.take();
        self.owe(&seat, pass);
    }
}
