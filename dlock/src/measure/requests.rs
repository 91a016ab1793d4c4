//! How often the store was asked for what, and what it answered.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Claim, Cursor, ErrorKind, FencingToken, Finding, Granted, Hint, Holder, Inspection, Interference,
    Key, LockBackend, Metadata, Ownership, Place, Release, Renewal, Session, SessionId, SessionRequest, Standing, Together, Woken,
};
use metrics::counter;

use super::{OTHER, REQUESTS};

/// The same store; every request to it is counted.
pub(crate) fn counted(backend: Arc<dyn LockBackend>) -> Arc<dyn LockBackend> {
    Arc::new(Counted(backend))
}

struct Counted(Arc<dyn LockBackend>);

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A request, counted when it is dropped: once it is answered, or when nobody waits for the answer any more.
struct Request {
    kind: &'static str,
    outcome: &'static str,
}

impl Drop for Request {
    fn drop(&mut self) {
        counter!(REQUESTS, "kind" => self.kind, "outcome" => self.outcome).increment(1);
    }
}

/// Counts one request, with the word for its answer.
async fn count<T>(
    kind: &'static str,
    answer: impl Future<Output = Result<T, BackendError>>,
    word: impl FnOnce(&T) -> &'static str,
) -> Result<T, BackendError> {
    let mut request = Request { kind, outcome: "dropped" };
    let answer = answer.await;
    request.outcome = match &answer {
        Ok(answer) => word(answer),
        Err(error) => failure_word(error.kind()),
    };
    answer
}

#[async_trait]
impl LockBackend for Counted {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        count("open", self.0.open(request), ok).await
    }

    async fn probe(&self) -> Vec<Finding> {
        // Several requests at once, of a kind that no lock makes.
        self.0.probe().await
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        let word = |renewal: &Renewal| match renewal {
            Renewal::Renewed { .. } => "ok",
            Renewal::Gone => "session_gone",
        };
        count("renew", self.0.renew(session), word).await
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let word = |found: &Vec<Interference>| if found.is_empty() { "ok" } else { "interference" };
        count("audit", self.0.audit(session, claims), word).await
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        count("close", self.0.close(session), ok).await
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        count("claim", self.0.claim(session, claim, place), standing_word).await
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        let word = |woken: &Woken| match woken.hint {
            Hint::MaybeFree => "maybe_free",
            Hint::StillHeld { .. } => "still_held",
            Hint::ClaimGone => "claim_gone",
        };
        count("wait", self.0.wait(session, claim, cursor), word).await
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Standing, BackendError> {
        count("confirm", self.0.confirm(session, claim, cursor), standing_word).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let word = |release: &Release| match release {
            Release::Released => "ok",
            Release::NotHeld => "not_held",
            Release::Unfenced { .. } => "unfenced",
        };
        count("release", self.0.release(session, claim), word).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        count("inspect", self.0.inspect(key), ok).await
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        count("disturbed", self.0.disturbed(session, granted, cursor), ok).await
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        count("amend", self.0.amend(session, claim, metadata), |amended| applied_word(*amended)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        count("list", self.0.list(prefix), ok).await
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        count("changed", self.0.changed(key, cursor), ok).await
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        count("evict", self.0.evict(key, token), |evicted| applied_word(*evicted)).await
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        let word = |together: &Together| match together {
            Together::Held { .. } => "held",
            Together::Busy { .. } => "busy",
            Together::SessionGone => "session_gone",
        };
        count("claim_all", self.0.claim_all(session, claims), word).await
    }

    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        // Sends nothing.
        self.0.ownership(session, granted)
    }
}

fn ok<T>(_: &T) -> &'static str {
    "ok"
}

fn applied_word(applied: bool) -> &'static str {
    if applied { "ok" } else { "not_held" }
}

fn standing_word(standing: &Standing) -> &'static str {
    match standing {
        Standing::Held { .. } => "held",
        Standing::Waiting { .. } => "waiting",
        Standing::Busy { .. } => "busy",
        Standing::Delayed { .. } => "delayed",
        Standing::SessionGone => "session_gone",
        Standing::ClaimGone => "claim_gone",
    }
}

fn failure_word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Transient => "transient",
        ErrorKind::Ambiguous => "ambiguous",
        ErrorKind::Denied => "denied",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Overloaded => "overloaded",
        ErrorKind::Unsupported => "unsupported",
        _ => OTHER,
    }
}
