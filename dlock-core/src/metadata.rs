//! What a holder tells those who look at the lock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{FencingToken, SessionId};

/// Strings by name, stored with the lock as a JSON object of strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// When the attempt that won began, RFC 3339; the name that Go's `sameervitian/dlock` writes and reads.
    pub const ACQUIRED_AT: &'static str = "lockAcquisitionTime";
    /// Who holds the lock: `host/pid/name`.
    pub const OWNER: &'static str = "owner";
    /// The id of the claim that took the lock.
    pub const CLAIM: &'static str = "claim";
    /// The token of the grant, where a backend has no other place to keep it from an amendment on.
    pub const TOKEN: &'static str = "fencingToken";
    /// Names that dlock writes itself and users cannot set.
    pub const RESERVED: [&'static str; 4] = [Self::ACQUIRED_AT, Self::OWNER, Self::CLAIM, Self::TOKEN];

    /// No entries.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds an entry of a user's, replacing one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<(), ReservedName> {
        let name = name.into();
        if let Some(reserved) = Self::RESERVED.into_iter().find(|reserved| *reserved == name) {
            return Err(ReservedName { name: reserved });
        }
        self.0.insert(name, value.into());
        Ok(())
    }

    /// Says with which token a grant was made, for stores that show another number once the metadata was amended. The
    /// session goes along, so that nobody who inherits the value inherits the token.
    pub fn set_token(&mut self, token: FencingToken, session: &SessionId) {
        self.insert_reserved(Self::TOKEN, &format!("{}@{}", token.get(), session.as_str()));
    }

    /// The token that [`set_token`](Self::set_token) put there for this session.
    pub fn token_of(&self, session: &str) -> Option<FencingToken> {
        let (token, of) = self.get(Self::TOKEN)?.split_once('@')?;
        if of != session {
            return None;
        }
        FencingToken::new(token.parse().ok()?)
    }

    /// Takes an entry away, whoever put it there.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Adds an entry under any name, for those who compose what the store keeps.
    pub(crate) fn insert_reserved(&mut self, name: &'static str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All entries, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A user's metadata used a name that dlock writes itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the metadata name {name:?} is reserved: dlock writes it itself; choose another, for example \"my_{name}\"")]
pub struct ReservedName {
    name: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_are_refused_and_named() {
        for name in Metadata::RESERVED {
            let refused = Metadata::new().insert(name, "x").unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
        }
    }

    #[test]
    fn entries_come_back_by_name() {
        let mut metadata = Metadata::new();
        metadata.insert("b", "2").unwrap();
        metadata.insert("a", "1").unwrap();
        metadata.insert("a", "3").unwrap();
        assert_eq!(metadata.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
    }

    #[test]
    fn a_token_is_read_back_and_nothing_else_is_one() {
        let mut metadata = Metadata::new();
        assert_eq!(metadata.token_of("s"), None);
        metadata.set_token(FencingToken::new(42).unwrap(), &SessionId::new("s"));
        assert_eq!((metadata.get("fencingToken"), metadata.token_of("s")), (Some("42@s"), FencingToken::new(42)));
        assert_eq!(metadata.token_of("t"), None, "of another session");
        for text in ["", "42", "0@s", "-1@s", "4e2@s", "99999999999999999999@s", "42@"] {
            metadata.insert_reserved(Metadata::TOKEN, text);
            assert_eq!(metadata.token_of("s"), None, "{text:?}");
        }
    }

    #[test]
    fn a_value_is_found_under_its_name_alone() {
        let mut metadata = Metadata::new();
        assert!(metadata.is_empty());
        metadata.insert("team", "payments").unwrap();
        metadata.insert("job", "settle").unwrap();
        assert_eq!(metadata.get("team"), Some("payments"));
        assert_eq!(metadata.get("rack"), None);
        assert_eq!((metadata.is_empty(), metadata.len()), (false, 2));
    }
}
