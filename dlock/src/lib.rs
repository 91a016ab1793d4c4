//! Distributed locks that tell you when you lost them.
mod acquisition;
mod clock;
mod connect;
mod election;
mod engine;
mod error;
mod fence;
mod gate;
mod grant;
mod guard;
mod held;
mod interference;
mod keeper;
mod locker;
mod options;
mod request;
mod session;
mod shutdown;
mod undo;

pub use connect::{ConnectError, backend, builder, connect};
pub use dlock_core::{
    BackendError, Capabilities, ClaimId, ErrorKind, FencingToken, Holder, Inspection, InvalidKey, Key, LockBackend, Loss, Metadata,
    Published, RetryPolicy,
};
pub use election::{Election, Leadership};
pub use error::{CheckError, LockError, Lost, ReleaseUnknown, RunError, StoreError};
pub use fence::{Fence, StaleToken};
pub use guard::{LockGuard, ReleaseOutcome};
pub use held::Held;
pub use locker::{InspectError, Locker, LockerBuilder};
pub use options::InvalidOptions;
pub use request::{LockRequest, TryRequest};
pub use shutdown::{LeftBehind, ShutdownReport};
