//! What all handles of one store share: the store itself, its clock, what is under way to it, and the obstacles that tests put in its way.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, Capabilities, Claim, ClaimId, ErrorKind, Key, Metadata, Moment};
use tokio::sync::{Notify, oneshot};

use super::clock::StoreClock;
use super::control::{Call, Faults, Obstacle};
use super::network::{ChangedBy, Homeward, Network, Observer, Outward, Route};
use super::request::{Guard, Profile, Reply, Request, Rules};
use super::store::Store;
use super::waiters::{Subject, Waiters};

pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) faults: Mutex<Faults>,
    /// Claims of which a copy that was guarded by the key's absence was never answered: no release can fence it against a deletion.
    unfenced: Mutex<BTreeSet<ClaimId>>,
    /// Tells those who let time pass that something happens earlier than they thought.
    hastened: Notify,
    /// How many let time pass for all.
    timekeepers: AtomicUsize,
    /// Tells those who relied on a timekeeper that there is none.
    unkept: Notify,
    profile: Profile,
    capabilities: Capabilities,
    clock: StoreClock,
}

/// What the mutex guards: the store, what is under way to it, and who waits for it to change.
struct State {
    store: Store,
    /// By time of arrival, then in the order of sending.
    under_way: BTreeMap<(Moment, u64), Parcel>,
    sent: u64,
    waiters: Waiters,
    /// When something happens next, as those know who let time pass.
    next: Moment,
    observer: Option<Arc<dyn Observer>>,
}

/// The most that the entries take in JSON that a claim adds by itself, but for owner and time: three names, and an id.
const RESERVED_BYTES: usize = 128;

/// A request under way.
struct Parcel {
    request: Request,
    number: u32,
    network: Arc<dyn Network>,
    /// Tells the caller; a second copy has none.
    tell: Option<oneshot::Sender<(Reply, Homeward)>>,
}

impl State {
    /// Lets time pass: what is due arrives in its order, and what is over ends in between.
    fn pass(&mut self, now: Moment) {
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= now
        {
            let ((at, _), parcel) = first.remove_entry();
            self.elapse(at);
            parcel.network.arrived(parcel.number);
            let reply = self.change(ChangedBy::Request, |store| store.answer(&parcel.request, at));
            if let Some(tell) = parcel.tell.filter(|tell| !tell.is_closed()) {
                // A caller that gives up at this very moment hears nothing.
                _ = tell.send((reply, parcel.network.replies(parcel.number)));
            }
        }
        self.elapse(now);
    }

    fn elapse(&mut self, now: Moment) {
        self.change(ChangedBy::Time, |store| store.pass(now));
    }

    fn change<T>(&mut self, by: ChangedBy, change: impl FnOnce(&mut Store) -> T) -> T {
        let before = self.store.stamp();
        let outcome = change(&mut self.store);
        if let Some(observer) = &self.observer
            && self.store.stamp() != before
        {
            observer.changed(&self.store, by);
        }
        outcome
    }

    fn announce(&mut self) {
        if self.waiters.is_empty() {
            self.store.tell_nobody();
            return;
        }
        let news = self.store.news();
        self.waiters.hear(&news, &self.store);
    }

    /// When something happens next by itself.
    fn next_change(&self) -> Moment {
        let arrives = self.under_way.first_key_value().map(|((at, _), _)| *at);
        arrives.into_iter().chain(self.store.next_change()).min().unwrap_or(Moment::FAR_FUTURE)
    }
}

impl Shared {
    pub(crate) fn new(rules: Rules, capabilities: Capabilities, fast_ppm: u32, observer: Option<Arc<dyn Observer>>) -> Self {
        let profile = rules.profile;
        let state = State {
            store: Store::new(rules),
            under_way: BTreeMap::new(),
            sent: 0,
            waiters: Waiters::default(),
            next: Moment::FAR_FUTURE,
            observer,
        };
        Self {
            state: Mutex::new(state),
            faults: Mutex::default(),
            unfenced: Mutex::default(),
            hastened: Notify::new(),
            timekeepers: AtomicUsize::new(0),
            unkept: Notify::new(),
            profile,
            capabilities,
            clock: StoreClock::new(fast_ppm),
        }
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn with_state<T>(&self, act: impl FnOnce(&mut State, Moment) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if now >= state.next {
            state.pass(now);
        }
        let outcome = act(&mut state, now);
        state.announce();
        let next = state.next_change();
        let hastened = next < state.next;
        state.next = next;
        drop(state);
        if hastened {
            self.hastened.notify_waiters();
        }
        outcome
    }

    /// Reads the store as of now.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        self.with_state(|state, _| read(&state.store))
    }

    /// The guard that a claim sent now carries; the store is asked only where that depends on the key.
    pub(crate) fn guard(&self, key: &Key) -> Guard {
        self.profile.guard(|| self.read(|store| store.index_if_exists(key)))
    }

    /// Changes the store now, and tells everyone who waits for that.
    pub(crate) fn change<T>(&self, by: ChangedBy, change: impl FnOnce(&mut Store, Moment) -> T) -> T {
        self.with_state(|state, now| state.change(by, |store| change(store, now)))
    }

    pub(crate) fn apply(&self, request: &Request) -> Reply {
        self.change(ChangedBy::Request, |store, now| store.answer(request, now))
    }

    /// How many requests are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.with_state(|state, _| state.under_way.len())
    }

    pub(crate) fn unfenced(&self) -> MutexGuard<'_, BTreeSet<ClaimId>> {
        self.unfenced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request through whatever obstacle a test put in its way, then over the network of its client.
    pub(crate) async fn send(
        self: &Arc<Self>,
        network: Option<&Arc<dyn Network>>,
        call: Call,
        request: Request,
    ) -> Result<Reply, BackendError> {
        let obstacle = match self.obstacle(call) {
            // In boxes of their own, as the way over a network: not every call makes room for them.
            Some(obstacle) => Box::pin(meet(obstacle)).await?,
            None => None,
        };
        match obstacle {
            None => match network {
                None => Ok(self.apply(&request)),
                Some(network) => Box::pin(self.travel(network, call, request)).await,
            },
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

    /// What a test put in the way of this call.
    fn obstacle(&self, call: Call) -> Option<Obstacle> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).next(call)
    }

    async fn travel(self: &Arc<Self>, network: &Arc<dyn Network>, call: Call, request: Request) -> Result<Reply, BackendError> {
        let Route { number, request: outward } = network.leaves(call, &request.claims());
        let (tell, told) = oneshot::channel();
        let parcel = |tell| Parcel { request: request.clone(), number, network: Arc::clone(network), tell };
        match outward {
            Outward::After(after) => self.post(after, parcel(Some(tell))),
            Outward::Twice(after, again) => {
                self.post(after, parcel(Some(tell)));
                self.post(after + again, parcel(None));
            }
            other => return Err(not_sent(other).await),
        }
        let (reply, homeward) = self.heard(told).await;
        come_home(network, number, homeward).await?;
        Ok(reply)
    }

    fn post(&self, after: Duration, parcel: Parcel) {
        let arrives = self.clock.after(after);
        self.with_state(|state, _| {
            state.sent += 1;
            state.under_way.insert((arrives, state.sent), parcel);
        });
    }

    /// A call that only reads, over the network of its client.
    pub(crate) async fn look<T>(
        &self,
        network: Option<&Arc<dyn Network>>,
        call: Call,
        claim: Option<&Claim>,
        answer: impl Future<Output = T>,
    ) -> Result<T, BackendError> {
        if let Some(obstacle) = self.obstacle(call)
            && meet(obstacle).await?.is_some()
        {
            return Err(BackendError::new(ErrorKind::Transient, "the reply was lost by a test"));
        }
        let Some(network) = network else { return Ok(answer.await) };
        let Route { number, request } = network.leaves(call, claim.as_slice());
        match request {
            Outward::After(after) | Outward::Twice(after, _) => tokio::time::sleep(after).await,
            other => return Err(not_sent(other).await),
        }
        network.arrived(number);
        let answer = answer.await;
        come_home(network, number, network.replies(number)).await?;
        Ok(answer)
    }

    /// Waits until the store, looked at whenever one of these changes, gives an answer.
    pub(crate) async fn until<T: Send + 'static>(
        &self,
        subjects: Vec<Subject>,
        mut look: impl FnMut(&Store) -> Option<T> + Send + 'static,
    ) -> T {
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let mut waiter = move |store: &Store| {
            let Some(answer) = look(store) else { return false };
            if let Some(tell) = tell.take() {
                // A caller that gives up at this very moment hears nothing.
                _ = tell.send(answer);
            }
            true
        };
        let number = self.with_state(|state, _| (!waiter(&state.store)).then(|| state.waiters.add(subjects, Box::new(waiter))));
        let _waiting = number.map(|number| Waiting { shared: self, number });
        self.heard(told).await
    }

    /// Waits to be told, and lets time pass meanwhile if nobody else does.
    async fn heard<T>(&self, mut told: oneshot::Receiver<T>) -> T {
        let answer = loop {
            let unkept = self.unkept.notified();
            tokio::pin!(unkept);
            unkept.as_mut().enable();
            if self.timekeepers.load(Ordering::Acquire) > 0 {
                tokio::select! {
                    biased;
                    answer = &mut told => break answer,
                    () = unkept => {}
                }
            } else {
                tokio::select! {
                    biased;
                    answer = &mut told => break answer,
                    () = self.next_change() => {}
                }
            }
        };
        match answer {
            Ok(answer) => answer,
            // Only the store tells, and it lives as long as we do.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns when something may have happened by itself.
    async fn next_change(&self) {
        let hastened = self.hastened.notified();
        tokio::pin!(hastened);
        hastened.as_mut().enable();
        let next = self.with_state(|state, now| match state.next_change() {
            Moment::FAR_FUTURE => Duration::MAX,
            next => self.clock.of_runtime(next.saturating_since(now)),
        });
        tokio::select! {
            biased;
            () = hastened => {}
            () = tokio::time::sleep(next) => self.with_state(|_, _| ()),
        }
    }

    /// Lets everything happen at its time, also while nobody waits for it.
    pub(crate) async fn keep_time(&self) -> Infallible {
        let _kept = Kept::new(self);
        loop {
            self.next_change().await;
        }
    }

    pub(crate) fn check(&self, claim: &Claim) -> Result<(), BackendError> {
        self.capabilities.check_mode(claim.mode)?;
        let limits = self.capabilities.limits;
        if claim.key.as_str().len() > limits.key_bytes {
            let message = format!("the key has {} bytes, this store accepts {}", claim.key.as_str().len(), limits.key_bytes);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        // Composed only if it may not fit: a byte takes at most six in JSON, and an entry six for what is around it.
        let user = claim.metadata.iter().flat_map(|metadata| metadata.iter());
        let user: usize = user.map(|(name, value)| 6 * (name.len() + value.len() + 1)).sum();
        let most = user + 6 * (claim.owner.len() + claim.acquired_at.len()) + RESERVED_BYTES;
        if most <= limits.metadata_bytes { Ok(()) } else { self.fits(&claim.published()) }
    }

    pub(crate) fn fits(&self, published: &Metadata) -> Result<(), BackendError> {
        let bytes = serde_json::to_vec(published).map_or(usize::MAX, |json| json.len());
        let limit = self.capabilities.limits.metadata_bytes;
        if bytes > limit {
            let message = format!("the metadata takes {bytes} bytes as JSON, this store accepts {limit}");
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        Ok(())
    }
}

/// Somebody waits; nobody does any more once this is dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).waiters.remove(self.number);
    }
}

/// Somebody keeps time; those who wait need no timers of their own.
struct Kept<'a>(&'a Shared);

impl<'a> Kept<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.timekeepers.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.timekeepers.fetch_sub(1, Ordering::AcqRel);
        self.0.unkept.notify_waiters();
    }
}

/// Meets the obstacles that concern every kind of call; what is left concerns requests.
async fn meet(obstacle: Obstacle) -> Result<Option<Obstacle>, BackendError> {
    match obstacle {
        Obstacle::Fail(kind) => Err(BackendError::new(kind, "failed by a test")),
        Obstacle::Hang => std::future::pending().await,
        Obstacle::Delay(delay) => {
            tokio::time::sleep(delay).await;
            Ok(None)
        }
        other => Ok(Some(other)),
    }
}

/// What the caller hears of a request that never arrives.
async fn not_sent(request: Outward) -> BackendError {
    let Outward::Refused(after, kind) = request else { return std::future::pending().await };
    tokio::time::sleep(after).await;
    BackendError::new(kind, "refused on its way")
}

async fn come_home(network: &Arc<dyn Network>, number: u32, homeward: Homeward) -> Result<(), BackendError> {
    match homeward {
        Homeward::After(after) => {
            tokio::time::sleep(after).await;
            network.answered(number);
            Ok(())
        }
        Homeward::Never => std::future::pending().await,
        Homeward::Broken(after) => {
            tokio::time::sleep(after).await;
            Err(BackendError::new(ErrorKind::Ambiguous, "the reply was lost on its way"))
        }
    }
}

/// The reply to another kind of request, which no obstacle can bring about.
pub(crate) fn mismatched(reply: &Reply) -> BackendError {
    BackendError::new(ErrorKind::Ambiguous, format!("unexpected reply {reply:?}"))
}
