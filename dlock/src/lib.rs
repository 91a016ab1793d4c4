//! Distributed locks that tell you when you lost them.
//!
//! A [`Locker`] is the way to the locks of one store. A [`LockGuard`] is a lock that is held; it dereferences to [`Held`], the witness that
//! inner functions take. An [`Election`] keeps one leader among many candidates, and tells observers who it is.
//!
#![cfg_attr(feature = "memory", doc = "```")]
#![cfg_attr(not(feature = "memory"), doc = "```ignore")]
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In production: "consul://127.0.0.1:8500".
//! let locker = dlock::connect("memory://front-page").await?;
//!
//! let guard = locker.lock("orders/42").wait_at_most(Duration::from_secs(5)).metadata("purpose", "charge").await?;
//! // Dropped at the local deadline at the latest, even if the store hangs. The token goes along with every write.
//! guard.guarded(charge(guard.token())).await?;
//! guard.release().await?;
//!
//! // The same in one call.
//! let receipt = locker.lock("orders/42").run(|held| async move { charge(held.token()).await }).await?;
//!
//! // Only if it is free.
//! if let Some(guard) = locker.try_lock("cron/nightly").await? {
//!     guard.check_for(Duration::from_millis(500))?;
//! }
//!
//! let report = locker.shutdown(Duration::from_secs(3)).await;
//! assert!(report.is_clean());
//! # let _ = receipt;
//! # Ok(())
//! # }
//! # async fn charge(_: Option<dlock::FencingToken>) {}
//! ```
//!
//! # What a guard promises
//!
//! - **No false belief.** Belief ends before the store can grant the lock to another: it counts from before the last answered
//!   renewal was sent, less a margin of 1 % of the ttl and at least 50 ms, on a clock that counts suspended time where the system has one.
//!   [`Held::lost`], [`Held::guarded`] and [`Held::cancellation`] fire then even if the store hangs, and say [why](Loss).
//! - **A fencing token with every exclusive grant**, greater with each grant of the key: [`Held::token`], and [`Fence`] to check it with. It is
//!   what protects a resource from a holder that was stopped past its deadline, which no lock can prevent.
//! - **Nothing is left behind.** Every future may be dropped at any await; guards may be dropped anywhere, also outside a runtime and while
//!   panicking. What was begun is undone in the background by the locker's own task.
//! - **"Perhaps" is an answer.** A claim whose reply was lost is found out or undone, and then can never take effect;
//!   [`ReleaseUnknown`] says when a lock lapses whose release was not answered.
//!
//! Dropping stops async work at its next await. Blocking work cannot be stopped from outside: ask [`Held::check_for`] before each step.
//!
//! # The runtime
//!
//! Whatever is awaited here must be awaited inside a tokio runtime with time enabled, and I/O as well for Consul and etcd. SQLite is asked on threads of its own. Asking and dropping need none.
//!
//! # Choosing a store
//!
//! By URL with [`connect`] or [`builder`], among the backends that are compiled in; or with a [`LockBackend`] value, such as
//! `Consul::from_env()?`, and [`Locker::new`] or [`Locker::builder`].
//!
//! | feature | backend | URL |
//! |---|---|---|
//! | `consul` (default) | Consul, by the crate `dlock-consul` | `consul://host:port`, `consul+https://host:port`, `consul+unix:///path`; with `?fair=true` first come, first served |
//! | `etcd` | etcd, by the crate `dlock-etcd`; TLS by aws-lc-rs, as with `consul` | `etcd://host1:port,host2:port`, `etcds://...` |
//! | `etcd-tls-ring` | the same, TLS by ring | the same |
//! | `sqlite` | a file of this host, for its processes, by the crate `dlock-sqlite`; Linux only | `sqlite:///path/to/file.db` |
//! | `memory` | a store in this process, by the crate `dlock-testkit` | `memory://name` |
//!
//! Building with `etcd` needs `protoc`, the protocol buffers compiler: `apt-get install protobuf-compiler libprotobuf-dev` on Debian and Ubuntu.
//!
//! # What is logged
//!
//! Through `tracing`, under the targets `dlock`, `dlock_consul` and `dlock_etcd`. No secret is ever in a log line or an error.
//!
//! | level | what |
//! |---|---|
//! | `WARN` | a lock or session that was lost and why, a late renewal, a session that cannot be opened yet, held locks that cannot be audited, a release that is not answered or whose session is retired for it, a shutdown that left something |
//! | `INFO` | a lock that ended by `hold_at_most` or shutdown, a session renewed again, a candidate elected, a wait of more than ten seconds with the last holder, a lock held for more than five minutes |
//! | `DEBUG` | locks acquired, given back and not acquired, sessions opened and ended, calls that failed and are tried again |
//! | `TRACE` | every answer of Consul's or etcd's |
//!
//! # What is measured
//!
//! With the feature `metrics`, through the facade crate of that name; the program installs a recorder before the first [`Locker`]. Without the
//! feature nothing is measured, and nothing else is different.
//!
//! | name | kind | labels | what |
//! |---|---|---|---|
//! | `dlock_wait_seconds` | histogram | `mode`, `outcome` | how long acquisitions took that were acquired, busy, timed out, cancelled, shut down, failed or abandoned; an abandoned one is a dropped future |
//! | `dlock_hold_seconds` | histogram | `mode` | how long locks were held, until they were given back or lost |
//! | `dlock_locks_held` | gauge | `mode` | locks that this process believes to hold |
//! | `dlock_locks_lost_total` | counter | `reason` | locks that ended by a [`Loss`] |
//! | `dlock_sessions_suspect` | gauge | | sessions whose renewal is late |
//! | `dlock_gate_waiters` | gauge | | acquisitions that wait for another of this process |
//! | `dlock_calls_queued` | gauge | | calls that claim, confirm or release and are not sent yet, since as many are in flight as may be |
//! | `dlock_requests_total` | counter | `kind`, `outcome` | requests to the store, those included that were given up unanswered |
//!
//! `mode` is exclusive, shared or permits. No label is a key or an owner: there may be a million of them. The file `docs/metrics.md` of the repository says
//! what each tells at three in the morning, with alerts.

mod acquisition;
mod admission;
mod amend;
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
#[cfg_attr(not(feature = "metrics"), path = "measure/off.rs")]
mod measure;
mod observe;
mod options;
mod request;
mod require;
mod session;
mod several;
mod shutdown;
mod stage;
mod undo;

pub use amend::AmendError;
pub use connect::{ConnectError, backend, builder, connect};
#[cfg(feature = "consul")]
pub use dlock_consul::{Behavior as ConsulBehavior, ConfigError as ConsulConfigError, Consul, ConsulOptions, consul_operations};
pub use dlock_core::{
    BackendError, Capabilities, Check, ClaimId, Cursor, ErrorKind, FencingToken, Finding, Fitness, Holder, Inspection, InvalidKey,
    InvalidRetryPolicy, Key, Limits, LockBackend, Loss, Metadata, Mode, Ownership, Published, ReservedName, RetryPolicy, SessionId,
    TtlRange,
};
#[cfg(feature = "_etcd")]
pub use dlock_etcd::{ConfigError as EtcdConfigError, Etcd, EtcdOptions};
#[cfg(feature = "sqlite")]
pub use dlock_sqlite::{ConfigError as SqliteConfigError, OpenError as SqliteOpenError, Sqlite, SqliteOptions};
#[cfg(feature = "memory")]
pub use dlock_testkit::memory::Memory;
pub use election::{Election, Leadership};
pub use error::{CheckError, InspectError, LockError, Lost, OwnershipError, ReleaseUnknown, RunError, StoreError};
pub use fence::{Fence, StaleToken};
pub use guard::{LockGuard, ReleaseOutcome};
pub use held::Held;
pub use locker::{Locker, LockerBuilder};
pub use observe::{Leader, Observation};
pub use options::InvalidOptions;
pub use request::{LockRequest, TryRequest};
pub use require::{Requirement, Unmet};
pub use several::{AllGuard, AllHeld, LockAllRequest};
pub use shutdown::{LeftBehind, ShutdownReport};
/// What [`LockRequest::cancel_on`] takes and [`Held::cancellation`] gives.
#[doc(no_inline)]
pub use tokio_util::sync::CancellationToken;
