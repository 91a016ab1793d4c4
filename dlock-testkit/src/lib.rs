//! What dlock is tested with, for users' own tests and for authors of backends.

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "servers")]
pub mod servers;
