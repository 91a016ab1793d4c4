//! A client: the real machines, driven as the keeper and the acquisitions of dlock drive them.
//!
//! One process with its sessions, and at most one acquisition or grant of the key at a time, as its gate allows. It is a value without
//! clock, chance or network: those are its [`Surroundings`].

mod acquiring;
mod keeping;
mod undoing;
mod watching;

use std::sync::Arc;

use dlock_core::{
    AcquireEvent, Claim, ClaimId, Cursor, FencingToken, Health, LeaseEvent, Loss, Moment, SessionId, UndoEvent, Woken,
};

use self::acquiring::Acquiring;
use self::keeping::Session;
use super::surroundings::{Answer, CallId, News, Surroundings};
use crate::history::Op;

/// One process that contends for the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    me: u8,
    sessions: Vec<Session>,
    acquiring: Option<Acquiring>,
    grant: Option<Grant>,
    claims: u32,
}

/// The session that a claim is made with, and the claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seat {
    session: usize,
    claim: Arc<Claim>,
    /// A copy of the claim that was guarded by the key's absence was not answered (yet).
    unfenced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grant {
    seat: Seat,
    token: FencingToken,
}

/// The acquisition that a claim belongs to.
pub fn op_of(claim: ClaimId) -> Op {
    (claim.bits() >> 64) as Op
}

impl Client {
    /// A client that has done nothing yet.
    pub fn new(me: u8) -> Self {
        Self { me, sessions: Vec::new(), acquiring: None, grant: None, claims: 0 }
    }

    /// Whether a new acquisition passes the gate.
    pub fn is_idle(&self) -> bool {
        let gate = self.sessions.iter().flat_map(|session| &session.undoing).any(|undoing| undoing.gate);
        self.acquiring.is_none() && self.grant.is_none() && !gate
    }

    /// Whether it wants, has and owes nothing.
    pub fn is_quiet(&self) -> bool {
        self.acquiring.is_none() && self.grant.is_none() && self.sessions.iter().all(|session| session.undoing.is_empty())
    }

    /// Whether none of its sessions is left to be kept or closed.
    pub fn has_left(&self) -> bool {
        self.sessions.iter().all(|session| session.ended)
    }

    /// Whether it is on its way to the lock.
    pub fn is_acquiring(&self) -> bool {
        self.acquiring.is_some()
    }

    /// Whether it has a guard, believed or not.
    pub fn holds(&self) -> bool {
        self.grant.is_some()
    }

    /// The claim and the token of the grant it has.
    pub fn granted(&self) -> Option<(ClaimId, FencingToken)> {
        self.grant.as_ref().map(|grant| (grant.seat.claim.id, grant.token))
    }

    /// The claim that a guard's check would say holds the key, at this moment on the client's clock; and its token.
    pub fn believed(&self, now: Moment) -> Option<(ClaimId, FencingToken)> {
        let grant = self.grant.as_ref()?;
        let until = self.sessions[grant.seat.session].lease.believed_until()?;
        (now < until).then_some((grant.seat.claim.id, grant.token))
    }

    /// Whether a claim at the store is one that this client knows of and will see to, or lets lapse with its session.
    pub fn answers_for(&self, session: &SessionId, claim: ClaimId) -> bool {
        let Some(known) = self.sessions.iter().find(|known| known.id.as_ref() == Some(session)) else {
            // Its opening was never answered, so nobody renews it.
            return true;
        };
        let acquiring = self.acquiring.as_ref().and_then(|acquiring| acquiring.seat.as_ref());
        let granted = self.grant.as_ref().map(|grant| &grant.seat);
        known.lease.believed_until().is_none()
            || known.retired
            || known.undoing.iter().any(|undoing| undoing.claim.id == claim)
            || acquiring.into_iter().chain(granted).any(|seat| seat.claim.id == claim)
    }

    /// Whether it keeps this session alive.
    pub fn keeps(&self, session: &SessionId) -> bool {
        self.sessions.iter().any(|known| !known.ended && known.id.as_ref() == Some(session))
    }

    /// Whether it lost a session to silence.
    pub fn lost_by_silence(&self) -> bool {
        self.sessions.iter().any(|session| session.lease.health() == Health::Over(Some(Loss::Expired)))
    }

    /// When, on its clock, its next timer is due.
    pub fn next_moment(&self) -> Moment {
        let acquiring = self.acquiring.as_ref().map_or(Moment::FAR_FUTURE, Acquiring::next_moment);
        self.sessions.iter().map(Session::next_moment).fold(acquiring, Moment::min)
    }

    /// What it waits for at the store: the session, the claim, and since when.
    pub fn waits_for(&self) -> Option<(&SessionId, &Claim, Cursor)> {
        let acquiring = self.acquiring.as_ref()?;
        let (cursor, seat) = (acquiring.waiting?, acquiring.seat.as_ref()?);
        Some((self.sessions[seat.session].id.as_ref()?, &seat.claim, cursor))
    }

    /// Whether the answer to a call would be heard.
    pub fn awaits(&self, call: CallId) -> bool {
        self.calls().any(|awaited| awaited == call)
    }

    /// The calls whose answers are awaited.
    fn calls(&self) -> impl Iterator<Item = CallId> {
        let sessions = self.sessions.iter().filter(|session| !session.ended).flat_map(Session::calls);
        self.acquiring.iter().filter_map(|acquiring| acquiring.call).chain(sessions)
    }

    /// Its belief is looked at before anything else, as by a guard whose process was stopped for a while.
    pub fn look(&mut self, around: &mut impl Surroundings) {
        let now = around.now();
        let Some(grant) = &self.grant else { return };
        let s = grant.seat.session;
        if self.sessions[s].lease.believed_until().is_none_or(|until| now >= until) {
            self.keep(s, LeaseEvent::Elapsed, around);
        }
    }

    /// Steps every machine whose time has come.
    pub fn due(&mut self, around: &mut impl Surroundings) {
        let now = around.now();
        for s in 0..self.sessions.len() {
            if !self.sessions[s].ended && self.sessions[s].until <= now {
                self.keep(s, LeaseEvent::Elapsed, around);
            }
            while let Some(undoing) = self.sessions[s].undoing.iter().find(|undoing| undoing.next_moment() <= now) {
                let (claim, event) = match undoing.turn {
                    Some(turn) if turn <= now => (undoing.claim.id, UndoEvent::Sent),
                    Some(_) if around.answers_others() => (undoing.claim.id, UndoEvent::Queued),
                    _ => (undoing.claim.id, UndoEvent::Elapsed),
                };
                self.undo(s, claim, event, around);
            }
        }
        if let Some(acquiring) = self.acquiring.as_ref().filter(|acquiring| acquiring.next_moment() <= now) {
            let event = match acquiring.turn {
                Some(turn) if turn <= now => AcquireEvent::Sent,
                Some(_) if around.answers_others() => AcquireEvent::Queued,
                _ => AcquireEvent::Elapsed,
            };
            self.acquire(event, around);
        }
    }

    /// Takes in an answer; one to a call that was given up is ignored, and `false`.
    pub fn hear(&mut self, call: CallId, answer: Answer, around: &mut impl Surroundings) -> bool {
        if self.acquiring.as_ref().is_some_and(|acquiring| acquiring.call == Some(call)) {
            self.hear_acquire(answer, around);
            return true;
        }
        for s in 0..self.sessions.len() {
            if self.sessions[s].ended {
                continue;
            }
            if let Some(lease) = self.sessions[s].call.take_if(|lease| lease.call == call) {
                self.hear_lease(s, lease.sent, answer, around);
                return true;
            }
            if let Some(undoing) = self.sessions[s].undoing.iter().position(|undoing| undoing.call == Some(call)) {
                self.hear_undo(s, undoing, &answer, around);
                return true;
            }
            if self.hear_watching(s, call, &answer, around) {
                return true;
            }
        }
        false
    }

    /// A wait without a call of its own returned.
    pub fn wake(&mut self, Woken { cursor, hint }: Woken, around: &mut impl Surroundings) {
        self.acquire(AcquireEvent::Woken { cursor, hint }, around);
    }

    /// Gives the lock back.
    pub fn release(&mut self, around: &mut impl Surroundings) {
        let Some(Grant { seat, .. }) = self.grant.take() else { return };
        self.owe(&seat, true, around);
    }

    /// Nothing is wanted of it any more: every session is closed once nothing is held and nothing owed.
    pub fn leave(&mut self, around: &mut impl Surroundings) {
        for s in 0..self.sessions.len() {
            self.sessions[s].retired = true;
            if !self.sessions[s].ended {
                self.keep(s, LeaseEvent::Elapsed, around);
            }
        }
    }

    fn id_of(&self, seat: &Seat) -> SessionId {
        self.sessions[seat.session].id.clone().unwrap_or_else(|| unreachable!("a seat is taken in an open session"))
    }

    /// The grant of a session is lost, and its release owed.
    fn lose(&mut self, s: usize, loss: Loss, around: &mut impl Surroundings) {
        if let Some(grant) = self.grant.take_if(|grant| grant.seat.session == s) {
            around.tell(News::Lost { op: op_of(grant.seat.claim.id), loss });
            self.owe(&grant.seat, true, around);
        }
    }
}
