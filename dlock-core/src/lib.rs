//! The contract and the state machines of dlock: no I/O, no clock, no runtime.
//!
//! Start with [`LockBackend`] to write a backend for a store of your own. Users of locks want the facade `dlock` instead.

mod acquire;
mod backend;
mod capabilities;
mod claim;
mod error;
mod holder;
mod key;
mod lease;
mod metadata;
mod ownership;
#[cfg(dlock_planted)]
#[doc(hidden)]
pub mod planted;
mod probe;
mod retry;
mod room;
mod session;
mod time;
mod token;
mod undo;

pub use acquire::{Acquire, AcquireAction, AcquireEvent, AcquirePlan, AcquireStep, Verdict};
pub use backend::{Cause, Cursor, Hint, Interference, LockBackend, Release, Renewal, Standing, Together, Woken};
pub use capabilities::{Capabilities, ChosenBy, ClaimsPerKey, Limits, Order, TtlRange};
pub use claim::{Claim, ClaimId, Granted, Mode, NotAClaimId, Place, Publication};
pub use error::{BackendError, ErrorKind};
pub use holder::{Holder, Inspection, Published};
pub use key::{InvalidKey, Key};
pub use lease::{Health, Lease, LeaseAction, LeaseEnd, LeaseEvent, LeaseStep, Loss};
pub use metadata::{Metadata, ReservedName};
pub use ownership::Ownership;
pub use probe::{Check, Finding, Fitness, PROBE_NAME};
pub use retry::{InvalidRetryPolicy, RetryPolicy};
pub use room::Room;
pub use session::{Session, SessionId, SessionRequest};
pub use time::{Chance, ClockSource, Moment};
pub use token::FencingToken;
pub use undo::{Undo, UndoEvent, UndoStep, Undone};
