//! How far a session is, for those who wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dlock_core::SessionId;
use tokio::sync::Notify;

use crate::error::StoreError;

/// What an acquisition must know of a session.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Not opened yet; so many attempts failed, the last one with this.
    Opening { failures: u32, error: Option<StoreError> },
    /// Believed: claim with it.
    Ready(SessionId),
    /// The store refused to open it.
    Refused(StoreError),
    /// Not to be claimed with any more.
    Over,
}

/// The stage of a session as it moves on.
///
/// Those who wait are woken in the order they came. Tokio's `watch` wakes in random order, and then one seed is not one schedule.
#[derive(Debug)]
pub(crate) struct Stages {
    /// The stage, and how often it moved.
    stage: Mutex<(Stage, u64)>,
    moved: Notify,
}

impl Stages {
    pub(crate) fn new() -> Self {
        Self { stage: Mutex::new((Stage::Opening { failures: 0, error: None }, 0)), moved: Notify::new() }
    }

    fn stage(&self) -> MutexGuard<'_, (Stage, u64)> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present stage, and what [`moved_since`](Self::moved_since) goes on from.
    pub(crate) fn look(&self) -> (Stage, u64) {
        self.stage().clone()
    }

    /// Whether it is not to be claimed with, now or later.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage().0, Stage::Over | Stage::Refused(_))
    }

    /// Moves on, unless `advance` says that it left the stage as it was.
    pub(crate) fn advance(&self, advance: impl FnOnce(&mut Stage) -> bool) {
        let mut stage = self.stage();
        if advance(&mut stage.0) {
            stage.1 += 1;
            drop(stage);
            self.moved.notify_waiters();
        }
    }

    /// Returns once the stage is another than it was at that look. Free to drop.
    pub(crate) async fn moved_since(&self, look: u64) {
        let moved = self.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        if self.stage().1 == look {
            moved.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_move_is_seen_whether_it_comes_before_or_after_the_wait() {
        let stages = Stages::new();
        let (_, look) = stages.look();
        let mut waiting = Box::pin(stages.moved_since(look));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        stages.advance(|_| false);
        assert!(futures_util::poll!(&mut waiting).is_pending(), "nothing moved");
        stages.advance(|stage| {
            *stage = Stage::Over;
            true
        });
        waiting.await;
        stages.moved_since(look).await;
    }
}
