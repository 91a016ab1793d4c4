//! The store in memory, asked for the claim and the release alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dlock_core::{Claim, ClaimId, Key, LockBackend, Mode, Place, SessionId, SessionRequest};
use dlock_testkit::memory::{Memory, Profile};

use crate::Outcome;

/// A store with one session.
pub struct Raw {
    store: Memory,
    session: SessionId,
    claims: AtomicU64,
}

/// A store of its own for whoever asks.
pub fn store() -> Memory {
    Memory::builder(Profile::Queue).build()
}

impl Raw {
    /// Opens the session.
    pub async fn connect() -> Outcome<Self> {
        let store = store();
        let (id, ttl) = (SessionId::from_bits(1), Duration::from_secs(3_600));
        let session = store.open(&SessionRequest { id, ttl, owner: "host/1/bench".into() }).await?.id;
        Ok(Self { store, session, claims: AtomicU64::new(1) })
    }

    /// Takes a free key.
    pub async fn lock(&self, key: &str) -> Outcome<Claim> {
        let claim = Claim {
            id: ClaimId::from_bits(self.claims.fetch_add(1, Ordering::Relaxed).into()),
            key: Key::new(key)?,
            mode: Mode::Exclusive,
            owner: "host/1/bench".into(),
            acquired_at: "2026-01-01T00:00:00Z".into(),
            metadata: None,
        };
        self.store.claim(&self.session, &claim, Place::Queue).await?;
        Ok(claim)
    }

    /// Gives it back.
    pub async fn unlock(&self, claim: &Claim) -> Outcome<()> {
        self.store.release(&self.session, claim).await?;
        Ok(())
    }
}
