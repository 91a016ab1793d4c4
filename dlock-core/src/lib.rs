//! The contract and the state machines of dlock: no I/O, no clock, no runtime.
//!
//! Start with [`LockBackend`] to write a backend for a store of your own. Users of locks want the facade `dlock` instead.

mod backend;
mod capabilities;
mod claim;
mod error;
mod holder;
mod key;
mod metadata;
mod retry;
mod session;
mod time;
mod token;

pub use backend::{Cause, Cursor, Hint, Interference, LockBackend, Release, Renewal, Standing, Woken};
pub use capabilities::{Capabilities, ChosenBy, ClaimsPerKey, Limits, Order, TtlRange};
pub use claim::{Claim, ClaimId, Granted, Mode, NotAClaimId, Place};
pub use error::{BackendError, ErrorKind};
pub use holder::{Holder, Inspection, Published};
pub use key::{InvalidKey, Key};
pub use metadata::{Metadata, ReservedName};
pub use retry::{InvalidRetryPolicy, RetryPolicy};
pub use session::{Session, SessionId, SessionRequest};
pub use time::{Chance, ClockSource, Moment};
pub use token::FencingToken;
