//! A backend of one's own: [`Backend`] makes a small lock server a store for dlock.
//!
//! Read [`store`] first, for what the server knows; it stands for whatever you have. Then this file, which is the lesson: one
//! method is one request and one translation. `docs/backend-authors.md` walks through it, and `tests/own_backend_conformance.rs` proves it.

pub mod server;
pub mod store;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Cause, Check, Claim, ClaimId, ClaimsPerKey, ClockSource, Cursor, ErrorKind, FencingToken, Finding,
    Granted, Hint, Holder, Inspection, Interference, Key, LockBackend, Metadata, Ownership, PROBE_NAME, Place, Published, Release,
    Renewal, Session, SessionId, SessionRequest, Standing, Together, TtlRange, Woken,
};

use crate::server::send;
use crate::store::{Ask, Lock, Told};

/// Locks of the server at an address.
#[derive(Debug)]
pub struct Backend {
    server: SocketAddr,
    capabilities: Capabilities,
}

impl Backend {
    /// A backend for the server that listens here; sends nothing.
    pub fn new(server: SocketAddr) -> Self {
        let ttl = TtlRange { min: Duration::from_millis(100), max: Duration::from_secs(24 * 60 * 60) };
        // Start from nothing, and declare a capability when its method is written: the suite exercises what is declared.
        let mut capabilities = Capabilities::minimal(ClockSource::Boot, ttl);
        capabilities.claims_per_key = ClaimsPerKey::Many;
        capabilities.fences = true;
        capabilities.audits = true;
        capabilities.lists = true;
        Self { server, capabilities }
    }

    /// One request, one attempt at an answer: no retry and no timer, those are core's.
    async fn ask(&self, ask: Ask) -> Result<Told, BackendError> {
        send(self.server, &ask).await.map_err(|failed| {
            // Before it was sent it surely was not applied; afterwards nobody knows.
            let kind = if failed.sent { ErrorKind::Ambiguous } else { ErrorKind::Transient };
            BackendError::new(kind, "the lock server did not answer").caused_by(failed.error)
        })
    }

    /// Refuses what the store cannot keep before anything is sent, and names the limit.
    fn check(&self, claim: &Claim) -> Result<(), BackendError> {
        self.capabilities.check_mode(claim.mode)?;
        let bytes = serde_json::to_vec(&claim.published()).map_or(usize::MAX, |json| json.len());
        let limit = self.capabilities.limits.metadata_bytes;
        if bytes > limit {
            let message = format!("the metadata takes {bytes} bytes as JSON, this store accepts {limit}");
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        Ok(())
    }
}

/// An answer to some other question: perhaps applied, so core finds out.
fn unexpected(told: &Told) -> BackendError {
    BackendError::new(ErrorKind::Ambiguous, format!("unexpected answer {told:?}"))
}

fn token(number: u64) -> Result<FencingToken, BackendError> {
    FencingToken::new(number).ok_or_else(|| BackendError::new(ErrorKind::Ambiguous, "a grant without a token"))
}

fn holder(lock: Lock) -> Holder {
    let mut holder = Holder::new(Published::Metadata(lock.published));
    holder.session = Some(SessionId::new(lock.session));
    holder.token = FencingToken::new(lock.token);
    holder
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl LockBackend for Backend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        let range = self.capabilities.ttl;
        if !range.contains(request.ttl) {
            let message = format!("this store accepts a ttl from {:?} to {:?}, not {:?}", range.min, range.max, request.ttl);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        match self.ask(Ask::Open { ttl: millis(request.ttl), owner: request.owner.to_string() }).await? {
            Told::Opened { session } => Ok(Session { id: SessionId::new(session), ttl: request.ttl }),
            told => Err(unexpected(&told)),
        }
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        match self.ask(Ask::Renew { session: session.to_string() }).await? {
            Told::Renewed { ttl } => Ok(Renewal::Renewed { ttl: Duration::from_millis(ttl) }),
            Told::SessionGone => Ok(Renewal::Gone),
            told => Err(unexpected(&told)),
        }
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.ask(Ask::Close { session: session.to_string() }).await.map(|_| ())
    }

    /// The server keeps no queue, so both places are the same to it.
    async fn claim(&self, session: &SessionId, claim: &Claim, _: Place) -> Result<Standing, BackendError> {
        self.check(claim)?;
        let (session, key, id) = (session.to_string(), claim.key.to_string(), claim.id.to_string());
        match self.ask(Ask::Claim { session, key, claim: id, published: claim.published() }).await? {
            Told::Held { token: number } => Ok(Standing::Held { token: token(number)? }),
            Told::Busy { lock } => Ok(Standing::Busy { cursor: Cursor(lock.token), holder: Some(holder(lock)) }),
            Told::SessionGone => Ok(Standing::SessionGone),
            Told::Undone => Ok(Standing::ClaimGone),
            told => Err(unexpected(&told)),
        }
    }

    /// A grant is known by its token: whoever waits waits for that one to end.
    async fn wait(&self, _: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        match self.ask(Ask::Wait { key: claim.key.to_string(), token: cursor.0 }).await? {
            Told::Seen { lock: None } => Ok(Woken { cursor, hint: Hint::MaybeFree }),
            Told::Seen { lock: Some(lock) } => {
                Ok(Woken { cursor: Cursor(lock.token), hint: Hint::StillHeld { holder: Some(holder(lock)) } })
            }
            told => Err(unexpected(&told)),
        }
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let (session, key, claim) = (session.to_string(), claim.key.to_string(), claim.id.to_string());
        match self.ask(Ask::Release { session, key, claim }).await? {
            Told::Released { had: true } => Ok(Release::Released),
            Told::Released { had: false } => Ok(Release::NotHeld),
            told => Err(unexpected(&told)),
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        match self.ask(Ask::Look { key: key.to_string() }).await? {
            Told::Seen { lock } => {
                let mut inspection = Inspection::default();
                inspection.holders.extend(lock.map(holder));
                Ok(inspection)
            }
            told => Err(unexpected(&told)),
        }
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let asked = claims.iter().map(|granted| (granted.claim.key.to_string(), granted.claim.id.to_string())).collect();
        match self.ask(Ask::Audit { session: session.to_string(), claims: asked }).await? {
            Told::Lost(lost) => {
                let verdict = |(claim, taken): (String, bool)| {
                    let claim: ClaimId = claim.parse().ok()?;
                    Some(Interference { claim, cause: if taken { Cause::TakenOver } else { Cause::KeyDeleted } })
                };
                Ok(lost.into_iter().filter_map(verdict).collect())
            }
            told => Err(unexpected(&told)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        match self.ask(Ask::List { prefix: prefix.to_owned() }).await? {
            Told::Listed(locks) => {
                Ok(locks.into_iter().filter_map(|(key, lock)| Some((Key::new(key).ok()?, holder(lock)))).collect())
            }
            told => Err(unexpected(&told)),
        }
    }

    /// For people: what a store has to tell of itself, and what to do where it is not fit. This one knows no leader, no permissions and no limits.
    async fn probe(&self) -> Vec<Finding> {
        let asked = Instant::now();
        match self.ask(Ask::Look { key: PROBE_NAME.to_owned() }).await {
            Ok(_) => vec![Finding::fine(Check::Reachable, format!("the lock server answered in {:.1?}", asked.elapsed()))],
            Err(error) => Finding::unanswered(&error, "start the lock server, or name its address"),
        }
    }

    // What is not declared is refused, never left out: a wrapper cannot lose a method, and a caller learns why.

    async fn confirm(&self, _: &SessionId, _: &Claim, _: Cursor) -> Result<Standing, BackendError> {
        Err(BackendError::unsupported("confirm"))
    }

    async fn disturbed(&self, _: &SessionId, _: Option<&Granted>, _: Option<Cursor>) -> Result<Cursor, BackendError> {
        Err(BackendError::unsupported("disturbed"))
    }

    async fn amend(&self, _: &SessionId, _: &Claim, _: &Metadata) -> Result<bool, BackendError> {
        Err(BackendError::unsupported("amend"))
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
}
