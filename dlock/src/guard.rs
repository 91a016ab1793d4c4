//! The lock itself, as its owner holds it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use dlock_core::{Lease, Release, Undone};

use crate::engine::Engine;
use crate::error::ReleaseUnknown;
use crate::grant::Grant;
use crate::held::Held;
use crate::options::LEAST_ATTEMPT;
use crate::undo::Undoing;

/// A lock that is held; given back when it is [released](Self::release) or dropped.
///
/// Dereferences to [`Held`], the witness to pass on. Dropping never blocks, spawns or panics, with or without a runtime: the release
/// is handed to the locker's background task. A guard whose lock was lost is harmless: it releases nothing of anybody else's.
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct LockGuard {
    held: Held,
    engine: Arc<Engine>,
}

/// What a release found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReleaseOutcome {
    /// The lock was held when its release was asked for, and is free now.
    Released,
    /// The lock was not held any more: it was lost before. What the store may still have of it is given back in the background.
    NotHeld,
    /// The lock stays taken until `hold_at_least` has passed, then it is given back in the background.
    Deferred,
}

impl LockGuard {
    pub(crate) fn new(grant: Arc<Grant>, engine: Arc<Engine>) -> Self {
        Self { held: Held { grant }, engine }
    }

    /// An owned witness of this lock.
    pub fn held(&self) -> Held {
        self.held.clone()
    }

    /// Gives the lock back and says what the store answered.
    ///
    /// Takes a few seconds at the longest if the store does not answer; the release then goes on in the background, and the error says
    /// when the lock lapses at the latest. Of thousands at once as many are sent at a time as the backend takes
    /// ([`Capabilities::calls_in_flight`](dlock_core::Capabilities::calls_in_flight)): the time for which the store answers others first is not counted. Free to drop: the release goes on in the background.
    pub async fn release(self) -> Result<ReleaseOutcome, ReleaseUnknown> {
        let grant = Arc::clone(&self.held.grant);
        let session = Arc::clone(&grant.session);
        let clock = session.clock();
        let now = clock.now();
        self.engine.keep_all(now);
        if grant.loss(now).is_some() {
            // Dropping hands over whatever is still owed.
            return Ok(ReleaseOutcome::NotHeld);
        }
        let Some(grant) = session.take(grant.claim.id) else { return Ok(ReleaseOutcome::NotHeld) };
        let owed = grant.owed();
        if now < owed.from {
            session.hand_in(owed);
            return Ok(ReleaseOutcome::Deferred);
        }
        // Time for two attempts; what is dropped half-way goes on in the session's keeper.
        let limit = now.plus(Lease::attempt(session.ttl()).max(LEAST_ATTEMPT) * 2 + LEAST_ATTEMPT);
        let undone = Undoing::new(Arc::clone(&session), owed).run_until(limit).await;
        match undone.unwrap_or(Undone::GivenUp) {
            Undone::Answered(Release::Released | Release::Unfenced { had: true }) => Ok(ReleaseOutcome::Released),
            Undone::Answered(Release::NotHeld | Release::Unfenced { had: false }) | Undone::WithSession => {
                Ok(ReleaseOutcome::NotHeld)
            }
            Undone::GivenUp => {
                let (key, lapses_within) = (self.key().clone(), session.lapses_within());
                Err(ReleaseUnknown { key, lapses_within })
            }
        }
    }
}

impl Deref for LockGuard {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.held
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let session = &self.held.grant.session;
        if let Some(grant) = session.take(self.held.grant.claim.id) {
            session.hand_in(grant.owed());
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard").field("held", &self.held).finish_non_exhaustive()
    }
}
