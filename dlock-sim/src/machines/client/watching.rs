//! How a client finds out that somebody else ended its lock: an audit with every renewal, waiting requests in between.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Cause, ClaimId, Cursor, Lease, LeaseAction, LeaseEvent, Loss, Moment};

use super::Client;
use crate::machines::surroundings::{Answer, CallId, Question, Surroundings};

/// What looks after the grant of a session. Stays empty where the terms say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Watching {
    /// When the grant was taken in.
    since: Option<Moment>,
    wanted: bool,
    not_before: Moment,
    failures: u32,
    audit: Option<Audit>,
    session: Watch,
    claim: Watch,
    watched: Option<ClaimId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Audit {
    call: CallId,
    claim: ClaimId,
    asked: Moment,
    until: Moment,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Watch {
    cursor: Option<Cursor>,
    call: Option<CallId>,
    started: Moment,
    not_before: Moment,
    idle: u32,
}

impl Watching {
    /// Locks that are given back sooner are not watched.
    const SETTLED_AFTER: Duration = Duration::from_millis(250);
    /// A watch that lasted so long was not returned idly.
    const LASTED: Duration = Duration::from_secs(5);

    pub(super) fn calls(&self) -> impl Iterator<Item = CallId> {
        self.audit.iter().map(|audit| audit.call).chain(self.session.call).chain(self.claim.call)
    }

    pub(super) fn ask(&mut self, around: &impl Surroundings) {
        self.wanted = around.terms().watches;
    }

    fn fail(&mut self, now: Moment, ttl: Duration) {
        self.failures = (self.failures + 1).min(6);
        self.wanted = true;
        self.not_before = now.plus((Duration::from_millis(50) * (1 << self.failures)).min(ttl / 3));
    }
}

impl Watch {
    /// Never in a hot loop: the first early return costs nothing, those that follow are spread out up to the pace of renewals.
    fn returned(&mut self, answer: &Answer, now: Moment, ttl: Duration) {
        self.call = None;
        let lasted = now.saturating_since(self.started) >= Watching::LASTED;
        self.idle = if lasted { 0 } else { (self.idle + 1).min(8) };
        if self.idle > 1 {
            self.not_before = now.plus((Duration::from_millis(25) * (1 << self.idle)).min(ttl / 3));
        }
        match answer {
            Answer::Disturbed(cursor) => self.cursor = Some(*cursor),
            _ => self.not_before = self.not_before.max(now.plus(Duration::from_millis(250))),
        }
    }
}

impl Client {
    /// A grant was taken in: its session's keeper looks after it from now on.
    pub(super) fn watch(&mut self, s: usize, around: &mut impl Surroundings) {
        if around.terms().watches {
            self.sessions[s].watching.since = Some(around.now());
            self.keep(s, LeaseEvent::Elapsed, around);
        }
    }

    /// Starts what should run and is not running, ends what should not; says when to come back.
    pub(super) fn keep_watching(&mut self, s: usize, action: LeaseAction, around: &mut impl Surroundings) -> Moment {
        if !around.terms().watches {
            return Moment::FAR_FUTURE;
        }
        if self.grant.as_ref().is_none_or(|grant| grant.seat.session != s) {
            self.sessions[s].watching.since = None;
        }
        self.audit(s, around).min(self.watch_all(s, action, around))
    }

    fn audit(&mut self, s: usize, around: &mut impl Surroundings) -> Moment {
        let (now, ttl) = (around.now(), around.terms().ttl);
        let watching = &mut self.sessions[s].watching;
        if let Some(audit) = watching.audit {
            if now < audit.until {
                return audit.until;
            }
            watching.audit = None;
            watching.fail(now, ttl);
        }
        if !watching.wanted {
            return Moment::FAR_FUTURE;
        }
        if now < watching.not_before {
            return watching.not_before;
        }
        watching.wanted = false;
        let Some(grant) = self.grant.as_ref().filter(|grant| grant.seat.session == s) else { return Moment::FAR_FUTURE };
        let (claim, session) = (Arc::clone(&grant.seat.claim), self.id_of(&grant.seat));
        let (id, until) = (claim.id, now.plus(Lease::LONGEST_ATTEMPT.max(ttl / 3)));
        let Some(call) = around.send(self.calls(), Question::Audit { session, claim }) else { return Moment::FAR_FUTURE };
        self.sessions[s].watching.audit = Some(Audit { call, claim: id, asked: now, until });
        until
    }

    fn watch_all(&mut self, s: usize, action: LeaseAction, around: &mut impl Surroundings) -> Moment {
        let watching = &mut self.sessions[s].watching;
        if !matches!(action, LeaseAction::Rest | LeaseAction::Renew) {
            (watching.session, watching.claim, watching.watched) = (Watch::default(), Watch::default(), None);
            return Moment::FAR_FUTURE;
        }
        let id = self.grant.as_ref().map(|grant| grant.seat.claim.id).filter(|_| watching.since.is_some());
        if watching.watched != id {
            (watching.claim, watching.watched) = (Watch::default(), id);
        }
        let Some(since) = watching.since else { return Moment::FAR_FUTURE };
        let settled = since.plus(Watching::SETTLED_AFTER);
        if around.now() < settled {
            return settled;
        }
        self.watch_one(s, false, around).min(self.watch_one(s, true, around))
    }

    fn watch_one(&mut self, s: usize, of_claim: bool, around: &mut impl Surroundings) -> Moment {
        let now = around.now();
        let watching = &self.sessions[s].watching;
        let watch = if of_claim { watching.claim } else { watching.session };
        let (Some(grant), Some(session)) = (&self.grant, self.sessions[s].id.clone()) else { return Moment::FAR_FUTURE };
        if watch.call.is_some() {
            return Moment::FAR_FUTURE;
        }
        if now < watch.not_before {
            return watch.not_before;
        }
        let granted = of_claim.then(|| (Arc::clone(&grant.seat.claim), grant.token));
        let call = around.send(self.calls(), Question::Disturbed { session, granted, cursor: watch.cursor });
        let watching = &mut self.sessions[s].watching;
        let watch = if of_claim { &mut watching.claim } else { &mut watching.session };
        (watch.call, watch.started) = (call, now);
        Moment::FAR_FUTURE
    }

    /// Takes in the answer to an audit or a watch; `false` when the call is neither.
    pub(super) fn hear_watching(&mut self, s: usize, call: CallId, answer: &Answer, around: &mut impl Surroundings) -> bool {
        let (now, ttl) = (around.now(), around.terms().ttl);
        let watching = &mut self.sessions[s].watching;
        let mut event = LeaseEvent::Elapsed;
        if let Some(audit) = watching.audit.take_if(|audit| audit.call == call) {
            match answer {
                Answer::Audited(verdict) => {
                    watching.failures = 0;
                    // Only what was granted before the question and is still held: a verdict says nothing of anything else.
                    let held = self.grant.as_ref().is_some_and(|grant| grant.seat.claim.id == audit.claim);
                    let granted = held && watching.since.is_some_and(|since| since <= audit.asked);
                    if let (Some(cause), true) = (verdict, granted) {
                        let loss = match cause {
                            Cause::KeyDeleted => Loss::KeyDeleted,
                            Cause::TakenOver => Loss::TakenOver,
                        };
                        self.lose(s, loss, around);
                    }
                }
                _ => watching.fail(now, ttl),
            }
        } else if watching.session.call == Some(call) {
            watching.session.returned(answer, now, ttl);
            if matches!(answer, Answer::Disturbed(_)) {
                watching.wanted = true;
                event = LeaseEvent::Disturbed;
            }
        } else if watching.claim.call == Some(call) {
            watching.claim.returned(answer, now, ttl);
            watching.wanted |= matches!(answer, Answer::Disturbed(_));
        } else {
            return false;
        }
        self.keep(s, event, around);
        true
    }
}
