//! A grant as a condition in the store's own transactions.

use crate::SessionId;

/// What a transaction of the store's own can be made conditional on, so that the store itself refuses the write of a past holder.
///
/// Plain data, for the client of the store that the user already has. How it is spelled there is told by the backend that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Ownership {
    /// The full name of what the grant stands on at the store.
    pub key: String,
    /// The session that it hangs on.
    pub session: SessionId,
    /// The revision that it has for as long as the grant is the present one.
    pub revision: u64,
}

impl Ownership {
    /// What a backend knows of a grant.
    pub fn new(key: impl Into<String>, session: SessionId, revision: u64) -> Self {
        Self { key: key.into(), session, revision }
    }
}
