//! The `Locker` on every profile of the store in memory, in virtual time.
#![allow(missing_docs)]

use dlock_testkit::conformance::{AsPermits, InMemory};
use dlock_testkit::memory::{Memory, Profile};

mod queue {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] InMemory::queue() }
}

mod line {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] InMemory::line() }
}

mod slot {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] InMemory::slot() }
}

/// A store that forgets a silent session as soon as it may.
fn strict(name: &'static str, profile: Profile) -> InMemory {
    InMemory::new(name, Memory::builder(profile).lapses_after_percent(100).build())
}

mod strict_queue {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] strict("memory, queue, strict", Profile::Queue) }
}

mod strict_slot {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] strict("memory, slot, strict", Profile::Slot) }
}

/// A permit is an exclusive lock where there is one in all, and where all others are taken.
mod only_permit {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] AsPermits::new(InMemory::queue(), 1) }
}

mod last_permit {
    use super::*;

    dlock_sim::locker_suite! { #[tokio::test(start_paused = true)] AsPermits::new(InMemory::queue(), 5) }
}
