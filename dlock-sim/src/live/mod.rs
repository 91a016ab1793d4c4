//! Real workers on a real Consul cluster while things go wrong: processes, servers and the network between them.
//!
//! Each worker is a process with one `Locker`, behind a fault proxy of its own to one of three servers. All of them contend for a few keys and
//! update two [registers](register) for each: one that looks at the fencing token, one that does not. A [`storm`] strikes servers,
//! workers, network and locks; afterwards everything must end well. What the workers tell is one [history](crate::history) for each key, on
//! one [clock](Clock), and [`proof`] says whether a promise was broken.

mod clock;
mod deck;
pub mod fleet;
pub mod operator;
pub mod proof;
pub mod register;
mod run;
pub mod storm;
mod told;
pub mod worker;

pub use clock::Clock;
pub use run::{Live, LiveError, Outcome, run};
pub use told::{Told, histories};
