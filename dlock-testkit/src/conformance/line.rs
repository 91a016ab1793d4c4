//! A wire for stores that have none.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Claim, Cursor, ErrorKind, FencingToken, Finding, Granted, Holder, Inspection, Interference, Key,
    LockBackend, Metadata, Ownership, Place, Release, Renewal, Session, SessionId, SessionRequest, Standing, Together, Woken,
};
use tokio::sync::watch;

/// A backend behind a line that can be cut and counts what is sent; for harnesses of stores in the same process, and for counting.
///
/// Clones are the same line.
#[derive(Clone)]
pub struct Line {
    inner: Arc<dyn LockBackend>,
    state: Arc<watch::Sender<State>>,
    calls: Arc<AtomicU64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sound,
    Cut,
    Failing,
}

impl Line {
    /// A sound line to this backend.
    pub fn new(inner: Arc<dyn LockBackend>) -> Self {
        Self { inner, state: Arc::new(watch::Sender::new(State::Sound)), calls: Arc::default() }
    }

    /// Nothing passes, in either direction, until it is [healed](Self::heal).
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Every call fails at once and is not applied, until it is [healed](Self::heal).
    pub fn fail(&self) {
        self.state.send_replace(State::Failing);
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.state.send_replace(State::Sound);
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    async fn carry<T>(&self, call: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if *self.state.borrow() == State::Failing {
            return Err(BackendError::new(ErrorKind::Transient, "the line fails, as a test wants"));
        }
        self.passable().await;
        let answer = call.await;
        self.passable().await;
        answer
    }

    async fn passable(&self) {
        _ = self.state.subscribe().wait_for(|state| *state != State::Cut).await;
    }
}

#[async_trait]
impl LockBackend for Line {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        self.carry(self.inner.open(request)).await
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        self.carry(self.inner.renew(session)).await
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        self.carry(self.inner.audit(session, claims)).await
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.carry(self.inner.close(session)).await
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.carry(self.inner.claim(session, claim, place)).await
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        self.carry(self.inner.wait(session, claim, cursor)).await
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Standing, BackendError> {
        self.carry(self.inner.confirm(session, claim, cursor)).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        self.carry(self.inner.release(session, claim)).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        self.carry(self.inner.inspect(key)).await
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        self.carry(self.inner.disturbed(session, granted, cursor)).await
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        self.carry(self.inner.amend(session, claim, metadata)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        self.carry(self.inner.list(prefix)).await
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        self.carry(self.inner.changed(key, cursor)).await
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        self.carry(self.inner.evict(key, token)).await
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        self.carry(self.inner.claim_all(session, claims)).await
    }

    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        self.inner.ownership(session, granted)
    }

    async fn probe(&self) -> Vec<Finding> {
        let found = self.carry(async { Ok(self.inner.probe().await) }).await;
        found.unwrap_or_else(|error| Finding::unanswered(&error, "heal the line"))
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("inner", &self.inner).finish_non_exhaustive()
    }
}
