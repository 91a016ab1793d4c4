//! The world as one client meets it.

use std::time::Duration;

use dlock_core::{Chance, Loss, Moment, Release, Undone, Verdict};
use dlock_testkit::memory::Guard;

use super::client::op_of;
use super::surroundings::{CallId, News, Question, Surroundings, Terms};
use super::world::World;
use crate::history::{Event, Outcome, Refusal};

/// A client's view: the world, and the time on its clock.
pub(super) struct Around<'a, 'p> {
    world: &'a mut World<'p>,
    me: u8,
    now: Moment,
}

impl<'a, 'p> Around<'a, 'p> {
    pub(super) fn new(world: &'a mut World<'p>, me: u8) -> Self {
        let now = world.clocks[usize::from(me)].at(world.now);
        Self { world, me, now }
    }

    fn draw_number(&mut self) -> u64 {
        let draws = &mut self.world.draws[usize::from(self.me)];
        *draws += 1;
        *draws
    }

    fn draw(&mut self, what: u64) -> u64 {
        let number = self.draw_number();
        self.world.config.draw(&[what, self.me.into(), number])
    }
}

impl Surroundings for Around<'_, '_> {
    fn terms(&self) -> &Terms {
        &self.world.terms
    }

    fn now(&self) -> Moment {
        self.now
    }

    fn chance(&mut self) -> Chance {
        let draw = self.draw_number();
        self.world.config.chance(&[0xC4A9, self.me.into(), draw])
    }

    fn guard(&self) -> Guard {
        self.world.store.guard(&self.world.terms.key)
    }

    fn queued_for(&mut self) -> Option<Duration> {
        if self.world.config.calls_in_flight == 0 {
            return None;
        }
        let draw = self.draw(0x1C4E);
        // For up to a quarter more than an attempt, so that some are told that it takes longer, and some give up.
        (draw & 1 == 1).then(|| self.world.terms.attempt.mul_f64(1.25 * (draw >> 32) as f64 / f64::from(u32::MAX)))
    }

    fn answers_others(&mut self) -> bool {
        self.draw(0xA25E) & 1 == 1
    }

    fn send(&mut self, _: impl Iterator<Item = CallId>, question: Question) -> Option<CallId> {
        Some(self.world.send(self.me, question))
    }

    fn tell(&mut self, news: News) {
        let event = match news {
            News::Held { op, token } => Some(Event::Held { op, token: token.get() }),
            News::HeldTooLate { .. } => None,
            News::Refused { op, why } => Some(Event::Refused { op, why: refusal(why) }),
            News::Lost { op, loss } => Some(Event::Lost { op, reason: Loss::into(loss) }),
            News::Undone { claim, undone, .. } => {
                let asked = self.world.releasing[usize::from(self.me)] == Some(claim);
                asked.then(|| Event::Released { op: op_of(claim), outcome: outcome(undone) })
            }
        };
        if let Some(event) = event {
            self.world.tell(Some(self.me), event);
        }
        self.world.news.push((self.me, news));
    }
}

fn refusal(why: Verdict) -> Refusal {
    match why {
        Verdict::Busy => Refusal::Busy,
        Verdict::TimedOut => Refusal::TimedOut,
        Verdict::Stopped => Refusal::Cancelled,
        Verdict::Failed(_) | Verdict::Held { .. } => Refusal::Failed,
    }
}

fn outcome(undone: Undone) -> Outcome {
    match undone {
        Undone::Answered(Release::Released | Release::Unfenced { had: true }) => Outcome::Released,
        Undone::Answered(Release::NotHeld | Release::Unfenced { had: false }) | Undone::WithSession => Outcome::NotHeld,
        Undone::GivenUp => Outcome::Unknown,
    }
}
