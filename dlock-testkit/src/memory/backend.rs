//! The store as a backend, on the runtime's clock.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Cause, Check, ChosenBy, Claim, ClaimsPerKey, ClockSource, Cursor, ErrorKind, FencingToken, Finding,
    Granted, Holder, Inspection, Interference, Key, Limits, LockBackend, Metadata, Mode, Order, Ownership, Place, Published,
    Release, Renewal, Session, SessionId, SessionRequest, Standing, Together, TtlRange, Woken,
};

use super::control::{Call, Control};
use super::network::{ChangedBy, Network, Observer};
use super::request::{Guard, Profile, Reply, Request, Rules};
use super::shared::{Shared, mismatched};
use super::store::Store;
use super::waiters::Subject;

/// A store of locks in this process; clones share it, and so do all who open it under one name.
///
/// It lives on tokio's clock: in a test with paused time its sessions lapse in virtual time.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    network: Option<Arc<dyn Network>>,
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

    /// A new store like Consul in fair mode: first come, first served, and granted only to who asks once it is first.
    pub fn line() -> Self {
        Self::builder(Profile::Line).build()
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
            claims_at_once: Some(32),
            calls_in_flight: None,
            fast_ppm: 0,
            observer: None,
        }
    }

    /// The same store as a client sees it whose calls go over this network.
    #[must_use]
    pub fn over(&self, network: Arc<dyn Network>) -> Self {
        Self { shared: Arc::clone(&self.shared), network: Some(network) }
    }

    /// The store of this name in this process, made as a [queue](Self::queue) when it is first asked for.
    pub fn named(name: &str) -> Self {
        static STORES: OnceLock<Mutex<HashMap<String, Memory>>> = OnceLock::new();
        let mut stores = STORES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        stores.entry(name.to_owned()).or_insert_with(Self::queue).clone()
    }

    async fn send(&self, call: Call, request: Request) -> Result<Reply, BackendError> {
        self.shared.send(self.network.as_ref(), call, request).await
    }

    /// A call that reads the store once.
    async fn read<T>(&self, call: Call, claim: Option<&Claim>, read: impl FnOnce(&Store) -> T) -> Result<T, BackendError> {
        self.shared.look(self.network.as_ref(), call, claim, async { self.shared.read(read) }).await
    }

    /// A call that waits until the store gives an answer.
    async fn wait_for<T: Send + 'static>(
        &self,
        call: Call,
        claim: Option<&Claim>,
        subjects: Vec<Subject>,
        look: impl FnMut(&Store) -> Option<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.shared.look(self.network.as_ref(), call, claim, self.shared.until(subjects, look)).await
    }

    /// A call of a person's or a tool's that changes the store.
    async fn change<T>(&self, call: Call, by: ChangedBy, change: impl FnOnce(&mut Store) -> T) -> Result<T, BackendError> {
        self.shared.look(self.network.as_ref(), call, None, async { self.shared.change(by, |store, _| change(store)) }).await
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
    claims_at_once: Option<usize>,
    calls_in_flight: Option<NonZeroUsize>,
    fast_ppm: u32,
    observer: Option<Arc<dyn Observer>>,
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

    /// How many keys it takes at once; `None` if not even one, as always in the line profile. Defaults to 32.
    #[must_use]
    pub fn claims_at_once(mut self, most: Option<usize>) -> Self {
        self.claims_at_once = most;
        self
    }

    /// How many claims, confirms and releases are sent at a time; `None` if as many as there are. Defaults to `None`.
    #[must_use]
    pub fn calls_in_flight(mut self, most: Option<NonZeroUsize>) -> Self {
        self.calls_in_flight = most;
        self
    }

    /// By how many millionths the store's clock is faster than that of its clients. Defaults to zero.
    #[must_use]
    pub fn clock_fast_by(mut self, ppm: u32) -> Self {
        self.fast_ppm = ppm;
        self
    }

    /// Who looks on while the store changes. Defaults to nobody.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
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
        capabilities.claims_at_once = self.claims_at_once;
        capabilities.calls_in_flight = self.calls_in_flight;
        capabilities.guards_writes = true;
        if self.rules.profile == Profile::Queue {
            capabilities.session_ids = ChosenBy::Client;
        }
        if self.rules.profile == Profile::Line {
            capabilities.claims_at_once = None;
        }
        if self.rules.profile != Profile::Slot {
            capabilities.order = Order::Fifo;
            capabilities.claims_per_key = ClaimsPerKey::Many;
            capabilities.shared = true;
            capabilities.permits = true;
        }
        let shared = Shared::new(self.rules, capabilities, self.fast_ppm, self.observer);
        Memory { shared: Arc::new(shared), network: None }
    }
}

#[async_trait]
impl LockBackend for Memory {
    fn capabilities(&self) -> &Capabilities {
        self.shared.capabilities()
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        let range = self.shared.capabilities().ttl;
        if !range.contains(request.ttl) {
            let message = format!("this store accepts a ttl from {:?} to {:?}, not {:?}", range.min, range.max, request.ttl);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let ttl = request.ttl;
        match self.send(Call::Open, Request::Open { id: request.id.clone(), ttl }).await? {
            Reply::Opened(id) => Ok(Session { id, ttl }),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        match self.send(Call::Renew, Request::Renew(session.clone())).await? {
            Reply::Renewed(ttl) => Ok(Renewal::Renewed { ttl }),
            Reply::Gone => Ok(Renewal::Gone),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let verdict = |store: &Store| {
            let ended = claims.iter().filter_map(|granted| {
                let claim = &granted.claim;
                let cause = if store.exists(&claim.key) { Cause::TakenOver } else { Cause::KeyDeleted };
                (!store.holds(session, claim)).then_some(Interference { claim: claim.id, cause })
            });
            ended.collect()
        };
        self.read(Call::Audit, None, verdict).await
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.send(Call::Close, Request::Close(session.clone())).await.map(|_| ())
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.shared.check(claim)?;
        let claim = Arc::new(claim.clone());
        // The first copy carries what is known when it is sent; if the key moved meanwhile, one more look decides.
        for _ in 0..2 {
            let guard = self.shared.guard(&claim.key);
            let request = Request::Claim { session: session.clone(), claim: Arc::clone(&claim), place, guard };
            let first = guard == Guard::Index(0) && self.shared.unfenced().insert(claim.id);
            let answer = self.send(Call::Claim, request).await;
            if first && answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous) {
                self.shared.unfenced().remove(&claim.id);
            }
            match answer? {
                Reply::Standing(standing) => return Ok(standing),
                Reply::Conflict(with) => return Err(conflict(&claim, with)),
                Reply::GuardFailed => {}
                reply => return Err(mismatched(&reply)),
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "the key changed while it was claimed"))
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        let (session, waiting) = (session.clone(), claim.clone());
        let place = match self.shared.capabilities().order {
            Order::Unordered => Subject::Key(claim.key.clone()),
            Order::Fifo => Subject::Claim(session.clone(), claim.id),
        };
        let subjects = vec![place, Subject::Session(session.clone())];
        self.wait_for(Call::Wait, Some(claim), subjects, move |store| store.woken(&session, &waiting, cursor)).await
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        if self.shared.capabilities().order == Order::Unordered {
            return Err(BackendError::unsupported("confirm"));
        }
        let request = Request::Confirm { session: session.clone(), claim: Arc::new(claim.clone()) };
        match self.send(Call::Confirm, request).await? {
            Reply::Standing(standing) => Ok(standing),
            Reply::Conflict(with) => Err(conflict(claim, with)),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let request = Request::Release { session: session.clone(), claim: Arc::new(claim.clone()) };
        match self.send(Call::Release, request).await? {
            Reply::Released(found) if self.shared.unfenced().remove(&claim.id) => {
                Ok(Release::Unfenced { had: found == Release::Released })
            }
            Reply::Released(found) => Ok(found),
            reply => Err(mismatched(&reply)),
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        let (holders, waiters, foreign) = self.read(Call::Inspect, None, |store| store.line(key)).await?;
        let mut inspection = Inspection::default();
        inspection.holders = holders;
        inspection.holders.extend(foreign.map(|raw| Holder::new(Published::Raw(raw))));
        if self.shared.capabilities().order == Order::Fifo {
            inspection.waiters = Some(waiters);
        }
        Ok(inspection)
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        let subject = granted.map_or(Subject::Session(session.clone()), |granted| Subject::Key(granted.claim.key.clone()));
        let (session, watched) = (session.clone(), granted.cloned());
        let news = move |store: &Store| {
            let Some(Granted { claim, token }) = &watched else {
                return (!store.is_alive(&session)).then_some(Cursor(0));
            };
            let index = store.index(&claim.key);
            let mine = store.holds(&session, claim);
            let seen = cursor.map_or(token.get(), |cursor| cursor.0);
            (!mine && index > seen).then_some(Cursor(index))
        };
        self.wait_for(Call::Disturbed, granted.map(|granted| &*granted.claim), vec![subject], news).await
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        let mut amended = claim.clone();
        amended.metadata = Some(Arc::new(metadata.clone()));
        let published = amended.published();
        self.shared.fits(&published)?;
        let claim = Arc::new(claim.clone());
        for _ in 0..2 {
            let amendments = self.shared.read(|store| store.amendments(&claim));
            let (session, claim, published) = (session.clone(), Arc::clone(&claim), published.clone());
            match self.send(Call::Amend, Request::Amend { session, claim, published, amendments }).await? {
                Reply::Amended(held) => return Ok(held),
                Reply::GuardFailed => {}
                reply => return Err(mismatched(&reply)),
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "the metadata changed while it was amended"))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        let list = |store: &Store| {
            let held = store.held().filter(|(key, _)| key.as_str().starts_with(prefix));
            held.map(|(key, holder)| (key.clone(), holder)).collect()
        };
        self.read(Call::List, None, list).await
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        let (key, subject) = (key.clone(), Subject::Key(key.clone()));
        let news = move |store: &Store| {
            let index = store.index(&key);
            cursor.is_none_or(|cursor| index > cursor.0).then_some(Cursor(index))
        };
        self.wait_for(Call::Changed, None, vec![subject], news).await
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        self.change(Call::Evict, ChangedBy::Operator, |store| store.evict_grant(key, token)).await
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        claims.iter().try_for_each(|claim| self.shared.check(claim))?;
        self.capabilities().check_together(claims)?;
        let claims: Vec<_> = claims.iter().cloned().map(Arc::new).collect();
        for _ in 0..2 {
            let guarded = |claim: &Arc<Claim>| (Arc::clone(claim), self.shared.guard(&claim.key));
            let guarded: Vec<_> = claims.iter().map(guarded).collect();
            let absent = guarded.iter().filter(|(_, guard)| *guard == Guard::Index(0));
            let first: Vec<_> = absent.map(|(claim, _)| claim.id).filter(|id| self.shared.unfenced().insert(*id)).collect();
            let answer = self.send(Call::Claim, Request::ClaimAll { session: session.clone(), claims: guarded }).await;
            if answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous) {
                for id in &first {
                    self.shared.unfenced().remove(id);
                }
            }
            match answer? {
                Reply::Together(together) => return Ok(together),
                Reply::Conflict(with) => return Err(conflict(&claims[0], with)),
                Reply::GuardFailed => {}
                reply => return Err(mismatched(&reply)),
            }
        }
        // Some of them may be held since an earlier copy.
        Err(BackendError::new(ErrorKind::Ambiguous, "the keys changed while they were claimed"))
    }

    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        Ok(Ownership::new(granted.claim.key.as_str(), session.clone(), granted.token.get()))
    }

    async fn probe(&self) -> Vec<Finding> {
        let asked = tokio::time::Instant::now();
        let sessions = match self.read(Call::Probe, None, |store| store.sessions().len()).await {
            Ok(sessions) => sessions,
            Err(error) => return Finding::unanswered(&error, "end what a test put in the way"),
        };
        let TtlRange { min, max } = self.capabilities().ttl;
        vec![
            Finding::fine(
                Check::Reachable,
                format!("the store in memory answered in {:.1?}, with {sessions} sessions", asked.elapsed()),
            ),
            Finding::fine(Check::Ttl, format!("from {min:?} to {max:?}")),
        ]
    }
}

fn conflict(claim: &Claim, holders: Option<Mode>) -> BackendError {
    if let Some(holders) = holders {
        return BackendError::contradiction(claim, holders);
    }
    BackendError::new(ErrorKind::Conflict, format!("{} holds something that is no lock; it was left alone", claim.key))
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.read(|store| {
            f.debug_struct("Memory")
                .field("profile", &store.rules().profile)
                .field("sessions", &store.sessions().len())
                .field("claims", &store.claims().len())
                .finish_non_exhaustive()
        })
    }
}
