//! Consul as a store of locks.
//!
//! Every `lock` goes out guarded by the key's index, or by its absence, as it was last seen free. That makes three things true at once: a
//! key that is used for something else is never overwritten, a copy of a claim that arrives late finds the index moved, and
//! releasing an unanswered claim only has to move the index.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Cause, Claim, ClaimsPerKey, ClockSource, Cursor, ErrorKind, FencingToken, Finding, Granted, Hint,
    Holder, Inspection, Interference, Key, Limits, LockBackend, Metadata, Mode, Order, Ownership, Place, Release, Renewal, Session,
    SessionId, SessionRequest, Standing, Together, Woken,
};

use crate::api::{Api, BATCH, Since};
use crate::classify::{Asked, Needs};
use crate::config::{ConfigError, ConsulOptions};
use crate::fair::{self, Fair};
use crate::guarded::{Attempted, Look, Shared, conflict};
use crate::http::Http;
use crate::notes::{ClaimState, Known};
use crate::probe;
use crate::session;
use crate::several;
use crate::transport::Transport;
use crate::waits::Watched;
use crate::watch::Watches;
use crate::wire::{LOCK_FLAGS, Op, encode, encode_value, json, parse_go_duration};

/// A store of locks on Consul; cheap to clone, clones share connections and knowledge.
#[derive(Clone, Debug)]
pub struct Consul {
    shared: Arc<Shared>,
    /// Where claims stand in line.
    fair: Option<Arc<Fair>>,
}

/// The largest published metadata: a transaction takes 512 KiB of JSON, in which the value stands in base64.
const METADATA_BYTES: usize = 380_000;
/// How long Consul may delay the next holder of a key at most. Sessions with checks ask for it, and those of others may.
pub(crate) const LONGEST_DELAY: Duration = ConsulOptions::LONGEST_LOCK_DELAY;

/// How long after a wait for a session that brought no news of it the next begins. Its end is heard of so much later at most.
const SESSION_PACE: Duration = Duration::from_millis(500);

impl Consul {
    /// A backend with these options; sends nothing.
    #[allow(clippy::needless_pass_by_value)] // options are given away, as to every backend
    pub fn new(options: ConsulOptions) -> Result<Self, ConfigError> {
        options.check()?;
        let http = Http::new(&options)?;
        Ok(Self::on(Arc::new(http), ClockSource::Boot, &options))
    }

    /// A backend whose requests travel in another way, for tests against a simulated Consul in virtual time.
    ///
    /// Of the options, those about address, secrets and certificates say nothing here, and none is refused. Deadlines live on the runtime's clock, so that a test
    /// can pause it: not for production, where they must count the time for which the machine sleeps.
    pub fn with_transport(options: &ConsulOptions, transport: Arc<dyn Transport>) -> Self {
        Self::on(transport, ClockSource::Runtime, options)
    }

    fn on(transport: Arc<dyn Transport>, clock: ClockSource, options: &ConsulOptions) -> Self {
        let mut capabilities = Capabilities::minimal(clock, options.ttl);
        capabilities.lapses_within_ttls = 2;
        capabilities.limits = Limits { metadata_bytes: METADATA_BYTES, ..Limits::default() };
        capabilities.fences = true;
        capabilities.audits = true;
        capabilities.amends = true;
        capabilities.lists = true;
        capabilities.tells_changes = true;
        capabilities.evicts = true;
        capabilities.claims_at_once = Some(several::MOST);
        capabilities.guards_writes = true;
        let (api, watches) = (Arc::new(Api::new(transport, options)), Watches::new(options.max_connections));
        capabilities.watched_claims = Some(watches.watched_claims());
        capabilities.calls_in_flight = watches.calls_in_flight;
        let sessions = options.sessions.clone();
        if sessions.fair {
            stand_in_line(&mut capabilities, sessions.has_checks());
        }
        let shared = Arc::new(Shared { api, capabilities, sessions, notes: Mutex::default(), watches });
        let fair = shared.sessions.fair.then(|| Arc::new(Fair::on(Arc::clone(&shared))));
        Self { shared, fair }
    }

    /// A backend configured by the environment, see [`ConsulOptions::from_env`].
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::new(ConsulOptions::from_env()?)
    }

    /// A backend at a URL, see [`ConsulOptions::from_url`].
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        Self::new(ConsulOptions::from_url(url)?)
    }
}

/// What is different in fair mode.
fn stand_in_line(capabilities: &mut Capabilities, has_checks: bool) {
    capabilities.order = Order::Fifo;
    capabilities.claims_per_key = ClaimsPerKey::Many;
    // A check ends a session that its holder may still believe in. Consul's delay guards the key then, but no ticket.
    (capabilities.shared, capabilities.permits) = (!has_checks, !has_checks);
    capabilities.limits.metadata_bytes = fair::METADATA_BYTES;
    capabilities.claims_at_once = None;
}

/// Whether so much JSON can be published.
fn fits(published: &[u8], capabilities: &Capabilities) -> Result<(), BackendError> {
    let (bytes, most) = (published.len(), capabilities.limits.metadata_bytes);
    if bytes <= most {
        return Ok(());
    }
    let message = match capabilities.order {
        Order::Unordered => format!("the metadata takes {bytes} bytes as JSON, Consul accepts {most} in a transaction"),
        Order::Fifo => format!("the metadata takes {bytes} bytes as JSON, fair mode accepts {most}"),
    };
    Err(BackendError::new(ErrorKind::Invalid, message))
}

#[async_trait]
impl LockBackend for Consul {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        session::open(&self.shared.api, &self.shared.sessions, request).await
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        // As good as any other moment that comes again and again.
        self.shared.watches.sweep();
        let Some(entry) = self.shared.api.renew_session(session).await? else {
            self.drop_session(session);
            return Ok(Renewal::Gone);
        };
        match parse_go_duration(&entry.ttl) {
            Some(ttl) if !ttl.is_zero() => Ok(Renewal::Renewed { ttl }),
            _ => Err(BackendError::new(ErrorKind::Invalid, "renewing the session: Consul keeps it without a ttl")),
        }
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.audit(session, claims).await;
        }
        let mut found = Vec::new();
        for batch in claims.chunks(BATCH) {
            let asked = Asked { what: "looking after held keys", writes: false, needs: Needs::KeysRead };
            let ops: Vec<_> = batch.iter().map(|granted| Op::check_session(granted.claim.key.as_str(), session)).collect();
            let Err(errors) = self.shared.txn(asked, &ops).await? else { continue };
            for error in errors {
                let Some(granted) = batch.get(error.op_index) else { continue };
                let gone = error.says("doesn't exist");
                let cause = if gone { Cause::KeyDeleted } else { Cause::TakenOver };
                found.push(Interference { claim: granted.claim.id, cause });
            }
        }
        Ok(found)
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.shared.api.destroy_session(session).await?;
        self.drop_session(session);
        Ok(())
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        let shared = &self.shared;
        self.shared.capabilities.check_mode(claim.mode)?;
        let published = json(claim.publication());
        fits(&published, &shared.capabilities)?;
        if let Some(fair) = &self.fair {
            return fair.claim(session, claim, place).await;
        }
        let value = encode(&published);
        // An earlier copy without an answer may have been applied: look before another guard is sent.
        let unanswered = shared.notes().claim(claim.id).is_some();
        let (known, guess) = {
            let notes = shared.notes();
            (notes.key(&claim.key), notes.guess(&claim.key))
        };
        let mut guard = if unanswered { None } else { known.or(guess) };
        let met = known.is_some();
        for _ in 0..3 {
            if let Some(guard) = guard.take() {
                match shared.attempt(session, claim, &value, guard).await? {
                    Attempted::Held(token) => return Ok(Standing::Held { token }),
                    Attempted::SessionGone => return Ok(Standing::SessionGone),
                    Attempted::Delayed => return Ok(Standing::Delayed { at_most: LONGEST_DELAY }),
                    Attempted::Refused => {}
                }
            }
            let look = shared.look(session, &claim.key, claim.id).await?;
            if !met {
                shared.notes().met(&claim.key, !matches!(look, Look::Free(Known::Absent)));
            }
            match look {
                Look::Ours { index, token } => {
                    shared.granted(session, claim, token, index);
                    return Ok(Standing::Held { token });
                }
                Look::Taken { holder, index } => {
                    return Ok(Standing::Busy { holder: Some(*holder), cursor: Cursor(index) });
                }
                Look::Free(known) => guard = Some(known),
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "claiming the key: others were faster again and again"))
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.wait(claim, cursor).await;
        }
        let shared = &self.shared;
        let (entry, index) = shared.watches.wait(&shared.api, claim.key.as_str(), cursor.0).await?;
        // An index that went back says nothing of what came in between: look anew.
        let cursor = Cursor(if index < cursor.0 { 0 } else { index });
        let hint = match entry {
            // A late copy of this claim was applied: claiming again finds that out.
            Some(entry) if entry.holder_session() == Some(session.as_str()) && entry.claim() == Some(claim.id) => Hint::MaybeFree,
            Some(entry) if entry.holder_session().is_some() => Hint::StillHeld { holder: Some(entry.holder()) },
            Some(entry) if entry.is_lock() => {
                shared.notes().learn(&claim.key, Known::At(entry.modify_index));
                Hint::MaybeFree
            }
            Some(_) | None => {
                shared.notes().forget(&claim.key);
                Hint::MaybeFree
            }
        };
        Ok(Woken { cursor, hint })
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        match &self.fair {
            Some(fair) => fair.confirm(session, claim).await,
            None => Err(BackendError::unsupported("confirm")),
        }
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.release(session, claim).await;
        }
        let found = self.shared.undo(session, claim).await?;
        if self.shared.notes().take_unfenced(claim.id) {
            return Ok(Release::Unfenced { had: found == Release::Released });
        }
        Ok(found)
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.inspect(key).await;
        }
        let mut inspection = Inspection::default();
        if let Some(entry) = self.shared.read(key).await?
            && (entry.holder_session().is_some() || !entry.is_lock())
        {
            inspection.holders.push(entry.holder());
        }
        Ok(inspection)
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        let shared = &self.shared;
        let Some(granted) = granted else {
            // Not kept when this is dropped: that ends with the session, and its end answers the request.
            let _place = shared.watches.disturbances.place().await;
            let mut index = cursor.map(|cursor| cursor.0);
            loop {
                let (shown, now) = shared.api.session_info(session, index.map(Since::long)).await?;
                // Not shown may also mean that the token must not see it: core asks by a renewal. Without an index nothing waits: core sets
                // the pace then.
                if !shown || now == 0 || index.is_some_and(|index| now < index) {
                    return Ok(Cursor(now));
                }
                // The index counts all sessions: where many come and go, hardly any wait lasts. Nor does it where something stands between that
                // lets nobody wait.
                if index.is_some() {
                    tokio::time::sleep(SESSION_PACE).await;
                }
                index = Some(now);
            }
        };
        let index = granted.token.get().max(cursor.map_or(0, |cursor| cursor.0));
        let name = Watched::Key(self.stands_on(session, granted));
        let mut watching = shared.watches.disturbances.watching(&shared.api, name);
        loop {
            let (entries, now) = watching.news_in_turn(index).await?;
            let same = entries
                .first()
                .is_some_and(|entry| entry.modify_index <= index && entry.holder_session() == Some(session.as_str()));
            if !same || now < index {
                return Ok(Cursor(now));
            }
        }
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        let shared = &self.shared;
        let mut amended = claim.clone();
        amended.metadata = Some(Arc::new(metadata.clone()));
        let mut published = amended.published();
        if let Some(fair) = self.fair.as_ref().filter(|_| claim.mode != Mode::Exclusive) {
            fits(&json(&published), &shared.capabilities)?;
            return fair.amend_ticket(session, claim, published).await;
        }
        for _ in 0..3 {
            let Look::Ours { index, token } = shared.look(session, &claim.key, claim.id).await? else {
                return Ok(false);
            };
            // The write moves the index, by which the grant is known to others.
            published.set_token(token, session);
            fits(&json(&published), &shared.capabilities)?;
            let value = encode_value(&published);
            let key = claim.key.as_str();
            let asked = Asked { what: "changing the metadata", writes: true, needs: Needs::KeyWrite(key) };
            let ops = [Op::check_session(key, session), Op::cas(key, index, &value, LOCK_FLAGS)];
            if let Ok(entries) = shared.txn(asked, &ops).await? {
                let index = entries.last().map_or(index, |entry| entry.modify_index);
                shared.notes().amended(claim.id, published, index);
                return Ok(true);
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "changing the metadata: the key changed again and again"))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.list(prefix).await;
        }
        let _permit = self.shared.watches.short.acquire().await;
        let entries = self.shared.api.list_keys(prefix).await?;
        let held = entries.iter().filter(|entry| entry.is_lock() && entry.holder_session().is_some());
        let mut held: Vec<_> = held.filter_map(|entry| Some((Key::new(&entry.key).ok()?, entry.holder()))).collect();
        held.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(held)
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.changed(key, cursor).await;
        }
        let shared = &self.shared;
        let index = match cursor {
            Some(cursor) => shared.watches.wait(&shared.api, key.as_str(), cursor.0).await?.1,
            None => shared.watches.index(&shared.api, key.as_str()).await?,
        };
        Ok(Cursor(index))
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        if let Some(fair) = &self.fair {
            return fair.evict(key, token).await;
        }
        let shared = &self.shared;
        let Some(entry) = shared.read(key).await? else { return Ok(false) };
        if !entry.is_lock() {
            return Err(conflict(key, entry.flags));
        }
        let (Some(session), true) = (entry.holder_session(), entry.token() == Some(token)) else { return Ok(false) };
        let session = SessionId::new(session);
        let asked = Asked { what: "releasing by force", writes: true, needs: Needs::KeyWrite(key.as_str()) };
        let value = entry.value.clone().unwrap_or_default();
        let ops = [Op::check_index(key.as_str(), entry.modify_index), Op::unlock(key.as_str(), &session, &value, LOCK_FLAGS)];
        Ok(shared.txn(asked, &ops).await?.is_ok())
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        self.shared.capabilities.check_together(claims)?;
        let bytes: usize = claims.iter().map(|claim| json(claim.publication()).len()).sum();
        if bytes > METADATA_BYTES {
            let message =
                format!("the metadata of all takes {bytes} bytes as JSON, Consul accepts {METADATA_BYTES} in a transaction");
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        self.shared.claim_all(session, claims).await
    }

    /// The key, the session, and the index at which the grant stands now, see [`consul_operations`](crate::consul_operations).
    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        let index = match self.shared.notes().claim(granted.claim.id).map(|note| note.state) {
            Some(ClaimState::Held { index, .. }) => index,
            _ => granted.token.get(),
        };
        Ok(Ownership::new(self.stands_on(session, granted), session.clone(), index))
    }

    async fn probe(&self) -> Vec<Finding> {
        probe::probe(&self.shared).await
    }
}

impl Consul {
    /// The name of what a grant stands on at Consul.
    fn stands_on(&self, session: &SessionId, granted: &Granted) -> String {
        match &self.fair {
            Some(_) => Fair::stands_on(session, &granted.claim),
            None => granted.claim.key.as_str().to_owned(),
        }
    }

    /// The session is gone, and with it all it had.
    fn drop_session(&self, session: &SessionId) {
        match &self.fair {
            Some(fair) => fair.session_gone(session),
            None => self.shared.notes().drop_session(session),
        }
    }
}
