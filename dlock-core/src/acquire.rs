//! From wanting a lock to holding it, or to having undone what was tried.

use std::time::Duration;

#[cfg(dlock_planted)]
use crate::planted::Bug;
use crate::{Chance, Cursor, ErrorKind, FencingToken, Hint, Moment, Place, RetryPolicy, Standing};

/// One acquisition: session, claim, waiting, grant.
///
/// A pure machine: feed [`step`](Self::step) what happened, do the one action it names, feed it the outcome. When it is done without a
/// grant, [`owes_release`](Self::owes_release) says whether something of the claim may be at the store, to be undone by
/// [`Undo`](crate::Undo).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acquire {
    plan: AcquirePlan,
    state: State,
    /// A copy of the claim may still be under way, or have been applied unheard.
    unanswered: bool,
    /// The store said that the claim has something.
    placed: bool,
    failures: u32,
    lost_races: u32,
    idle_wakes: u32,
}

/// What an acquisition is to do, as plain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcquirePlan {
    /// Whether to wait when another holds the key.
    pub place: Place,
    /// Pauses after failed attempts.
    pub retry: RetryPolicy,
    /// When to give up.
    pub deadline: Option<Moment>,
    /// How long one claim or confirm may take, from when it is sent; and how long it is queued while nothing is answered.
    pub attempt: Duration,
    /// How long one wait may take before the claim asks again by itself.
    pub longest_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    New,
    NeedsSession,
    /// A claim or a confirm is under way, or waits to be sent.
    Asking {
        what: Ask,
        sent: bool,
        until: Moment,
    },
    Waiting {
        cursor: Cursor,
        kept: bool,
        since: Moment,
        until: Moment,
    },
    Paused {
        until: Moment,
        next: Next,
    },
    Done(Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ask {
    Claim,
    Confirm { cursor: Cursor },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Ask(Ask),
    Wait { cursor: Cursor, kept: bool },
}

/// What happened to an acquisition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AcquireEvent {
    /// Nothing yet: the first step.
    Started,
    /// There is a session to claim with.
    SessionReady,
    /// An attempt to open a session failed; others follow if the kind is passing.
    SessionFailed(ErrorKind),
    /// The session that was claimed with is not believed any more.
    SessionLost,
    /// The claim or confirm under way was answered.
    Answered(Standing),
    /// The wait under way returned.
    Woken {
        /// Where the next wait goes on.
        cursor: Cursor,
        /// What seems to have happened.
        hint: Hint,
    },
    /// The claim or confirm is not sent yet: as many calls are in flight as may be, and the store answers those. Its time begins anew.
    Queued,
    /// The claim or confirm that was queued is sent now, and its time begins.
    Sent,
    /// The call under way brought no usable answer.
    Failed(ErrorKind),
    /// The moment until which the action was to go on has come.
    Elapsed,
    /// The caller does not want the lock any more.
    Stopped,
}

/// What an acquisition is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcquireAction {
    /// Get a session that is believed, then a claim with a fresh id for it.
    AwaitSession,
    /// Enter the contention.
    Claim,
    /// Wait until the standing may have changed.
    Wait {
        /// Since when.
        cursor: Cursor,
    },
    /// Ask whether the kept place is first.
    Confirm {
        /// As of when.
        cursor: Cursor,
    },
    /// Do nothing until the time is up.
    Pause,
}

/// What an acquisition wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcquireStep {
    /// Do this, or leave it queued if it was, and no longer than until then; then say [`AcquireEvent::Elapsed`].
    Do {
        /// What.
        action: AcquireAction,
        /// Until when; later than now.
        until: Moment,
    },
    /// It is decided.
    Done(Verdict),
}

/// How an acquisition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The claim holds its key.
    Held {
        /// The number of the grant.
        token: FencingToken,
    },
    /// Another holds the key, and the claim was only to try.
    Busy,
    /// The deadline passed.
    TimedOut,
    /// The caller stopped it.
    Stopped,
    /// The store refused for good, or the policy allows no more attempts.
    Failed(ErrorKind),
}

impl Ask {
    /// What is asked by whoever has waited.
    fn when_woken(kept: bool, cursor: Cursor) -> Self {
        if kept { Self::Confirm { cursor } } else { Self::Claim }
    }
}

impl Acquire {
    /// The longest pause after a lost race.
    pub const RACE_JITTER: Duration = Duration::from_millis(20);
    /// The longest pause while the store grants a key to nobody, since it cannot say when that ends.
    pub const DELAY_PROBE: Duration = Duration::from_secs(1);

    /// An acquisition that has not begun.
    pub fn new(plan: AcquirePlan) -> Self {
        Self { plan, state: State::New, unanswered: false, placed: false, failures: 0, lost_races: 0, idle_wakes: 0 }
    }

    /// Whether something of the claim may be at the store, now or later.
    ///
    /// To be asked when the acquisition is done without a grant, and when it awaits another session: the claim made with the last one
    /// is then to be undone.
    pub fn owes_release(&self) -> bool {
        #[cfg(dlock_planted)]
        if Bug::WaitingLeavesNothing.is_on() {
            return self.unanswered;
        }
        self.unanswered || self.placed
    }

    /// Whether a copy of the claim was sent whose fate is unknown: only a fenced release ends it for good.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, event: AcquireEvent, now: Moment, chance: Chance) -> AcquireStep {
        self.take(event, now, chance);
        self.expire(now);
        let step = self.next(now);
        if let AcquireStep::Do { until, .. } = step {
            assert!(until > now, "an acquisition must make progress: {self:?} at {now:?}");
        }
        step
    }

    fn take(&mut self, event: AcquireEvent, now: Moment, chance: Chance) {
        match (self.state, event) {
            (State::Done(_), _) => {}
            (_, AcquireEvent::Stopped) => self.end(Verdict::Stopped),
            (State::New, _) => self.state = State::NeedsSession,
            (State::NeedsSession, AcquireEvent::SessionReady) => {
                (self.unanswered, self.placed) = (false, false);
                self.ask(Ask::Claim, true, now);
            }
            (State::NeedsSession, AcquireEvent::SessionFailed(kind)) => {
                self.failures += 1;
                if !kind.is_passing() || self.plan.retry.pause(self.failures, chance).is_none() {
                    self.state = State::Done(Verdict::Failed(kind));
                }
            }
            (State::NeedsSession, _) => {}
            (_, AcquireEvent::SessionLost) => {
                self.end(Verdict::Stopped);
                self.state = State::NeedsSession;
            }
            (State::Asking { what, .. }, AcquireEvent::Queued) => self.ask(what, false, now),
            // Past the deadline it is not sent any more.
            (State::Asking { what, sent: false, .. }, AcquireEvent::Sent) if !self.is_late(now) => self.ask(what, true, now),
            (State::Asking { what, sent: true, .. }, AcquireEvent::Answered(standing)) => {
                self.stand(what, &standing, now, chance);
            }
            (State::Asking { what, sent: true, .. }, AcquireEvent::Failed(kind)) => {
                // What was surely not applied leaves nothing; an earlier copy is still owed.
                self.unanswered |= what == Ask::Claim && kind == ErrorKind::Ambiguous;
                self.fail(kind, Next::Ask(what), now, chance);
            }
            (State::Asking { what, sent, until }, AcquireEvent::Elapsed) if now >= until => {
                // A confirm changes nothing, and what was not sent was surely not applied.
                let perhaps = sent && what == Ask::Claim;
                self.unanswered |= perhaps;
                let kind = if perhaps { ErrorKind::Ambiguous } else { ErrorKind::Transient };
                self.fail(kind, Next::Ask(what), now, chance);
            }
            (State::Waiting { kept, since, .. }, AcquireEvent::Woken { cursor, hint }) => {
                let early = now.saturating_since(since) < Self::RACE_JITTER;
                self.failures = 0;
                self.wake(kept, early, cursor, &hint, now, chance);
            }
            (State::Waiting { cursor, kept, .. }, AcquireEvent::Failed(kind)) => {
                self.fail(kind, Next::Wait { cursor, kept }, now, chance);
            }
            // A wait that never returned may have missed the news: ask.
            (State::Waiting { cursor, kept, until, .. }, AcquireEvent::Elapsed) if now >= until => {
                self.ask(Ask::when_woken(kept, cursor), true, now);
            }
            (State::Paused { until, next }, AcquireEvent::Elapsed) if now >= until => match next {
                Next::Ask(what) => self.ask(what, true, now),
                Next::Wait { cursor, kept } => self.wait(cursor, kept, now),
            },
            _ => {}
        }
    }

    fn stand(&mut self, what: Ask, standing: &Standing, now: Moment, chance: Chance) {
        self.failures = 0;
        match *standing {
            Standing::Held { token } => {
                self.placed = true;
                self.state = State::Done(Verdict::Held { token });
            }
            Standing::Waiting { cursor, .. } => {
                self.placed = true;
                self.wait(cursor, true, now);
            }
            Standing::Busy { cursor, .. } => {
                self.placed = false;
                if self.plan.place == Place::Try {
                    self.state = State::Done(Verdict::Busy);
                    return;
                }
                self.wait(cursor, false, now);
            }
            Standing::Delayed { at_most } => {
                self.placed = false;
                // Nothing at the store has changed: a late copy of this claim would be granted once the delay is over.
                self.unanswered = true;
                if self.plan.place == Place::Try {
                    self.state = State::Done(Verdict::Busy);
                    return;
                }
                let longest = at_most.min(Self::DELAY_PROBE).max(Duration::from_millis(1));
                self.pause(longest.saturating_sub(chance.of(longest / 4)), Next::Ask(Ask::Claim), now);
            }
            Standing::SessionGone => {
                (self.unanswered, self.placed) = (false, false);
                self.state = State::NeedsSession;
            }
            Standing::ClaimGone => {
                if self.plan.place == Place::Try {
                    // An earlier copy was refused, and that answer was lost: the store grants nothing to this claim any more.
                    self.state = State::Done(Verdict::Busy);
                } else if what == Ask::Claim {
                    // So it is here, for ever: another claim is needed.
                    self.state = State::NeedsSession;
                } else {
                    // As with a place that was taken away while it was waited for.
                    return self.ask(Ask::Claim, true, now);
                }
                self.placed = false;
            }
        }
    }

    fn wake(&mut self, kept: bool, early: bool, cursor: Cursor, hint: &Hint, now: Moment, chance: Chance) {
        #[cfg(dlock_planted)]
        let hint = match hint {
            Hint::MaybeFree if Bug::LostWakeUp.is_on() => &Hint::StillHeld { holder: None },
            hint => hint,
        };
        match hint {
            // A copy of the claim may still come and make its place anew: that is owed until the store has answered the next.
            Hint::ClaimGone => self.ask(Ask::Claim, true, now),
            Hint::MaybeFree => {
                let what = Ask::when_woken(kept, cursor);
                // After a lost race the rivals are spread out a little; the first wake is answered at once.
                let spread = Self::RACE_JITTER.min(Duration::from_millis(5) * self.lost_races);
                self.lost_races = (self.lost_races + 1).min(4);
                match chance.of(spread) {
                    Duration::ZERO => self.ask(what, true, now),
                    pause => self.pause(pause, Next::Ask(what), now),
                }
            }
            Hint::StillHeld { .. } => {
                self.lost_races = 0;
                // A store that returns at once again and again must not be asked in a hot loop.
                self.idle_wakes = if early { self.idle_wakes + 1 } else { 0 };
                if self.idle_wakes < 3 {
                    self.wait(cursor, kept, now);
                } else {
                    let pause = RetryPolicy::default().pause(self.idle_wakes - 2, chance).unwrap_or(RetryPolicy::MAX);
                    self.pause(pause, Next::Wait { cursor, kept }, now);
                }
            }
        }
    }

    fn fail(&mut self, kind: ErrorKind, next: Next, now: Moment, chance: Chance) {
        #[cfg(dlock_planted)]
        if Bug::AmbiguousIsFailure.is_on() {
            self.unanswered = false;
        }
        self.failures += 1;
        match self.plan.retry.pause(self.failures, chance) {
            Some(pause) if kind.is_passing() => self.pause(pause, next, now),
            _ => self.state = State::Done(Verdict::Failed(kind)),
        }
    }

    fn ask(&mut self, what: Ask, sent: bool, now: Moment) {
        self.state = State::Asking { what, sent, until: now.plus(self.plan.attempt) };
    }

    fn wait(&mut self, cursor: Cursor, kept: bool, now: Moment) {
        self.state = State::Waiting { cursor, kept, since: now, until: now.plus(self.plan.longest_wait) };
    }

    fn pause(&mut self, pause: Duration, next: Next, now: Moment) {
        self.state = State::Paused { until: now.plus(pause.max(Duration::from_nanos(1))), next };
    }

    fn is_late(&self, now: Moment) -> bool {
        self.plan.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// The deadline ends everything but a grant.
    fn expire(&mut self, now: Moment) {
        if self.is_late(now) && !matches!(self.state, State::Done(_)) {
            self.end(Verdict::TimedOut);
        }
    }

    /// Ends without a grant; a claim that is under way may yet be applied.
    fn end(&mut self, verdict: Verdict) {
        #[cfg(dlock_planted)]
        if Bug::CancelWithoutUndo.is_on() {
            self.state = State::Done(verdict);
            return;
        }
        self.unanswered |= matches!(self.state, State::Asking { what: Ask::Claim, sent: true, .. });
        self.state = State::Done(verdict);
    }

    fn next(&self, now: Moment) -> AcquireStep {
        let deadline = self.plan.deadline.unwrap_or(Moment::FAR_FUTURE);
        let (action, until) = match self.state {
            State::Done(verdict) => return AcquireStep::Done(verdict),
            State::New | State::NeedsSession => (AcquireAction::AwaitSession, Moment::FAR_FUTURE),
            State::Asking { what: Ask::Claim, until, .. } => (AcquireAction::Claim, until),
            State::Asking { what: Ask::Confirm { cursor }, until, .. } => (AcquireAction::Confirm { cursor }, until),
            State::Waiting { cursor, until, .. } => (AcquireAction::Wait { cursor }, until),
            State::Paused { until, .. } => (AcquireAction::Pause, until),
        };
        AcquireStep::Do { action, until: until.min(deadline).max(now.plus(Duration::from_nanos(1))) }
    }
}

#[cfg(test)]
mod tests;
