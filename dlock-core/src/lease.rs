//! Until when may a session be believed? All time arithmetic of belief lives here.

use std::fmt;
use std::time::Duration;

#[cfg(dlock_planted)]
use crate::planted::Bug;
use crate::{Chance, ErrorKind, Moment};

/// The life of one session: opened, renewed, believed, lost or left, closed.
///
/// A pure machine: feed [`step`](Self::step) what happened and when, do what it says, feed it the outcome. One action is under way
/// at a time. Time is read by the caller *before* it calls `step`, and the action starts after `step` returned, so belief always counts
/// from before the request was sent.
///
/// # Rules
/// - Belief ends a [`margin`](Self::margin) before the ttl of the last answered renewal has passed since that renewal was sent.
/// - Renewals start at a third of the ttl, with jitter. An attempt that exceeds its limit is dropped and its answer ignored; the
///   next goes out. Only the deadline, or the store's word that the session is gone, ends belief.
/// - Ended belief never returns: the session's claims are released ([`LeaseAction::Settle`]), then it is closed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    requested: Duration,
    lapses_within_ttls: u32,
    failures: u32,
    /// The session may live at the store until here, whatever we believe.
    lapses_at: Moment,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    New,
    Opening { sent: Moment },
    OpenPaused { until: Moment },
    Believed { ttl: Duration, until: Moment, work: Work },
    Settling { loss: Loss, until: Moment },
    Closing { loss: Option<Loss>, sent: bool, until: Moment },
    Ended { loss: Option<Loss>, end: LeaseEnd },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// Until a renewal is due.
    Resting {
        until: Moment,
    },
    Renewing {
        sent: Moment,
        until: Moment,
    },
    /// A renewal failed; the next goes out then.
    Paused {
        until: Moment,
    },
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseEvent {
    /// Nothing yet: the first step.
    Started,
    /// The open under way was answered.
    Opened {
        /// The ttl that the store granted.
        ttl: Duration,
    },
    /// The renewal under way was answered.
    Renewed {
        /// The ttl that the store grants from now on.
        ttl: Duration,
    },
    /// The store said that the session is gone.
    Gone,
    /// The action under way brought no usable answer.
    Failed(ErrorKind),
    /// Time passed. Changes nothing before the moment until which the action was to go on.
    Elapsed,
    /// The session is to be renewed no more, whatever it still has: it will lapse.
    Abandoned,
    /// Something suggests that a renewal would bring news: renew now.
    Disturbed,
    /// The session is not needed any more and its claims are released: close it.
    Left,
    /// The claims of a lost session are released or given up.
    Settled,
    /// The close under way was answered.
    Closed,
}

/// What is to be done for a lease, one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseAction {
    /// Ask the store for a session; a fresh id for every attempt.
    Open,
    /// Renew the session.
    Renew,
    /// Do nothing until the time is up.
    Rest,
    /// Belief has ended: tell every guard, release every claim, then say [`LeaseEvent::Settled`].
    Settle,
    /// Close the session.
    Close,
}

/// What a lease wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseStep {
    /// Do this, and no longer than until then; then say [`LeaseEvent::Elapsed`].
    Do {
        /// What.
        action: LeaseAction,
        /// Until when; later than now.
        until: Moment,
    },
    /// Nothing more is to be done.
    Done(LeaseEnd),
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseEnd {
    /// The store can never open this session.
    Refused(ErrorKind),
    /// The store said that it is closed or gone.
    Closed,
    /// It was left to lapse; by now it has.
    Lapsed,
}

/// Why a lock is no longer believed to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Nothing was heard from the store until the deadline.
    Expired,
    /// The store does not know the session any more: it lapsed there, or an operator ended it.
    SessionGone,
    /// The key was deleted by somebody else.
    KeyDeleted,
    /// The key was released by force, or carries another claim.
    TakenOver,
    /// The guard was held for as long as its `hold_at_most` allows.
    HeldTooLong,
    /// The locker was shut down.
    Shutdown,
    /// The guard was released or dropped: no loss, but what a witness says that outlived it.
    Released,
}

impl Loss {
    /// Every reason.
    pub const ALL: &'static [Self] =
        &[Self::Expired, Self::SessionGone, Self::KeyDeleted, Self::TakenOver, Self::HeldTooLong, Self::Shutdown, Self::Released];
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the lease expired: the store was silent until the deadline",
            Self::SessionGone => "the store ended the session",
            Self::KeyDeleted => "the key was deleted",
            Self::TakenOver => "the key was released by force or taken over",
            Self::HeldTooLong => "it was held for as long as hold_at_most allows",
            Self::Shutdown => "the locker was shut down",
            Self::Released => "it was released",
        })
    }
}

/// How well a session can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not opened yet.
    Opening,
    /// Renewed in time.
    Sound,
    /// A renewal is late or failed; still believed.
    Suspect,
    /// Belief has ended; `None` when the session was left on purpose.
    Over(Option<Loss>),
}

impl Lease {
    /// The least margin between the end of belief and the ttl.
    pub const LEAST_MARGIN: Duration = Duration::from_millis(50);
    /// The longest that one open, renewal or close may take.
    pub const LONGEST_ATTEMPT: Duration = Duration::from_secs(2);

    /// A lease that will ask for this ttl; at the store it lapses within `lapses_within_ttls` of its last renewal.
    pub fn new(ttl: Duration, lapses_within_ttls: u32) -> Self {
        Self { requested: ttl, lapses_within_ttls, failures: 0, lapses_at: Moment::ORIGIN, state: State::New }
    }

    /// The same, but nothing is sent before this moment: for when the sessions before it were gone as soon as they were opened.
    #[must_use]
    pub fn not_before(mut self, from: Moment) -> Self {
        self.state = State::OpenPaused { until: from };
        self
    }

    /// The part of a ttl that is not believed, against clocks that run at different rates: 1 %, at least 50 ms.
    pub fn margin(ttl: Duration) -> Duration {
        #[cfg(dlock_planted)]
        if Bug::NoMargin.is_on() {
            return Duration::ZERO;
        }
        (ttl / 100).max(Self::LEAST_MARGIN)
    }

    /// How long one attempt may take: a sixth of the ttl, at most 2 s.
    pub fn attempt(ttl: Duration) -> Duration {
        (ttl / 6).clamp(Duration::from_millis(10), Self::LONGEST_ATTEMPT)
    }

    /// The ttl to ask for.
    pub fn requested(&self) -> Duration {
        self.requested
    }

    /// Until when the session is believed, as far as is known now; `None` before it was opened and once belief has ended.
    pub fn believed_until(&self) -> Option<Moment> {
        match self.state {
            State::Believed { until, .. } => Some(until),
            _ => None,
        }
    }

    /// When the store will have forgotten the session at the latest if nothing more is sent.
    pub fn lapses_at(&self) -> Moment {
        self.lapses_at
    }

    /// How well the session can be believed.
    pub fn health(&self) -> Health {
        match &self.state {
            State::New | State::Opening { .. } | State::OpenPaused { .. } => Health::Opening,
            State::Believed { .. } if self.failures == 0 => Health::Sound,
            State::Believed { .. } => Health::Suspect,
            State::Settling { loss, .. } => Health::Over(Some(*loss)),
            State::Closing { loss, .. } | State::Ended { loss, .. } => Health::Over(*loss),
        }
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, event: LeaseEvent, now: Moment, chance: Chance) -> LeaseStep {
        self.take(event, now, chance);
        let step = self.next(now, chance);
        if let LeaseStep::Do { until, .. } = step {
            assert!(until > now, "a lease must make progress: {self:?} at {now:?}");
        }
        step
    }

    fn take(&mut self, event: LeaseEvent, now: Moment, chance: Chance) {
        #[cfg(dlock_planted)]
        if Bug::LateSuccessRevives.is_on()
            && let (State::Believed { work: Work::Renewing { sent, .. }, .. }, LeaseEvent::Renewed { ttl }) = (&self.state, event)
        {
            return self.believe(ttl, *sent.max(&now.minus(ttl / 2)), chance);
        }
        // Time decides before the event does: an answer that comes after the deadline cannot revive belief.
        self.expire(now);
        match (&mut self.state, event) {
            (State::Ended { .. }, _) => {}
            (_, LeaseEvent::Abandoned) => {
                self.state = State::Ended { loss: Some(Loss::Shutdown), end: LeaseEnd::Lapsed };
            }
            (State::Opening { sent }, LeaseEvent::Opened { ttl })
            | (State::Believed { work: Work::Renewing { sent, .. }, .. }, LeaseEvent::Renewed { ttl }) => {
                let sent = *sent;
                #[cfg(dlock_planted)]
                let sent = if Bug::DeadlineFromReply.is_on() { now } else { sent };
                self.believe(ttl, sent, chance);
            }
            (State::Opening { .. }, LeaseEvent::Failed(kind)) if !kind.is_passing() => {
                self.state = State::Ended { loss: None, end: LeaseEnd::Refused(kind) };
            }
            (State::Opening { sent }, LeaseEvent::Failed(_) | LeaseEvent::Elapsed)
                if event != LeaseEvent::Elapsed || now >= sent.plus(Self::attempt(self.requested)) =>
            {
                self.failures += 1;
                self.state = State::OpenPaused { until: now.plus(self.pause(self.requested, chance)) };
            }
            (State::Believed { ttl, work, .. }, LeaseEvent::Failed(_) | LeaseEvent::Elapsed) => {
                // A refused renewal is asked for again too: a permission may come back before the deadline.
                if let Work::Renewing { until, .. } = *work
                    && (event != LeaseEvent::Elapsed || now >= until)
                {
                    let ttl = *ttl;
                    self.failures += 1;
                    let until = now.plus(self.pause(ttl, chance));
                    self.rework(Work::Paused { until });
                }
            }
            (State::Believed { work, .. }, LeaseEvent::Disturbed) => {
                if matches!(work, Work::Resting { .. }) {
                    self.rework(Work::Resting { until: now });
                }
            }
            (State::Believed { .. }, LeaseEvent::Gone) => self.settle(Loss::SessionGone, now),
            (State::Believed { .. }, LeaseEvent::Left) => self.close(None, now),
            (State::New | State::Opening { .. } | State::OpenPaused { .. }, LeaseEvent::Left) => {
                self.state = State::Ended { loss: None, end: LeaseEnd::Lapsed };
            }
            (State::Settling { loss: loss @ Loss::SessionGone, .. }, LeaseEvent::Settled) => {
                self.state = State::Ended { loss: Some(*loss), end: LeaseEnd::Closed };
            }
            (State::Settling { loss, .. }, LeaseEvent::Settled) => {
                let loss = *loss;
                self.close(Some(loss), now);
            }
            (State::Settling { loss, until }, LeaseEvent::Elapsed) if now >= *until => {
                self.state = State::Ended { loss: Some(*loss), end: LeaseEnd::Lapsed };
            }
            (State::Closing { loss, .. }, LeaseEvent::Elapsed) if now >= self.lapses_at => {
                self.state = State::Ended { loss: *loss, end: LeaseEnd::Lapsed };
            }
            (State::Closing { loss, .. }, LeaseEvent::Closed | LeaseEvent::Gone) => {
                self.state = State::Ended { loss: *loss, end: LeaseEnd::Closed };
            }
            (State::Closing { loss, sent: true, until }, LeaseEvent::Failed(_) | LeaseEvent::Elapsed)
                if event != LeaseEvent::Elapsed || now >= *until =>
            {
                let loss = *loss;
                self.failures += 1;
                let until = now.plus(self.pause(self.requested, chance));
                self.state = State::Closing { loss, sent: false, until };
            }
            _ => {}
        }
    }

    fn next(&mut self, now: Moment, chance: Chance) -> LeaseStep {
        self.expire(now);
        let attempt = Self::attempt(self.requested);
        match &mut self.state {
            State::OpenPaused { until } if now < *until => LeaseStep::Do { action: LeaseAction::Rest, until: *until },
            State::New | State::OpenPaused { .. } => {
                self.state = State::Opening { sent: now };
                LeaseStep::Do { action: LeaseAction::Open, until: now.plus(attempt) }
            }
            State::Opening { sent } => {
                let until = sent.plus(attempt);
                if now < until {
                    return LeaseStep::Do { action: LeaseAction::Open, until };
                }
                self.take(LeaseEvent::Elapsed, now, chance);
                self.next(now, chance)
            }
            State::Believed { ttl, until: believed, work } => match *work {
                Work::Resting { until } | Work::Paused { until } if now < until => {
                    LeaseStep::Do { action: LeaseAction::Rest, until: until.min(*believed) }
                }
                Work::Renewing { until, .. } if now < until => LeaseStep::Do { action: LeaseAction::Renew, until },
                Work::Renewing { .. } => {
                    self.take(LeaseEvent::Elapsed, now, chance);
                    self.next(now, chance)
                }
                Work::Resting { .. } | Work::Paused { .. } => {
                    let until = now.plus(Self::attempt(*ttl)).min(*believed);
                    let lapses = now.plus(ttl.saturating_mul(self.lapses_within_ttls));
                    *work = Work::Renewing { sent: now, until };
                    self.lapses_at = self.lapses_at.max(lapses);
                    LeaseStep::Do { action: LeaseAction::Renew, until }
                }
            },
            State::Settling { until, .. } if now < *until => LeaseStep::Do { action: LeaseAction::Settle, until: *until },
            State::Settling { loss, .. } => {
                self.state = State::Ended { loss: Some(*loss), end: LeaseEnd::Lapsed };
                LeaseStep::Done(LeaseEnd::Lapsed)
            }
            State::Closing { sent, until, .. } => {
                if now < *until {
                    let action = if *sent { LeaseAction::Close } else { LeaseAction::Rest };
                    return LeaseStep::Do { action, until: *until };
                }
                if now >= self.lapses_at {
                    self.take(LeaseEvent::Elapsed, now, chance);
                    return self.next(now, chance);
                }
                *sent = true;
                *until = now.plus(attempt);
                LeaseStep::Do { action: LeaseAction::Close, until: *until }
            }
            State::Ended { end, .. } => LeaseStep::Done(*end),
        }
    }

    fn expire(&mut self, now: Moment) {
        if self.believed_until().is_some_and(|until| now >= until) {
            self.settle(Loss::Expired, now);
        }
    }

    /// At least one attempt's time is given, also when the process slept past the lapse: every guard must be told.
    fn settle(&mut self, loss: Loss, now: Moment) {
        let until = self.lapses_at.max(now.plus(Self::attempt(self.requested)));
        self.state = State::Settling { loss, until };
    }

    fn believe(&mut self, ttl: Duration, sent: Moment, chance: Chance) {
        self.failures = 0;
        let third = ttl / 3;
        let due = sent.plus(third / 10 * 9 + chance.of(third / 5));
        self.lapses_at = self.lapses_at.max(sent.plus(ttl.saturating_mul(self.lapses_within_ttls)));
        let until = sent.plus(ttl.saturating_sub(Self::margin(ttl)));
        #[cfg(dlock_planted)]
        let until = if Bug::SilenceIsStillHeld.is_on() { Moment::FAR_FUTURE } else { until };
        self.state = State::Believed { ttl, until, work: Work::Resting { until: due } };
    }

    fn rework(&mut self, new: Work) {
        if let State::Believed { work, .. } = &mut self.state {
            *work = new;
        }
    }

    fn close(&mut self, loss: Option<Loss>, now: Moment) {
        self.failures = 0;
        self.state = State::Closing { loss, sent: false, until: now };
    }

    /// From 100 ms, doubling to 1 s, never more than a twelfth of the ttl; drawn between nothing and all of it.
    fn pause(&self, ttl: Duration, chance: Chance) -> Duration {
        let growth = 1 << self.failures.saturating_sub(1).min(4);
        let full = (Duration::from_millis(100) * growth).min(Duration::from_secs(1)).min(ttl / 12);
        chance.of(full).max(Duration::from_millis(5))
    }
}

#[cfg(test)]
mod tests;
