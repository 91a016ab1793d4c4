//! Where a case plays: a harness, names of its own, and clients with sessions.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    Claim, ClaimId, ClockSource, FencingToken, Granted, Key, LockBackend, Metadata, Mode, Order, Ownership, Place, Release,
    SessionId, SessionRequest, Standing,
};

use super::harness::{Harness, Hook, Hooked, SecondProcess, Sent, UnderWay};
use super::report::NotShown;

/// A harness with names that no other case uses, even on the same store.
pub struct Stage {
    harness: Box<dyn Harness>,
    space: String,
}

impl Stage {
    /// A stage on this harness.
    pub fn new(harness: impl Harness + 'static) -> Self {
        Self::on(Box::new(harness))
    }

    pub(super) fn on(harness: Box<dyn Harness>) -> Self {
        Self { harness, space: format!("case-{:08x}", fastrand::u32(..)) }
    }

    /// A stage on a store that nobody else uses.
    pub async fn alone(&self) -> Option<Stage> {
        self.harness.alone().await.map(Self::on)
    }

    /// The harness itself, for what is no hook.
    pub fn harness(&self) -> &dyn Harness {
        &*self.harness
    }

    /// What the keys of this stage begin with.
    pub fn prefix(&self) -> String {
        format!("{}/", self.space)
    }

    /// Whose sessions and claims these are, as clients of this stage say.
    pub fn owner(&self) -> String {
        format!("host/1/{}", self.space)
    }

    /// A key of this stage.
    pub fn key(&self, name: &str) -> Key {
        Key::new(format!("{}/{name}", self.space)).expect("cases name keys that are keys")
    }

    /// A new claim for a key of this stage.
    pub fn claim(&self, name: &str) -> Claim {
        let mut metadata = Metadata::new();
        metadata.insert("purpose", "conformance").expect("the name is not reserved");
        Claim {
            id: ClaimId::from_bits(fastrand::u128(..)),
            key: self.key(name),
            mode: Mode::Exclusive,
            owner: self.owner().into(),
            acquired_at: "2026-01-01T00:00:00Z".into(),
            metadata: Some(Arc::new(metadata)),
        }
    }

    /// Another claim for the key of this one.
    pub fn claim_like(&self, claim: &Claim) -> Claim {
        Claim { id: ClaimId::from_bits(fastrand::u128(..)), ..claim.clone() }
    }

    /// A new client with a session that no case outlives.
    pub async fn client(&self) -> Client {
        self.client_with(self.long_ttl()).await
    }

    /// A new client with a session of this ttl.
    pub async fn client_with(&self, ttl: Duration) -> Client {
        let backend = self.harness.client().await;
        let session = open(&*backend, ttl, &self.owner()).await;
        Client { backend, session, owner: self.owner() }
    }

    /// A ttl that a case can wait for.
    pub fn short_ttl(&self) -> Duration {
        self.harness.short_ttl()
    }

    /// A ttl that no case outlives.
    pub fn long_ttl(&self) -> Duration {
        self.harness.long_ttl()
    }

    /// How soon a client hears of what happens at the store, unless the machine is busy.
    pub fn prompt(&self) -> Duration {
        self.harness.prompt()
    }

    /// By when a client must have heard of it: [`prompt`](Self::prompt) in virtual time. In real time much later, since a machine that stands still for a
    /// while is no fault of the store's; news that is lost is later still.
    pub async fn patience(&self) -> Duration {
        if self.in_virtual_time().await { self.prompt() } else { self.prompt().max(Duration::from_secs(10)) }
    }

    /// Whether the store shares the runtime's clock, which a test pauses: then nothing takes longer than it must.
    pub async fn in_virtual_time(&self) -> bool {
        self.harness.client().await.capabilities().clock == ClockSource::Runtime
    }

    /// How long nothing may happen before a case takes it for quiet, where it goes on afterwards.
    pub fn moment(&self) -> Duration {
        self.prompt() / 10
    }

    /// What a hook brought; a missing one ends the case.
    fn hooked<T>(&self, hook: Hook, brought: Hooked<T>) -> Result<T, NotShown> {
        let allowed = self.harness.missing_hooks_allowed().contains(&hook);
        match brought {
            Ok(_) if allowed => panic!("{hook} is listed in missing_hooks_allowed, but the harness has it: take it off the list"),
            Ok(brought) => Ok(brought),
            Err(missing) => {
                assert_eq!(missing, hook, "the hook {hook} said that another is missing");
                Err(NotShown::HookMissing { hook, allowed })
            }
        }
    }

    /// See [`Harness::end_session`].
    pub async fn end_session(&self, session: &SessionId) -> Result<(), NotShown> {
        self.hooked(Hook::EndSession, self.harness.end_session(session).await)
    }

    /// See [`Harness::delete`].
    pub async fn delete(&self, key: &Key) -> Result<(), NotShown> {
        self.hooked(Hook::Delete, self.harness.delete(key).await)
    }

    /// See [`Harness::release_by_force`].
    pub async fn release_by_force(&self, key: &Key) -> Result<(), NotShown> {
        self.hooked(Hook::ReleaseByForce, self.harness.release_by_force(key).await)
    }

    /// See [`Harness::put_foreign`].
    pub async fn put_foreign(&self, key: &Key, value: &str) -> Result<(), NotShown> {
        self.hooked(Hook::PutForeign, self.harness.put_foreign(key, value).await)
    }

    /// See [`Harness::sessions`].
    pub async fn sessions(&self, owner: &str) -> Result<usize, NotShown> {
        self.hooked(Hook::Sessions, self.harness.sessions(owner).await)
    }

    /// See [`Harness::lose_reply`].
    pub fn lose_reply(&self, of: Sent) -> Result<(), NotShown> {
        self.hooked(Hook::LoseReply, self.harness.lose_reply(of))
    }

    /// See [`Harness::hold`].
    pub fn hold(&self, what: Sent) -> Result<Box<dyn UnderWay>, NotShown> {
        self.hooked(Hook::Hold, self.harness.hold(what))
    }

    /// See [`Harness::cut`].
    pub async fn cut(&self) -> Result<(), NotShown> {
        self.hooked(Hook::Cut, self.harness.cut().await)
    }

    /// See [`Harness::fail`].
    pub async fn fail(&self) -> Result<(), NotShown> {
        self.hooked(Hook::Fail, self.harness.fail().await)
    }

    /// See [`Harness::freeze`].
    pub async fn freeze(&self) -> Result<(), NotShown> {
        self.hooked(Hook::Freeze, self.harness.freeze().await)
    }

    /// See [`Harness::heal`].
    pub async fn heal(&self) {
        self.harness.heal().await;
    }

    /// See [`Harness::restart`].
    pub async fn restart(&self) -> Result<(), NotShown> {
        self.hooked(Hook::Restart, self.harness.restart().await)
    }

    /// See [`Harness::write_if`].
    pub async fn write_if(&self, ownership: &Ownership) -> Result<bool, NotShown> {
        self.hooked(Hook::WriteIf, self.harness.write_if(ownership).await)
    }

    /// See [`Harness::second_process`].
    pub async fn second_process(&self, key: &Key, ttl: Duration) -> Result<Box<dyn SecondProcess>, NotShown> {
        self.hooked(Hook::SecondProcess, self.harness.second_process(key, ttl).await)
    }
}

/// A client with an open session.
pub struct Client {
    /// The client.
    pub backend: Arc<dyn LockBackend>,
    /// Its session.
    pub session: SessionId,
    owner: String,
}

impl Client {
    /// Another session of the same client.
    pub async fn another_session(&self, ttl: Duration) -> Self {
        let backend = Arc::clone(&self.backend);
        let session = open(&*backend, ttl, &self.owner).await;
        Self { backend, session, owner: self.owner.clone() }
    }

    /// The same session in the hands of a client that remembers nothing.
    pub async fn without_memory(&self, stage: &Stage) -> Self {
        Self { backend: stage.harness.client().await, session: self.session.clone(), owner: self.owner.clone() }
    }

    /// Claims.
    pub async fn claim(&self, claim: &Claim, place: Place) -> Standing {
        self.backend.claim(&self.session, claim, place).await.expect("a claim must be answered")
    }

    /// Claims what must be granted.
    pub async fn held(&self, claim: &Claim) -> FencingToken {
        match self.claim(claim, Place::Try).await {
            Standing::Held { token } => token,
            other => panic!("{} was not granted: {other:?}", claim.key),
        }
    }

    /// Claims what must be granted, as [`audit`](LockBackend::audit) wants it.
    pub async fn granted(&self, claim: &Claim) -> Granted {
        let token = self.held(claim).await;
        Granted { claim: Arc::new(claim.clone()), token }
    }

    /// Releases, and says whether the claim had something.
    pub async fn release(&self, claim: &Claim) -> bool {
        match self.backend.release(&self.session, claim).await.expect("a release must be answered") {
            Release::Released | Release::Unfenced { had: true } => true,
            Release::NotHeld | Release::Unfenced { had: false } => false,
        }
    }

    /// How many hold a key.
    pub async fn holders(&self, key: &Key) -> usize {
        self.backend.inspect(key).await.expect("a look must be answered").holders.len()
    }

    /// The claim that holds a key.
    pub async fn holder(&self, key: &Key) -> Option<ClaimId> {
        self.backend.inspect(key).await.expect("a look must be answered").holders.first()?.claim()
    }

    /// Whether the store keeps places in a queue.
    pub fn is_fifo(&self) -> bool {
        self.backend.capabilities().order == Order::Fifo
    }

    /// How long a session of this ttl can live without a renewal.
    pub fn lapses_within(&self, ttl: Duration) -> Duration {
        ttl * self.backend.capabilities().lapses_within_ttls
    }
}

async fn open(backend: &dyn LockBackend, ttl: Duration, owner: &str) -> SessionId {
    let request = SessionRequest { id: SessionId::from_bits(fastrand::u128(..)), ttl, owner: owner.into() };
    let session = backend.open(&request).await.expect("a session must open");
    assert!(session.ttl >= ttl, "a store grants at least the ttl that was asked for, or refuses");
    session.id
}
