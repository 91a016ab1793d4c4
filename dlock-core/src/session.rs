//! The liveness of one client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The name a store knows one client's liveness by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// An id as the store spells it.
    pub fn new(id: impl AsRef<str>) -> Self {
        Self(id.as_ref().into())
    }

    /// An id of 128 random bits that the caller drew, in the form 32 hexadecimal digits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }

    /// The id as the store spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client asks for when it opens a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionRequest {
    /// The id to use, where clients choose ids; a fresh one for every attempt.
    pub id: SessionId,
    /// How long the store keeps the session without a renewal.
    pub ttl: Duration,
    /// Whose session it is, for people who look at the store: `host/pid/name`.
    pub owner: Arc<str>,
}

/// A session that the store opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// The id to use from here on; the store's own where stores choose ids.
    pub id: SessionId,
    /// The ttl that the store granted: at least this long after the request was sent, the session lives.
    pub ttl: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_shown_as_the_store_spells_it() {
        let id = SessionId::new("7f-3A");
        assert_eq!((id.as_str(), id.to_string(), format!("{id:?}")), ("7f-3A", "7f-3A".to_owned(), "7f-3A".to_owned()));
    }

    #[test]
    fn a_drawn_id_has_32_digits() {
        assert_eq!(SessionId::from_bits(0x5eed).as_str(), "00000000000000000000000000005eed");
    }
}
