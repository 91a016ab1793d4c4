//! What is locked: a name that every store takes verbatim.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The name of one lock, such as `orders/42`; parsed once, cheap to clone.
///
/// A key is case-sensitive and reaches the store exactly as written, so that programs in other languages can take part in the
/// same lock. Keys may nest: `a` and `a/b` are two locks that do not block one another.
///
/// # Accepted
/// 1 to [`Key::MAX_BYTES`] bytes of UTF-8, in segments separated by single slashes, no segment empty, `.` or `..`, no control
/// characters. Consul redirects a path with such segments to another key, which is why they are refused here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The longest key that is accepted, in bytes. A store may allow less, see [`Limits`](crate::Limits).
    pub const MAX_BYTES: usize = 1024;

    /// Checks a name and makes it a key.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidKey> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(InvalidKey::TooLong { bytes: name.len() });
        }
        if let Some(character) = name.chars().find(|c| c.is_control()) {
            return Err(InvalidKey::ControlCharacter { character });
        }
        for segment in name.split('/') {
            match segment {
                "" => return Err(InvalidKey::EmptySegment { key: name.to_owned() }),
                "." | ".." => return Err(InvalidKey::DotSegment { key: name.to_owned() }),
                _ => {}
            }
        }
        Ok(Self(name.into()))
    }

    /// The key as it stands in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a name cannot be a [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The name has no characters.
    #[error("a key must not be empty; use a name such as \"orders/42\"")]
    Empty,
    /// The name is longer than any store is asked to take.
    #[error("a key has at most {max} bytes, this one has {bytes}", max = Key::MAX_BYTES)]
    TooLong {
        /// The length of the refused name.
        bytes: usize,
    },
    /// The name holds NUL, a line break or another control character.
    #[error("a key must not contain the control character {character:?}")]
    ControlCharacter {
        /// The first such character.
        character: char,
    },
    /// The name starts or ends with a slash, or has two in a row.
    #[error("key {key:?} has an empty segment; use single slashes, and none at the start or the end")]
    EmptySegment {
        /// The refused name.
        key: String,
    },
    /// A segment is `.` or `..`.
    #[error("key {key:?} has a \".\" or \"..\" segment, which stores resolve like a path; spell the segments out")]
    DotSegment {
        /// The refused name.
        key: String,
    },
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(name: &str) -> Result<Self, InvalidKey> {
        Self::new(name)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_verbatim() {
        for name in ["a", "orders/42", "Ünïcode/ключ", "with space", "a?b#c%d+e", "a/.lock", "...", "a/..b"] {
            assert_eq!(Key::new(name).map(|key| key.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn names_that_a_store_would_rewrite_are_refused() {
        assert_eq!(Key::new(""), Err(InvalidKey::Empty));
        for name in ["/a", "a/", "a//b", "/"] {
            assert!(matches!(Key::new(name), Err(InvalidKey::EmptySegment { .. })), "{name:?}");
        }
        for name in [".", "..", "a/../b", "./a"] {
            assert!(matches!(Key::new(name), Err(InvalidKey::DotSegment { .. })), "{name:?}");
        }
        for name in ["a\0b", "a\nb", "\u{7f}"] {
            assert!(matches!(Key::new(name), Err(InvalidKey::ControlCharacter { .. })), "{name:?}");
        }
    }

    #[test]
    fn the_longest_key_is_accepted_and_one_byte_more_is_not() {
        assert!(Key::new("k".repeat(Key::MAX_BYTES)).is_ok());
        assert_eq!(Key::new("k".repeat(Key::MAX_BYTES + 1)), Err(InvalidKey::TooLong { bytes: Key::MAX_BYTES + 1 }));
    }

    #[test]
    fn every_view_of_a_key_shows_its_name() {
        let key: Key = "orders/42".parse().unwrap();
        let (viewed, borrowed): (&str, &str) = (key.as_ref(), key.borrow());
        assert_eq!([key.as_str(), viewed, borrowed], ["orders/42"; 3]);
        assert_eq!(format!("{key} {key:?}"), "orders/42 \"orders/42\"");
    }

    #[test]
    fn a_name_that_is_no_key_does_not_parse() {
        assert_eq!("".parse::<Key>(), Err(InvalidKey::Empty));
    }
}
