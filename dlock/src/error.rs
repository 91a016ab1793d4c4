//! What can go wrong, and what it means for the caller.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{BackendError, Holder, InvalidKey, Key, Loss};
use thiserror::Error;

use crate::options::InvalidOptions;

/// Why a lock was not acquired.
///
/// That another holds the lock is no error of [`try_lock`](crate::Locker::try_lock), which answers `None` then.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// The key is no name that a store takes verbatim; nothing was sent.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The options contradict each other or the store's limits; nothing was sent.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The time of `wait_at_most` passed, or a try was not answered within five seconds; the time counts for which it was not sent yet, as many
    /// other calls of this process were in flight.
    #[error("{key} was not acquired within {waited:?}{}", whom(.holder.as_deref()))]
    TimedOut {
        /// The key.
        key: Key,
        /// How long it was waited for.
        waited: Duration,
        /// Who held it when it was last heard of.
        holder: Option<Box<Holder>>,
        /// What the store last failed with, if it did not answer; or that the call was not sent yet.
        #[source]
        cause: Option<StoreError>,
    },
    /// The token given to `cancel_on` was cancelled.
    #[error("waiting for {key} was cancelled")]
    Cancelled {
        /// The key.
        key: Key,
    },
    /// The locker was shut down, or is being shut down.
    #[error("the locker is shut down")]
    ShutDown,
    /// No session could be opened at the store.
    #[error("no session could be opened at the store{}", if .cause.is_none() { "; it did not answer in time" } else { "" })]
    NoSession {
        /// What the store said, if it said anything.
        #[source]
        cause: Option<StoreError>,
    },
    /// The store refused, or the retry policy allows no more attempts.
    #[error("{key} was not acquired")]
    Store {
        /// The key.
        key: Key,
        /// What the store said.
        #[source]
        cause: StoreError,
    },
}

fn whom(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) => format!("; held by {}", holder.owner().unwrap_or("an unnamed holder")),
        None => String::new(),
    }
}

/// A [`BackendError`] that may be told to several callers.
#[derive(Clone, Debug)]
pub struct StoreError(Arc<BackendError>);

impl StoreError {
    pub(crate) fn new(error: BackendError) -> Self {
        Self(Arc::new(error))
    }

    /// What the failure means for the caller.
    pub fn kind(&self) -> dlock_core::ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Why a key could not be looked at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The key is no name that a store takes verbatim; nothing was sent.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The store failed.
    #[error("the store could not be asked")]
    Store(#[source] StoreError),
    /// The store did not answer.
    #[error("the store did not answer about {key} within {limit:?}")]
    TimedOut {
        /// The key.
        key: Key,
        /// How long was waited.
        limit: Duration,
    },
}

/// The lock is not held any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the lock {key} was lost: {reason}")]
pub struct Lost {
    /// The key.
    pub key: Key,
    /// Why.
    pub reason: Loss,
}

/// The lock is not held for long enough.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It is not held at all.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// It is held, but not surely for the asked time; a renewal may be on its way.
    #[error("the lock {key} is surely held for another {left:?} only, not for {asked:?}")]
    TooShort {
        /// The key.
        key: Key,
        /// What is left.
        left: Duration,
        /// What was asked for.
        asked: Duration,
    },
}

/// Why a grant is no condition for the store's own transactions.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// The lock is not held any more.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The backend has no such conditions.
    #[error("the store's transactions cannot be made conditional on the lock")]
    Store(#[source] StoreError),
}

/// Why [`run`](crate::LockRequest::run) has no result.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The lock was not acquired; the work was not begun.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lock was lost; the work was dropped at its next await.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// A release that the store did not answer in time.
///
/// It goes on in the background for as long as the locker lives.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
#[error("the release of {key} was not answered; if it was not applied, the lock lapses within {lapses_within:?}")]
pub struct ReleaseUnknown {
    /// The key.
    pub key: Key,
    /// How long the lock can stay at the store if nothing more reaches it, counted from now.
    pub lapses_within: Duration,
}
