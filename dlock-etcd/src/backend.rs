//! etcd as a store of locks.
//!
//! A claim is an entry of its own in the line of its key: made under the session's lease, in the order of etcd's revisions, and held once
//! nobody is ahead of it. The revision at which it was made is the token. An entry's name is no other claim's for as long as anything of its own may
//! arrive, so that asking again finds it; it is deleted as of that revision, so that a release which arrives late finds nothing. A claim that may still be under way when it is released leaves a tombstone behind, under
//! the same lease, without whose absence it has no effect.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Cause, ChosenBy, Claim, ClaimsPerKey, ClockSource, Cursor, ErrorKind, FencingToken, Finding,
    Granted, Hint, Holder, Inspection, Interference, Key, Limits, LockBackend, Metadata, Mode, Order, Ownership, Place,
    Publication, Release, Renewal, Session, SessionId, SessionRequest, Standing, Together, Woken,
};
use etcd_client::{Compare, CompareOp, GetOptions, SortOrder, Txn, TxnOp};
use tokio::sync::Notify;

use crate::api::{AT_ONCE, Api, unexpected};
use crate::classify::Asked;
use crate::config::{ConfigError, EtcdOptions};
use crate::dialer::Dialer;
use crate::endpoints::Endpoints;
use crate::line::{Ours, Shared, cursor};
use crate::notes::{ClaimNote, Notes};
use crate::probe;
use crate::several;
use crate::stream::Streams;
use crate::watch::{Change, Watched};
use crate::wire::{Entry, Layout, Lease, is_in, json, token as grant_number};

/// A store of locks on etcd; cheap to clone, clones share connections and knowledge.
#[derive(Clone, Debug)]
pub struct Etcd {
    shared: Arc<Shared>,
}

/// The largest published metadata. Whoever enters a line makes etcd read the values of all who stand in it.
const METADATA_BYTES: usize = 16 * 1024;
/// How many held keys of a session are watched.
const WATCHED_CLAIMS: usize = 256;
/// So many of those ahead of a claim are watched one by one; of more than that, the whole line.
const WATCHED_AHEAD: usize = 16;
/// How many keys are looked after in one transaction, of which etcd takes 128 operations.
const BATCH: usize = 64;

impl Etcd {
    /// A backend with these options; sends nothing. Connections are made by the first call, and belong to the runtime that it runs on.
    #[allow(clippy::needless_pass_by_value)] // options are given away, as to every backend
    pub fn new(options: EtcdOptions) -> Result<Self, ConfigError> {
        Self::on(&options, None, ClockSource::Boot)
    }

    /// A backend whose connections are made in another way, for tests against a simulated network in virtual time.
    ///
    /// Deadlines live on the runtime's clock, so that a test can pause it: not for production, where they must count the time for which
    /// the machine sleeps.
    pub fn with_dialer(options: &EtcdOptions, dialer: Arc<dyn Dialer>) -> Result<Self, ConfigError> {
        Self::on(options, Some(dialer), ClockSource::Runtime)
    }

    fn on(options: &EtcdOptions, dialer: Option<Arc<dyn Dialer>>, clock: ClockSource) -> Result<Self, ConfigError> {
        let mut capabilities = Capabilities::minimal(clock, options.ttl);
        capabilities.lapses_within_ttls = 2;
        capabilities.order = Order::Fifo;
        capabilities.claims_per_key = ClaimsPerKey::Many;
        capabilities.session_ids = ChosenBy::Client;
        capabilities.shared = true;
        capabilities.permits = true;
        capabilities.limits = Limits { metadata_bytes: METADATA_BYTES, ..Limits::default() };
        capabilities.fences = true;
        capabilities.audits = true;
        capabilities.watched_claims = Some(WATCHED_CLAIMS);
        capabilities.amends = true;
        capabilities.lists = true;
        capabilities.tells_changes = true;
        capabilities.evicts = true;
        capabilities.claims_at_once = Some(several::MOST);
        capabilities.calls_in_flight = NonZeroUsize::new(AT_ONCE);
        capabilities.guards_writes = true;
        let api = Api::new(Endpoints::new(options, dialer)?, options.attempt);
        let layout = Layout { namespace: options.namespace.clone() };
        Ok(Self {
            shared: Arc::new(Shared {
                api,
                layout,
                capabilities,
                notes: Mutex::new(Notes::default()),
                granted: Notify::new(),
                streams: Streams::default(),
            }),
        })
    }

    /// A backend configured by the environment, see [`EtcdOptions::from_env`].
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::new(EtcdOptions::from_env()?)
    }

    /// A backend at a URL, see [`EtcdOptions::from_url`].
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        Self::new(EtcdOptions::from_url(url)?)
    }

    /// The id of the cluster that tokens come from, once it has answered. Tokens of another cluster, and of one that was restored from a
    /// snapshot without raising its revisions, cannot be compared with these.
    pub fn cluster_id(&self) -> Option<u64> {
        self.shared.api.cluster()
    }
}

/// The value of an entry, if it is not too long for one.
fn value(publication: Publication<'_>) -> Result<Vec<u8>, BackendError> {
    let value = json(publication);
    if value.len() > METADATA_BYTES {
        let message = format!("the metadata takes {} bytes as JSON, this backend accepts {METADATA_BYTES}", value.len());
        return Err(BackendError::new(ErrorKind::Invalid, message));
    }
    Ok(value)
}

#[async_trait]
impl LockBackend for Etcd {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        let shared = &self.shared;
        let range = shared.capabilities.ttl;
        if !range.contains(request.ttl) {
            let message = format!(
                "opening a session: this etcd accepts a ttl from {:?} to {:?}, not {:?}",
                range.min, range.max, request.ttl
            );
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let Some(lease) = Lease::drawn(&request.id) else {
            return Err(BackendError::new(ErrorKind::Invalid, "opening a session: its id is no number that makes a lease"));
        };
        let (lease, ttl) = shared.api.grant(Some(lease), request.ttl).await?;
        shared.notes().opened(lease, ttl);
        Ok(Session { id: lease.session(), ttl })
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        let Some(lease) = Lease::of(session) else { return Ok(Renewal::Gone) };
        let shared = &self.shared;
        // What a lease is granted for never changes.
        let known = shared.notes().ttl(lease);
        let Some(asked) = shared.api.keep_alive(lease, known.is_none()).await? else {
            shared.notes().drop_lease(lease);
            return Ok(Renewal::Gone);
        };
        match known.or(asked) {
            Some(ttl) => {
                shared.notes().renewed(lease, ttl);
                Ok(Renewal::Renewed { ttl })
            }
            None => Err(BackendError::new(ErrorKind::Transient, "renewing the session: etcd did not say for how long")),
        }
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let (shared, lease) = (&self.shared, Lease::of(session));
        let mut found = Vec::new();
        for batch in claims.chunks(BATCH) {
            let asked = shared.asked("looking after held keys", false, &batch[0].claim.key);
            let mut operations = Vec::new();
            for granted in batch {
                let entry = shared.entry(lease.unwrap_or(Lease(0)), &granted.claim).await?;
                operations.push(TxnOp::get(entry, Some(GetOptions::new().with_keys_only())));
            }
            let look = || Txn::new().and_then(operations.as_slice());
            let reply = shared.api.txn(&asked, look).await?.map_err(|gone| unexpected(asked, gone))?;
            for (granted, result) in batch.iter().zip(reply.rest()) {
                let cause = match result.entries.first() {
                    Some(entry) if entry.token() == Some(granted.token) && Some(Lease(entry.lease)) == lease => continue,
                    Some(_) => Cause::TakenOver,
                    None => Cause::KeyDeleted,
                };
                found.push(Interference { claim: granted.claim.id, cause });
            }
        }
        Ok(found)
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        let Some(lease) = Lease::of(session) else { return Ok(()) };
        self.shared.api.revoke(lease).await?;
        self.shared.notes().drop_lease(lease);
        Ok(())
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.shared.capabilities.check_mode(claim.mode)?;
        let value = value(claim.publication())?;
        let Some(lease) = Lease::of(session) else { return Ok(Standing::SessionGone) };
        let shared = &self.shared;
        let entry = shared.begin(lease, claim).await?;
        let ours = Ours { lease, claim, entry: &entry };
        if shared.notes().is_withdrawn(claim.id) {
            // A withdrawal without an answer is made sure of first: it would take away what is granted now.
            Box::pin(shared.withdraw(ours)).await?;
            return Ok(Standing::ClaimGone);
        }
        let standing = shared.enter(ours, &value, place).await;
        match &standing {
            // What is refused leaves nothing; of what was never sent there is nothing to take back.
            Err(error) if error.kind() == ErrorKind::Conflict && shared.notes().may_have_something(claim.id) => {
                if let Err(left) = Box::pin(shared.withdraw(ours)).await {
                    return Err(BackendError::new(ErrorKind::Ambiguous, left.message().to_owned()).caused_by(left));
                }
            }
            Err(error) if error.kind() == ErrorKind::Ambiguous => {}
            Ok(Standing::Busy { .. } | Standing::ClaimGone) | Err(_) => shared.notes().left_nothing(claim.id),
            Ok(_) => {}
        }
        standing
    }

    async fn wait(&self, _: &SessionId, claim: &Claim, since: Cursor) -> Result<Woken, BackendError> {
        let shared = &self.shared;
        let awaited = shared.notes().claim(claim.id).map(|note| (note.lease, note.awaited().to_vec()));
        // Asking anew finds out what we do not know.
        let Some((lease, awaited)) = awaited.filter(|(_, awaited)| !awaited.is_empty()) else {
            return Ok(Woken { cursor: since, hint: Hint::MaybeFree });
        };
        let own = shared.notes().entry(&shared.layout, lease, claim);
        let asked = shared.asked("waiting for the key", false, &claim.key);
        let deletion = |key: &Vec<u8>| Watched { key: key.clone(), end: None, deletions: true };
        let watched = if awaited.len() < WATCHED_AHEAD {
            awaited.iter().chain([&own]).map(deletion).collect()
        } else {
            let line = shared.layout.line(&claim.key);
            vec![Watched { key: line.start, end: Some(line.end), deletions: true }]
        };
        let Ok(mut watching) = shared.api.watch(asked, &watched, next(since)).await? else {
            return Ok(Woken { cursor: since, hint: Hint::MaybeFree });
        };
        let mut since = since;
        loop {
            let Ok(changes) = shared.api.news(asked, &mut watching).await? else {
                // What happened since is not kept any more: looking again tells where the claim stands.
                return Ok(Woken { cursor: since, hint: Hint::MaybeFree });
            };
            since = latest(since, &changes);
            let concerns = |hint: Hint, key: &Vec<u8>| changes.iter().any(|change| change.key == *key).then_some(hint);
            let gone = concerns(Hint::ClaimGone, &own);
            if let Some(hint) = gone.or_else(|| awaited.iter().find_map(|key| concerns(Hint::MaybeFree, key))) {
                return Ok(Woken { cursor: since, hint });
            }
        }
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        let Some(lease) = Lease::of(session) else { return Ok(Standing::SessionGone) };
        let entry = self.shared.entry(lease, claim).await?;
        let created = self.shared.notes().claim(claim.id).filter(|note| note.lease == lease).and_then(ClaimNote::created);
        self.shared.stand(Ours { lease, claim, entry: &entry }, created).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let Some(lease) = Lease::of(session) else { return Ok(Release::NotHeld) };
        let entry = self.shared.entry(lease, claim).await?;
        self.shared.withdraw(Ours { lease, claim, entry: &entry }).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        let line = self.shared.layout.line(key);
        let asked = self.shared.asked("looking at the key", false, key);
        let in_line = self.shared.read_all(asked, &line.start, &line.end, SortOrder::Ascend).await?;
        let in_line: Vec<Entry> = in_line.into_iter().filter(|entry| entry.is_in(&line.start)).collect();
        let (holders, waiters) = in_line.split_at(holders(&in_line));
        let mut inspection = Inspection::default();
        inspection.holders = holders.iter().map(Entry::holder).collect();
        inspection.waiters = Some(waiters.iter().map(Entry::holder).collect());
        Ok(inspection)
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        since: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        let since = since.unwrap_or_default();
        let Some(lease) = Lease::of(session) else { return Ok(since) };
        match granted {
            Some(granted) => self.claim_disturbed(lease, granted, since).await,
            None => Box::pin(self.session_disturbed(lease, since)).await,
        }
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        let mut amended = claim.clone();
        amended.metadata = Some(Arc::new(metadata.clone()));
        let value = value(amended.publication())?;
        let Some(lease) = Lease::of(session) else { return Ok(false) };
        let shared = &self.shared;
        let entry = shared.entry(lease, claim).await?;
        let ours = Ours { lease, claim, entry: &entry };
        let known = shared.notes().claim(claim.id).filter(|note| note.lease == lease).and_then(ClaimNote::created);
        // First in line once, it stays first for as long as its entry is the same.
        let Standing::Held { token } = shared.stand(ours, known).await? else { return Ok(false) };
        if known.is_some_and(|known| grant_number(known) != Some(token)) {
            return Ok(false);
        }
        shared.rewrite(ours, token, &value).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        let shared = &self.shared;
        let range = shared.layout.under(prefix);
        let asked = Asked { what: "listing the held keys", writes: false, keys: Some((&shared.layout.namespace, prefix)) };
        let mut lines: BTreeMap<Key, Vec<Entry>> = BTreeMap::new();
        for entry in self.shared.read_all(asked, &range.start, &range.end, SortOrder::Ascend).await? {
            if let Some(key) = shared.layout.lock_of(&entry).filter(|key| key.as_str().starts_with(prefix)) {
                lines.entry(key).or_default().push(entry);
            }
        }
        let held = lines.iter().flat_map(|(key, line)| line[..holders(line)].iter().map(|entry| (key.clone(), entry.holder())));
        Ok(held.collect())
    }

    async fn changed(&self, key: &Key, since: Option<Cursor>) -> Result<Cursor, BackendError> {
        let shared = &self.shared;
        let line = shared.layout.line(key);
        let asked = shared.asked("watching the key", false, key);
        let Some(mut since) = since else { return self.now(asked, &line.start).await };
        let watched = [Watched { key: line.start.clone(), end: Some(line.end), deletions: false }];
        let Ok(mut watching) = shared.api.watch(asked, &watched, next(since)).await? else {
            return self.now(asked, &line.start).await;
        };
        loop {
            let Ok(changes) = shared.api.news(asked, &mut watching).await? else { return self.now(asked, &line.start).await };
            since = latest(since, &changes);
            if changes.iter().any(|change| is_in(&change.key, &line.start)) {
                return Ok(since);
            }
        }
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        let shared = &self.shared;
        let line = shared.layout.line(key);
        let reading = shared.asked("looking at the key", false, key);
        let in_line = self.shared.read_all(reading, &line.start, &line.end, SortOrder::Ascend).await?;
        let in_line: Vec<Entry> = in_line.into_iter().filter(|entry| entry.is_in(&line.start)).collect();
        let holding = in_line.iter().take(holders(&in_line)).find(|holder| holder.token() == Some(token));
        let Some(holder) = holding else { return Ok(false) };
        let asked = shared.asked("releasing by force", true, key);
        let same = Compare::create_revision(holder.key.as_slice(), CompareOp::Equal, holder.created);
        let txn = || Txn::new().when([same.clone()]).and_then([TxnOp::delete(holder.key.as_slice(), None)]);
        Ok(shared.api.txn(&asked, txn).await?.map_err(|refusal| unexpected(asked, refusal))?.succeeded)
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        let capabilities = &self.shared.capabilities;
        let mut values = Vec::new();
        for claim in claims {
            capabilities.check_mode(claim.mode)?;
            values.push(value(claim.publication())?);
        }
        capabilities.check_together(claims)?;
        let Some(lease) = Lease::of(session) else { return Ok(Together::SessionGone) };
        let together = self.shared.claim_all(lease, claims, &values).await;
        if together.as_ref().is_err_and(|error| error.kind() != ErrorKind::Ambiguous) {
            for claim in claims {
                self.shared.notes().left_nothing(claim.id);
            }
        }
        together
    }

    /// The name of the claim's entry and the revision at which it was made: `Compare::create_revision(key, CompareOp::Equal, revision)`.
    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        let lease = Lease::of(session).unwrap_or(Lease(0));
        let entry = self.shared.notes().entry(&self.shared.layout, lease, &granted.claim);
        Ok(Ownership::new(String::from_utf8_lossy(&entry), session.clone(), granted.token.get()))
    }

    async fn probe(&self) -> Vec<Finding> {
        probe::probe(&self.shared).await
    }
}

impl Etcd {
    /// The present revision, from a linearizable read.
    async fn now(&self, asked: Asked<'_>, key: &[u8]) -> Result<Cursor, BackendError> {
        let options = GetOptions::new().with_count_only();
        let page = self.shared.api.page(asked, key, options).await?.map_err(|refusal| unexpected(asked, refusal))?;
        Ok(cursor(page.revision))
    }

    /// Returns when the entry is gone, was made anew, or hangs on another lease.
    async fn claim_disturbed(&self, lease: Lease, granted: &Granted, since: Cursor) -> Result<Cursor, BackendError> {
        let shared = &self.shared;
        let asked = shared.asked("watching the held key", false, &granted.claim.key);
        let ours = |seen: &Entry| seen.token() == Some(granted.token) && seen.lease == lease.0;
        // What is seldom done is done apart: this is kept for as long as the lock is held.
        let mut key = Box::pin(shared.entry(lease, &granted.claim)).await?;
        let mut since = Cursor(since.0.max(granted.token.get()));
        loop {
            let mut watch = shared.streams.watch(key, false, next(since));
            while let Ok(changes) = watch.news(&shared.api, &asked).await? {
                since = latest(since, &changes);
                if changes.iter().any(|change| !change.entry.as_ref().is_some_and(ours)) {
                    return Ok(since);
                }
            }
            key = watch.key();
            drop(watch);
            // What happened so long ago is not kept any more: look, and watch from now on.
            let (entry, revision) = Box::pin(self.look(asked, &key)).await?;
            since = cursor(revision);
            if !entry.as_ref().is_some_and(ours) {
                return Ok(since);
            }
        }
    }

    /// Returns when the lease may be gone. etcd tells nobody of a lease; the keys on it tell.
    async fn session_disturbed(&self, lease: Lease, since: Cursor) -> Result<Cursor, BackendError> {
        let shared = &self.shared;
        let asked = Asked { what: "watching the session", writes: false, keys: None };
        let mut since = since;
        loop {
            let granted = shared.granted.notified();
            let held = shared.notes().held_by(&shared.layout, lease);
            let Some((entry, created)) = held else {
                // A session that holds nothing can end unheard.
                granted.await;
                continue;
            };
            let from = Cursor(since.0.max(created.unsigned_abs()));
            let mut watch = shared.streams.watch(entry.clone(), true, next(from));
            if let Ok(changes) = watch.news(&shared.api, &asked).await? {
                // Our own release of it is no news of the session.
                if shared.notes().is_held(&shared.layout, lease, &entry, created) {
                    return Ok(latest(since, &changes));
                }
                continue;
            }
            drop(watch);
            // What happened so long ago is not kept any more: look, and watch from now on.
            let (found, revision) = Box::pin(self.look(asked, &entry)).await?;
            if found.is_none_or(|found| found.created != created) && shared.notes().is_held(&shared.layout, lease, &entry, created)
            {
                return Ok(cursor(revision));
            }
            since = cursor(revision);
        }
    }

    /// An entry as it is now, without its value, and the revision at which that was read.
    async fn look(&self, asked: Asked<'_>, key: &[u8]) -> Result<(Option<Entry>, i64), BackendError> {
        let page = self.shared.api.page(asked, key, GetOptions::new().with_keys_only()).await?;
        let page = page.map_err(|refusal| unexpected(asked, refusal))?;
        Ok((page.found.entries.into_iter().next(), page.revision))
    }
}

/// How many of a line hold its key, the first come first.
fn holders(line: &[Entry]) -> usize {
    Mode::holders(line.iter().map(Entry::mode))
}

/// The first revision after a cursor.
fn next(since: Cursor) -> i64 {
    since.0.cast_signed() + 1
}

fn latest(since: Cursor, changes: &[Change]) -> Cursor {
    changes.iter().map(|change| cursor(change.revision)).fold(since, Cursor::max)
}
