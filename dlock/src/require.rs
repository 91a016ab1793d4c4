//! What a program relies on, said at start.

use std::fmt;

use dlock_core::{Capabilities, Order};
use thiserror::Error;

/// Something that a program may rely on and that not every store has.
///
/// What every store has needs no saying: exclusive locks, belief that ends in time, a fencing token with every exclusive grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Requirement {
    /// Whoever waits is granted in the order of asking, over all processes.
    Fifo,
    /// [`Locker::shared`](crate::Locker::shared).
    Shared,
    /// [`Locker::permits`](crate::Locker::permits).
    Permits,
    /// Fencing by the store itself: [`Held::ownership`](crate::Held::ownership).
    GuardedWrites,
    /// [`Locker::lock_all`](crate::Locker::lock_all) takes so many keys in one request, all or none.
    AllAtOnce(usize),
    /// Loss by somebody's interference is found, within a third of the ttl and some time to ask.
    Interference,
    /// [`Held::amend`](crate::Held::amend) and [`Leadership::proclaim`](crate::Leadership::proclaim).
    Amend,
    /// [`Election::observe`](crate::Election::observe).
    Observe,
}

impl Requirement {
    fn is_met(self, by: &Capabilities) -> bool {
        match self {
            Self::Fifo => by.order == Order::Fifo,
            Self::Shared => by.shared,
            Self::Permits => by.permits,
            Self::GuardedWrites => by.guards_writes,
            Self::AllAtOnce(keys) => by.claims_at_once.is_some_and(|most| keys <= most),
            Self::Interference => by.audits,
            Self::Amend => by.amends,
            Self::Observe => by.tells_changes,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fifo => f.write_str("first come, first served (Fifo)"),
            Self::Shared => f.write_str("shared locks (Shared)"),
            Self::Permits => f.write_str("permits (Permits)"),
            Self::GuardedWrites => f.write_str("writes that the store guards (GuardedWrites)"),
            Self::AllAtOnce(keys) => write!(f, "{keys} keys at once (AllAtOnce)"),
            Self::Interference => f.write_str("to find interference (Interference)"),
            Self::Amend => f.write_str("to change the metadata of a held lock (Amend)"),
            Self::Observe => f.write_str("to observe elections (Observe)"),
        }
    }
}

/// The store lacks what the program relies on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the program relies on what this store does not do: {}; choose another store or another mode of it, or rely on less", listed(.missing))]
#[non_exhaustive]
pub struct Unmet {
    /// All that it lacks.
    pub missing: Vec<Requirement>,
}

fn listed(missing: &[Requirement]) -> String {
    missing.iter().map(Requirement::to_string).collect::<Vec<_>>().join(", ")
}

/// Names all that is missing.
pub(crate) fn require(what: impl IntoIterator<Item = Requirement>, of: &Capabilities) -> Result<(), Unmet> {
    let missing: Vec<_> = what.into_iter().filter(|requirement| !requirement.is_met(of)).collect();
    if missing.is_empty() { Ok(()) } else { Err(Unmet { missing }) }
}
