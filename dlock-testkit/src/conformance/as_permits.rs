//! Permits as a mutex: the last of several that nobody has, so that every case of an exclusive lock must hold for it.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Claim, Cursor, FencingToken, Finding, Granted, Hint, Holder, Inspection, Interference, Key,
    LockBackend, Metadata, Mode, Ownership, Place, Release, Renewal, Session, SessionId, SessionRequest, Standing, Together, Woken,
};
use tokio::sync::Mutex;

use super::harness::{Harness, Hook, Hooked, SecondProcess, Sent, UnderWay};

/// A harness whose clients ask for one of so many permits wherever a case asks for an exclusive lock; all but one are taken by somebody else.
///
/// With one permit in all it is every case of an exclusive lock. With more, an operator who deletes a whole key would free the others as well:
/// those cases are not shown.
pub struct AsPermits {
    harness: Arc<dyn Harness>,
    all: NonZeroU32,
    taken: Arc<Mutex<HashSet<Key>>>,
    allowed: Vec<Hook>,
}

/// Who has the other permits.
pub(crate) const OTHERS: &str = "host/0/has-the-other-permits";

impl AsPermits {
    /// The last of `all` permits on this store.
    ///
    /// # Panics
    /// If there are no permits at all.
    pub fn new(harness: impl Harness + 'static, all: u32) -> Self {
        Self::on(Arc::new(harness), NonZeroU32::new(all).expect("there is at least one permit"))
    }

    fn on(harness: Arc<dyn Harness>, all: NonZeroU32) -> Self {
        let mut allowed = harness.missing_hooks_allowed().to_vec();
        if all.get() > 1 {
            allowed.extend([Hook::Delete, Hook::PutForeign]);
        }
        // What another process asks for is an exclusive lock.
        allowed.push(Hook::SecondProcess);
        allowed.dedup();
        Self { harness, all, taken: Arc::default(), allowed }
    }
}

#[async_trait]
impl Harness for AsPermits {
    fn name(&self) -> String {
        format!("{}, the last of {} permits", self.harness.name(), self.all)
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        let inner = self.harness.client().await;
        let mut capabilities = inner.capabilities().clone();
        (capabilities.shared, capabilities.permits, capabilities.claims_at_once) = (false, false, None);
        let (harness, taken) = (Arc::clone(&self.harness), Arc::clone(&self.taken));
        Arc::new(LastPermit { inner, capabilities, harness, all: self.all, taken })
    }

    fn short_ttl(&self) -> Duration {
        self.harness.short_ttl()
    }

    fn long_ttl(&self) -> Duration {
        self.harness.long_ttl()
    }

    fn prompt(&self) -> Duration {
        self.harness.prompt()
    }

    fn missing_hooks_allowed(&self) -> &[Hook] {
        &self.allowed
    }

    async fn alone(&self) -> Option<Box<dyn Harness>> {
        let alone = self.harness.alone().await?;
        Some(Box::new(Self::on(Arc::from(alone), self.all)))
    }

    async fn heal(&self) {
        self.harness.heal().await;
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        self.harness.end_session(session).await
    }

    async fn delete(&self, key: &Key) -> Hooked {
        if self.all.get() > 1 { Err(Hook::Delete) } else { self.harness.delete(key).await }
    }

    async fn release_by_force(&self, key: &Key) -> Hooked {
        if self.all.get() == 1 {
            return self.harness.release_by_force(key).await;
        }
        let operator = self.harness.client().await;
        let inspection = operator.inspect(key).await.expect("a look must be answered");
        let holder = inspection.holders.iter().find(|holder| !is_other(holder)).expect("somebody holds the key");
        let token = holder.token.expect("a holder has a number");
        assert!(operator.evict(key, token).await.expect("an operator must be answered"), "it was the holder a moment ago");
        Ok(())
    }

    async fn put_foreign(&self, key: &Key, value: &str) -> Hooked {
        if self.all.get() > 1 { Err(Hook::PutForeign) } else { self.harness.put_foreign(key, value).await }
    }

    async fn sessions(&self, owner: &str) -> Hooked<usize> {
        self.harness.sessions(owner).await
    }

    fn lose_reply(&self, of: Sent) -> Hooked {
        self.harness.lose_reply(of)
    }

    fn hold(&self, what: Sent) -> Hooked<Box<dyn UnderWay>> {
        self.harness.hold(what)
    }

    async fn cut(&self) -> Hooked {
        self.harness.cut().await
    }

    async fn fail(&self) -> Hooked {
        self.harness.fail().await
    }

    async fn freeze(&self) -> Hooked {
        self.harness.freeze().await
    }

    async fn restart(&self) -> Hooked {
        self.harness.restart().await
    }

    async fn write_if(&self, ownership: &Ownership) -> Hooked<bool> {
        self.harness.write_if(ownership).await
    }

    async fn second_process(&self, _key: &Key, _ttl: Duration) -> Hooked<Box<dyn SecondProcess>> {
        Err(Hook::SecondProcess)
    }
}

/// A client that asks for a permit where it is asked for a lock.
struct LastPermit {
    inner: Arc<dyn LockBackend>,
    capabilities: Capabilities,
    harness: Arc<dyn Harness>,
    all: NonZeroU32,
    taken: Arc<Mutex<HashSet<Key>>>,
}

impl LastPermit {
    fn permit(&self, claim: &Claim) -> Claim {
        let mode = if claim.mode == Mode::Exclusive { Mode::Permits(self.all) } else { claim.mode };
        Claim { mode, ..claim.clone() }
    }

    fn granted(&self, granted: &Granted) -> Granted {
        Granted { claim: Arc::new(self.permit(&granted.claim)), token: granted.token }
    }

    /// Lets somebody else have all other permits of the key, the first time.
    async fn take_others(&self, key: &Key) {
        if self.all.get() == 1 {
            return;
        }
        let (harness, all, taken, key) = (Arc::clone(&self.harness), self.all, Arc::clone(&self.taken), key.clone());
        // Finished also if the claim is dropped meanwhile: half of them would be worse than none.
        let taking = tokio::spawn(async move {
            let mut taken = taken.lock().await;
            if !taken.contains(&key) {
                harness.take_permits(&key, OTHERS, all).await.expect("the harness must be able to take permits");
                taken.insert(key);
            }
        });
        taking.await.expect("the permits must be taken");
    }

    /// The others are in nobody's way: whoever waits, waits for somebody else.
    async fn hide_others(&self, standing: Standing, key: &Key) -> Result<Standing, BackendError> {
        Ok(match standing {
            Standing::Waiting { cursor, ahead, holder } if self.all.get() > 1 => {
                let ahead = ahead.map(|ahead| ahead.saturating_sub(self.all.get() - 1));
                Standing::Waiting { cursor, ahead, holder: self.seen(holder, key).await? }
            }
            Standing::Busy { holder, cursor } if self.all.get() > 1 => {
                Standing::Busy { holder: self.seen(holder, key).await?, cursor }
            }
            other => other,
        })
    }

    async fn seen(&self, holder: Option<Holder>, key: &Key) -> Result<Option<Holder>, BackendError> {
        match holder {
            Some(other) if is_other(&other) => Ok(self.inspect(key).await?.holders.into_iter().next()),
            holder => Ok(holder),
        }
    }
}

fn is_other(holder: &Holder) -> bool {
    holder.owner() == Some(OTHERS)
}

#[async_trait]
impl LockBackend for LastPermit {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        self.inner.open(request).await
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        self.inner.renew(session).await
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let claims: Vec<_> = claims.iter().map(|granted| self.granted(granted)).collect();
        self.inner.audit(session, &claims).await
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.inner.close(session).await
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.capabilities.check_mode(claim.mode)?;
        self.take_others(&claim.key).await;
        let standing = self.inner.claim(session, &self.permit(claim), place).await?;
        self.hide_others(standing, &claim.key).await
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        let mut woken = self.inner.wait(session, &self.permit(claim), cursor).await?;
        if let Hint::StillHeld { holder } = &mut woken.hint {
            *holder = self.seen(holder.take(), &claim.key).await?;
        }
        Ok(woken)
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Standing, BackendError> {
        let standing = self.inner.confirm(session, &self.permit(claim), cursor).await?;
        self.hide_others(standing, &claim.key).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        self.inner.release(session, &self.permit(claim)).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        let mut inspection = self.inner.inspect(key).await?;
        inspection.holders.retain(|holder| !is_other(holder));
        Ok(inspection)
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        let granted = granted.map(|granted| self.granted(granted));
        self.inner.disturbed(session, granted.as_ref(), cursor).await
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        self.inner.amend(session, &self.permit(claim), metadata).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        let mut held = self.inner.list(prefix).await?;
        held.retain(|(_, holder)| !is_other(holder));
        Ok(held)
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        self.inner.changed(key, cursor).await
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        self.inner.evict(key, token).await
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        self.capabilities.check_together(claims)?;
        self.inner.claim_all(session, claims).await
    }

    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        self.inner.ownership(session, &self.granted(granted))
    }

    async fn probe(&self) -> Vec<Finding> {
        self.inner.probe().await
    }
}

impl std::fmt::Debug for LastPermit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LastPermit").field("inner", &self.inner).field("all", &self.all).finish_non_exhaustive()
    }
}
