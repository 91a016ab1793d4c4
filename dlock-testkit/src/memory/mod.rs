//! A store of locks in memory, on which tests are deterministic.
//!
//! [`Memory`] is the backend, in three profiles: [`Memory::queue`] behaves like etcd, [`Memory::slot`] like Consul, [`Memory::line`] like Consul
//! in fair mode. [`Memory::control`] gives the levers with which a test ends sessions, deletes keys, holds locks elsewhere, and fails, hangs or
//! loses single calls. A client may use the store [over](Memory::over) a [`Network`], which decides for each of its calls when it arrives, how
//! often, and whether it is answered; an [`Observer`] looks on. All of it stands on [`Store`], a pure value that a model checker can walk.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! use dlock_core::Key;
//! use dlock_testkit::memory::Memory;
//!
//! let memory = Memory::queue();
//! let key = Key::new("reports/nightly").unwrap();
//! let elsewhere = memory.control().hold_elsewhere(&key, "another-host").unwrap();
//! // .. code under test finds the key taken ..
//! elsewhere.release();
//! assert!(memory.control().claims().is_empty());
//! # }
//! ```

mod backend;
mod clock;
mod control;
mod network;
mod request;
mod shared;
mod store;
mod waiters;

pub use backend::{Memory, MemoryBuilder};
#[cfg(feature = "conformance")]
pub(crate) use control::OTHER_PERMITS;
pub use control::{Call, Control, Elsewhere, HeldRequest, Outage};
pub use network::{ChangedBy, Homeward, Network, Observer, Outward, Route};
pub use request::{GrantRecord, Guard, Profile, Reply, Request, Rules};
pub use store::Store;
