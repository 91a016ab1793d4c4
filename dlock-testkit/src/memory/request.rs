//! What the store is told and what it says, and the rules by which it does.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Claim, ClaimId, FencingToken, Metadata, Mode, Place, Release, SessionId, Standing, Together};

/// Which real store the rules are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Like etcd: a queue of claims, ids chosen by clients, a released claim leaves a tombstone.
    Queue,
    /// Like Consul in fair mode: a queue of tickets, ids chosen by the store; whoever is first comes to the key by asking, and only then has a
    /// token.
    Line,
    /// Like Consul: one holder per key, known by its session; claims are guarded by the key's index.
    Slot,
}

impl Profile {
    /// What a claim is guarded with that is sent while the key has this index, zero if it does not exist.
    pub(crate) fn guard(self, index: impl FnOnce() -> u64) -> Guard {
        match self {
            Self::Queue | Self::Line => Guard::Tombstone,
            Self::Slot => Guard::Index(index()),
        }
    }
}

/// The rules of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Queue, line or slot.
    pub profile: Profile,
    /// After how much of its ttl a silent session lapses, in percent: 100 to 200.
    pub lapses_after_percent: u32,
    /// How long a key is granted to nobody after its holder's session ended.
    pub lock_delay: Duration,
}

/// One grant, for checkers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrantRecord {
    /// Its token.
    pub token: FencingToken,
    /// The claim that was granted.
    pub claim: ClaimId,
    /// Its session.
    pub session: SessionId,
}

/// What a claim was guarded with when it was sent; a copy that arrives under another state has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// By nothing but its tombstone (queue and line profiles).
    Tombstone,
    /// By the index of the key, zero while the key does not exist (slot profile).
    Index(u64),
}

/// A request as it travels: with everything in it that the client knew when it sent it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Open a session.
    Open {
        /// The id, where clients choose.
        id: SessionId,
        /// How long it lives without renewal.
        ttl: Duration,
    },
    /// Renew a session.
    Renew(SessionId),
    /// End a session.
    Close(SessionId),
    /// Enter the contention.
    Claim {
        /// With this session.
        session: SessionId,
        /// The claim.
        claim: Arc<Claim>,
        /// Whether to keep a place.
        place: Place,
        /// What must still be so.
        guard: Guard,
    },
    /// Take several keys, or none.
    ClaimAll {
        /// With this session.
        session: SessionId,
        /// The claims, with what must still be so for each.
        claims: Vec<(Arc<Claim>, Guard)>,
    },
    /// Ask for the standing of a kept place.
    Confirm {
        /// With this session.
        session: SessionId,
        /// The claim.
        claim: Arc<Claim>,
    },
    /// Change what a holder published.
    Amend {
        /// With this session.
        session: SessionId,
        /// The claim.
        claim: Arc<Claim>,
        /// What others read from then on.
        published: Metadata,
        /// How often it was amended when this was sent; a copy that arrives after another amendment has no effect.
        amendments: u32,
    },
    /// Undo a claim.
    Release {
        /// With this session.
        session: SessionId,
        /// The claim.
        claim: Arc<Claim>,
    },
}

impl Request {
    /// The claims that it is about.
    pub fn claims(&self) -> Vec<&Claim> {
        match self {
            Self::Claim { claim, .. } | Self::Confirm { claim, .. } | Self::Amend { claim, .. } | Self::Release { claim, .. } => {
                vec![claim]
            }
            Self::ClaimAll { claims, .. } => claims.iter().map(|(claim, _)| &**claim).collect(),
            Self::Open { .. } | Self::Renew(_) | Self::Close(_) => Vec::new(),
        }
    }
}

/// What the store answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The session is open under this id.
    Opened(SessionId),
    /// The session lives for its ttl from now.
    Renewed(Duration),
    /// There is no such session.
    Gone,
    /// The session is ended.
    Closed,
    /// How the claim stands.
    Standing(Standing),
    /// How several claims stand.
    Together(Together),
    /// The guard did not hold; nothing was changed, and the client should look again.
    GuardFailed,
    /// The key is used for something else, or its holders hold permits of another number; nothing was changed.
    Conflict(Option<Mode>),
    /// Whether the claim held its key, so that what it published was changed.
    Amended(bool),
    /// What the release found.
    Released(Release),
}
