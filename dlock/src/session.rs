//! One session of this locker: what is believed of it, what it holds, and what it still owes the store.
//!
//! Everyone may look and hand things in; only the session's [keeper](crate::keeper) steps its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use dlock_core::{
    Chance, Claim, ClaimId, FencingToken, Granted, Health, Lease, LeaseEnd, LeaseEvent, LeaseStep, LockBackend, Loss, Moment,
    SessionId,
};
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::gate::Pass;
use crate::grant::{Grant, HoldLimits};
use crate::stage::{Stage, Stages};

pub(crate) struct Session {
    engine: Weak<Engine>,
    pub(crate) backend: Arc<dyn LockBackend>,
    clock: Clock,
    ttl: Duration,
    /// Nanoseconds on the clock; zero while the session is not believed.
    believed_until: AtomicU64,
    loss: OnceLock<Loss>,
    state: Mutex<State>,
    /// Wakes the keeper.
    pub(crate) wake: Notify,
    pub(crate) stages: Stages,
    /// Tells those who wait until nothing is held and nothing owed.
    pub(crate) quiet: Notify,
    /// Which keeper keeps it, counted from one; zero while none does.
    keeper: AtomicU64,
    /// When that keeper is to be heard of again, in nanoseconds on the clock.
    heard_by: AtomicU64,
}

struct State {
    lease: Lease,
    id: Option<SessionId>,
    /// In an order that is the same in every run, like everything that others can see the order of.
    grants: BTreeMap<ClaimId, Arc<Grant>>,
    /// When to look at a grant of its own accord: its `hold_at_most`, or a report.
    timers: BTreeSet<(Moment, ClaimId)>,
    /// The grants that want to be told ahead of the deadline.
    early: BTreeSet<(Duration, ClaimId)>,
    /// The grants that were told so, and until when they stay.
    lingering: BTreeMap<ClaimId, Moment>,
    /// What is to be released by the keeper.
    inbox: Vec<Owed>,
    /// Releases that were given up for now: tried again while something else keeps the session alive.
    given_up: Vec<Owed>,
    /// Releases handed in and not done.
    owed: usize,
    /// The grants that are being released.
    releasing: BTreeMap<ClaimId, Arc<Grant>>,
    /// Acquisitions that may claim with this session.
    acquiring: usize,
    /// How many keepers there have been.
    keepers: u64,
    ending: Ending,
    /// A claim found the session unknown at the store.
    doubted: bool,
    /// The locker is being shut down: nothing is granted any more.
    refusing: bool,
    /// The lease is done: nothing is sent for this session any more.
    ended: bool,
}

/// Whether the session is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Wanted,
    /// No new claims; close it once nothing is held and nothing owed.
    Retired,
    /// Renew it no more, whatever it holds.
    Abandoned,
}

/// A claim whose release is owed to the store.
pub(crate) struct Owed {
    pub(crate) claim: Arc<Claim>,
    /// Keeps the gate closed until the release is answered.
    #[allow(dead_code)] // held for its drop
    pub(crate) pass: Option<Pass>,
    /// A request of the claim that is still under way; it is heard out first.
    pub(crate) under_way: Option<BoxFuture<'static, ()>>,
    /// Not before this moment.
    pub(crate) from: Moment,
    /// The claim was sent and never answered.
    pub(crate) unanswered: bool,
}

impl Session {
    /// How long after the promised moment a keeper counts as stuck on a runtime that nobody drives.
    fn patience(&self) -> Duration {
        (self.ttl / 12).max(Duration::from_millis(100))
    }

    pub(crate) fn new(engine: &Arc<Engine>) -> Self {
        let (backend, clock, ttl) = (Arc::clone(&engine.backend), engine.clock, engine.options.ttl);
        // A shutdown cancels before it looks at the sessions: either it sees this one, or this one sees it.
        let refusing = engine.stopping.is_cancelled();
        let ending = if refusing { Ending::Retired } else { Ending::Wanted };
        let mut lease = Lease::new(ttl, backend.capabilities().lapses_within_ttls);
        if let Some(from) = engine.open_from() {
            lease = lease.not_before(from);
        }
        let state = State {
            lease,
            id: None,
            grants: BTreeMap::new(),
            timers: BTreeSet::new(),
            early: BTreeSet::new(),
            lingering: BTreeMap::new(),
            inbox: Vec::new(),
            given_up: Vec::new(),
            owed: 0,
            releasing: BTreeMap::new(),
            acquiring: 0,
            keepers: 0,
            ending,
            doubted: false,
            refusing,
            ended: false,
        };
        Self {
            engine: Arc::downgrade(engine),
            backend,
            clock,
            ttl,
            believed_until: AtomicU64::new(0),
            loss: OnceLock::new(),
            state: Mutex::new(state),
            wake: Notify::new(),
            quiet: Notify::new(),
            stages: Stages::new(),
            keeper: AtomicU64::new(0),
            heard_by: AtomicU64::new(0),
        }
    }

    /// Makes sure that somebody keeps the session: for calls that may come on another runtime than the keeper's.
    pub(crate) fn ensure_kept(&self) {
        if let Some(engine) = self.engine.upgrade()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            engine.keep_all();
        }
    }

    /// Claims the session for a new keeper, if it has none or the one it has is not heard of any more; the number of the new one.
    pub(crate) fn take_over(&self) -> Option<u64> {
        let now = self.clock.now();
        let mut state = self.state();
        let present = self.keeper.load(Ordering::Acquire);
        let heard_by = Moment::from_origin(Duration::from_nanos(self.heard_by.load(Ordering::Acquire)));
        if state.ended || present != 0 && now < heard_by.plus(self.patience()) {
            return None;
        }
        state.keepers += 1;
        let number = state.keepers;
        self.keeper.store(number, Ordering::Release);
        self.promise(now);
        Some(number)
    }

    /// Whether this keeper still is the one.
    pub(crate) fn is_kept_by(&self, keeper: u64) -> bool {
        self.keeper.load(Ordering::Acquire) == keeper
    }

    /// The keeper will be heard of again by then.
    pub(crate) fn promise(&self, by: Moment) {
        self.heard_by.store(by.since_origin().as_nanos() as u64, Ordering::Release);
    }

    /// The keeper is no more.
    pub(crate) fn unkept_by(&self, keeper: u64) {
        _ = self.keeper.compare_exchange(keeper, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held but a broken invariant, and then belief still ends by the deadline.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// The ttl that was asked for.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn believed_until(&self) -> Moment {
        Moment::from_origin(Duration::from_nanos(self.believed_until.load(Ordering::Acquire)))
    }

    /// Why the session is not believed any more, once it was told.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.loss.get().copied()
    }

    pub(crate) fn id(&self) -> Option<SessionId> {
        self.state().id.clone()
    }

    /// Whether new claims may use it.
    pub(crate) fn is_usable(&self) -> bool {
        let over = matches!(self.stages.look().0, Stage::Over | Stage::Refused(_));
        !over && self.state().ending == Ending::Wanted
    }

    /// How long what it has can stay at the store from now on if nothing more reaches it.
    pub(crate) fn lapses_within(&self) -> Duration {
        self.state().lease.lapses_at().saturating_since(self.clock.now())
    }

    /// Counts an acquisition in, so that the session is not closed under it.
    pub(crate) fn enrol(self: &Arc<Self>) -> Enrolled {
        self.state().acquiring += 1;
        Enrolled(Arc::clone(self))
    }

    /// Takes in a grant, unless the session is not believed (any more); the pass comes back then.
    pub(crate) fn grant(
        self: &Arc<Self>,
        claim: Arc<Claim>,
        token: FencingToken,
        limits: HoldLimits,
        unanswered: bool,
        pass: Option<Pass>,
    ) -> Result<Arc<Grant>, Option<Pass>> {
        let now = self.clock.now();
        let mut state = self.state();
        let id = claim.id;
        let grant = Grant::new(claim, token, Arc::clone(self), now, limits, unanswered);
        // Not the grant's own limits: whoever set them is told by the guard.
        if state.refusing || self.loss.get().is_some() || now >= self.believed_until() {
            return Err(pass);
        }
        let grant = Arc::new(grant);
        grant.keep_gate(pass);
        state.grants.insert(id, Arc::clone(&grant));
        let timer = limits.hold_until.min(limits.report_at);
        if timer != Moment::FAR_FUTURE {
            state.timers.insert((timer, id));
        }
        if !limits.stop_before.is_zero() {
            state.early.insert((limits.stop_before, id));
        }
        drop(state);
        if let Some(engine) = self.engine.upgrade() {
            engine.known_to_the_store();
        }
        self.wake.notify_one();
        Ok(grant)
    }

    /// Takes a grant out; whoever gets it owes its release. `None` when another was first.
    pub(crate) fn take(&self, id: ClaimId) -> Option<Arc<Grant>> {
        let mut state = self.state();
        let grant = state.grants.remove(&id)?;
        state.timers.remove(&(grant.limits.hold_until, id));
        state.timers.remove(&(grant.limits.report_at, id));
        state.early.remove(&(grant.limits.stop_before, id));
        if let Some(until) = state.lingering.remove(&id) {
            state.timers.remove(&(until, id));
        }
        state.owed += 1;
        state.releasing.insert(id, Arc::clone(&grant));
        Some(grant)
    }

    /// A grant that was told of its loss ahead of time stays for as long as was said first, so that what runs under it has time to stop.
    pub(crate) fn linger(&self, grant: &Grant, until: Moment) -> Moment {
        let mut state = self.state();
        let id = grant.claim.id;
        if !state.grants.contains_key(&id) {
            return Moment::ORIGIN;
        }
        state.early.remove(&(grant.limits.stop_before, id));
        let until = *state.lingering.entry(id).or_insert(until);
        state.timers.insert((until, id));
        until
    }

    /// The keeper is to look at a grant: its loss was told by whoever found its time over.
    pub(crate) fn look_at(&self, id: ClaimId, now: Moment) {
        let mut state = self.state();
        if state.grants.contains_key(&id) {
            state.timers.insert((now, id));
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Grants nothing any more; what it holds, and what is being released.
    pub(crate) fn refuse(&self) -> (Vec<Arc<Grant>>, Vec<Arc<Grant>>) {
        let mut state = self.state();
        state.refusing = true;
        (state.grants.values().cloned().collect(), state.releasing.values().cloned().collect())
    }

    /// Counts a release in that was not a grant's.
    pub(crate) fn owe(&self) {
        self.state().owed += 1;
    }

    /// Hands a counted release to the keeper.
    pub(crate) fn hand_in(&self, owed: Owed) {
        let mut state = self.state();
        if state.ended {
            // Its claims ended with it, or lapse with nobody renewing them.
            state.owed -= 1;
            drop(state);
            drop(owed);
            self.quiet.notify_waiters();
            return;
        }
        state.inbox.push(owed);
        drop(state);
        self.wake.notify_one();
    }

    /// Counts a release out that the store did not answer for long. The gate opens; it is tried again every ttl for as long as
    /// something else keeps the session alive.
    pub(crate) fn give_up(&self, mut owed: Owed) {
        let pass = owed.pass.take();
        (owed.under_way, owed.from) = (None, self.clock.now().plus(self.ttl));
        let mut state = self.state();
        state.owed -= 1;
        if !state.ended {
            state.given_up.push(owed);
        }
        let quiet = state.owed == 0 && state.grants.is_empty();
        drop((state, pass));
        self.wake.notify_one();
        if quiet {
            self.quiet.notify_waiters();
        }
    }

    /// Takes what was given up and is due again into the inbox. Nothing if only that would keep the session alive: it is closed then.
    fn try_again(&self, state: &mut State) {
        if state.grants.is_empty() && state.acquiring == 0 {
            return;
        }
        let now = self.clock.now();
        let due: Vec<_> = state.given_up.extract_if(.., |owed| owed.from <= now).collect();
        state.owed += due.len();
        state.inbox.extend(due);
    }

    /// Counts a release out.
    pub(crate) fn settled(&self, id: ClaimId) {
        let mut state = self.state();
        state.releasing.remove(&id);
        state.owed -= 1;
        let quiet = state.owed == 0 && state.grants.is_empty();
        drop(state);
        self.wake.notify_one();
        if quiet {
            self.quiet.notify_waiters();
        }
    }

    pub(crate) fn inbox(&self) -> Vec<Owed> {
        let mut state = self.state();
        self.try_again(&mut state);
        std::mem::take(&mut state.inbox)
    }

    /// The store did not know the session: no new claims with it, and its keeper asks at once.
    pub(crate) fn doubt(&self) {
        let mut state = self.state();
        state.doubted = true;
        let first = state.ending == Ending::Wanted;
        drop(state);
        if let Some(engine) = self.engine.upgrade().filter(|_| first) {
            engine.forgotten_by_the_store();
        }
        self.retire();
    }

    pub(crate) fn owes_nothing(&self) -> bool {
        self.state().owed == 0
    }

    pub(crate) fn holds_nothing(&self) -> bool {
        let state = self.state();
        state.owed == 0 && state.grants.is_empty()
    }

    /// No new claims; closed once nothing is held, owed or being acquired.
    pub(crate) fn retire(&self) {
        self.end(Ending::Retired);
    }

    /// Renewed no more; what it holds lapses.
    pub(crate) fn abandon(&self) {
        self.end(Ending::Abandoned);
    }

    fn end(&self, ending: Ending) {
        let mut state = self.state();
        state.ending = state.ending.max(ending);
        drop(state);
        self.wake.notify_one();
    }

    /// The lease is done. What was still to be released ended with the session, or lapses.
    pub(crate) fn finish(&self, end: LeaseEnd) {
        let mut state = self.state();
        state.ended = true;
        let (inbox, given_up) = (std::mem::take(&mut state.inbox), std::mem::take(&mut state.given_up));
        state.owed -= inbox.len();
        if end == LeaseEnd::Closed || self.clock.now() >= state.lease.lapses_at() {
            state.releasing.clear();
        }
        drop(state);
        drop((inbox, given_up));
        self.quiet.notify_waiters();
        self.stages.advance(|stage| {
            let open = matches!(stage, Stage::Opening { .. } | Stage::Ready(_));
            if open {
                *stage = Stage::Over;
            }
            open
        });
    }

    /// What the keeper has to tell the lease apart from answers.
    pub(crate) fn ending_event(&self) -> Option<LeaseEvent> {
        let mut state = self.state();
        let ending = state.ending;
        match ending {
            Ending::Abandoned => Some(LeaseEvent::Abandoned),
            Ending::Retired if std::mem::take(&mut state.doubted) => Some(LeaseEvent::Disturbed),
            Ending::Retired if state.owed == 0 && state.grants.is_empty() && state.acquiring == 0 => Some(LeaseEvent::Left),
            Ending::Retired | Ending::Wanted => None,
        }
    }

    /// Steps the lease and makes what follows from it known; `None` when another keeper has taken over, whose answers alone count.
    pub(crate) fn step(
        &self,
        keeper: u64,
        event: LeaseEvent,
        opened: Option<SessionId>,
        error: Option<StoreError>,
    ) -> Option<LeaseStep> {
        let now = self.clock.now();
        let mut state = self.state();
        // Under the lock, which a keeper takes over under too.
        if !self.is_kept_by(keeper) {
            return None;
        }
        let before = state.lease.health();
        if let (LeaseEvent::Opened { .. }, Some(id)) = (event, opened) {
            state.id = Some(id);
        }
        let step = state.lease.step(event, now, Chance(fastrand::u32(..)));
        let health = state.lease.health();
        let until = state.lease.believed_until().map_or(0, |until| until.since_origin().as_nanos() as u64);
        if let Health::Over(loss) = health {
            // First the reason, then the deadline: whoever finds the deadline passed finds the reason too.
            _ = self.loss.set(loss.unwrap_or(Loss::Shutdown));
        }
        self.believed_until.store(until, Ordering::Release);
        let id = state.id.clone();
        drop(state);
        self.report(before, health, id.as_ref(), error.as_ref());
        self.stages.advance(|stage| match (health, &mut *stage) {
            (Health::Opening, Stage::Opening { failures, error: last }) if matches!(event, LeaseEvent::Failed(_)) => {
                *failures += 1;
                *last = error;
                true
            }
            (Health::Sound | Health::Suspect, Stage::Opening { .. }) => match id {
                Some(id) => {
                    *stage = Stage::Ready(id);
                    true
                }
                None => false,
            },
            (Health::Over(None), Stage::Opening { .. }) => {
                *stage = match error {
                    Some(error) => Stage::Refused(error),
                    None => Stage::Over,
                };
                true
            }
            (Health::Over(_), Stage::Opening { .. } | Stage::Ready(_)) => {
                *stage = Stage::Over;
                true
            }
            _ => false,
        });
        Some(step)
    }

    fn report(&self, before: Health, now: Health, id: Option<&SessionId>, error: Option<&StoreError>) {
        match (before, now) {
            (Health::Opening, Health::Opening) => {
                if let Some(error) = error {
                    tracing::warn!(%error, "no session yet, trying again");
                }
            }
            (Health::Opening, Health::Sound) => tracing::debug!(session = ?id, "session open"),
            (Health::Sound, Health::Suspect) => {
                let left = self.believed_until().saturating_since(self.clock.now());
                tracing::warn!(session = ?id, ?left, error = error.map(tracing::field::display), "renewal late, locks suspect");
            }
            (Health::Suspect, Health::Sound) => tracing::info!(session = ?id, "renewed again, locks sound"),
            (Health::Sound | Health::Suspect, Health::Over(Some(loss))) => {
                tracing::warn!(session = ?id, reason = %loss, "session lost");
            }
            _ => {}
        }
    }

    /// When the keeper must look at its grants of its own accord.
    pub(crate) fn next_look(&self) -> Moment {
        let state = self.state();
        let timer = state.timers.first().map_or(Moment::FAR_FUTURE, |(moment, _)| *moment);
        let alive = !state.grants.is_empty() || state.acquiring > 0;
        let again = state.given_up.iter().map(|owed| owed.from).min().filter(|_| alive);
        let timer = timer.min(again.unwrap_or(Moment::FAR_FUTURE));
        match (state.lease.believed_until(), state.early.last()) {
            (Some(until), Some((stop_before, _))) => timer.min(until.minus(*stop_before)),
            _ => timer,
        }
    }

    /// The grants whose time for a look has come; each is returned once for a timer, and again and again while it is early.
    pub(crate) fn due(&self, now: Moment) -> Vec<Arc<Grant>> {
        let mut state = self.state();
        let mut due = Vec::new();
        while let Some((moment, id)) = state.timers.first().copied()
            && moment <= now
        {
            state.timers.pop_first();
            if let Some(grant) = state.grants.get(&id).cloned() {
                if now < grant.limits.hold_until && grant.limits.hold_until != Moment::FAR_FUTURE && !grant.is_told() {
                    state.timers.insert((grant.limits.hold_until, id));
                }
                due.push(grant);
            }
        }
        if let Some(until) = state.lease.believed_until() {
            let early = state.early.iter().rev().take_while(|(stop_before, _)| until.minus(*stop_before) <= now);
            due.extend(early.filter_map(|(_, id)| state.grants.get(id).cloned()));
        }
        due
    }

    /// All grants, for those who tell or look after them.
    pub(crate) fn grants(&self) -> Vec<Arc<Grant>> {
        self.state().grants.values().cloned().collect()
    }

    pub(crate) fn oldest_grant(&self) -> Option<Moment> {
        self.state().grants.values().map(|grant| grant.granted_at).min()
    }

    pub(crate) fn granted(&self) -> Vec<Granted> {
        let state = self.state();
        state.grants.values().map(|grant| Granted { claim: Arc::clone(&grant.claim), token: grant.token }).collect()
    }

    pub(crate) fn grant_of(&self, id: ClaimId) -> Option<Arc<Grant>> {
        self.state().grants.get(&id).cloned()
    }

    /// Whether a claim is held or its release not answered.
    pub(crate) fn still_has(&self, id: ClaimId) -> bool {
        let state = self.state();
        state.grants.contains_key(&id) || state.releasing.contains_key(&id)
    }

    pub(crate) fn held(&self) -> usize {
        self.state().grants.len()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Session")
            .field("id", &state.id)
            .field("health", &state.lease.health())
            .field("grants", &state.grants.len())
            .field("owed", &state.owed)
            .finish_non_exhaustive()
    }
}

/// An acquisition that may claim with the session.
#[derive(Debug)]
pub(crate) struct Enrolled(pub(crate) Arc<Session>);

impl Drop for Enrolled {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.acquiring -= 1;
        let wake = state.ending != Ending::Wanted;
        drop(state);
        if wake {
            self.0.wake.notify_one();
        }
    }
}
