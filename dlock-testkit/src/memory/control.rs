//! What a test does to the store behind the backs of its users.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
#[cfg(feature = "conformance")]
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock_core::{Claim, ClaimId, ErrorKind, FencingToken, Key, Mode, Moment, Ownership, Place, SessionId, Standing};

use super::network::ChangedBy;
use super::request::{GrantRecord, Reply, Request};
use super::shared::Shared;
use super::store::Store;

/// Levers on a store in memory: end sessions, delete keys, hold elsewhere, and fail, hang or lose the next call of a kind.
///
/// Everything acts on the whole store, whoever uses it, and at once.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// What the names of sessions begin with that have all permits but one.
#[cfg(feature = "conformance")]
pub(crate) const OTHER_PERMITS: &str = "others-";
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A kind of call to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is the call of that name
pub enum Call {
    Open,
    Renew,
    Audit,
    Close,
    Claim,
    Wait,
    Confirm,
    Release,
    Inspect,
    Disturbed,
    Amend,
    List,
    Changed,
    Evict,
    Probe,
}

/// What stands in the way of a call.
pub(crate) enum Obstacle {
    Fail(ErrorKind),
    Hang,
    Delay(Duration),
    LoseRequest,
    LoseReply,
    Hold(HeldRequest),
}

/// How a whole store is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Every call fails at once.
    Failing,
    /// No call is answered.
    Hanging,
}

#[derive(Default)]
pub(crate) struct Faults {
    next: BTreeMap<Call, VecDeque<Obstacle>>,
    outage: Option<Outage>,
    counts: BTreeMap<Call, u64>,
}

impl Faults {
    pub(crate) fn next(&mut self, call: Call) -> Option<Obstacle> {
        *self.counts.entry(call).or_default() += 1;
        match self.outage {
            Some(Outage::Failing) => Some(Obstacle::Fail(ErrorKind::Transient)),
            Some(Outage::Hanging) => Some(Obstacle::Hang),
            None => self.next.get_mut(&call)?.pop_front(),
        }
    }
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Ends the session that holds a key, as its ttl would; `false` when nobody holds it.
    pub fn expire_session_of(&self, key: &Key) -> bool {
        let holder = self.shared.read(|store| store.holder_of(key).map(|(session, ..)| session.clone()));
        holder.is_some_and(|session| self.end_session(&session))
    }

    /// Ends a session, as an operator would; `false` when there is none.
    pub fn end_session(&self, session: &SessionId) -> bool {
        self.operate(|store, now| {
            let alive = store.is_alive(session);
            store.end_session(session, now);
            alive
        })
    }

    /// Deletes a key with everything on it.
    pub fn delete(&self, key: &Key) {
        self.operate(|store, _| store.delete(key));
    }

    /// Releases a key by force; `false` when nobody holds it.
    pub fn release_by_force(&self, key: &Key) -> bool {
        self.operate(|store, _| store.evict(key))
    }

    /// Puts something under a key that is no lock.
    pub fn put_foreign(&self, key: &Key, value: impl Into<Vec<u8>>) {
        self.operate(|store, _| store.put_foreign(key, value.into()));
    }

    /// Lets no session lapse for so long, and gives every one its whole ttl again then, as a store does that is back from an outage.
    pub fn spare_sessions(&self, outage: Duration) {
        self.operate(|store, now| store.spare(now.plus(outage)));
    }

    fn operate<T>(&self, change: impl FnOnce(&mut Store, Moment) -> T) -> T {
        self.shared.change(ChangedBy::Operator, change)
    }

    /// Lets somebody else take a key, under a session that does not lapse; `None` when it is taken.
    pub fn hold_elsewhere(&self, key: &Key, owner: &str) -> Option<Elsewhere> {
        let id = SessionId::new(format!("elsewhere-{key}-{:08x}", fastrand::u32(..)));
        let Reply::Opened(session) = self.shared.apply(&Request::Open { id, ttl: YEAR }) else { return None };
        let claim = Arc::new(Claim {
            id: ClaimId::from_bits(fastrand::u128(..)),
            key: key.clone(),
            mode: Mode::Exclusive,
            owner: owner.into(),
            acquired_at: "1970-01-01T00:00:00Z".into(),
            metadata: None,
        });
        let guard = self.shared.read(|store| store.guard(key));
        let claim_it = Request::Claim { session: session.clone(), claim, place: Place::Try, guard };
        if let Reply::Standing(Standing::Held { token }) = self.shared.apply(&claim_it) {
            return Some(Elsewhere { control: self.clone(), session, token });
        }
        self.end_session(&session);
        None
    }

    /// Lets this owner have all but one of so many permits of a key that nobody has, under a session that does not lapse.
    #[cfg(feature = "conformance")]
    pub(crate) fn take_permits(&self, key: &Key, owner: &str, all: NonZeroU32) {
        let session = SessionId::new(format!("{OTHER_PERMITS}{key}"));
        self.shared.apply(&Request::Open { id: session.clone(), ttl: YEAR });
        for _ in 1..all.get() {
            let claim = Claim {
                id: ClaimId::from_bits(fastrand::u128(..)),
                key: key.clone(),
                mode: Mode::Permits(all),
                owner: owner.into(),
                acquired_at: "1970-01-01T00:00:00Z".into(),
                metadata: None,
            };
            let guard = self.shared.read(|store| store.guard(key));
            let (session, claim) = (session.clone(), Arc::new(claim));
            self.shared.apply(&Request::Claim { session, claim, place: Place::Queue, guard });
        }
    }

    fn obstruct(&self, call: Call, obstacle: Obstacle) {
        let mut faults = self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.next.entry(call).or_default().push_back(obstacle);
    }

    /// The next call of this kind fails and is not applied.
    pub fn fail_next(&self, call: Call, kind: ErrorKind) {
        self.obstruct(call, Obstacle::Fail(kind));
    }

    /// The next call of this kind is never answered and not applied.
    pub fn hang_next(&self, call: Call) {
        self.obstruct(call, Obstacle::Hang);
    }

    /// The next call of this kind takes so long.
    pub fn delay_next(&self, call: Call, by: Duration) {
        self.obstruct(call, Obstacle::Delay(by));
    }

    /// The next call of this kind is not applied, and its caller cannot know.
    pub fn lose_request_of_next(&self, call: Call) {
        self.obstruct(call, Obstacle::LoseRequest);
    }

    /// The next call of this kind is applied, and its caller cannot know.
    pub fn lose_reply_of_next(&self, call: Call) {
        self.obstruct(call, Obstacle::LoseReply);
    }

    /// The next request of this kind is under way until it is [delivered](HeldRequest::deliver), even if its caller has given up.
    pub fn hold_next(&self, call: Call) -> HeldRequest {
        let held = HeldRequest { shared: Arc::clone(&self.shared), request: Arc::default() };
        self.obstruct(call, Obstacle::Hold(held.clone()));
        held
    }

    /// Puts the whole store out of reach, or back.
    pub fn outage(&self, outage: Option<Outage>) {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).outage = outage;
    }

    /// How many calls of this kind were made since the store was made or the counts were reset.
    pub fn calls(&self, call: Call) -> u64 {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).counts.get(&call).copied().unwrap_or(0)
    }

    /// How many calls of any kind.
    pub fn all_calls(&self) -> u64 {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).counts.values().sum()
    }

    /// Counts from zero again.
    pub fn reset_calls(&self) {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).counts.clear();
    }

    /// The sessions that are alive.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.shared.read(Store::sessions)
    }

    /// Every claim that has anything at the store: what must be empty when nothing is left behind.
    pub fn claims(&self) -> Vec<(Key, SessionId, ClaimId)> {
        self.shared.read(Store::claims)
    }

    /// Whether this is the condition of a present grant, as a transaction of the store's would find.
    pub fn owns(&self, ownership: &Ownership) -> bool {
        self.shared.read(|store| store.owns(ownership))
    }

    /// Every grant of a key so far, in order.
    pub fn grants(&self, key: &Key) -> Vec<GrantRecord> {
        self.shared.read(|store| store.grants(key).to_vec())
    }

    /// How many requests are under way over a [network](super::Network), those included whose callers gave up.
    pub fn under_way(&self) -> usize {
        self.shared.under_way()
    }

    /// Lets everything happen at its very moment: what is under way arrives, sessions lapse.
    ///
    /// Without it, that happens as soon as somebody calls or waits for the store, which is as good for users of the store, but not for an
    /// [observer](super::MemoryBuilder::observer). Never returns; free to drop.
    pub async fn keep_time(&self) -> Infallible {
        self.shared.keep_time().await
    }
}

/// A lock that somebody else holds.
#[must_use = "the lock stays taken until it is released"]
pub struct Elsewhere {
    control: Control,
    session: SessionId,
    token: FencingToken,
}

impl Elsewhere {
    /// The token of the grant.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Gives it back.
    pub fn release(self) {
        self.control.end_session(&self.session);
    }
}

/// A request that is under way for as long as a test wants.
#[derive(Clone)]
pub struct HeldRequest {
    shared: Arc<Shared>,
    request: Arc<Mutex<Option<Request>>>,
}

impl HeldRequest {
    pub(crate) fn fill(&self, request: Request) {
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }

    /// Whether the request was sent.
    pub fn is_under_way(&self) -> bool {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Lets the request arrive now, once more each time it is called; the reply that nobody hears, or `None` if it was not sent yet.
    pub fn deliver(&self) -> Option<Reply> {
        let request = self.request.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(self.shared.apply(&request))
    }
}
