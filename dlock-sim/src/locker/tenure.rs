//! Who is at work, and who holds the lock: told to the world also when a future is dropped.

use std::sync::Arc;

use dlock::Held;

use super::life::Life;
use super::world::World;
use crate::history::Op;

/// A worker that is not done.
pub(super) struct Working(Arc<World>);

impl Working {
    pub(super) fn new(world: &Arc<World>) -> Self {
        world.worker_begins();
        Self(Arc::clone(world))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.worker_ends();
    }
}

/// The time during which a client thinks that it holds the lock, from being told so to its end.
pub(super) struct Tenure {
    world: Arc<World>,
    life: Arc<Life>,
    number: Op,
    held: Held,
    /// Whether the acquisition goes on by itself when the lock is lost.
    campaigns_again: bool,
    pub(super) op: Op,
}

impl Tenure {
    pub(super) fn new(world: &Arc<World>, life: &Arc<Life>, number: Op, held: &Held, campaigns_again: bool) -> Self {
        let op = world.holds(number, held.clone());
        Self { world: Arc::clone(world), life: Arc::clone(life), number, held: held.clone(), campaigns_again, op }
    }

    /// Ends it; says whether the lock was held until now.
    pub(super) fn gives_up(self) -> bool {
        self.held.check().is_ok()
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        if self.life.has_crashed() {
            return;
        }
        let lost = self.held.check().err().map(|lost| lost.reason);
        self.world.holds_no_more(self.op, lost);
        if lost.is_some() && self.campaigns_again {
            self.world.campaigns_again(self.number);
        }
    }
}
