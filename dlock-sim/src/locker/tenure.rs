//! Who is at work, and who holds the lock: told to the world also when a future is dropped.

use std::sync::Arc;

use dlock::{Held, Loss};

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
    locks: Vec<Held>,
    /// Whether the acquisition goes on by itself when the lock is lost.
    campaigns_again: bool,
    pub(super) op: Op,
}

impl Tenure {
    pub(super) fn new(world: &Arc<World>, life: &Arc<Life>, number: Op, locks: Vec<Held>, campaigns_again: bool) -> Self {
        let op = world.holds(number, locks.clone());
        Self { world: Arc::clone(world), life: Arc::clone(life), number, locks, campaigns_again, op }
    }

    /// Why one of the locks is not held any more.
    fn lost(&self) -> Option<Loss> {
        self.locks.iter().find_map(|held| held.check().err()).map(|lost| lost.reason)
    }

    /// Ends it; says whether the lock was held until now.
    pub(super) fn gives_up(self) -> bool {
        self.lost().is_none()
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        if self.life.has_crashed() {
            return;
        }
        let lost = self.lost();
        self.world.holds_no_more(self.op, lost);
        if lost.is_some() && self.campaigns_again {
            self.world.campaigns_again(self.number);
        }
    }
}
