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
    /// How long one claim or confirm may take.
    pub attempt: Duration,
    /// How long one wait may take before the claim asks again by itself.
    pub longest_wait: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    New,
    NeedsSession,
    Claiming { until: Moment },
    Waiting { cursor: Cursor, kept: bool, since: Moment, until: Moment },
    Confirming { cursor: Cursor, until: Moment },
    Paused { until: Moment, next: Next },
    Done(Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Claim,
    Confirm { cursor: Cursor },
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
    /// Do this, and no longer than until then; then say [`AcquireEvent::Elapsed`].
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
        match (&self.state, event) {
            (State::Done(_), _) => {}
            (_, AcquireEvent::Stopped) => self.end(Verdict::Stopped),
            (State::New, _) => self.state = State::NeedsSession,
            (State::NeedsSession, AcquireEvent::SessionReady) => {
                (self.unanswered, self.placed) = (false, false);
                self.claim(now);
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
            (State::Claiming { .. } | State::Confirming { .. }, AcquireEvent::Answered(standing)) => {
                self.stand(&standing, now, chance);
            }
            (State::Waiting { kept, since, .. }, AcquireEvent::Woken { cursor, hint }) => {
                let (kept, early) = (*kept, now.saturating_since(*since) < Self::RACE_JITTER);
                self.failures = 0;
                self.wake(kept, early, cursor, &hint, now, chance);
            }
            (State::Claiming { .. }, AcquireEvent::Failed(kind)) => {
                // What was surely not applied leaves nothing; an earlier copy is still owed.
                self.unanswered |= kind == ErrorKind::Ambiguous;
                self.fail(kind, Next::Claim, now, chance);
            }
            (State::Confirming { cursor, .. }, AcquireEvent::Failed(kind)) => {
                let next = Next::Confirm { cursor: *cursor };
                self.fail(kind, next, now, chance);
            }
            (State::Waiting { cursor, kept, .. }, AcquireEvent::Failed(kind)) => {
                let next = Next::Wait { cursor: *cursor, kept: *kept };
                self.fail(kind, next, now, chance);
            }
            (State::Claiming { until }, AcquireEvent::Elapsed) if now >= *until => {
                self.unanswered = true;
                self.fail(ErrorKind::Ambiguous, Next::Claim, now, chance);
            }
            (State::Confirming { cursor, until }, AcquireEvent::Elapsed) if now >= *until => {
                let next = Next::Confirm { cursor: *cursor };
                self.fail(ErrorKind::Transient, next, now, chance);
            }
            // A wait that never returned may have missed the news: ask.
            (State::Waiting { cursor, kept, until, .. }, AcquireEvent::Elapsed) if now >= *until => {
                let next = if *kept { Next::Confirm { cursor: *cursor } } else { Next::Claim };
                self.go(next, now);
            }
            (State::Paused { until, next }, AcquireEvent::Elapsed) if now >= *until => {
                let next = *next;
                self.go(next, now);
            }
            _ => {}
        }
    }

    fn stand(&mut self, standing: &Standing, now: Moment, chance: Chance) {
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
                self.pause(longest.saturating_sub(chance.of(longest / 4)), Next::Claim, now);
            }
            Standing::SessionGone => {
                (self.unanswered, self.placed) = (false, false);
                self.state = State::NeedsSession;
            }
            Standing::ClaimGone => {
                self.placed = false;
                if self.plan.place == Place::Try {
                    // An earlier copy was refused, and that answer was lost: the store grants nothing to this claim any more.
                    self.state = State::Done(Verdict::Busy);
                    return;
                }
                self.claim(now);
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
            Hint::ClaimGone => {
                self.placed = false;
                self.claim(now);
            }
            Hint::MaybeFree => {
                let next = if kept { Next::Confirm { cursor } } else { Next::Claim };
                // After a lost race the rivals are spread out a little; the first wake is answered at once.
                let spread = Self::RACE_JITTER.min(Duration::from_millis(5) * self.lost_races);
                self.lost_races = (self.lost_races + 1).min(4);
                match chance.of(spread) {
                    Duration::ZERO => self.go(next, now),
                    pause => self.pause(pause, next, now),
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

    fn go(&mut self, next: Next, now: Moment) {
        match next {
            Next::Claim => self.claim(now),
            Next::Confirm { cursor } => self.state = State::Confirming { cursor, until: now.plus(self.plan.attempt) },
            Next::Wait { cursor, kept } => self.wait(cursor, kept, now),
        }
    }

    fn claim(&mut self, now: Moment) {
        self.state = State::Claiming { until: now.plus(self.plan.attempt) };
    }

    fn wait(&mut self, cursor: Cursor, kept: bool, now: Moment) {
        self.state = State::Waiting { cursor, kept, since: now, until: now.plus(self.plan.longest_wait) };
    }

    fn pause(&mut self, pause: Duration, next: Next, now: Moment) {
        self.state = State::Paused { until: now.plus(pause.max(Duration::from_nanos(1))), next };
    }

    /// The deadline ends everything but a grant.
    fn expire(&mut self, now: Moment) {
        if self.plan.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        if !matches!(self.state, State::Done(_)) {
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
        self.unanswered |= matches!(self.state, State::Claiming { .. });
        self.state = State::Done(verdict);
    }

    fn next(&self, now: Moment) -> AcquireStep {
        let deadline = self.plan.deadline.unwrap_or(Moment::FAR_FUTURE);
        let (action, until) = match self.state {
            State::Done(verdict) => return AcquireStep::Done(verdict),
            State::New | State::NeedsSession => (AcquireAction::AwaitSession, Moment::FAR_FUTURE),
            State::Claiming { until } => (AcquireAction::Claim, until),
            State::Waiting { cursor, until, .. } => (AcquireAction::Wait { cursor }, until),
            State::Confirming { cursor, until } => (AcquireAction::Confirm { cursor }, until),
            State::Paused { until, .. } => (AcquireAction::Pause, until),
        };
        AcquireStep::Do { action, until: until.min(deadline).max(now.plus(Duration::from_nanos(1))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Standing = Standing::Busy { holder: None, cursor: Cursor(7) };
    const QUEUED: Standing = Standing::Waiting { cursor: Cursor(7), ahead: Some(1), holder: None };

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(millis))
    }

    fn acquisition(place: Place, deadline: Option<u64>) -> Acquire {
        let mut acquire = Acquire::new(AcquirePlan {
            place,
            retry: RetryPolicy::default().jitter_percent(0),
            deadline: deadline.map(at),
            attempt: Duration::from_secs(2),
            longest_wait: Duration::from_secs(60),
        });
        assert_eq!(action(&mut acquire, AcquireEvent::Started, 0), AcquireAction::AwaitSession);
        assert_eq!(action(&mut acquire, AcquireEvent::SessionReady, 0), AcquireAction::Claim);
        acquire
    }

    fn action(acquire: &mut Acquire, event: AcquireEvent, millis: u64) -> AcquireAction {
        match acquire.step(event, at(millis), Chance::MIDDLE) {
            AcquireStep::Do { action, .. } => action,
            AcquireStep::Done(verdict) => panic!("done: {verdict:?}"),
        }
    }

    fn verdict(acquire: &mut Acquire, event: AcquireEvent, millis: u64) -> Verdict {
        match acquire.step(event, at(millis), Chance::MIDDLE) {
            AcquireStep::Do { action, .. } => panic!("not done: {action:?}"),
            AcquireStep::Done(verdict) => verdict,
        }
    }

    fn woken(hint: Hint) -> AcquireEvent {
        AcquireEvent::Woken { cursor: Cursor(9), hint }
    }

    fn held() -> Standing {
        Standing::Held { token: FencingToken::new(3).unwrap() }
    }

    #[test]
    fn a_free_key_takes_one_claim() {
        let mut acquire = acquisition(Place::Queue, None);
        let verdict = verdict(&mut acquire, AcquireEvent::Answered(held()), 1);
        assert_eq!(verdict, Verdict::Held { token: FencingToken::new(3).unwrap() });
    }

    #[test]
    fn a_try_whose_refusal_was_lost_ends_when_it_is_asked_again() {
        let mut acquire = acquisition(Place::Try, None);
        assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_000), AcquireAction::Pause);
        assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_100), AcquireAction::Claim);
        assert_eq!(verdict(&mut acquire, AcquireEvent::Answered(Standing::ClaimGone), 2_110), Verdict::Busy);
    }

    #[test]
    fn a_try_that_finds_the_key_busy_leaves_nothing() {
        let mut acquire = acquisition(Place::Try, None);
        assert_eq!(verdict(&mut acquire, AcquireEvent::Answered(BUSY), 1), Verdict::Busy);
        assert!(!acquire.owes_release());
    }

    #[test]
    fn a_wake_that_promises_claims_at_once_and_one_that_does_not_waits_on() {
        let mut acquire = acquisition(Place::Queue, None);
        assert_eq!(action(&mut acquire, AcquireEvent::Answered(BUSY), 1), AcquireAction::Wait { cursor: Cursor(7) });
        let still = woken(Hint::StillHeld { holder: None });
        assert_eq!(action(&mut acquire, still, 5_000), AcquireAction::Wait { cursor: Cursor(9) });
        assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 6_000), AcquireAction::Claim);
    }

    #[test]
    fn a_kept_place_is_confirmed_and_not_claimed_again() {
        let mut acquire = acquisition(Place::Queue, None);
        assert_eq!(action(&mut acquire, AcquireEvent::Answered(QUEUED), 1), AcquireAction::Wait { cursor: Cursor(7) });
        assert!(acquire.owes_release());
        assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 50), AcquireAction::Confirm { cursor: Cursor(9) });
    }

    #[test]
    fn jitter_comes_only_after_a_lost_race() {
        let mut acquire = acquisition(Place::Queue, None);
        action(&mut acquire, AcquireEvent::Answered(BUSY), 1);
        assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 100), AcquireAction::Claim);
        action(&mut acquire, AcquireEvent::Answered(BUSY), 101);
        assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 200), AcquireAction::Pause);
    }

    #[test]
    fn an_unanswered_claim_is_asked_again_and_stays_owed_even_when_the_answer_is_busy() {
        let mut acquire = acquisition(Place::Queue, None);
        assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_000), AcquireAction::Pause);
        assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_050), AcquireAction::Claim);
        action(&mut acquire, AcquireEvent::Answered(BUSY), 2_051);
        assert!(acquire.owes_release(), "the first copy may still be under way");
    }

    #[test]
    fn what_was_surely_not_applied_is_not_owed() {
        let mut acquire = acquisition(Place::Queue, None);
        action(&mut acquire, AcquireEvent::Failed(ErrorKind::Transient), 1);
        assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 2), Verdict::Stopped);
        assert!(!acquire.owes_release());
    }

    #[test]
    fn stopping_while_a_claim_is_under_way_owes_its_release() {
        let mut acquire = acquisition(Place::Queue, None);
        assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 1), Verdict::Stopped);
        assert!(acquire.owes_release());
    }

    #[test]
    fn the_deadline_ends_every_action() {
        let mut acquire = acquisition(Place::Queue, Some(1_000));
        let step = acquire.step(AcquireEvent::Answered(BUSY), at(1), Chance::MIDDLE);
        assert!(matches!(step, AcquireStep::Do { until, .. } if until == at(1_000)));
        assert_eq!(verdict(&mut acquire, AcquireEvent::Elapsed, 1_000), Verdict::TimedOut);
    }

    #[test]
    fn a_grant_that_arrives_at_the_deadline_is_a_grant() {
        let mut acquire = acquisition(Place::Queue, Some(1_000));
        assert!(matches!(verdict(&mut acquire, AcquireEvent::Answered(held()), 1_000), Verdict::Held { .. }));
    }

    #[test]
    fn refusals_end_it_and_passing_errors_do_not() {
        let mut acquire = acquisition(Place::Queue, None);
        assert_eq!(action(&mut acquire, AcquireEvent::Failed(ErrorKind::Overloaded), 1), AcquireAction::Pause);
        let mut acquire = acquisition(Place::Queue, None);
        let conflict = verdict(&mut acquire, AcquireEvent::Failed(ErrorKind::Conflict), 1);
        assert_eq!(conflict, Verdict::Failed(ErrorKind::Conflict));
    }

    #[test]
    fn a_lost_session_means_a_new_one_and_the_old_claim_undone() {
        let mut acquire = acquisition(Place::Queue, None);
        action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
        assert_eq!(action(&mut acquire, AcquireEvent::SessionLost, 2), AcquireAction::AwaitSession);
        assert!(acquire.owes_release());
        assert_eq!(action(&mut acquire, AcquireEvent::SessionReady, 3), AcquireAction::Claim);
        action(&mut acquire, AcquireEvent::Answered(BUSY), 4);
        assert!(!acquire.owes_release());
    }

    #[test]
    fn a_session_that_the_store_forgot_owes_nothing() {
        let mut acquire = acquisition(Place::Queue, None);
        action(&mut acquire, AcquireEvent::Elapsed, 2_000);
        action(&mut acquire, AcquireEvent::Elapsed, 2_050);
        let next = action(&mut acquire, AcquireEvent::Answered(Standing::SessionGone), 2_051);
        assert_eq!(next, AcquireAction::AwaitSession);
        assert!(!acquire.owes_release());
    }

    #[test]
    fn a_store_that_returns_at_once_is_not_asked_in_a_hot_loop() {
        let mut acquire = acquisition(Place::Queue, None);
        action(&mut acquire, AcquireEvent::Answered(BUSY), 1);
        let still = || woken(Hint::StillHeld { holder: None });
        for _ in 0..2 {
            assert_eq!(action(&mut acquire, still(), 2), AcquireAction::Wait { cursor: Cursor(9) });
        }
        assert_eq!(action(&mut acquire, still(), 2), AcquireAction::Pause);
    }

    #[test]
    fn a_delayed_claim_is_undone_when_it_is_given_up() {
        let delayed = AcquireEvent::Answered(Standing::Delayed { at_most: Duration::from_secs(15) });
        let mut acquire = acquisition(Place::Queue, None);
        assert_eq!(action(&mut acquire, delayed.clone(), 0), AcquireAction::Pause);
        assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 1), Verdict::Stopped);
        assert!(acquire.owes_release());
        let mut acquire = acquisition(Place::Try, None);
        assert_eq!(verdict(&mut acquire, delayed, 0), Verdict::Busy);
        assert!(acquire.owes_release());
    }

    #[test]
    fn a_delay_at_the_store_is_waited_out_in_short_steps() {
        let mut acquire = acquisition(Place::Queue, None);
        let delayed = AcquireEvent::Answered(Standing::Delayed { at_most: Duration::from_secs(15) });
        let step = acquire.step(delayed, at(0), Chance(0));
        assert_eq!(step, AcquireStep::Do { action: AcquireAction::Pause, until: at(1_000) });
    }
}
