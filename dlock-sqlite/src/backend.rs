//! SQLite as a store of locks.
//!
//! A claim is a row in the line of its key, in the order of the numbers that the file gives out; it is held once those ahead of it leave room. Its
//! number is the token. A session is a row with the moment at which it lapses. Every call is one transaction, done by one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, ChosenBy, Claim, ClaimsPerKey, ClockSource, Cursor, ErrorKind, FencingToken, Finding, Granted,
    Holder, Inspection, Interference, Key, LockBackend, Metadata, Order, Ownership, Place, Release, Renewal, Session, SessionId,
    SessionRequest, Standing, Together, Woken,
};

use crate::config::{ConfigError, SqliteOptions};
use crate::file::File;
use crate::host::Host;
use crate::line::{About, Change, json};
use crate::notes::Notes;
use crate::probe;
use crate::watcher::Watcher;
use crate::wire::{Direct, Sent, Wire};
use crate::worker::{self, Worker};

/// A store of locks in a file of this host; cheap to clone, clones share two threads, one that has the file and one that waits.
#[derive(Clone, Debug)]
pub struct Sqlite {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    capabilities: Capabilities,
    worker: Worker,
    watcher: Arc<Watcher>,
    notes: Notes,
    host: Host,
    /// When the last amendment was called for.
    amended: AtomicI64,
}

/// How many held keys are watched. Each costs a look when it changes, and nothing else.
const WATCHED_CLAIMS: usize = 4_096;
/// How many keys are taken in one transaction, which keeps all others from changing anything.
const CLAIMS_AT_ONCE: usize = 64;

impl Sqlite {
    /// A backend with these options. The file is opened, and made if there is none, by the first call.
    #[allow(clippy::needless_pass_by_value)] // options are given away, as to every backend
    pub fn new(options: SqliteOptions) -> Result<Self, ConfigError> {
        Self::on(&options, Host::this(), Arc::new(Direct))
    }

    /// A backend at a URL, see [`SqliteOptions::from_url`].
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        Self::new(SqliteOptions::from_url(url)?)
    }

    /// A backend whose requests go over this wire, for tests.
    pub fn with_wire(options: &SqliteOptions, wire: Arc<dyn Wire>) -> Result<Self, ConfigError> {
        Self::on(options, Host::this(), wire)
    }

    pub(crate) fn on(options: &SqliteOptions, host: Host, wire: Arc<dyn Wire>) -> Result<Self, ConfigError> {
        let mut capabilities = Capabilities::minimal(ClockSource::Boot, options.ttl);
        capabilities.lapses_within_ttls = 1;
        capabilities.order = Order::Fifo;
        capabilities.claims_per_key = ClaimsPerKey::Many;
        capabilities.session_ids = ChosenBy::Client;
        capabilities.shared = true;
        capabilities.permits = true;
        capabilities.fences = true;
        capabilities.audits = true;
        capabilities.watched_claims = Some(WATCHED_CLAIMS);
        capabilities.amends = true;
        capabilities.lists = true;
        capabilities.tells_changes = true;
        capabilities.evicts = true;
        capabilities.claims_at_once = Some(CLAIMS_AT_ONCE);
        capabilities.guards_writes = true;
        let place = worker::Place { path: options.path().to_owned(), host: host.clone() };
        let watcher = Watcher::start(place.clone()).map_err(ConfigError::Thread)?;
        let worker = Worker::start(place, Arc::clone(&watcher), wire).map_err(|error| {
            watcher.end();
            ConfigError::Thread(error)
        })?;
        let (notes, amended) = (Notes::default(), AtomicI64::new(0));
        Ok(Self { shared: Arc::new(Shared { capabilities, worker, watcher, notes, host, amended }) })
    }

    /// What is published as it stands in the file, if it fits.
    fn fitting(&self, published: &Metadata) -> Result<String, BackendError> {
        let (json, limit) = (json(published), self.shared.capabilities.limits.metadata_bytes);
        if json.len() > limit {
            let message = format!("the metadata takes {} bytes as JSON, this backend accepts {limit}", json.len());
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        Ok(json)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.watcher.end();
    }
}

#[async_trait]
impl LockBackend for Sqlite {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        let range = self.shared.capabilities.ttl;
        if !range.contains(request.ttl) {
            let message = format!(
                "opening a session: this backend accepts a ttl from {:?} to {:?}, not {:?}",
                range.min, range.max, request.ttl
            );
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let SessionRequest { id, ttl, owner } = request.clone();
        let session = Session { id: id.clone(), ttl };
        let nanos = i64::try_from(ttl.as_nanos()).unwrap_or(i64::MAX);
        let open = move |change: &Change<'_>| {
            change.open(&id, &owner, nanos)?;
            Ok(())
        };
        self.shared.worker.ask(Sent::Open, |file| file.change_of(About::Sessions, open)).await?;
        Ok(session)
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        let session = session.clone();
        let notes = self.shared.notes.clone();
        let renew = move |file: &mut File| {
            let ttl = file.change_of(About::Sessions, |change| Ok(change.renew(&session)?))?;
            if ttl.is_none() {
                notes.ended(&session);
            }
            Ok(ttl)
        };
        let ttl = self.shared.worker.ask(Sent::Renew, renew).await?;
        Ok(match ttl.and_then(|nanos| u64::try_from(nanos).ok()) {
            Some(nanos) => Renewal::Renewed { ttl: Duration::from_nanos(nanos) },
            None => Renewal::Gone,
        })
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let (session, claims) = (session.clone(), claims.to_vec());
        self.shared.worker.ask(Sent::Look, move |file| file.read(|seen| seen.audit(&session, &claims))).await
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        let (session, notes) = (session.clone(), self.shared.notes.clone());
        let close = move |file: &mut File| {
            file.change(|change| Ok(change.close(&session)?))?;
            notes.ended(&session);
            Ok(())
        };
        self.shared.worker.ask(Sent::Release, close).await
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        self.shared.capabilities.check_mode(claim.mode)?;
        let published = self.fitting(&claim.published())?;
        let (session, claim, notes) = (session.clone(), claim.clone(), self.shared.notes.clone());
        // Noted before it is sent, and until it has arrived, wherever this future is dropped.
        let under_way = notes.sending(&session, claim.id);
        let enter = move |file: &mut File| {
            // Goes with this, before the answer.
            let _arrives = &under_way;
            let standing =
                file.change_of(About::Claim(&session, &claim), |change| change.claim(&session, &claim, &published, place));
            match &standing {
                Ok(Standing::Held { .. } | Standing::Waiting { .. }) => {}
                Err(error) if error.kind() == ErrorKind::Ambiguous || file.was_put_off() => {}
                Ok(Standing::SessionGone) => notes.ended(&session),
                _ => notes.left_nothing(claim.id),
            }
            standing
        };
        self.shared.worker.ask_at_once(Sent::Claim, enter).await
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, _: Cursor) -> Result<Woken, BackendError> {
        let (session, waiting) = (session.clone(), claim.clone());
        self.shared.watcher.until(Some(claim.key.clone()), move |seen| seen.woken(&session, &waiting)).await
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        let (session, claim, notes) = (session.clone(), claim.clone(), self.shared.notes.clone());
        let confirm = move |file: &mut File| {
            let standing = file.read(|seen| seen.confirm(&session, &claim))?;
            if standing == Standing::SessionGone {
                notes.ended(&session);
            }
            Ok(standing)
        };
        self.shared.worker.ask(Sent::Look, confirm).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let (session, claim, notes) = (session.clone(), claim.clone(), self.shared.notes.clone());
        let release = move |file: &mut File| {
            // Asked now: copies that were sent before have arrived, unless something stood in their way.
            let may_be_under_way = notes.may_be_under_way(claim.id);
            let release = |change: &Change<'_>| change.release(&session, &claim, may_be_under_way);
            let released = file.change_of(About::Key(&claim.key), release)?;
            notes.forget(claim.id);
            Ok(released)
        };
        self.shared.worker.ask_at_once(Sent::Release, release).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        let key = key.clone();
        self.shared.worker.ask(Sent::Look, move |file| file.read(|seen| seen.inspect(&key))).await
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        let session = session.clone();
        let watcher = &self.shared.watcher;
        match granted.cloned() {
            Some(granted) => {
                let key = granted.claim.key.clone();
                watcher.until(Some(key), move |seen| seen.claim_disturbed(&session, &granted, cursor)).await
            }
            None => watcher.until(None, move |seen| seen.session_disturbed(&session)).await,
        }
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        let mut amended = claim.clone();
        amended.metadata = Some(Arc::new(metadata.clone()));
        let published = self.fitting(&amended.published())?;
        // Of two calls the later one wins, whichever arrives last.
        let now = self.shared.host.now();
        let last = self.shared.amended.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1)));
        let called = now.max(last.unwrap_or_default() + 1);
        let session = session.clone();
        let amend = move |file: &mut File| {
            file.change_of(About::Key(&amended.key), |change| change.amend(&session, &amended, &published, called))
        };
        self.shared.worker.ask(Sent::Amend, amend).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        let prefix = prefix.to_owned();
        self.shared.worker.ask(Sent::Look, move |file| file.read(|seen| seen.list(&prefix))).await
    }

    async fn changed(&self, key: &Key, since: Option<Cursor>) -> Result<Cursor, BackendError> {
        let followed = key.clone();
        self.shared.watcher.until(Some(key.clone()), move |seen| seen.key_changed(&followed, since)).await
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        let key = key.clone();
        self.shared
            .worker
            .ask(Sent::Release, move |file| file.change_of(About::Key(&key), |change| change.evict(&key, token)))
            .await
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        let capabilities = &self.shared.capabilities;
        let mut published = Vec::new();
        for claim in claims {
            capabilities.check_mode(claim.mode)?;
            published.push(self.fitting(&claim.published())?);
        }
        capabilities.check_together(claims)?;
        let (session, claims, notes) = (session.clone(), claims.to_vec(), self.shared.notes.clone());
        let under_way: Vec<_> = claims.iter().map(|claim| notes.sending(&session, claim.id)).collect();
        let enter = move |file: &mut File| {
            let _arrived = under_way;
            let together = file.change(|change| change.claim_all(&session, &claims, &published));
            let nothing = match &together {
                Ok(together) => !matches!(together, Together::Held { .. }),
                Err(error) => error.kind() != ErrorKind::Ambiguous,
            };
            if matches!(together, Ok(Together::SessionGone)) {
                notes.ended(&session);
            } else if nothing {
                for claim in &claims {
                    notes.left_nothing(claim.id);
                }
            }
            together
        };
        self.shared.worker.ask(Sent::Claim, enter).await
    }

    /// The key, the session and the token, as they stand in the row that is the grant.
    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        Ok(Ownership::new(granted.claim.key.as_str(), session.clone(), granted.token.get()))
    }

    async fn probe(&self) -> Vec<Finding> {
        probe::probe(&self.shared.worker, self.shared.capabilities.ttl).await
    }
}

#[cfg(test)]
mod tests;
