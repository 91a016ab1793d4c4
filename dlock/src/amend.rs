//! How a holder changes what others read of it.

use std::sync::Arc;

use dlock_core::{Chance, ErrorKind, Key, Lease, Loss, Metadata, RetryPolicy};
use thiserror::Error;

use crate::error::{Lost, StoreError};
use crate::grant::Grant;
use crate::options::{InvalidOptions, LEAST_ATTEMPT, TRY_LIMIT, validate_metadata};

/// Why metadata was not, or perhaps not, published.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum AmendError {
    /// The lock is not held any more, or was released meanwhile.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The store does not show the lock as ours. The loss is told as soon as it is sure.
    #[error("the store does not show {key} as held by this claim")]
    NotHeld {
        /// The key.
        key: Key,
    },
    /// The metadata is larger than the store takes; nothing was sent.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The store's backend cannot change the metadata of a held lock; nothing was sent.
    #[error("this store cannot change the metadata of a held lock; set it with `metadata` when the lock is asked for")]
    Unsupported,
    /// The store refused; others read what they read before.
    #[error("the metadata of {key} was not changed")]
    Store {
        /// The key.
        key: Key,
        /// What the store said.
        #[source]
        cause: StoreError,
    },
    /// The store did not say that others read the new metadata; they may. Amending again finds out.
    #[error("it is not known whether the metadata of {key} was changed; the lock is still held")]
    Unknown {
        /// The key.
        key: Key,
        /// What the store last failed with, if it said anything.
        #[source]
        cause: Option<StoreError>,
    },
}

/// Asks until the store has answered, the lock is lost, or the time is over.
pub(crate) async fn amend(grant: &Grant, metadata: Metadata) -> Result<(), AmendError> {
    let (session, claim) = (&grant.session, &grant.claim);
    let (clock, key, capabilities) = (session.clock(), &claim.key, session.backend.capabilities());
    if !capabilities.amends {
        return Err(AmendError::Unsupported);
    }
    validate_metadata(&metadata, &claim.owner, capabilities.limits)?;
    let (metadata, limit) = (Arc::new(metadata), clock.now().plus(TRY_LIMIT));
    let lost = |reason| AmendError::Lost(Lost { key: key.clone(), reason });
    let (mut perhaps, mut failures, mut cause) = (false, 0, None);
    let _turn = tokio::select! {
        biased;
        // Never closed; whoever is given up gives its turn on.
        reason = grant.lost() => return Err(lost(reason)),
        turn = grant.amendment().turn.acquire() => turn,
        () = clock.sleep_until(limit) => return Err(AmendError::Unknown { key: key.clone(), cause }),
    };
    loop {
        if let Some(reason) = grant.loss(clock.now()) {
            return Err(lost(reason));
        }
        // A grant is made with an open session, which keeps its id.
        let Some(id) = session.id() else { return Err(lost(Loss::SessionGone)) };
        let until = clock.now().plus(Lease::attempt(session.ttl()).max(LEAST_ATTEMPT)).min(limit);
        let answer = tokio::select! {
            biased;
            reason = grant.lost() => return Err(lost(reason)),
            answer = session.backend.amend(&id, claim, &metadata) => Some(answer),
            () = clock.sleep_until(until) => None,
        };
        match answer {
            Some(Ok(true)) => {
                grant.amended(metadata);
                return Ok(());
            }
            Some(Ok(false)) => {
                if let Some(reason) = grant.loss(clock.now()) {
                    return Err(lost(reason));
                }
                session.want_audit();
                return Err(AmendError::NotHeld { key: key.clone() });
            }
            Some(Err(error)) => {
                let kind = error.kind();
                tracing::debug!(%key, %error, "amendment failed");
                perhaps |= kind == ErrorKind::Ambiguous;
                let again = matches!(kind, ErrorKind::Ambiguous | ErrorKind::Transient | ErrorKind::Overloaded);
                let said = StoreError::new(error);
                if !again && !perhaps {
                    return Err(AmendError::Store { key: key.clone(), cause: said });
                }
                cause = Some(said);
                if !again {
                    return Err(AmendError::Unknown { key: key.clone(), cause });
                }
            }
            None => perhaps = true,
        }
        failures += 1;
        let pause = RetryPolicy::default().pause(failures, Chance(fastrand::u32(..))).unwrap_or(RetryPolicy::MAX);
        let next = clock.now().plus(pause);
        if next >= limit {
            return Err(match cause {
                Some(cause) if !perhaps => AmendError::Store { key: key.clone(), cause },
                cause => AmendError::Unknown { key: key.clone(), cause },
            });
        }
        clock.sleep_until(next).await;
    }
}
