//! The conformance suite on a file of its own for every case.
#![allow(missing_docs)]

mod on_sqlite;

use dlock_testkit::conformance::AsPermits;
use on_sqlite::OnSqlite;

mod exclusive {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test] OnSqlite::start().await }
}

/// A permit is an exclusive lock where all others are taken.
mod last_permit {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test] AsPermits::new(OnSqlite::start().await, 5) }
}
