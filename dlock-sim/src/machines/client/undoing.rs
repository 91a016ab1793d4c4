//! Giving back what a claim has.

use std::sync::Arc;

use dlock_core::{Claim, ClaimId, Health, LeaseEvent, Loss, Moment, Release, Undo, UndoEvent, UndoStep, Undone};
use dlock_testkit::memory::{Reply, Request};

use super::{Client, Seat};
use crate::machines::surroundings::{Answer, CallId, News, Question, Surroundings};
use crate::model::Bug;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Undoing {
    pub(super) claim: Arc<Claim>,
    machine: Undo,
    pub(super) until: Moment,
    /// When the release that is queued may be sent.
    pub(super) turn: Option<Moment>,
    pub(super) call: Option<CallId>,
    /// Nobody else of this process passes the gate before it is done.
    pub(super) gate: bool,
    unfenced: bool,
}

impl Undoing {
    pub(super) fn next_moment(&self) -> Moment {
        self.turn.map_or(self.until, |turn| turn.min(self.until))
    }
}

impl Client {
    /// Owes a release. A claim that is still under way is not heard out first, which dlock does: the harder order.
    pub(super) fn owe(&mut self, seat: &Seat, gate: bool, around: &mut impl Surroundings) {
        if self.sessions[seat.session].ended {
            return;
        }
        self.sessions[seat.session].undoing.push(Undoing {
            claim: Arc::clone(&seat.claim),
            machine: Undo::new(around.terms().attempt, around.terms().patience),
            until: Moment::FAR_FUTURE,
            turn: None,
            call: None,
            gate,
            unfenced: seat.unfenced,
        });
        let event = if self.is_gone(seat.session) { UndoEvent::SessionGone } else { UndoEvent::Started };
        self.undo(seat.session, seat.claim.id, event, around);
    }

    /// Whether the store said that a session is gone, and all it had with it. One that only expired may be alive there.
    fn is_gone(&self, s: usize) -> bool {
        self.sessions[s].lease.health() == Health::Over(Some(Loss::SessionGone))
    }

    /// Ends every release of a session that is gone.
    pub(super) fn undo_with_session(&mut self, s: usize, around: &mut impl Surroundings) {
        while self.is_gone(s)
            && let Some(undoing) = self.sessions[s].undoing.first()
        {
            self.undo(s, undoing.claim.id, UndoEvent::SessionGone, around);
        }
    }

    pub(super) fn hear_undo(&mut self, s: usize, at: usize, answer: &Answer, around: &mut impl Surroundings) {
        let undoing = &self.sessions[s].undoing[at];
        let (claim, unfenced) = (undoing.claim.id, undoing.unfenced);
        match answer {
            Answer::Reply(Reply::Released(found)) => {
                let unfenced = unfenced && around.bug() != Some(Bug::TrustsAbsence);
                self.sessions[s].retired |= unfenced;
                let found = if unfenced { Release::Unfenced { had: *found == Release::Released } } else { *found };
                self.undo(s, claim, UndoEvent::Answered(found), around);
            }
            Answer::Failed(kind) => self.undo(s, claim, UndoEvent::Failed(*kind), around),
            Answer::Reply(_) | Answer::Woken(_) | Answer::Audited(_) | Answer::Disturbed(_) => {}
        }
    }

    pub(super) fn undo(&mut self, s: usize, claim: ClaimId, event: UndoEvent, around: &mut impl Surroundings) {
        let Some(at) = self.sessions[s].undoing.iter().position(|undoing| undoing.claim.id == claim) else { return };
        let Some(session) = self.sessions[s].id.clone() else { return };
        let undoing = &mut self.sessions[s].undoing[at];
        let chance = around.chance();
        match undoing.machine.step(event, around.now(), chance) {
            UndoStep::Release { until } => {
                (undoing.until, undoing.call) = (until, None);
                if event == UndoEvent::Queued {
                    return;
                }
                undoing.turn = None;
                if event != UndoEvent::Sent
                    && let Some(so_long) = around.queued_for()
                {
                    undoing.turn = Some(around.now().plus(so_long));
                    return self.undo(s, claim, UndoEvent::Queued, around);
                }
                let request = Request::Release { session, claim: Arc::clone(&undoing.claim) };
                let call = around.send(self.calls(), Question::Request(request));
                self.sessions[s].undoing[at].call = call;
            }
            UndoStep::Pause { until } => (undoing.until, undoing.turn, undoing.call) = (until, None, None),
            UndoStep::Done(undone) => {
                let session = &mut self.sessions[s];
                session.undoing.remove(at);
                session.retired |= undone == Undone::GivenUp;
                let fenced = matches!(undone, Undone::Answered(Release::Released | Release::NotHeld));
                around.tell(News::Undone { claim, undone, fenced });
                if !session.ended {
                    let settling = session.undoing.is_empty() && matches!(session.lease.health(), Health::Over(Some(_)));
                    self.keep(s, if settling { LeaseEvent::Settled } else { LeaseEvent::Elapsed }, around);
                }
            }
        }
    }
}
