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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_read_from_what_it_published() {
        let mut metadata = Metadata::new();
        metadata.insert_reserved(Metadata::OWNER, "host/7/worker");
        metadata.insert_reserved(Metadata::ACQUIRED_AT, "2026-01-02T03:04:05Z");
        metadata.insert_reserved(Metadata::CLAIM, "00000000000000000000000000005eed");
        let holder = Holder::new(Published::Metadata(metadata));
        assert_eq!(holder.owner(), Some("host/7/worker"));
        assert_eq!(holder.acquired_at(), Some("2026-01-02T03:04:05Z"));
        assert_eq!(holder.claim(), Some(ClaimId::from_bits(0x5eed)));
    }

    #[test]
    fn a_holder_that_published_something_else_is_unknown() {
        let holder = Holder::new(Published::Raw(b"held by hand".to_vec()));
        assert_eq!((holder.owner(), holder.acquired_at(), holder.claim()), (None, None, None));
        assert_eq!(holder.published.metadata(), None);
    }

    #[test]
    fn a_holder_of_whom_nothing_is_known_published_no_entries() {
        assert_eq!(Holder::default().published.metadata(), Some(&Metadata::new()));
    }
}
