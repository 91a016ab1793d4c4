//! What all clones of a locker share: the store, the gates, the sessions and their keepers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::LockBackend;
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
        }
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
                let session = Arc::new(Session::new(Arc::clone(&self.backend), self.clock, self.options.ttl));
                sessions.push(Arc::clone(&session));
                session
            })
        };
        self.keep_all();
        session
    }

    /// Starts a keeper on this runtime for every session that has none: new ones, and those whose runtime has ended.
    pub(crate) fn keep_all(self: &Arc<Self>) {
        for session in self.sessions_mut().iter() {
            if session.kept.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                // Owned by the session: ends when its lease is done.
                tokio::spawn(Keeper::keep(Arc::clone(self), Arc::clone(session)));
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
