//! What dlock is tested with, for users' own tests and for authors of backends.

#[cfg(feature = "contract")]
pub mod contract;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "servers")]
pub mod servers;
