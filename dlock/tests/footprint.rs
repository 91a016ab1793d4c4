//! What a held lock costs this process: no task, and little heap.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock::{BackendError, Capabilities, FencingToken, Inspection, Key, LockBackend, Locker, Metadata};
use dlock_core::{
    Check, Claim, ClockSource, Cursor, Finding, Granted, Holder, Interference, Ownership, Place, Release, Renewal, Session,
    SessionId, SessionRequest, Standing, Together, TtlRange, Woken,
};

#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

/// A store that grants everything and keeps nothing, so that all of the heap is dlock's.
#[derive(Debug)]
struct Generous {
    capabilities: Capabilities,
    granted: AtomicU64,
}

impl Generous {
    fn new() -> Self {
        let ttl = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(3600) };
        let mut capabilities = Capabilities::minimal(ClockSource::Boot, ttl);
        capabilities.fences = true;
        Self { capabilities, granted: AtomicU64::new(1) }
    }
}

#[async_trait]
impl LockBackend for Generous {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        Ok(Session { id: request.id.clone(), ttl: request.ttl })
    }
    async fn renew(&self, _: &SessionId) -> Result<Renewal, BackendError> {
        Ok(Renewal::Renewed { ttl: Duration::from_secs(3600) })
    }
    async fn audit(&self, _: &SessionId, _: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        Err(BackendError::unsupported("audit"))
    }
    async fn close(&self, _: &SessionId) -> Result<(), BackendError> {
        Ok(())
    }
    async fn claim(&self, _: &SessionId, _: &Claim, _: Place) -> Result<Standing, BackendError> {
        let token = FencingToken::new(self.granted.fetch_add(1, Ordering::Relaxed)).expect("it starts at one");
        Ok(Standing::Held { token })
    }
    async fn wait(&self, _: &SessionId, _: &Claim, _: Cursor) -> Result<Woken, BackendError> {
        std::future::pending().await
    }
    async fn confirm(&self, _: &SessionId, _: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        Err(BackendError::unsupported("confirm"))
    }
    async fn release(&self, _: &SessionId, _: &Claim) -> Result<Release, BackendError> {
        Ok(Release::Released)
    }
    async fn inspect(&self, _: &Key) -> Result<Inspection, BackendError> {
        Ok(Inspection::default())
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
        vec![Finding::fine(Check::Reachable, "it is in this process")]
    }
}

#[tokio::test]
async fn a_held_lock_costs_no_task_and_at_most_a_kibibyte() {
    const LOCKS: usize = 4096;
    let locker = Locker::builder(Generous::new()).ttl(Duration::from_secs(3600)).build().unwrap();
    let first = locker.lock("first").await.unwrap();
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut guards = Vec::with_capacity(LOCKS);
    let profiler = dhat::Profiler::builder().testing().build();
    for n in 0..LOCKS {
        guards.push(locker.lock(format!("jobs/{n}")).await.unwrap());
    }
    let bytes = dhat::HeapStats::get().curr_bytes / LOCKS;
    println!("{bytes} bytes of heap for each held lock");
    drop(profiler);
    assert!(bytes > 0, "nothing was counted");
    assert!(bytes <= 1024, "{bytes} bytes");
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks);
    drop((first, guards));
}
