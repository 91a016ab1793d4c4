//! The conformance suite on every profile of the store in memory, in virtual time.
#![allow(missing_docs)]

use dlock_testkit::conformance::{AsPermits, InMemory};

mod queue {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test(start_paused = true)] InMemory::queue() }
}

mod line {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test(start_paused = true)] InMemory::line() }
}

mod slot {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test(start_paused = true)] InMemory::slot() }
}

/// A permit is an exclusive lock where there is one in all, and where all others are taken.
mod only_permit {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test(start_paused = true)] AsPermits::new(InMemory::queue(), 1) }
}

mod last_permit {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test(start_paused = true)] AsPermits::new(InMemory::queue(), 5) }
}
