//! What all clones of a locker share: the store, the gates, the sessions and their keepers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::{Chance, LockBackend, Moment, RetryPolicy};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::clock::{Clock, WallClock};
use crate::gate::Gates;
use crate::keeper::Keeper;
use crate::options::LockerOptions;
use crate::session::Session;

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) backend: Arc<dyn LockBackend>,
    pub(crate) admission: Admission,
    pub(crate) clock: Clock,
    pub(crate) wall_clock: WallClock,
    pub(crate) options: LockerOptions,
    pub(crate) gates: Arc<Gates>,
    /// Cancelled when the locker is shut down.
    pub(crate) stopping: CancellationToken,
    /// Told when a session is done.
    pub(crate) forgotten: Notify,
    sessions: Mutex<Vec<Arc<Session>>>,
    /// Until when a session may live at the store that is kept by nobody here, in nanoseconds on the clock.
    unkept_until: AtomicU64,
    /// How many sessions the store did not know when they were first used, since the last grant.
    forgotten_in_a_row: AtomicU32,
}

impl Engine {
    pub(crate) fn new(backend: Arc<dyn LockBackend>, options: LockerOptions) -> Self {
        let (clock, admission) = (Clock::new(backend.capabilities().clock), Admission::new(backend.capabilities()));
        Self {
            backend,
            admission,
            clock,
            wall_clock: WallClock::default(),
            options,
            gates: Arc::default(),
            stopping: CancellationToken::new(),
            forgotten: Notify::new(),
            sessions: Mutex::default(),
            unkept_until: AtomicU64::new(0),
            forgotten_in_a_row: AtomicU32::new(0),
        }
    }

    /// A session that is kept by nobody here may live at the store, as its opening was never answered or it was left to lapse; it lapses by
    /// then.
    pub(crate) fn may_live(&self, lapses_by: Moment) {
        self.unkept_until.fetch_max(lapses_by.since_origin().as_nanos() as u64, Ordering::AcqRel);
    }

    /// Whether a session that is kept by nobody here may still live at the store.
    pub(crate) fn may_have_unkept_sessions(&self) -> bool {
        self.clock.now().since_origin().as_nanos() < u128::from(self.unkept_until.load(Ordering::Acquire))
    }

    /// The store did not know a session that was claimed with.
    pub(crate) fn forgotten_by_the_store(&self) {
        self.forgotten_in_a_row.fetch_add(1, Ordering::Relaxed);
    }

    /// A claim was granted: the store knows our sessions.
    pub(crate) fn known_to_the_store(&self) {
        self.forgotten_in_a_row.store(0, Ordering::Relaxed);
    }

    /// Before when no other session is opened: the first that the store forgot is replaced at once, those that follow are not.
    pub(crate) fn open_from(&self) -> Option<Moment> {
        let again = self.forgotten_in_a_row.load(Ordering::Relaxed).checked_sub(1).filter(|again| *again > 0)?;
        let pause = RetryPolicy::default().pause(again, Chance(fastrand::u32(..))).unwrap_or(RetryPolicy::MAX);
        Some(self.clock.now().plus(pause))
    }

    fn sessions_mut(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions_mut().clone()
    }

    /// The session to claim with, a fresh one if there is none; many callers share one. Must be called on a runtime.
    pub(crate) fn session(self: &Arc<Self>, now: Moment) -> Arc<Session> {
        let mut sessions = self.sessions_mut();
        let usable = sessions.iter().find(|session| session.is_usable()).map(Arc::clone);
        let session = usable.unwrap_or_else(|| {
            let session = Arc::new(Session::new(self));
            sessions.push(Arc::clone(&session));
            session
        });
        self.keep(&sessions, now);
        session
    }

    /// Starts a keeper for every session that has none: new ones, and those whose runtime has ended or is not driven.
    pub(crate) fn keep_all(self: &Arc<Self>, now: Moment) {
        self.keep(&self.sessions_mut(), now);
    }

    fn keep(self: &Arc<Self>, sessions: &[Arc<Session>], now: Moment) {
        for session in sessions {
            if let Some(number) = session.take_over(now) {
                // Owned by the session: ends when its lease is done, or another has taken over.
                self.options.spawn.run(Keeper::keep(Arc::clone(self), Arc::clone(session), number));
            }
        }
    }

    /// The last locker is gone: what is still held is kept, and each session closed once nothing is.
    pub(crate) fn leave(&self) {
        for session in self.sessions_mut().iter() {
            session.retire();
        }
    }

    /// The session is done.
    pub(crate) fn forget(&self, session: &Arc<Session>) {
        self.sessions_mut().retain(|other| !Arc::ptr_eq(other, session));
        self.forgotten.notify_waiters();
    }
}
