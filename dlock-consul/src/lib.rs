//! The Consul backend of dlock.
