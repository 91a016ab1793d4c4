//! A store that can do no more than it must.

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Claim, Cursor, FencingToken, Finding, Granted, Holder, Inspection, Interference, Key, LockBackend,
    Metadata, Ownership, Place, Release, Renewal, Session, SessionId, SessionRequest, Standing, Together, Woken,
};
use dlock_testkit::memory::Memory;

/// A store in memory without what is optional.
#[derive(Debug)]
pub struct Plain {
    memory: Memory,
    capabilities: Capabilities,
}

impl Plain {
    pub fn new(memory: Memory) -> Self {
        let mut capabilities = memory.capabilities().clone();
        (capabilities.audits, capabilities.watched_claims, capabilities.amends) = (false, None, false);
        (capabilities.lists, capabilities.tells_changes, capabilities.evicts) = (false, false, false);
        Self { memory, capabilities }
    }
}

#[async_trait]
impl LockBackend for Plain {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        self.memory.open(request).await
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        self.memory.renew(session).await
    }

    async fn audit(&self, _: &SessionId, _: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        Err(BackendError::unsupported("audit"))
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.memory.close(session).await
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.memory.claim(session, claim, place).await
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        self.memory.wait(session, claim, cursor).await
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Standing, BackendError> {
        self.memory.confirm(session, claim, cursor).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        self.memory.release(session, claim).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        self.memory.inspect(key).await
    }

    async fn disturbed(&self, _: &SessionId, _: Option<&Granted>, _: Option<Cursor>) -> Result<Cursor, BackendError> {
        Err(BackendError::unsupported("disturbed"))
    }

    async fn amend(&self, _: &SessionId, _: &Claim, _: &Metadata) -> Result<bool, BackendError> {
        Err(BackendError::unsupported("amend"))
    }

    async fn list(&self, _: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        Err(BackendError::unsupported("list"))
    }

    async fn changed(&self, _: &Key, _: Option<Cursor>) -> Result<Cursor, BackendError> {
        Err(BackendError::unsupported("changed"))
    }

    async fn evict(&self, _: &Key, _: FencingToken) -> Result<bool, BackendError> {
        Err(BackendError::unsupported("evict"))
    }

    async fn claim_all(&self, _: &SessionId, _: &[Claim]) -> Result<Together, BackendError> {
        Err(BackendError::unsupported("claim_all"))
    }

    fn ownership(&self, _: &SessionId, _: &Granted) -> Result<Ownership, BackendError> {
        Err(BackendError::unsupported("ownership"))
    }

    async fn probe(&self) -> Vec<Finding> {
        self.memory.probe().await
    }
}
