//! The number that tells an old holder from a new one.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// A fencing token: greater with every exclusive grant of the same key.
///
/// Send it along with every write to the resource that the lock protects, and let the resource refuse a token lower than the
/// highest it has seen. That is the one defence which holds even if a holder is frozen past its deadline and wakes up later.
/// Tokens of one key are ordered; tokens of different keys are not comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(NonZeroU64);

impl FencingToken {
    /// A token from the number a store gave; `None` for zero, which no store grants.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number to send to the resource.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_number_that_the_store_gave_and_never_zero() {
        let token = FencingToken::new(42).unwrap();
        assert_eq!((token.get(), token.to_string()), (42, "42".to_owned()));
        assert_eq!(FencingToken::new(0), None);
    }
}
