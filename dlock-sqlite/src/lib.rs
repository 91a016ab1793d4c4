//! The SQLite backend of [dlock](https://docs.rs/dlock-rs): locks between the processes of one host, in a file.
//!
//! [`Sqlite`] is the backend, [`SqliteOptions`] says where the file is. There is no server: every process that names the file takes part, and
//! waits in one line with the others, first come, first served.
//!
//! # What it stands on
//! - **One transaction is one change.** A process that is killed at any instruction leaves a change done, or not begun.
//! - **One host.** Sessions lapse on the host's clock since boot, which counts suspended time and which no one can set; with it goes the id of the boot, so
//!   that a reboot frees everything. Files on network file systems, where neither the clock nor SQLite's locks hold, are refused. Linux only.
//! - **The disk may forget.** Commits are not forced to the disk (write-ahead log, `synchronous=NORMAL`): a power failure may take the last grants
//!   along, and ends them all in any case. Tokens cannot come back: before they are given out they are set aside, a million at a time, and that
//!   is forced.
//! - **Nothing is waited for in a caller's time.** A free key is taken and given back by the task that asks, in some microseconds. Whatever may have to wait, for another process or for
//!   the disk, is done by a thread.
//! - **One file, one name.** Hard links and files that are mounted without their folder are refused: SQLite's log is beside one name only. A process must open the file by
//!   nothing but dlock's SQLite, since closing it otherwise ends the locks of the process.
//! - **Waiting is looking.** One thread for each backend value, however many wait with it, asks SQLite every 1 to 25 ms whether the file changed; with nobody waiting it
//!   sleeps. Changes by the same value are told at once.
//!
//! # For operators
//! The file is an ordinary database; its triggers see to it that whoever waits hears of what is done by hand:
//!
//! ```sql
//! SELECT key, session, token, published FROM dlock_claim ORDER BY key, token;  -- the lines, whoever holds first
//! DELETE FROM dlock_claim WHERE key = 'orders/42';                             -- releases by force
//! DELETE FROM dlock_session WHERE id = '…';                                    -- ends a session with all it has
//! ```
//!
//! Delete or replace the file only while nobody uses it. A process that is stopped, not killed, in the middle of a change keeps all others from
//! changing anything until it goes on; their calls are answered as overloaded meanwhile.
//!
//! # Writes of a holder's
//! [`Sqlite::ownership`](dlock_core::LockBackend::ownership) is a condition for transactions that can write the file, by a table of yours in it or with the file attached writable. A
//! transaction in which this finds a row is one of the present holder's. The `UPDATE` takes the write lock, which `BEGIN IMMEDIATE` takes of the main database alone, and fails on a file that
//! is attached read-only. Such a transaction holds up all renewals until it ends.
//!
//! ```sql
//! BEGIN IMMEDIATE;
//! UPDATE dlock_store SET one = one WHERE one = 1;
//! SELECT 1 FROM dlock_claim WHERE key = :key AND session = :session AND token = :revision;
//! ```

mod backend;
mod classify;
mod config;
mod file;
mod host;
mod line;
mod look;
mod notes;
mod place;
mod probe;
mod refusal;
mod schema;
mod session;
mod watcher;
mod wire;
mod worker;

pub use backend::Sqlite;
pub use config::{ConfigError, SqliteOptions};
pub use refusal::OpenError;
pub use wire::{Request, Sent, Wire};
