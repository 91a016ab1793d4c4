//! The way between a client and the store, where a test decides what becomes of every call.

use std::fmt;
use std::time::Duration;

use dlock_core::{Claim, ErrorKind};

use super::control::Call;
use super::store::Store;

/// What lies between one client and the store: decides, call by call, what arrives, when, and how often.
///
/// A client is a [`Memory`](super::Memory) [over](super::Memory::over) its network. A request travels as it was sent, with everything in it
/// that its client knew then, and arrives at its time even if its caller has given up or is not polled. Calls that only read are under way in
/// the same manner, but end with their caller.
///
/// [`arrived`](Self::arrived) and [`replies`](Self::replies) may be called while the store is locked: they must not call back into it.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// A call leaves the client; `claim` is the one it is about, if it is about one.
    fn leaves(&self, call: Call, claims: &[&Claim]) -> Route;

    /// The request has reached the store and is applied, or read from, next. A repeated request arrives twice.
    fn arrived(&self, number: u32);

    /// The reply leaves the store. A call that waits for a change replies long after it arrived.
    fn replies(&self, number: u32) -> Homeward;

    /// The reply has reached a caller that still waited for it.
    fn answered(&self, number: u32);
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The number by which the network knows the call; told back as it goes on its way.
    pub number: u32,
    /// What becomes of its request.
    pub request: Outward,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outward {
    /// It arrives after so long.
    After(Duration),
    /// It arrives after so long, and once more so much later; nobody hears the second reply.
    Twice(Duration, Duration),
    /// It never arrives, and its caller hears nothing.
    Never,
    /// It never arrives, and after so long its caller is told this kind of error.
    Refused(Duration, ErrorKind),
}

/// What becomes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Homeward {
    /// It arrives after so long.
    After(Duration),
    /// It never arrives, and the caller hears nothing.
    Never,
    /// It never arrives, and after so long the caller is told that it cannot know.
    Broken(Duration),
}

/// Looks on while a store changes.
///
/// Called while the store is locked: it must not call back into it.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// The store has just changed.
    fn changed(&self, store: &Store, by: ChangedBy);
}

/// What changed a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedBy {
    /// A request of a client.
    Request,
    /// A session's or a delay's time was over.
    Time,
    /// An operator, by a lever of [`Control`](super::Control).
    Operator,
}
