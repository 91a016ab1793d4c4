//! One session of this locker: what is believed of it, what it holds, and what it still owes the store.
//!
//! Everyone may look and hand things in; only the session's [keeper](crate::keeper) steps its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use dlock_core::{Chance, ClaimId, Health, Lease, LeaseEnd, LeaseEvent, LeaseStep, LockBackend, Loss, Moment, SessionId};
use tokio::sync::Notify;

use crate::admission::Admission;
use crate::clock::Clock;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::grant::Grant;
use crate::measure::Suspect;
use crate::stage::{Stage, Stages};

mod holdings;

pub(crate) use holdings::Owed;

pub(crate) struct Session {
    engine: Weak<Engine>,
    pub(crate) backend: Arc<dyn LockBackend>,
    pub(crate) admission: Admission,
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
    /// When that keeper looks at its grants again if nobody wakes it, in nanoseconds on the clock; the far future while it is about to find out.
    looks_at: AtomicU64,
    /// The store answered as if a grant were not held.
    audit_wanted: AtomicBool,
}

struct State {
    lease: Lease,
    suspect: Suspect,
    id: Option<SessionId>,
    /// In an order that is the same in every run, like everything that others can see the order of.
    grants: BTreeMap<ClaimId, Arc<Grant>>,
    /// When to look at a grant of its own accord: its `hold_at_most`, or a report.
    timers: BTreeSet<(Moment, ClaimId)>,
    /// When the keeper has to look at those that were granted since it last looked.
    look_by: Moment,
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
            suspect: Suspect::new(),
            id: None,
            grants: BTreeMap::new(),
            timers: BTreeSet::new(),
            look_by: Moment::FAR_FUTURE,
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
            admission: engine.admission.clone(),
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
            looks_at: AtomicU64::new(u64::MAX),
            audit_wanted: AtomicBool::new(false),
        }
    }

    /// Makes sure that somebody keeps the session: for calls that may come on another runtime than the keeper's.
    pub(crate) fn ensure_kept(&self) {
        if let Some(engine) = self.engine.upgrade()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            engine.keep_all(self.clock.now());
        }
    }

    /// Claims the session for a new keeper, if it has none or the one it has is not heard of any more; the number of the new one.
    pub(crate) fn take_over(&self, now: Moment) -> Option<u64> {
        // Almost always it has one: that is found without the lock, and looked at again under it otherwise.
        if self.is_kept_at(now) {
            return None;
        }
        let mut state = self.state();
        if state.ended || self.is_kept_at(now) {
            return None;
        }
        state.keepers += 1;
        let number = state.keepers;
        self.keeper.store(number, Ordering::Release);
        self.promise(now);
        self.looks_now();
        drop(state);
        // A keeper that nobody drives any more must not use up a wake-up; and what was handed in to it is news to this one.
        self.wake.notify_waiters();
        self.wake.notify_one();
        Some(number)
    }

    /// Whether it has a keeper that was heard of as promised.
    fn is_kept_at(&self, now: Moment) -> bool {
        let heard_by = Moment::from_origin(Duration::from_nanos(self.heard_by.load(Ordering::Acquire)));
        self.keeper.load(Ordering::Acquire) != 0 && now < heard_by.plus(self.patience())
    }

    /// Whether this keeper still is the one.
    pub(crate) fn is_kept_by(&self, keeper: u64) -> bool {
        self.keeper.load(Ordering::Acquire) == keeper
    }

    /// The keeper will be heard of again by then.
    pub(crate) fn promise(&self, by: Moment) {
        self.heard_by.store(nanos(by), Ordering::Release);
    }

    /// The keeper is about to find out when to look next: whatever comes in from now on wakes it.
    pub(crate) fn looks_now(&self) {
        self.looks_at.store(u64::MAX, Ordering::SeqCst);
    }

    /// The keeper sleeps until then, unless it is woken. What came in after it last looked has seen that, and wakes it.
    pub(crate) fn looks_at(&self, keeper: u64, moment: Moment) {
        let _state = self.state();
        // A keeper that was replaced meanwhile says nothing of the other.
        if self.is_kept_by(keeper) {
            self.looks_at.store(nanos(moment), Ordering::SeqCst);
        }
    }

    /// Wakes the keeper if it would look later than that. Whatever it is to see then is in the state by now.
    fn have_looked_by(&self, moment: Moment) {
        if nanos(moment) < self.looks_at.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// The keeper is no more.
    pub(crate) fn unkept_by(&self, keeper: u64) {
        if self.keeper.compare_exchange(keeper, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // No renewal of it is late any more; the next keeper tells anew.
            self.state().suspect.tell(false);
        }
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
        !self.stages.is_over() && self.state().ending == Ending::Wanted
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

    /// The store did not know the session: no new claims with it, and its keeper asks at once.
    pub(crate) fn doubt(&self) {
        let mut state = self.state();
        state.doubted = true;
        let first = state.ending == Ending::Wanted;
        state.ending = state.ending.max(Ending::Retired);
        drop(state);
        if let Some(engine) = self.engine.upgrade().filter(|_| first) {
            engine.forgotten_by_the_store();
        }
        self.wake.notify_one();
    }

    /// Lets the keeper find out at once which grants were ended from outside.
    pub(crate) fn want_audit(&self) {
        self.audit_wanted.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether somebody wanted that since it was last asked.
    pub(crate) fn take_audit_wanted(&self) -> bool {
        self.audit_wanted.swap(false, Ordering::AcqRel)
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

    /// What the keeper has to tell the lease apart from answers; nothing to one that was replaced.
    pub(crate) fn ending_event(&self, keeper: u64) -> Option<LeaseEvent> {
        let mut state = self.state();
        if !self.is_kept_by(keeper) {
            return None;
        }
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
        state.suspect.tell(health == Health::Suspect);
        let until = state.lease.believed_until().map_or(0, nanos);
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
}

/// As it is kept in an atomic.
fn nanos(moment: Moment) -> u64 {
    moment.since_origin().as_nanos() as u64
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
