//! The contract between dlock and a store.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    BackendError, Capabilities, Claim, ClaimId, FencingToken, Finding, Granted, Holder, Inspection, Key, Metadata, Ownership,
    Place, Session, SessionId, SessionRequest,
};

/// A store of locks, as the machines see it.
///
/// # Contract
/// A backend translates: one call is one attempt at an answer. It may look at the store again within a call, a bounded number of times, but
/// holds no retry loop, and no timer of its own but a pace between reads that waiting calls share; core decides when to ask again, and
/// drops a call's future when its limit has passed. How many of them are sent at a time is [declared](Capabilities::calls_in_flight). Two
/// nouns: a **session** is the liveness of one client, a **claim** is one acquisition's place in the contention for one key.
///
/// - **Every future may be dropped at any point.** What its request does at the store afterwards is found out or undone by id.
/// - **[`claim`](Self::claim) is idempotent** by the claim's id: asked again, it answers the same token, or a higher one if the key
///   was altered from outside in between.
/// - **[`release`](Self::release) is a fence.** Once it answered, no copy of that claim still under way can ever take effect, and no
///   copy of that release can ever touch another claim. A backend that cannot fence declares so, or answers
///   [`Unfenced`](Release::Unfenced) where it cannot; the session is then retired instead: closed once its last lock is given back.
/// - **Only `claim` and `confirm` say [`Held`](Standing::Held)**, and only from a linearizable read or write.
/// - **One rule for who holds**, where the store keeps a queue: a claim is held when the claims ahead of it leave room for it, see
///   [`Mode::room`](crate::Mode::room). On a store without one, exclusive claims alone are granted. A claim for one of so many permits that
///   [contradicts](crate::Mode::contradicts) the holders is refused as a [`Conflict`](crate::ErrorKind::Conflict) that names both numbers, and leaves nothing.
/// - Every grant has a number by which an audit knows it. That of an exclusive claim is a fencing token; those who share are not ordered by theirs.
/// - Tokens of one key grow with every grant, also over restarts and after the key was deleted.
/// - Contention, delays and forgotten sessions are answers. An `Err` is "no usable answer", see [`ErrorKind`](crate::ErrorKind);
///   what cannot be classified is ambiguous.
/// - What [`capabilities`](Self::capabilities) does not declare is refused with `Unsupported`; no method has a default body, so that a
///   wrapper cannot lose one.
#[async_trait]
pub trait LockBackend: Debug + Send + Sync + 'static {
    /// What this store can do. Constant for the life of the value.
    fn capabilities(&self) -> &Capabilities;

    /// Makes a client alive.
    ///
    /// `request.id` is fresh for every attempt; a store that chooses ids ignores it. A session whose `open` was never answered is
    /// left to lapse.
    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError>;

    /// Keeps a session alive.
    ///
    /// The answer speaks of the session alone; claims are looked after by [`audit`](Self::audit), so that a slow audit can never cost a
    /// renewal.
    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError>;

    /// Finds those of `claims` that no longer hold their keys, from a linearizable read. Needs `audits`.
    ///
    /// The caller ignores verdicts on claims that were released while the question was under way.
    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError>;

    /// Ends a session and all it has. Ending an unknown session succeeds.
    ///
    /// Core releases the session's claims first: some stores delay the next holder of a key that a dying session held.
    async fn close(&self, session: &SessionId) -> Result<(), BackendError>;

    /// Enters the contention for a key.
    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError>;

    /// Waits until the claim's standing may have changed since `cursor`.
    ///
    /// May return early; never grants. Answers [`Hint::StillHeld`] when it can say that nothing changed for this claim.
    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError>;

    /// Asks whether a claim that keeps a place is first now. Never creates a place: answers [`Standing::ClaimGone`] when there is none.
    ///
    /// On a store without a queue, which keeps no places, this is never called and answers `Unsupported`.
    async fn confirm(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Standing, BackendError>;

    /// Undoes whatever the claim has: its lock, its place, or a request still under way.
    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError>;

    /// Who holds a key and who waits for it, from a linearizable read.
    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError>;

    /// Returns when an [`audit`](Self::audit) or a renewal may bring news since `cursor`; perhaps early. Needs `watched_claims`.
    ///
    /// With `granted` it looks after that claim, without it after the session itself, for as long as it holds something. A call without a cursor starts from the grant,
    /// or from now on for the session. The answer is the cursor for the next call.
    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError>;

    /// Changes what others read of a held claim; its token stays, also as others read it. Needs `amends`.
    ///
    /// Answers `false`, and changes nothing, when the claim does not hold its key. The caller amends a claim once at a time; a copy of an
    /// amendment still under way when a later one is answered can never take effect.
    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError>;

    /// All held keys that start with `prefix`, in the order of the keys. Needs `lists`.
    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError>;

    /// Returns when what [`inspect`](Self::inspect) says of the key may have changed since `cursor`; perhaps early, and at once without a
    /// cursor. Needs `tells_changes`.
    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError>;

    /// Ends by force the grant with this token, and no other; `false` when it is not the present one. Needs `evicts`.
    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError>;

    /// Takes the keys of all these claims if all of them are free, and none otherwise. Needs `claims_at_once`.
    ///
    /// The claims are exclusive, of different keys, and no more than declared. Asking again is as with [`claim`](Self::claim), but never
    /// leaves a place. What a claim got is given back by a [`release`](Self::release) of its own, whose fence holds for copies of this call too.
    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError>;

    /// What a transaction of the store's own can be made conditional on, so that it is refused once this grant is not the present one. Needs
    /// `guards_writes`.
    ///
    /// Sends nothing: what is known of the grant is enough. An [`amend`](Self::amend) may make another condition of it, which is refused then.
    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError>;

    /// Looks at the store for people and tools: is it reachable and how fast, who leads, which version it is, which ttl it accepts, may we do what
    /// a lock needs, are the clocks sound, is there room. Each finding is fine, or says what to do.
    ///
    /// Never fails, and tells first whether the store is reachable: of one that is not, nothing else is told. May ask the store a few things one after the
    /// other; the caller bounds it in time. Leaves nothing behind, dropped or not: a session that it opens is owned by [`PROBE_NAME`](crate::PROBE_NAME),
    /// has the shortest ttl, and is closed or left to lapse.
    async fn probe(&self) -> Vec<Finding>;
}

/// A position in what happened to a key or a session; only its own backend can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor(pub u64);

/// How a claim stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It holds its key.
    Held {
        /// The number of this grant.
        token: FencingToken,
    },
    /// It keeps a place in the queue.
    Waiting {
        /// Where [`LockBackend::wait`] goes on.
        cursor: Cursor,
        /// How many claims are ahead, where the store knows.
        ahead: Option<u32>,
        /// Who holds the key now, where the store knows.
        holder: Option<Holder>,
    },
    /// Another holds the key, and no place was kept: nothing is left to undo.
    Busy {
        /// Who, where the store knows.
        holder: Option<Holder>,
        /// Where [`LockBackend::wait`] goes on.
        cursor: Cursor,
    },
    /// The store grants this key to nobody for a while after a holder died. The claim has nothing now; a late copy of it may have once
    /// that is over, so it is released when it is given up.
    Delayed {
        /// The longest it can last from now on.
        at_most: Duration,
    },
    /// The session is gone, and with it all it had.
    SessionGone,
    /// The claim has nothing and gets nothing. From [`LockBackend::confirm`]: it has no place in the queue. From [`LockBackend::claim`]: an
    /// earlier copy was released or refused, and none of it takes effect any more; core makes another claim for a place, and takes a try for busy.
    ClaimGone,
}

/// How claims stand that were made at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Together {
    /// They hold their keys.
    Held {
        /// The number of each grant, in the order of the claims.
        tokens: Vec<FencingToken>,
    },
    /// One of them is refused, and none has anything.
    Busy {
        /// Which of the claims.
        claim: usize,
        /// Who holds its key, where the store knows; nobody where the store grants it to nobody just now.
        holder: Option<Holder>,
    },
    /// The session is gone, and with it all it had.
    SessionGone,
}

/// Why a wait returned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Woken {
    /// Where the next wait goes on.
    pub cursor: Cursor,
    /// What seems to have happened.
    pub hint: Hint,
}

/// What a wait thinks happened; never a grant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hint {
    /// Asking again is worth a request.
    MaybeFree,
    /// Still somebody else's: wait on.
    StillHeld {
        /// Whose, where the store knows.
        holder: Option<Holder>,
    },
    /// The claim's place was taken away.
    ClaimGone,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewal {
    /// It lives for at least `ttl` from when the request was sent.
    Renewed {
        /// The ttl that the store grants from now on.
        ttl: Duration,
    },
    /// The store does not know it any more; it never comes back.
    Gone,
}

/// A granted claim was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interference {
    /// Which.
    pub claim: ClaimId,
    /// How.
    pub cause: Cause,
}

/// How a granted claim was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The key or the claim's entry was deleted.
    KeyDeleted,
    /// The key was released by force, or carries another claim.
    TakenOver,
}

/// What a release found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Release {
    /// The claim had something, and has it no longer.
    Released,
    /// The claim had nothing.
    NotHeld,
    /// The claim has nothing any more, but for once the release is no fence: a copy of the claim that was never answered could still take
    /// effect, for example if somebody deleted the key. Core retires the session.
    Unfenced {
        /// Whether the claim had something.
        had: bool,
    },
}
