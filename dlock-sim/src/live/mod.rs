//! Real workers on a real cluster of a [store](Store) while things go wrong: processes, servers and the network between them.
//!
//! Each worker is a process with one `Locker`, behind fault proxies of its own. All of them contend for a few keys and
//! update two [registers](register) for each: one that looks at the fencing token, one that does not. A [`storm`] strikes servers,
//! workers, network and locks; afterwards everything must end well. What the workers tell is one [history](crate::history) for each key, on
//! one [clock](Clock), and [`proof`] says whether a promise was broken.

mod clock;
mod consul;
mod deck;
mod etcd;
mod fleet;
pub mod proof;
pub mod register;
mod run;
mod store;
pub mod storm;
mod told;
pub mod worker;

pub use clock::Clock;
pub use run::{Live, LiveError, Outcome, run};
pub use store::Store;
pub use told::{Told, histories};
