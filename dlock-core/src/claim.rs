//! One acquisition's place in the contention for one key.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::{FencingToken, Key, Metadata};

/// One acquisition: what it wants, and the id by which it is undone.
///
/// The id is chosen before the first request is sent, so that whatever becomes of a request, its effect can be found out and
/// undone, and never be mistaken for that of another acquisition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The id, never used by another acquisition.
    pub id: ClaimId,
    /// What is to be locked.
    pub key: Key,
    /// With whom the lock may be shared.
    pub mode: Mode,
    /// Who asks: `host/pid/name`.
    pub owner: Arc<str>,
    /// When the acquisition began, RFC 3339; fixed, so that a request sent again is the same to the byte.
    pub acquired_at: Arc<str>,
    /// What the user wants others to read.
    pub metadata: Option<Arc<Metadata>>,
}

impl Claim {
    /// All that others read: the user's metadata and the reserved entries.
    pub fn published(&self) -> Metadata {
        let mut all = self.metadata.as_deref().cloned().unwrap_or_default();
        // It may come from what another published.
        all.remove(Metadata::TOKEN);
        all.insert_reserved(Metadata::ACQUIRED_AT, &self.acquired_at);
        all.insert_reserved(Metadata::OWNER, &self.owner);
        all.insert_reserved(Metadata::CLAIM, &self.id.to_string());
        all
    }

    /// The same, to be written as it is: without a map that is put together first.
    pub fn publication(&self) -> Publication<'_> {
        Publication(self)
    }
}

/// All that others read of a claim, [`Claim::published`], for those who only write it.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a>(&'a Claim);

impl Serialize for Publication<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let claim = self.0;
        let metadata = || claim.metadata.as_deref().into_iter().flat_map(Metadata::iter);
        let of_user = || metadata().filter(|(name, _)| !Metadata::RESERVED.contains(name));
        // In the order of their names, as a map has them.
        let reserved = [
            (Metadata::CLAIM, Entry::Id(claim.id)),
            (Metadata::ACQUIRED_AT, Entry::Text(&claim.acquired_at)),
            (Metadata::OWNER, Entry::Text(&claim.owner)),
        ];
        let mut map = serializer.serialize_map(Some(of_user().count() + reserved.len()))?;
        let mut reserved = reserved.into_iter().peekable();
        for (name, value) in of_user() {
            while let Some((before, entry)) = reserved.next_if(|(reserved, _)| *reserved < name) {
                map.serialize_entry(before, &entry)?;
            }
            map.serialize_entry(name, value)?;
        }
        for (name, entry) in reserved {
            map.serialize_entry(name, &entry)?;
        }
        map.end()
    }
}

/// What dlock itself writes of a claim.
enum Entry<'a> {
    Id(ClaimId),
    Text(&'a str),
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.collect_str(id),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// A claim that was granted, as it is shown to [`audit`](crate::LockBackend::audit) and
/// [`disturbed`](crate::LockBackend::disturbed).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Granted {
    /// The claim.
    pub claim: Arc<Claim>,
    /// The token it was granted with.
    pub token: FencingToken,
}

/// The name of one acquisition: 128 bits, drawn at random by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(u128);

impl ClaimId {
    /// The id with these bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits of the id.
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ClaimId {
    type Err = NotAClaimId;

    fn from_str(text: &str) -> Result<Self, NotAClaimId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAClaimId);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NotAClaimId)
    }
}

/// The text is no [`ClaimId`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a claim id is 32 hexadecimal digits")]
pub struct NotAClaimId;

/// With whom a claim may hold its key at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Mode {
    /// With nobody.
    #[default]
    Exclusive,
    /// With other shared claims.
    Shared,
    /// With so many permits in all.
    Permits(NonZeroU32),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.write_str("an exclusive claim"),
            Self::Shared => f.write_str("a shared claim"),
            Self::Permits(all) => write!(f, "a claim of one of {all} permits"),
        }
    }
}

/// What a claim does when the key is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// It leaves nothing behind.
    Try,
    /// It keeps a place in the queue, where the store has one.
    Queue,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ClaimId = ClaimId::from_bits(0x5eed);
    const SPELLED: &str = "00000000000000000000000000005eed";

    #[test]
    fn a_claim_id_is_spelled_in_32_digits_and_read_back() {
        assert_eq!(ID.bits(), 0x5eed);
        assert_eq!((ID.to_string(), format!("{ID:?}")), (SPELLED.to_owned(), SPELLED.to_owned()));
        assert_eq!(SPELLED.parse(), Ok(ID));
    }

    #[test]
    fn text_of_another_form_is_no_claim_id() {
        for text in ["", "5eed", &SPELLED.replace('d', "+"), &format!("+{}", &SPELLED[1..]), &format!("0{SPELLED}")] {
            assert_eq!(text.parse::<ClaimId>(), Err(NotAClaimId), "{text:?}");
        }
    }

    #[test]
    fn a_claim_publishes_the_users_metadata_and_who_asked_and_when() {
        let mut metadata = Metadata::new();
        metadata.insert("job", "settle").unwrap();
        let claim = Claim {
            id: ID,
            key: Key::new("orders/42").unwrap(),
            mode: Mode::Exclusive,
            owner: "host/7/worker".into(),
            acquired_at: "2026-01-02T03:04:05Z".into(),
            metadata: Some(Arc::new(metadata)),
        };
        let published = claim.published();
        let entries: Vec<_> = published.iter().collect();
        assert_eq!(
            entries,
            [("claim", SPELLED), ("job", "settle"), ("lockAcquisitionTime", "2026-01-02T03:04:05Z"), ("owner", "host/7/worker")]
        );
    }
}
