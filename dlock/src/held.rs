//! A witness that a lock is held, for the code that runs under it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Claim, ClaimId, FencingToken, Granted, Key, Loss, Metadata, Mode, Ownership};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::amend::{AmendError, amend};
use crate::error::{CheckError, Lost, OwnershipError, StoreError};
use crate::grant::Grant;

/// A witness that a lock is held: what inner functions take that must only run under it.
///
/// Cheap to clone and to send; cannot release. A witness may outlive its guard; it then says that the lock is
/// [lost](Self::check) once that is so, or released.
#[derive(Clone)]
pub struct Held {
    pub(crate) grant: Arc<Grant>,
}

impl Held {
    /// The key.
    pub fn key(&self) -> &Key {
        &self.grant.claim.key
    }

    /// The fencing token of this grant, to go along with every write to the protected resource.
    ///
    /// `None` for shared and permit holders, whom no order separates: a [`Fence`](crate::Fence) cannot take them.
    pub fn token(&self) -> Option<FencingToken> {
        self.grant.fencing_token()
    }

    /// With whom the lock may be shared.
    pub fn mode(&self) -> Mode {
        self.grant.claim.mode
    }

    /// This grant as a condition for transactions of the store's own, so that the store itself refuses the write of a past holder: what is
    /// better still than a token, for data that lives in the same store.
    ///
    /// After an amendment that was not answered it may be refused until the next one is.
    ///
    /// Plain data, for the client of the store that the program has: for Consul, `consul_operations` makes operations of it, for etcd it is
    /// `Compare::create_revision(key, CompareOp::Equal, revision)`, for SQLite a row of its table of claims. Sends nothing. To be asked for again after an [amendment](Self::amend).
    pub fn ownership(&self) -> Result<Ownership, OwnershipError> {
        self.check()?;
        let (session, claim, token) = (&self.grant.session, Arc::clone(&self.grant.claim), self.grant.token);
        let id = session.id().ok_or_else(|| self.lost_for(Loss::SessionGone))?;
        let ownership = session.backend.ownership(&id, &Granted { claim, token });
        ownership.map_err(|error| OwnershipError::Store(StoreError::new(error)))
    }

    /// The id of the claim behind this grant, as others read it in the metadata.
    pub fn claim(&self) -> ClaimId {
        self.grant.claim.id
    }

    /// All that others read of this holder, as of the last [amendment](Self::amend) that was answered.
    /// After one that was not, others may read that one.
    pub fn metadata(&self) -> Metadata {
        let mut claim = Claim::clone(&self.grant.claim);
        claim.metadata = self.grant.metadata();
        claim.published()
    }

    /// Publishes other metadata in place of all that the lock was asked for with; lock and token stay. Entries that are not named are gone,
    /// dlock's own are written anew.
    ///
    /// Takes five seconds at most, and ends at once when the lock is lost. Amendments of one lock follow one another, and none that was given
    /// up undoes a later one. Free to drop; what others read then is the old or the new.
    pub async fn amend(&self, metadata: Metadata) -> Result<(), AmendError> {
        amend(&self.grant, metadata).await
    }

    /// Until when the lock is surely held, as far as is known now, on the runtime's clock; renewals move it on.
    ///
    /// It already leaves out the margin against clock rate and what `stop_before` asks for.
    pub fn valid_until(&self) -> Instant {
        self.grant.session.clock().to_instant(self.grant.valid_until())
    }

    /// How long the lock is surely held from now on, unless somebody interferes.
    pub fn remaining(&self) -> Duration {
        let now = self.grant.session.clock().now();
        if self.grant.loss(now).is_some() {
            return Duration::ZERO;
        }
        self.grant.valid_until().saturating_since(now)
    }

    /// Whether the lock is held at this moment: looks at the clock, sends nothing.
    pub fn check(&self) -> Result<(), Lost> {
        match self.grant.loss(self.grant.session.clock().now()) {
            None => Ok(()),
            Some(reason) => Err(self.lost_for(reason)),
        }
    }

    /// Whether the lock is surely held for another `needed`: enough for the next step?
    ///
    /// This is what blocking work must ask before each step, since it cannot be cancelled from outside.
    pub fn check_for(&self, needed: Duration) -> Result<(), CheckError> {
        self.check()?;
        let left = self.remaining();
        if left < needed {
            return Err(CheckError::TooShort { key: self.key().clone(), left, asked: needed });
        }
        Ok(())
    }

    /// Returns when the lock is lost, at once if it already is, and says why. May be awaited by many; does not return on release.
    ///
    /// Fires at the local deadline even if the store hangs. Free to drop.
    pub async fn lost(&self) -> Loss {
        self.grant.lost().await
    }

    /// A token that is cancelled when the lock is lost, to hand to code that knows nothing of locks.
    ///
    /// It is not cancelled on release. It is cancelled by the locker's task: if the runtime of that task has ended, make a token, or await
    /// anything else of the lock, on the runtime that goes on.
    pub fn cancellation(&self) -> CancellationToken {
        self.grant.cancellation()
    }

    /// Runs `work` for as long as the lock is held; drops it at the local deadline at the latest.
    ///
    /// The deadline is looked at before every poll of the work. Dropping stops async work at its next await; blocking work inside it must
    /// ask [`check_for`](Self::check_for) by itself. Free to drop.
    pub async fn guarded<F: Future>(&self, work: F) -> Result<F::Output, Lost> {
        let lost = self.lost();
        tokio::pin!(work, lost);
        std::future::poll_fn(|cx| {
            if let std::task::Poll::Ready(reason) = lost.as_mut().poll(cx) {
                return std::task::Poll::Ready(Err(self.lost_for(reason)));
            }
            // `lost` looks at the clock only when it is woken; the work must not run a poll too far.
            if let Err(lost) = self.check() {
                return std::task::Poll::Ready(Err(lost));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    pub(crate) fn lost_for(&self, reason: Loss) -> Lost {
        Lost { key: self.key().clone(), reason }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("key", self.key())
            .field("mode", &self.grant.claim.mode)
            .field("token", &self.grant.token)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
