//! What all clones of a locker share: the store, the gates, the sessions and their keepers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::{LockBackend, Moment};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::gate::Gates;
use crate::keeper::Keeper;
use crate::options::LockerOptions;
use crate::session::Session;

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) backend: Arc<dyn LockBackend>,
    pub(crate) clock: Clock,
    pub(crate) options: LockerOptions,
    pub(crate) gates: Arc<Gates>,
    /// Cancelled when the locker is shut down.
    pub(crate) stopping: CancellationToken,
    /// Told when a session is done.
    pub(crate) forgotten: Notify,
    sessions: Mutex<Vec<Arc<Session>>>,
    /// Until when a session may live at the store whose opening was never answered, in nanoseconds on the clock.
    unheard_until: AtomicU64,
}

impl Engine {
    pub(crate) fn new(backend: Arc<dyn LockBackend>, options: LockerOptions) -> Self {
        let clock = Clock::new(backend.capabilities().clock);
        Self {
            backend,
            clock,
            options,
            gates: Arc::default(),
            stopping: CancellationToken::new(),
            forgotten: Notify::new(),
            sessions: Mutex::default(),
            unheard_until: AtomicU64::new(0),
        }
    }

    /// A session may have been opened whose id is not known here; it lapses by then.
    pub(crate) fn may_have_opened(&self, lapses_by: Moment) {
        self.unheard_until.fetch_max(lapses_by.since_origin().as_nanos() as u64, Ordering::AcqRel);
    }

    /// Whether a session whose opening was never answered may still live at the store.
    pub(crate) fn may_have_unheard_sessions(&self) -> bool {
        self.clock.now().since_origin().as_nanos() < u128::from(self.unheard_until.load(Ordering::Acquire))
    }

    fn sessions_mut(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions_mut().clone()
    }

    /// The session to claim with, a fresh one if there is none; many callers share one. Must be called on a runtime.
    pub(crate) fn session(self: &Arc<Self>) -> Arc<Session> {
        let session = {
            let mut sessions = self.sessions_mut();
            let usable = sessions.iter().find(|session| session.is_usable()).map(Arc::clone);
            usable.unwrap_or_else(|| {
                let session = Arc::new(Session::new(self));
                sessions.push(Arc::clone(&session));
                session
            })
        };
        self.keep_all();
        session
    }

    /// Starts a keeper for every session that has none: new ones, and those whose runtime has ended or is not driven.
    pub(crate) fn keep_all(self: &Arc<Self>) {
        for session in self.sessions_mut().iter() {
            if let Some(number) = session.take_over() {
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
