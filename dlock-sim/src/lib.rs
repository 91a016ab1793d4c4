//! How the machines of dlock are proved, and suites that need both dlock and its test kit.
//!
//! [`model`] walks the real [`Lease`](dlock_core::Lease), [`Acquire`](dlock_core::Acquire) and [`Undo`](dlock_core::Undo) on the real in-memory
//! [`Store`](dlock_testkit::memory::Store) through every order of events within declared bounds.

pub mod model;
