//! The `Locker` on both profiles of the store in memory, in virtual time.
#![allow(missing_docs)]

use dlock_testkit::conformance::InMemory;

mod queue {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] InMemory::queue() }
}

mod slot {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] InMemory::slot() }
}
