//! Who stands where, as a store tells it.

use serde::{Deserialize, Serialize};

use crate::{ClaimId, FencingToken, Metadata, SessionId};

/// Who holds a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Holder {
    /// The session behind the lock, where the store tells it.
    pub session: Option<SessionId>,
    /// The token of the grant, where the store tells it to others.
    pub token: Option<FencingToken>,
    /// What the holder published.
    pub published: Published,
}

impl Holder {
    /// A holder of whom nothing is known but what was published.
    pub fn new(published: Published) -> Self {
        Self { session: None, token: None, published }
    }

    /// Who it is, `host/pid/name`, where the holder said so.
    pub fn owner(&self) -> Option<&str> {
        self.published.metadata()?.get(Metadata::OWNER)
    }

    /// Since when, RFC 3339 by the holder's wall clock, where the holder said so.
    pub fn acquired_at(&self) -> Option<&str> {
        self.published.metadata()?.get(Metadata::ACQUIRED_AT)
    }

    /// The claim behind the lock, if dlock took it.
    pub fn claim(&self) -> Option<ClaimId> {
        self.published.metadata()?.get(Metadata::CLAIM)?.parse().ok()
    }
}

/// What stands with a lock for others to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Published {
    /// A JSON object of strings, as dlock and Go's `sameervitian/dlock` write it.
    Metadata(Metadata),
    /// Anything else, as it was found.
    Raw(Vec<u8>),
}

impl Published {
    /// The metadata, unless something else was found.
    pub fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::Metadata(metadata) => Some(metadata),
            Self::Raw(_) => None,
        }
    }
}

impl Default for Published {
    fn default() -> Self {
        Self::Metadata(Metadata::new())
    }
}

/// One key, looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Who holds it; empty when it is free.
    pub holders: Vec<Holder>,
    /// Who waits, first come first, where the store knows.
    pub waiters: Option<Vec<Holder>>,
}
