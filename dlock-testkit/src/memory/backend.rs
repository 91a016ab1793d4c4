//! The store as a backend, on the runtime's clock.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Cause, ChosenBy, Claim, ClaimId, ClaimsPerKey, ClockSource, Cursor, ErrorKind, FencingToken,
    Granted, Holder, Inspection, Interference, Key, Limits, LockBackend, Metadata, Mode, Moment, Order, Place, Published, Release,
    Renewal, Session, SessionId, SessionRequest, Standing, TtlRange, Woken,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::control::{Call, Control, Faults, Obstacle};
use super::store::{Guard, Profile, Reply, Request, Rules, Store};

/// A store of locks in this process; clones share it, and so do all who open it under one name.
///
/// It lives on tokio's clock: in a test with paused time its sessions lapse in virtual time.
#[derive(Clone)]
pub struct Memory {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    store: Mutex<Store>,
    pub(crate) faults: Mutex<Faults>,
    /// Claims of which a copy that was guarded by the key's absence was never answered: no release can fence it against a deletion.
    unfenced: Mutex<HashSet<ClaimId>>,
    pub(crate) changed: Notify,
    capabilities: Capabilities,
    origin: Instant,
}

impl Memory {
    /// The shortest ttl that is accepted unless set otherwise.
    pub const LEAST_TTL: Duration = Duration::from_millis(100);
    /// The longest ttl that is accepted unless set otherwise.
    pub const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

    /// A new store like etcd: first come, first served.
    pub fn queue() -> Self {
        Self::builder(Profile::Queue).build()
    }

    /// A new store like Consul: one holder per key, unordered.
    pub fn slot() -> Self {
        Self::builder(Profile::Slot).build()
    }

    /// A new store with rules of its own.
    pub fn builder(profile: Profile) -> MemoryBuilder {
        MemoryBuilder {
            rules: Rules { profile, lapses_after_percent: 200, lock_delay: Duration::ZERO },
            ttl: TtlRange { min: Self::LEAST_TTL, max: Self::LONGEST_TTL },
            limits: Limits::default(),
        }
    }

    /// The store of this name in this process, made as a [queue](Self::queue) when it is first asked for.
    pub fn named(name: &str) -> Self {
        static STORES: OnceLock<Mutex<HashMap<String, Memory>>> = OnceLock::new();
        let mut stores = STORES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        stores.entry(name.to_owned()).or_insert_with(Self::queue).clone()
    }

    /// What tests do to the store behind the backs of its users.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared))
    }
}

/// Rules for a new [`Memory`].
#[derive(Clone, Debug)]
pub struct MemoryBuilder {
    rules: Rules,
    ttl: TtlRange,
    limits: Limits,
}

impl MemoryBuilder {
    /// The session lifetimes it accepts. Defaults to 100 ms to a day.
    #[must_use]
    pub fn ttl_range(mut self, ttl: TtlRange) -> Self {
        self.ttl = ttl;
        self
    }

    /// After how much of its ttl a silent session lapses, in percent, brought into 100 to 200. Defaults to 200, as Consul does.
    #[must_use]
    pub fn lapses_after_percent(mut self, percent: u32) -> Self {
        self.rules.lapses_after_percent = percent.clamp(100, 200);
        self
    }

    /// How long a key is granted to nobody after its holder's session ended. Defaults to zero.
    #[must_use]
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.rules.lock_delay = delay;
        self
    }

    /// What fits in. Defaults to [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The store.
    pub fn build(self) -> Memory {
        let mut capabilities = Capabilities::minimal(ClockSource::Runtime, self.ttl);
        capabilities.lapses_within_ttls = 2;
        capabilities.limits = self.limits;
        capabilities.fences = true;
        capabilities.audits = true;
        capabilities.watched_claims = Some(16);
        capabilities.amends = true;
        capabilities.lists = true;
        capabilities.tells_changes = true;
        capabilities.evicts = true;
        if self.rules.profile == Profile::Queue {
            capabilities.order = Order::Fifo;
            capabilities.claims_per_key = ClaimsPerKey::Many;
            capabilities.session_ids = ChosenBy::Client;
        }
        let shared = Shared {
            store: Mutex::new(Store::new(self.rules)),
            faults: Mutex::default(),
            unfenced: Mutex::default(),
            changed: Notify::new(),
            capabilities,
            origin: Instant::now(),
        };
        Memory { shared: Arc::new(shared) }
    }
}

impl Shared {
    pub(crate) fn now(&self) -> Moment {
        Moment::from_origin(self.origin.elapsed())
    }

    /// The store as of now; whoever changes it must [announce](Self::announce) it.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.pass(self.now());
        store
    }

    fn unfenced(&self) -> MutexGuard<'_, HashSet<ClaimId>> {
        self.unfenced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn announce(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn apply(&self, request: &Request) -> Reply {
        let now = self.now();
        let reply = self.store().apply(request, now);
        self.announce();
        reply
    }

    /// Sends a request through whatever obstacle a test put in its way.
    async fn send(self: &Arc<Self>, call: Call, request: Request) -> Result<Reply, BackendError> {
        match self.meet(call).await? {
            None => Ok(self.apply(&request)),
            Some(Obstacle::LoseReply) => {
                self.apply(&request);
                Err(BackendError::new(ErrorKind::Ambiguous, "the reply was lost by a test"))
            }
            Some(Obstacle::Hold(held)) => {
                held.fill(request);
                std::future::pending().await
            }
            Some(_) => Err(BackendError::new(ErrorKind::Ambiguous, "the request was lost by a test")),
        }
    }

    /// Meets the obstacles that concern every kind of call; what is left concerns requests.
    async fn meet(&self, call: Call) -> Result<Option<Obstacle>, BackendError> {
        let obstacle = self.faults.lock().unwrap_or_else(PoisonError::into_inner).next(call);
        match obstacle {
            Some(Obstacle::Fail(kind)) => Err(BackendError::new(kind, "failed by a test")),
            Some(Obstacle::Hang) => std::future::pending().await,
            Some(Obstacle::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// A call that only reads.
    async fn look(&self, call: Call) -> Result<(), BackendError> {
        match self.meet(call).await? {
            None => Ok(()),
            Some(_) => Err(BackendError::new(ErrorKind::Transient, "the reply was lost by a test")),
        }
    }

    /// Waits until the store, looked at after every change and whenever time changes it, gives an answer.
    async fn until<T>(&self, mut look: impl FnMut(&Store) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = {
                let store = self.store();
                if let Some(answer) = look(&store) {
                    return answer;
                }
                store.next_change()
            };
            match next {
                None => changed.await,
                Some(next) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep(next.saturating_since(self.now())) => {}
                    }
                }
            }
        }
    }

    fn check(&self, claim: &Claim) -> Result<(), BackendError> {
        if claim.mode != Mode::Exclusive {
            return Err(BackendError::unsupported("claim in a mode other than exclusive"));
        }
        let limits = self.capabilities.limits;
        if claim.key.as_str().len() > limits.key_bytes {
            let message = format!("the key has {} bytes, this store accepts {}", claim.key.as_str().len(), limits.key_bytes);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        self.fits(&claim.published())
    }

    fn fits(&self, published: &Metadata) -> Result<(), BackendError> {
        let bytes = serde_json::to_vec(published).map_or(usize::MAX, |json| json.len());
        let limit = self.capabilities.limits.metadata_bytes;
        if bytes > limit {
            let message = format!("the metadata takes {bytes} bytes as JSON, this store accepts {limit}");
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        Ok(())
    }
}

/// The reply to another kind of request, which no obstacle can bring about.
fn mismatched(reply: &Reply) -> BackendError {
    BackendError::new(ErrorKind::Ambiguous, format!("unexpected reply {reply:?}"))
}

#[async_trait]
impl LockBackend for Memory {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        let range = self.shared.capabilities.ttl;
        if !range.contains(request.ttl) {
            let message = format!("this store accepts a ttl from {:?} to {:?}, not {:?}", range.min, range.max, request.ttl);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let ttl = request.ttl;
        match self.shared.send(Call::Open, Request::Open { id: request.id.clone(), ttl }).await? {
            Reply::Opened(id) => Ok(Session { id, ttl }),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        match self.shared.send(Call::Renew, Request::Renew(session.clone())).await? {
            Reply::Renewed(ttl) => Ok(Renewal::Renewed { ttl }),
            Reply::Gone => Ok(Renewal::Gone),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        self.shared.look(Call::Audit).await?;
        let store = self.shared.store();
        let verdict = claims.iter().filter_map(|granted| {
            let claim = &granted.claim;
            match store.holder_of(&claim.key) {
                Some((holder, id, _)) if holder == session && id == claim.id => None,
                _ => {
                    let cause = if store.exists(&claim.key) { Cause::TakenOver } else { Cause::KeyDeleted };
                    Some(Interference { claim: claim.id, cause })
                }
            }
        });
        Ok(verdict.collect())
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.shared.send(Call::Close, Request::Close(session.clone())).await.map(|_| ())
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.shared.check(claim)?;
        let claim = Arc::new(claim.clone());
        // The first copy carries what is known when it is sent; if the key moved meanwhile, one more look decides.
        for _ in 0..2 {
            let guard = self.shared.store().guard(&claim.key);
            let request = Request::Claim { session: session.clone(), claim: Arc::clone(&claim), place, guard };
            let first = guard == Guard::Index(0) && self.shared.unfenced().insert(claim.id);
            let answer = self.shared.send(Call::Claim, request).await;
            if first && answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous) {
                self.shared.unfenced().remove(&claim.id);
            }
            match answer? {
                Reply::Standing(standing) => return Ok(standing),
                Reply::Conflict => {
                    let message = format!("{} holds something that is no lock; it was left alone", claim.key);
                    return Err(BackendError::new(ErrorKind::Conflict, message));
                }
                Reply::GuardFailed => {}
                reply => return Err(mismatched(&reply)),
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "the key changed while it was claimed"))
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        self.shared.look(Call::Wait).await?;
        Ok(self.shared.until(|store| store.woken(session, claim, cursor)).await)
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        if self.shared.capabilities.order == Order::Unordered {
            return Err(BackendError::unsupported("confirm"));
        }
        let request = Request::Confirm { session: session.clone(), claim: Arc::new(claim.clone()) };
        match self.shared.send(Call::Confirm, request).await? {
            Reply::Standing(standing) => Ok(standing),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let request = Request::Release { session: session.clone(), claim: Arc::new(claim.clone()) };
        match self.shared.send(Call::Release, request).await? {
            Reply::Released(found) if self.shared.unfenced().remove(&claim.id) => {
                Ok(Release::Unfenced { had: found == Release::Released })
            }
            Reply::Released(found) => Ok(found),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        self.shared.look(Call::Inspect).await?;
        let (line, foreign) = self.shared.store().line(key);
        let mut inspection = Inspection::default();
        let mut line = line.into_iter();
        inspection.holders.extend(line.next());
        inspection.holders.extend(foreign.map(|raw| Holder::new(Published::Raw(raw))));
        if self.shared.capabilities.order == Order::Fifo {
            inspection.waiters = Some(line.collect());
        }
        Ok(inspection)
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        self.shared.look(Call::Disturbed).await?;
        let news = |store: &Store| {
            let Some(Granted { claim, token }) = granted else {
                return (!store.is_alive(session)).then_some(Cursor(0));
            };
            let index = store.index(&claim.key);
            let mine = store.holder_of(&claim.key).is_some_and(|(_, id, _)| id == claim.id);
            let seen = cursor.map_or(token.get(), |cursor| cursor.0);
            (!mine && index > seen).then_some(Cursor(index))
        };
        Ok(self.shared.until(news).await)
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        self.shared.look(Call::Amend).await?;
        let mut amended = claim.clone();
        amended.metadata = Some(Arc::new(metadata.clone()));
        let published = amended.published();
        self.shared.fits(&published)?;
        let done = self.shared.store().amend(session, claim, Published::Metadata(published));
        self.shared.announce();
        Ok(done)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        self.shared.look(Call::List).await?;
        let store = self.shared.store();
        Ok(store.held().filter(|(key, _)| key.as_str().starts_with(prefix)).map(|(key, holder)| (key.clone(), holder)).collect())
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        self.shared.look(Call::Changed).await?;
        let news = |store: &Store| {
            let index = store.index(key);
            cursor.is_none_or(|cursor| index > cursor.0).then_some(Cursor(index))
        };
        Ok(self.shared.until(news).await)
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        self.shared.look(Call::Evict).await?;
        let mut store = self.shared.store();
        let done = store.holder_of(key).is_some_and(|(_, _, present)| present == token) && store.evict(key);
        drop(store);
        self.shared.announce();
        Ok(done)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = self.shared.store();
        f.debug_struct("Memory")
            .field("profile", &store.rules().profile)
            .field("sessions", &store.sessions().len())
            .field("claims", &store.claims().len())
            .finish_non_exhaustive()
    }
}
