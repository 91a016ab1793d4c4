//! What a client meets: its clock, chance, the way to the store, and whoever asked it for the lock.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    Cause, Chance, Claim, ClaimId, Cursor, ErrorKind, FencingToken, Key, Loss, Moment, Place, RetryPolicy, SessionId, Undone,
    Verdict, Woken,
};
use dlock_testkit::memory::{Guard, Reply, Request};

use crate::history::Op;
use crate::model::Bug;

/// The number of a call, by which its answer is known.
pub type CallId = u32;

/// What a client is set to.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What it locks.
    pub key: Key,
    /// The ttl of its sessions.
    pub ttl: Duration,
    /// Within how many ttls a silent session lapses at the store.
    pub lapses_within_ttls: u32,
    /// How long one claim or release may take.
    pub attempt: Duration,
    /// How long a release is tried.
    pub patience: Duration,
    /// How long one wait may take.
    pub longest_wait: Duration,
    /// Whether it finds out about interference, by audits and by waiting requests.
    pub watches: bool,
}

/// One acquisition that a client is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its number.
    pub op: Op,
    /// Whether it waits.
    pub place: Place,
    /// Pauses after failed attempts.
    pub retry: RetryPolicy,
    /// When it gives up, on the client's clock.
    pub deadline: Option<Moment>,
}

/// What a client asks the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// What may change the store, or asks for a standing.
    Request(Request),
    /// When the standing of a claim may have changed.
    Wait {
        /// The session of the claim.
        session: SessionId,
        /// The claim.
        claim: Arc<Claim>,
        /// Since when.
        cursor: Cursor,
    },
    /// Whether a granted claim still holds its key.
    Audit {
        /// The session of the claim.
        session: SessionId,
        /// The claim.
        claim: Arc<Claim>,
    },
    /// When a renewal or an audit may bring news.
    Disturbed {
        /// The session to look after.
        session: SessionId,
        /// The granted claim to look after instead.
        granted: Option<(Arc<Claim>, FencingToken)>,
        /// Since when.
        cursor: Option<Cursor>,
    },
}

/// What a client hears of a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// To a request.
    Reply(Reply),
    /// To a wait.
    Woken(Woken),
    /// To an audit: how the claim was ended from outside, if it was.
    Audited(Option<Cause>),
    /// To a watch: where the next one goes on.
    Disturbed(Cursor),
    /// No usable answer.
    Failed(ErrorKind),
}

/// What the caller of a client is told, and what an observer wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// There is a guard.
    Held {
        /// Of this acquisition.
        op: Op,
        /// The number of the grant.
        token: FencingToken,
    },
    /// The grant came when its session was not believed any more: it is given back, and another attempt is due once the gate opens.
    HeldTooLate {
        /// The acquisition.
        op: Op,
    },
    /// There is no lock.
    Refused {
        /// The acquisition.
        op: Op,
        /// Why.
        why: Verdict,
    },
    /// The lock is lost.
    Lost {
        /// The acquisition.
        op: Op,
        /// Why.
        loss: Loss,
    },
    /// The release of a claim is done.
    Undone {
        /// The claim.
        claim: ClaimId,
        /// How it ended.
        undone: Undone,
        /// No copy of the claim can take effect any more.
        fenced: bool,
    },
}

/// What surrounds a client. The model puts one message after the other, the simulator a network with a clock.
pub trait Surroundings {
    /// What the client is set to; constant.
    fn terms(&self) -> &Terms;

    /// The time on the client's clock.
    fn now(&self) -> Moment;

    /// A draw for the machines.
    fn chance(&mut self) -> Chance;

    /// The guard that a claim sent now carries.
    fn guard(&self) -> Guard;

    /// For how long a call is queued before it is sent, since many others are in flight; `None` when it is sent at once.
    fn queued_for(&mut self) -> Option<Duration>;

    /// Whether the store answers those others, of which a call that is queued for long is told.
    fn answers_others(&mut self) -> bool;

    /// Sends a call whose number is none of those `taken`. `None` for a wait whose end is told by [`Client::wake`](super::Client::wake)
    /// instead of an answer.
    fn send(&mut self, taken: impl Iterator<Item = CallId>, question: Question) -> Option<CallId>;

    /// Tells something.
    fn tell(&mut self, news: News);

    /// A mistake that is planted in the client.
    fn bug(&self) -> Option<Bug> {
        None
    }
}
