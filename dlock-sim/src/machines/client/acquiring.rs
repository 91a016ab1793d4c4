//! From wanting the lock to a grant, as `drive` and `perform` of dlock do it.

use std::sync::Arc;

use dlock_core::{
    Acquire, AcquireAction, AcquireEvent, AcquirePlan, AcquireStep, Claim, ClaimId, Cursor, ErrorKind, FencingToken, Health,
    LeaseEvent, Mode, Moment, Place, Standing, Verdict, Woken,
};
use dlock_testkit::memory::{Guard, Reply, Request};

use super::keeping::Session;
use super::{Client, Grant, Seat};
use crate::history::Op;
use crate::machines::surroundings::{Answer, CallId, News, Question, Surroundings, Want};
use crate::model::Bug;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Acquiring {
    op: Op,
    place: Place,
    machine: Acquire,
    pub(super) until: Moment,
    /// When the call that is queued may be sent.
    pub(super) turn: Option<Moment>,
    pub(super) call: Option<CallId>,
    pub(super) waiting: Option<Cursor>,
    pub(super) seat: Option<Seat>,
    /// A bug of the model took an answer for proof that nothing is owed.
    forgot: bool,
    /// The answer to the claim under way accounts for every copy of it.
    fences: bool,
}

impl Acquiring {
    pub(super) fn next_moment(&self) -> Moment {
        self.turn.map_or(self.until, |turn| turn.min(self.until))
    }
}

impl Client {
    /// Begins an acquisition; to be asked only while the client [is idle](Self::is_idle).
    pub fn want(&mut self, Want { op, place, retry, deadline }: Want, around: &mut impl Surroundings) {
        let terms = around.terms();
        let plan = AcquirePlan { place, retry, deadline, attempt: terms.attempt, longest_wait: terms.longest_wait };
        self.acquiring = Some(Acquiring {
            op,
            place,
            machine: Acquire::new(plan),
            until: Moment::FAR_FUTURE,
            turn: None,
            call: None,
            waiting: None,
            seat: None,
            forgot: false,
            fences: false,
        });
        self.acquire(AcquireEvent::Started, around);
    }

    /// The caller drops the acquisition.
    pub fn cancel(&mut self, around: &mut impl Surroundings) {
        self.acquire(AcquireEvent::Stopped, around);
    }

    pub(super) fn hear_acquire(&mut self, answer: Answer, around: &mut impl Surroundings) {
        let Some(acquiring) = &mut self.acquiring else { return };
        // An error that may hide an applied claim accounts for nothing.
        if answer != Answer::Failed(ErrorKind::Ambiguous)
            && acquiring.fences
            && let Some(seat) = &mut acquiring.seat
        {
            seat.unfenced = false;
        }
        let seat = acquiring.seat.as_ref().map(|seat| seat.session);
        match answer {
            Answer::Reply(Reply::Standing(Standing::SessionGone)) => {
                // Nobody else may claim with it until its keeper has heard it from the store too.
                if let Some(s) = seat {
                    (self.sessions[s].retired, self.sessions[s].doubted) = (true, true);
                }
                self.acquire(AcquireEvent::Answered(Standing::SessionGone), around);
                if let Some(s) = seat {
                    self.keep(s, LeaseEvent::Elapsed, around);
                }
            }
            Answer::Reply(Reply::Standing(standing)) => self.acquire(AcquireEvent::Answered(standing), around),
            Answer::Reply(Reply::GuardFailed) => self.acquire(AcquireEvent::Failed(ErrorKind::Transient), around),
            Answer::Woken(Woken { cursor, hint }) => self.acquire(AcquireEvent::Woken { cursor, hint }, around),
            Answer::Failed(kind) => self.acquire(AcquireEvent::Failed(kind), around),
            Answer::Reply(_) | Answer::Audited(_) | Answer::Disturbed(_) => {}
        }
    }

    /// Steps the acquisition until it waits for something.
    pub(super) fn acquire(&mut self, event: AcquireEvent, around: &mut impl Surroundings) {
        let Some(mut acquiring) = self.acquiring.take() else { return };
        let busy = matches!(event, AcquireEvent::Answered(Standing::Busy { .. }));
        let stopped = event == AcquireEvent::Stopped;
        let (is_queued, is_sent) = (event == AcquireEvent::Queued, event == AcquireEvent::Sent);
        acquiring.forgot |= busy && around.bug() == Some(Bug::BusyMeansNothingOwed);
        let chance = around.chance();
        let (action, until) = match acquiring.machine.step(event, around.now(), chance) {
            AcquireStep::Do { action, until } => (action, until),
            AcquireStep::Done(Verdict::Held { token }) => return self.take_grant(acquiring, token, around),
            AcquireStep::Done(why) => {
                around.tell(News::Refused { op: acquiring.op, why });
                let skipped = acquiring.forgot || around.bug() == Some(Bug::CancelWithoutUndo) && stopped;
                if acquiring.machine.owes_release()
                    && !skipped
                    && let Some(seat) = &acquiring.seat
                {
                    self.owe(seat, true, around);
                }
                return self.stand_up(acquiring.seat.as_ref(), around);
            }
        };
        (acquiring.until, acquiring.call, acquiring.waiting) = (until, None, None);
        if is_queued {
            self.acquiring = Some(acquiring);
            return;
        }
        acquiring.turn = None;
        if matches!(action, AcquireAction::Claim | AcquireAction::Confirm { .. })
            && !is_sent
            && let Some(so_long) = around.queued_for()
        {
            acquiring.turn = Some(around.now().plus(so_long));
            self.acquiring = Some(acquiring);
            return self.acquire(AcquireEvent::Queued, around);
        }
        acquiring.forgot &= action != AcquireAction::Claim;
        match (action, acquiring.seat.clone()) {
            (AcquireAction::AwaitSession, seat) | (_, seat @ None) => {
                acquiring.seat = None;
                let owes = acquiring.machine.owes_release();
                self.acquiring = Some(acquiring);
                if let Some(seat) = seat
                    && owes
                {
                    self.owe(&seat, false, around);
                }
                self.take_seat(around);
            }
            (AcquireAction::Claim, Some(seat)) => {
                let session = self.id_of(&seat);
                let (claim, guard, place) = (Arc::clone(&seat.claim), around.guard(), acquiring.place);
                let before = seat.unfenced;
                acquiring.seat = Some(Seat { unfenced: before || guard == Guard::Index(0), ..seat });
                acquiring.fences = !before;
                let request = Request::Claim { session, claim, place, guard };
                acquiring.call = around.send(self.calls(), Question::Request(request));
                self.acquiring = Some(acquiring);
            }
            (AcquireAction::Confirm { .. }, Some(seat)) => {
                let request = Request::Confirm { session: self.id_of(&seat), claim: seat.claim };
                acquiring.call = around.send(self.calls(), Question::Request(request));
                self.acquiring = Some(acquiring);
            }
            (AcquireAction::Wait { cursor }, Some(seat)) => {
                let question = Question::Wait { session: self.id_of(&seat), claim: seat.claim, cursor };
                acquiring.call = around.send(self.calls(), question);
                acquiring.waiting = Some(cursor);
                self.acquiring = Some(acquiring);
            }
            (AcquireAction::Pause, Some(_)) => self.acquiring = Some(acquiring),
        }
    }

    /// Gets a session to claim with, and a fresh claim for it.
    pub(super) fn take_seat(&mut self, around: &mut impl Surroundings) {
        let Some(s) = self.sessions.iter().position(Session::is_usable) else {
            self.sessions.push(Session::new(around.terms()));
            return self.keep(self.sessions.len() - 1, LeaseEvent::Started, around);
        };
        if self.sessions[s].lease.believed_until().is_none() {
            return;
        }
        let Some(acquiring) = &mut self.acquiring else { return };
        self.claims += 1;
        let claim = Arc::new(Claim {
            id: ClaimId::from_bits(u128::from(acquiring.op) << 64 | u128::from(self.me) << 32 | u128::from(self.claims)),
            key: around.terms().key.clone(),
            mode: Mode::Exclusive,
            owner: "client".into(),
            acquired_at: "".into(),
            metadata: None,
        });
        acquiring.seat = Some(Seat { session: s, claim, unfenced: false });
        self.acquire(AcquireEvent::SessionReady, around);
    }

    /// A seat is free again: a session that is not wanted any more may be closed.
    fn stand_up(&mut self, seat: Option<&Seat>, around: &mut impl Surroundings) {
        if let Some(seat) = seat
            && self.sessions[seat.session].retired
            && !self.sessions[seat.session].ended
        {
            self.keep(seat.session, LeaseEvent::Elapsed, around);
        }
    }

    /// An attempt to open the session that the acquisition awaits failed.
    pub(super) fn fail_session(&mut self, kind: ErrorKind, around: &mut impl Surroundings) {
        if self.acquiring.as_ref().is_some_and(|acquiring| acquiring.seat.is_none()) {
            self.acquire(AcquireEvent::SessionFailed(kind), around);
        }
    }

    /// A session ended: an acquisition that claims with it needs another.
    pub(super) fn lose_seat(&mut self, s: usize, around: &mut impl Surroundings) {
        let over = self.sessions[s].ended || matches!(self.sessions[s].lease.health(), Health::Over(_));
        let seat = self.acquiring.as_ref().and_then(|acquiring| acquiring.seat.as_ref());
        if over && seat.is_some_and(|seat| seat.session == s) {
            self.acquire(AcquireEvent::SessionLost, around);
        }
    }

    /// Takes in a grant; one that came with a session that is not believed any more is undone.
    fn take_grant(&mut self, acquiring: Acquiring, token: FencingToken, around: &mut impl Surroundings) {
        let Acquiring { op, seat: Some(seat), .. } = acquiring else { return };
        let until = self.sessions[seat.session].lease.believed_until();
        if until.is_some_and(|until| around.now() < until) {
            let s = seat.session;
            self.grant = Some(Grant { seat, token });
            around.tell(News::Held { op, token });
            self.watch(s, around);
        } else {
            around.tell(News::HeldTooLate { op });
            self.owe(&seat, true, around);
        }
    }
}
