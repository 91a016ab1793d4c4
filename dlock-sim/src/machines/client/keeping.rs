//! The life of a session, as the keeper of dlock leads it.

use dlock_core::{Health, Lease, LeaseAction, LeaseEvent, LeaseStep, Loss, Moment, SessionId, Undone};
use dlock_testkit::memory::{Reply, Request};

use super::Client;
use super::undoing::Undoing;
use super::watching::Watching;
use crate::machines::surroundings::{Answer, CallId, News, Question, Surroundings, Terms};
use crate::model::Bug;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) lease: Lease,
    /// When the keeper looks again by itself.
    pub(super) until: Moment,
    pub(super) call: Option<LeaseCall>,
    pub(super) id: Option<SessionId>,
    /// No new claims; closed once nothing is held, owed or being acquired.
    pub(super) retired: bool,
    /// A claim found it unknown at the store.
    pub(super) doubted: bool,
    pub(super) ended: bool,
    pub(super) undoing: Vec<Undoing>,
    pub(super) watching: Watching,
}

/// The call under way for the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LeaseCall {
    action: LeaseAction,
    until: Moment,
    pub(super) sent: Moment,
    pub(super) call: CallId,
}

impl Session {
    pub(super) fn new(terms: &Terms) -> Self {
        Self {
            lease: Lease::new(terms.ttl, terms.lapses_within_ttls),
            until: Moment::FAR_FUTURE,
            call: None,
            id: None,
            retired: false,
            doubted: false,
            ended: false,
            undoing: Vec::new(),
            watching: Watching::default(),
        }
    }

    /// Whether new claims may use it.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired && !self.ended && !matches!(self.lease.health(), Health::Over(_))
    }

    pub(super) fn next_moment(&self) -> Moment {
        let own = if self.ended { Moment::FAR_FUTURE } else { self.until };
        self.undoing.iter().map(Undoing::next_moment).fold(own, Moment::min)
    }

    pub(super) fn calls(&self) -> impl Iterator<Item = CallId> {
        let undoing = self.undoing.iter().filter_map(|undoing| undoing.call);
        self.call.iter().map(|lease| lease.call).chain(undoing).chain(self.watching.calls())
    }

    /// Why what it holds is lost.
    fn loss(&self) -> Loss {
        match self.lease.health() {
            Health::Over(Some(loss)) => loss,
            _ => Loss::Shutdown,
        }
    }
}

impl Client {
    pub(super) fn hear_lease(&mut self, s: usize, sent: Moment, answer: Answer, around: &mut impl Surroundings) {
        // Whoever dates belief from the reply, or leaves out the margin, believes in a ttl that is longer.
        let extra = match around.bug() {
            Some(Bug::DeadlineFromReply) => around.now().saturating_since(sent),
            Some(Bug::NoMargin) => Lease::margin(around.terms().ttl),
            _ => std::time::Duration::ZERO,
        };
        match answer {
            Answer::Reply(Reply::Opened(id)) => {
                self.sessions[s].id = Some(id);
                let ttl = around.terms().ttl;
                self.keep(s, LeaseEvent::Opened { ttl: ttl + extra }, around);
                let awaits = self.acquiring.as_ref().is_some_and(|acquiring| acquiring.seat.is_none());
                if awaits && around.bug() != Some(Bug::LostWakeUp) {
                    self.take_seat(around);
                }
            }
            Answer::Reply(Reply::Renewed(ttl)) => self.keep(s, LeaseEvent::Renewed { ttl: ttl + extra }, around),
            Answer::Reply(Reply::Gone) => self.keep(s, LeaseEvent::Gone, around),
            Answer::Reply(Reply::Closed) => self.keep(s, LeaseEvent::Closed, around),
            Answer::Failed(kind) => {
                let opening = self.sessions[s].lease.health() == Health::Opening;
                self.keep(s, LeaseEvent::Failed(kind), around);
                if opening {
                    self.fail_session(kind, around);
                }
            }
            Answer::Reply(_) | Answer::Woken(_) | Answer::Audited(_) | Answer::Disturbed(_) => {}
        }
    }

    /// Steps a lease until it waits for something.
    pub(super) fn keep(&mut self, s: usize, mut event: LeaseEvent, around: &mut impl Surroundings) {
        loop {
            if event == LeaseEvent::Elapsed {
                event = self.ending(s).unwrap_or(event);
            }
            let chance = around.chance();
            let (action, until) = match self.sessions[s].lease.step(event, around.now(), chance) {
                LeaseStep::Do { action, until } => (action, until),
                LeaseStep::Done(_) => {
                    self.lose(s, self.sessions[s].loss(), around);
                    let session = &mut self.sessions[s];
                    (session.ended, session.call) = (true, None);
                    // What was still to be released is ended with it, or lapses with nobody renewing it.
                    session.watching = Watching::default();
                    for undoing in std::mem::take(&mut session.undoing) {
                        around.tell(News::Undone { claim: undoing.claim.id, undone: Undone::GivenUp, fenced: false });
                    }
                    break;
                }
            };
            if matches!(event, LeaseEvent::Renewed { .. }) {
                self.sessions[s].watching.ask(around);
            }
            self.start(s, action, until, around);
            if action == LeaseAction::Settle {
                self.lose(s, self.sessions[s].loss(), around);
                self.undo_with_session(s, around);
                if self.sessions[s].undoing.is_empty() {
                    event = LeaseEvent::Settled;
                    continue;
                }
            }
            self.sessions[s].until = until.min(self.keep_watching(s, action, around));
            break;
        }
        self.lose_seat(s, around);
    }

    /// What the lease is to be told apart from answers.
    fn ending(&mut self, s: usize) -> Option<LeaseEvent> {
        let acquiring = self.acquiring.iter().filter_map(|acquiring| acquiring.seat.as_ref());
        let used = acquiring.chain(self.grant.iter().map(|grant| &grant.seat)).any(|seat| seat.session == s);
        let session = &mut self.sessions[s];
        match session.retired {
            true if std::mem::take(&mut session.doubted) => Some(LeaseEvent::Disturbed),
            true if !used && session.undoing.is_empty() => Some(LeaseEvent::Left),
            _ => None,
        }
    }

    /// Starts the call of an action, unless it is the one under way; gives up any other.
    fn start(&mut self, s: usize, action: LeaseAction, until: Moment, around: &mut impl Surroundings) {
        let running = self.sessions[s].call.as_ref().map(|lease| (lease.action, lease.until));
        if running == Some((action, until)) {
            return;
        }
        self.sessions[s].call = None;
        let request = match (action, self.sessions[s].id.clone()) {
            (LeaseAction::Open, _) => {
                // A fresh id for every attempt.
                let id = SessionId::new(format!("{}.{s}.{}", self.me, until.since_origin().as_nanos() as u64));
                Request::Open { id, ttl: around.terms().ttl }
            }
            (LeaseAction::Renew, Some(id)) => Request::Renew(id),
            (LeaseAction::Close, Some(id)) => Request::Close(id),
            _ => return,
        };
        let call = around.send(self.calls(), Question::Request(request));
        let sent = around.now();
        self.sessions[s].call = call.map(|call| LeaseCall { action, until, sent, call });
    }
}
