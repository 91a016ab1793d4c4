//! The other half of a fencing token: the resource's own check.

use std::sync::atomic::{AtomicU64, Ordering};

use dlock_core::FencingToken;
use thiserror::Error;

/// What a protected resource keeps: the highest token it has seen, and refuses anything lower.
///
/// Keep one per key beside the data it protects, in the same place and, where the data is durable, in the same transaction (store
/// [`highest`](Self::highest) with the data, and begin with [`starting_at`](Self::starting_at)). A store with conditional writes can do the same
/// by itself: `UPDATE .. SET fence = :token WHERE fence <= :token`.
///
/// A write that depends on what was read needs the token at the reading too: otherwise a past holder may still write between the present
/// holder's reading and its write, and that write is lost.
///
/// ```
/// use dlock::{Fence, FencingToken};
///
/// let fence = Fence::new();
/// let (old, new) = (FencingToken::new(3).unwrap(), FencingToken::new(7).unwrap());
/// assert!(fence.admit(old).is_ok());
/// assert!(fence.admit(new).is_ok());
/// assert!(fence.admit(new).is_ok(), "the present holder may write as often as it likes");
/// assert!(fence.admit(old).is_err(), "a past holder that wakes up late may not");
/// ```
#[derive(Debug, Default)]
pub struct Fence {
    highest: AtomicU64,
}

impl Fence {
    /// A fence that has seen no token.
    pub const fn new() -> Self {
        Self { highest: AtomicU64::new(0) }
    }

    /// A fence that has seen this token.
    pub const fn starting_at(token: FencingToken) -> Self {
        Self { highest: AtomicU64::new(token.get()) }
    }

    /// The highest token seen.
    pub fn highest(&self) -> Option<FencingToken> {
        FencingToken::new(self.highest.load(Ordering::Acquire))
    }

    /// Lets a write through unless a higher token was seen before.
    ///
    /// Check and write must be one step for the resource: hold the same mutex, or use the same transaction.
    pub fn admit(&self, token: FencingToken) -> Result<(), StaleToken> {
        let highest = self.highest.fetch_max(token.get(), Ordering::AcqRel);
        match FencingToken::new(highest) {
            Some(highest) if highest > token => Err(StaleToken { token, highest }),
            _ => Ok(()),
        }
    }
}

/// A write came from a past holder.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("token {token} is stale: token {highest} has been here, so the lock was granted to another since")]
#[non_exhaustive]
pub struct StaleToken {
    /// The token of the refused write.
    pub token: FencingToken,
    /// The highest token seen.
    pub highest: FencingToken,
}
