//! Giving back what a claim has, until the store has said so.

use std::time::Duration;

#[cfg(dlock_planted)]
use crate::planted::Bug;
use crate::{Chance, ErrorKind, Moment, Release, RetryPolicy};

/// One release, asked for until it is answered or patience ends.
///
/// A pure machine like [`Acquire`](crate::Acquire). When it gives up, whatever the claim had may still be there: its session must take no
/// new claims and be closed or left to lapse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Undo {
    attempt: Duration,
    patience: Duration,
    failures: u32,
    /// An attempt may have been applied without its answer.
    unanswered: bool,
    started: Option<Moment>,
    /// For how long it was queued while the store answered others.
    queued_for: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    New,
    /// Not sent yet; how long since that moment is not counted yet.
    Queued {
        since: Moment,
        until: Moment,
    },
    Releasing {
        until: Moment,
    },
    Paused {
        until: Moment,
    },
    Done(Undone),
}

/// What happened to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UndoEvent {
    /// Nothing yet: the first step.
    Started,
    /// The release is not sent yet: as many calls are in flight as may be, and the store answers those. Its time begins anew, and patience did not
    /// wear out since this was said last.
    Queued,
    /// The release that was queued is sent now, and its time begins.
    Sent,
    /// The release under way was answered.
    Answered(Release),
    /// The release under way brought no usable answer.
    Failed(ErrorKind),
    /// The moment until which the action was to go on has come.
    Elapsed,
    /// The session is gone at the store, and the claim with it.
    SessionGone,
}

/// What a release wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UndoStep {
    /// Send the release, or leave it queued if it was, and drop it then.
    Release {
        /// Later than now.
        until: Moment,
    },
    /// Do nothing until then.
    Pause {
        /// Later than now.
        until: Moment,
    },
    /// It is decided.
    Done(Undone),
}

/// How a release ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undone {
    /// The store said what the claim had; it has nothing any more. What an earlier attempt without an answer may have released counts as
    /// released.
    Answered(Release),
    /// The session is gone, and the claim with it.
    WithSession,
    /// The store never said; the session must be retired.
    GivenUp,
}

impl Undo {
    /// A release whose attempts take at most `attempt` each and which goes on for `patience`, at least once.
    pub fn new(attempt: Duration, patience: Duration) -> Self {
        Self { attempt, patience, failures: 0, unanswered: false, started: None, queued_for: Duration::ZERO, state: State::New }
    }

    /// For how long it was queued while the store answered others: time that counts against nothing.
    pub fn queued_for(&self) -> Duration {
        self.queued_for
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, event: UndoEvent, now: Moment, chance: Chance) -> UndoStep {
        let started = *self.started.get_or_insert(now);
        match (self.state, event) {
            (State::Done(_), _) => {}
            (_, UndoEvent::SessionGone) => self.state = State::Done(Undone::WithSession),
            (State::Releasing { .. }, UndoEvent::Answered(release)) => {
                let release = match release {
                    Release::NotHeld if self.unanswered => Release::Released,
                    Release::Unfenced { had: false } if self.unanswered => Release::Unfenced { had: true },
                    told => told,
                };
                self.state = State::Done(Undone::Answered(release));
            }
            (State::Releasing { .. }, UndoEvent::Failed(ErrorKind::Unsupported | ErrorKind::Invalid)) => {
                self.state = State::Done(Undone::GivenUp);
            }
            (State::Releasing { .. } | State::Queued { .. }, UndoEvent::Queued) => {
                if let State::Queued { since, .. } = self.state {
                    self.queued_for += now.saturating_since(since);
                }
                self.state = State::Queued { since: now, until: now.plus(self.attempt) };
            }
            (State::Queued { .. }, UndoEvent::Sent) => self.state = State::Releasing { until: now.plus(self.attempt) },
            // What was not sent was surely not applied.
            (State::Queued { until, .. }, UndoEvent::Elapsed) if now >= until => self.fail(now, chance),
            (State::Releasing { until }, UndoEvent::Failed(_) | UndoEvent::Elapsed)
                if event != UndoEvent::Elapsed || now >= until =>
            {
                #[cfg(dlock_planted)]
                if Bug::OneReleaseIsEnough.is_on() {
                    self.state = State::Done(Undone::Answered(Release::Released));
                    return UndoStep::Done(Undone::Answered(Release::Released));
                }
                self.unanswered |= matches!(event, UndoEvent::Elapsed | UndoEvent::Failed(ErrorKind::Ambiguous));
                self.fail(now, chance);
            }
            (State::Paused { until }, UndoEvent::Elapsed) if now >= until => self.state = State::New,
            _ => {}
        }
        let is_worn_out = || now >= started.plus(self.patience).plus(self.queued_for);
        if self.failures > 0 && is_worn_out() && !matches!(self.state, State::Done(_)) {
            self.state = State::Done(Undone::GivenUp);
        }
        match self.state {
            State::New => {
                let until = now.plus(self.attempt);
                self.state = State::Releasing { until };
                UndoStep::Release { until }
            }
            State::Releasing { until } | State::Queued { until, .. } => UndoStep::Release { until },
            State::Paused { until } => UndoStep::Pause { until },
            State::Done(undone) => UndoStep::Done(undone),
        }
    }

    fn fail(&mut self, now: Moment, chance: Chance) {
        self.failures += 1;
        let pause = RetryPolicy::default().pause(self.failures, chance).unwrap_or(RetryPolicy::MAX);
        self.state = State::Paused { until: now.plus(pause) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(millis))
    }

    fn step(undo: &mut Undo, event: UndoEvent, millis: u64) -> UndoStep {
        undo.step(event, at(millis), Chance(0))
    }

    #[test]
    fn a_release_is_asked_again_until_it_is_answered() {
        let mut undo = Undo::new(SECOND, 15 * SECOND);
        assert_eq!(step(&mut undo, UndoEvent::Started, 0), UndoStep::Release { until: at(1_000) });
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 1_000), UndoStep::Pause { until: at(1_050) });
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 1_050), UndoStep::Release { until: at(2_050) });
        let done = step(&mut undo, UndoEvent::Answered(Release::Released), 1_060);
        assert_eq!(done, UndoStep::Done(Undone::Answered(Release::Released)));
    }

    #[test]
    fn what_an_unanswered_attempt_may_have_released_counts_as_released() {
        for (failed, told, expected) in [
            (UndoEvent::Elapsed, Release::NotHeld, Release::Released),
            (UndoEvent::Failed(ErrorKind::Ambiguous), Release::NotHeld, Release::Released),
            (UndoEvent::Failed(ErrorKind::Ambiguous), Release::Unfenced { had: false }, Release::Unfenced { had: true }),
            (UndoEvent::Failed(ErrorKind::Transient), Release::NotHeld, Release::NotHeld),
        ] {
            let mut undo = Undo::new(SECOND, 15 * SECOND);
            step(&mut undo, UndoEvent::Started, 0);
            step(&mut undo, failed, 1_000);
            step(&mut undo, UndoEvent::Elapsed, 2_000);
            assert_eq!(step(&mut undo, UndoEvent::Answered(told), 2_001), UndoStep::Done(Undone::Answered(expected)), "{failed:?}");
        }
    }

    #[test]
    fn patience_ends_only_after_an_attempt_failed() {
        let mut undo = Undo::new(SECOND, SECOND);
        step(&mut undo, UndoEvent::Started, 0);
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 1_000), UndoStep::Done(Undone::GivenUp));
    }

    #[test]
    fn a_gone_session_takes_its_claims_along() {
        let mut undo = Undo::new(SECOND, SECOND);
        step(&mut undo, UndoEvent::Started, 0);
        assert_eq!(step(&mut undo, UndoEvent::SessionGone, 1), UndoStep::Done(Undone::WithSession));
    }

    #[test]
    fn what_is_decided_stays_decided() {
        let mut undo = Undo::new(SECOND, 15 * SECOND);
        step(&mut undo, UndoEvent::Started, 0);
        let done = step(&mut undo, UndoEvent::Answered(Release::Released), 1);
        assert_eq!(step(&mut undo, UndoEvent::SessionGone, 2), done);
    }

    #[test]
    fn what_the_store_can_never_do_is_given_up_at_once() {
        for kind in [ErrorKind::Unsupported, ErrorKind::Invalid] {
            let mut undo = Undo::new(SECOND, 15 * SECOND);
            step(&mut undo, UndoEvent::Started, 0);
            assert_eq!(step(&mut undo, UndoEvent::Failed(kind), 1), UndoStep::Done(Undone::GivenUp), "{kind:?}");
        }
    }

    #[test]
    fn an_answer_to_the_only_attempt_is_taken_as_it_is() {
        for told in [Release::NotHeld, Release::Unfenced { had: false }] {
            let mut undo = Undo::new(SECOND, 15 * SECOND);
            step(&mut undo, UndoEvent::Started, 0);
            assert_eq!(step(&mut undo, UndoEvent::Answered(told), 1), UndoStep::Done(Undone::Answered(told)));
        }
    }

    #[test]
    fn pauses_grow_and_time_that_is_not_up_changes_nothing() {
        let mut undo = Undo::new(SECOND, 60 * SECOND);
        let mut now = 0;
        step(&mut undo, UndoEvent::Started, now);
        for pause in [50, 100, 200] {
            let releasing = UndoStep::Release { until: at(now + 1_000) };
            assert_eq!(step(&mut undo, UndoEvent::Elapsed, now + 999), releasing);
            now += 1_000;
            let pausing = UndoStep::Pause { until: at(now + pause) };
            assert_eq!(step(&mut undo, UndoEvent::Elapsed, now), pausing);
            assert_eq!(step(&mut undo, UndoEvent::Elapsed, now + pause - 1), pausing);
            now += pause;
            assert!(matches!(step(&mut undo, UndoEvent::Elapsed, now), UndoStep::Release { .. }));
        }
    }

    #[test]
    fn the_first_attempt_has_its_time_whatever_the_patience() {
        let mut undo = Undo::new(SECOND, Duration::ZERO);
        let first = step(&mut undo, UndoEvent::Started, 0);
        assert_eq!(first, UndoStep::Release { until: at(1_000) });
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 999), first);
        assert_eq!(step(&mut undo, UndoEvent::Failed(ErrorKind::Transient), 999), UndoStep::Done(Undone::GivenUp));
    }

    #[test]
    fn an_answer_after_patience_has_passed_is_an_answer() {
        let mut undo = Undo::new(SECOND, Duration::from_millis(1_500));
        step(&mut undo, UndoEvent::Started, 0);
        step(&mut undo, UndoEvent::Elapsed, 1_000);
        step(&mut undo, UndoEvent::Elapsed, 1_100);
        let done = step(&mut undo, UndoEvent::Answered(Release::Released), 1_600);
        assert_eq!(done, UndoStep::Done(Undone::Answered(Release::Released)));
    }

    #[test]
    fn patience_does_not_wear_out_in_a_queue_that_moves() {
        let mut undo = Undo::new(SECOND, 3 * SECOND);
        step(&mut undo, UndoEvent::Started, 0);
        for millis in [0, 1_000, 2_000, 3_000] {
            assert_eq!(step(&mut undo, UndoEvent::Queued, millis), UndoStep::Release { until: at(millis + 1_000) });
        }
        // Nobody said that it moved meanwhile.
        assert_eq!(step(&mut undo, UndoEvent::Sent, 3_900), UndoStep::Release { until: at(4_900) });
        assert_eq!(undo.queued_for(), 3 * SECOND);
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 4_900), UndoStep::Pause { until: at(4_950) });
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 4_950), UndoStep::Release { until: at(5_950) });
        assert_eq!(step(&mut undo, UndoEvent::Failed(ErrorKind::Transient), 5_940), UndoStep::Pause { until: at(6_040) });
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 6_000), UndoStep::Done(Undone::GivenUp));
    }

    #[test]
    fn a_queue_in_which_nothing_moves_is_a_failed_attempt_that_released_nothing() {
        let mut undo = Undo::new(SECOND, 2 * SECOND);
        step(&mut undo, UndoEvent::Started, 0);
        step(&mut undo, UndoEvent::Queued, 0);
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 1_000), UndoStep::Pause { until: at(1_050) });
        step(&mut undo, UndoEvent::Elapsed, 1_050);
        let done = step(&mut undo.clone(), UndoEvent::Answered(Release::NotHeld), 1_060);
        assert_eq!(done, UndoStep::Done(Undone::Answered(Release::NotHeld)), "no copy of it was sent before");
        step(&mut undo, UndoEvent::Queued, 1_060);
        assert_eq!(step(&mut undo, UndoEvent::Elapsed, 2_060), UndoStep::Done(Undone::GivenUp));
    }
}
