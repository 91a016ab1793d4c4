//! What an author brings: a store, and the levers with which a case moves it.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, Ownership, SessionId};

/// A store under test, and what can be done to it and to the requests on their way there.
///
/// # Hooks
/// From [`end_session`](Self::end_session) on, every method is a hook: something that happens to a store in real life. A hook that
/// is not written is missing. A case that needs it then shows nothing, which is told in the report and fails it, unless the harness
/// lists the hook in [`missing_hooks_allowed`](Self::missing_hooks_allowed).
///
/// One harness may be used by one case only, or share its store with others: cases use keys and owners of their own.
#[async_trait]
pub trait Harness: Send + Sync {
    /// What the report calls the store.
    fn name(&self) -> String;

    /// A new client of the store; clients share the store and nothing else.
    async fn client(&self) -> Arc<dyn LockBackend>;

    /// A ttl that the store accepts and a case can wait for.
    fn short_ttl(&self) -> Duration;

    /// A ttl that no case outlives.
    fn long_ttl(&self) -> Duration;

    /// How soon a client hears of what happens at the store, unless the machine is busy.
    fn prompt(&self) -> Duration;

    /// The hooks that this store cannot have. Defaults to none: every hook is then demanded.
    fn missing_hooks_allowed(&self) -> &[Hook] {
        &[]
    }

    /// The same on a store that nobody else uses, and that may be frozen and restarted. Defaults to `None`: this one is used by
    /// nobody else.
    async fn alone(&self) -> Option<Box<dyn Harness>> {
        None
    }

    /// Undoes [`cut`](Self::cut), [`fail`](Self::fail) and [`freeze`](Self::freeze). Defaults to nothing to undo.
    async fn heal(&self) {}

    /// Ends a session as an operator would.
    async fn end_session(&self, _session: &SessionId) -> Hooked {
        Err(Hook::EndSession)
    }

    /// Deletes a key as an operator would.
    async fn delete(&self, _key: &Key) -> Hooked {
        Err(Hook::Delete)
    }

    /// Takes the lock of a key from its holder as an operator would; the key stays.
    async fn release_by_force(&self, _key: &Key) -> Hooked {
        Err(Hook::ReleaseByForce)
    }

    /// Puts something under a key that is no lock.
    async fn put_foreign(&self, _key: &Key, _value: &str) -> Hooked {
        Err(Hook::PutForeign)
    }

    /// How many sessions of this owner the store knows.
    async fn sessions(&self, _owner: &str) -> Hooked<usize> {
        Err(Hook::Sessions)
    }

    /// The next such request of a client that was made since the last cut is applied, and its reply lost.
    fn lose_reply(&self, _of: Sent) -> Hooked {
        Err(Hook::LoseReply)
    }

    /// The next such request of a client that was made since the last cut is under way until it is told to arrive.
    fn hold(&self, _what: Sent) -> Hooked<Box<dyn UnderWay>> {
        Err(Hook::Hold)
    }

    /// Cuts the clients that exist off from the store: nothing is answered. Clients that are made later are not cut off.
    async fn cut(&self) -> Hooked {
        Err(Hook::Cut)
    }

    /// Lets every request of the clients that exist fail at once, without being applied.
    async fn fail(&self) -> Hooked {
        Err(Hook::Fail)
    }

    /// Stops the store: nothing is answered to anybody. Only asked of a harness that is [alone](Self::alone).
    async fn freeze(&self) -> Hooked {
        Err(Hook::Freeze)
    }

    /// Kills the store and starts it again, and returns when it answers. Only asked of a harness that is [alone](Self::alone).
    async fn restart(&self) -> Hooked {
        Err(Hook::Restart)
    }

    /// Writes something in a transaction of the store's own that is conditional on a grant; whether the store took it.
    async fn write_if(&self, _ownership: &Ownership) -> Hooked<bool> {
        Err(Hook::WriteIf)
    }

    /// Lets this owner, whom no session of a case's belongs to, have all but one of so many permits of a key, past all that is wrong with the
    /// clients' lines; by [`AsPermits`](super::AsPermits) only.
    async fn take_permits(&self, _key: &Key, _owner: &str, _all: NonZeroU32) -> Hooked {
        Err(Hook::TakePermits)
    }

    /// Starts a process that takes a key through dlock with this ttl, and returns when it holds it.
    async fn second_process(&self, _key: &Key, _ttl: Duration) -> Hooked<Box<dyn SecondProcess>> {
        Err(Hook::SecondProcess)
    }
}

/// What a hook brought, or which hook is missing.
pub type Hooked<T = ()> = Result<T, Hook>;

/// A lever of a [`Harness`]; each is the method of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is the method of that name
pub enum Hook {
    EndSession,
    Delete,
    ReleaseByForce,
    PutForeign,
    Sessions,
    LoseReply,
    Hold,
    Cut,
    Fail,
    Freeze,
    Restart,
    WriteIf,
    TakePermits,
    SecondProcess,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndSession => "end_session",
            Self::Delete => "delete",
            Self::ReleaseByForce => "release_by_force",
            Self::PutForeign => "put_foreign",
            Self::Sessions => "sessions",
            Self::LoseReply => "lose_reply",
            Self::Hold => "hold",
            Self::Cut => "cut",
            Self::Fail => "fail",
            Self::Freeze => "freeze",
            Self::Restart => "restart",
            Self::WriteIf => "write_if",
            Self::TakePermits => "take_permits",
            Self::SecondProcess => "second_process",
        })
    }
}

/// A kind of request that changes something at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// One that opens a session.
    Open,
    /// One that keeps a session alive.
    Renew,
    /// One that may take a key.
    Claim,
    /// One that may free a key.
    Release,
    /// One that may change what a holder published.
    Amend,
}

/// A request that is under way for as long as a case wants.
#[async_trait]
pub trait UnderWay: Send + Sync {
    /// Returns when it was sent.
    async fn sent(&self);
    /// Lets it arrive.
    async fn deliver(&self);
}

/// Another process that holds a key; killed without a release when dropped.
#[async_trait]
pub trait SecondProcess: Send + Sync {
    /// Lets it give the key back and end.
    async fn finish(self: Box<Self>);
    /// Kills it without a release, and returns when it is dead.
    async fn kill(self: Box<Self>);
}
