//! The floors: the fewest requests that can do the work, and those that dlock sends, bare over the kind of connection that dlock uses.
//!
//! A session is opened once and never looked after; no token is checked, no answer is doubted, no loss would be noticed.

pub mod consul;
pub mod etcd;
pub mod memory;
pub mod sqlite;

/// As many bytes as dlock publishes of a holder who gave no metadata and has a short name.
const VALUE_BYTES: usize = 114;

/// What stands in a key that is held.
pub fn value() -> String {
    "v".repeat(VALUE_BYTES)
}
