//! Bugs that lock libraries have had, each to be switched on by its name: proof that the tests would find it.
//!
//! There is nothing of this in a build without `--cfg dlock_planted`; `scripts/planted.sh` makes one.

use std::env;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Switches a bug on from outside, by its [name](Bug::name).
pub const PLANTED: &str = "DLOCK_PLANTED";

/// The number of the bug that is on, counted from one.
static ON: LazyLock<AtomicU8> = LazyLock::new(|| {
    let named = env::var(PLANTED).ok().map(|name| {
        Bug::named(&name).unwrap_or_else(|| {
            let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
            panic!("{PLANTED} must be one of {}, not {name:?}", names.join(", "))
        })
    });
    AtomicU8::new(named.map_or(0, Bug::code))
});

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident: $name:literal, $does:literal;)+) => {
        /// A bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $doc])+ $bug,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug),+];

            /// What it is called on a command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)+
                }
            }

            /// What it does, in a sentence.
            pub fn does(self) -> &'static str {
                match self {
                    $(Self::$bug => $does,)+
                }
            }
        }
    };
}

bugs! {
    /// In the lease machine.
    DeadlineFromReply: "deadline-from-reply", "belief counts from when the renewal was answered, not from when it was sent";
    /// In the lease machine.
    NoMargin: "no-margin", "belief lasts for the whole ttl, as if no clock were ever slow";
    /// In the lease machine.
    LateSuccessRevives: "late-success-revives", "a renewal that is answered after the deadline brings belief back";
    /// In the lease machine.
    SilenceIsStillHeld: "silence-is-still-held", "the lock counts as held until the store says otherwise, however long it says nothing";
    /// In the acquisition machine.
    AmbiguousIsFailure: "ambiguous-is-failure", "a claim without an answer counts as refused, and what it may have got is never given back";
    /// In the acquisition machine.
    CancelWithoutUndo: "cancel-without-undo", "an acquisition that is given up forgets the claim it had under way";
    /// In the acquisition machine.
    WaitingLeavesNothing: "waiting-leaves-nothing", "who stops waiting forgets the place in the queue that it keeps";
    /// In the acquisition machine.
    LostWakeUp: "lost-wake-up", "who waits takes the news that the key is free for one more sign that it is held";
    /// In the undo machine.
    OneReleaseIsEnough: "one-release-is-enough", "a release that failed counts as done";
    /// In the shell.
    OrphanRenewed: "orphan-renewed", "a release that was not answered is given up, and its session renewed on with the claim on it";
    /// In the shell.
    GateOpenedBeforeRelease: "gate-opened-before-release", "the next task of the process claims while the last one's release is under way";
    /// In the shell.
    DropForgets: "drop-forgets", "an acquisition that is dropped while it waits leaves its claim behind";
    /// In the shell.
    PartialMultiLock: "partial-multi-lock", "of several keys of which one is not got, those that were are never given back";
    /// In the shell.
    InterferenceUntold: "interference-untold", "what an audit finds is told to nobody";
    /// In the shell.
    TurnKept: "turn-kept", "a call that is given up counts as in flight for ever, and no other has its turn";
    /// In the rule of who may hold a key together.
    PermitOverGrant: "permit-over-grant", "there is room for one more than there are permits";
    /// In the rule of who may hold a key together.
    ReaderBesideWriter: "reader-beside-writer", "a shared claim looks at those who share only, and joins an exclusive holder";
    /// In the etcd backend.
    NoTombstone: "no-tombstone", "a claim that may still be under way is released as if it were not, and takes effect afterwards";
    /// In the Consul backend in fair mode.
    TicketJumped: "ticket-jumped", "whoever finds the key free takes it, whoever is ahead in line";
    /// In the Consul backend in fair mode.
    PredecessorUnheard: "predecessor-unheard", "who stands in line is not told that the one right ahead has left";
    /// In the in-memory store.
    ReleaseByName: "release-by-name", "a release frees the key, whoever holds it by now";
    /// In the in-memory store.
    LateClaimLands: "late-claim-lands", "a claim that was delayed past its own release is granted all the same";
    /// In the in-memory store.
    LastComeFirstServed: "last-come-first-served", "whoever joins the queue joins it at the front";
    /// In the in-memory store.
    SessionLapsesEarly: "session-lapses-early", "the store counts the ttl from the opening of the session where a renewal should count";
    /// In the in-memory store.
    TokenFromLockIndex: "token-from-lock-index", "the token is the key's LockIndex, which begins again once the key was deleted";
}

impl Bug {
    /// The bug of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }

    /// The one that is on.
    pub fn on() -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.is_on())
    }

    /// Whether it is on.
    pub fn is_on(self) -> bool {
        ON.load(Ordering::Relaxed) == self.code()
    }

    fn code(self) -> u8 {
        self as u8 + 1
    }
}

/// Switches this bug on and every other off, for all threads.
pub fn plant(bug: Option<Bug>) {
    ON.store(bug.map_or(0, Bug::code), Ordering::Relaxed);
}
