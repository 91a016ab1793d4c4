//! The requests that are sent to etcd, each once: with a limit, over the connection that works, and elsewhere if it was surely not applied.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind};
use etcd_client::{
    Error, GetOptions, GetResponse, LeaseGrantOptions, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, ResponseHeader, SortOrder, SortTarget, StatusResponse, Txn, TxnOpResponse, TxnResponse,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::calls::Calls;
use crate::classify::{Asked, Failure, failure, not_connected, silent};
use crate::endpoints::{Connected, Endpoints};
use crate::wire::{Entry, Lease};

/// etcd, as this backend speaks to it.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) endpoints: Endpoints,
    pub(crate) attempt: Duration,
    /// For transactions.
    room: Semaphore,
    calls: Calls,
    /// The cluster that answered first. Tokens of another say nothing, and locks there exclude nobody here.
    cluster: OnceLock<u64>,
}

/// An answer that is no failure of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lease is not known, so nothing was done.
    LeaseGone,
    /// The revision is not kept any more.
    Compacted,
}

/// What a transaction brought.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Whether all its conditions were met.
    pub(crate) succeeded: bool,
    /// The revision at which it was answered.
    pub(crate) revision: i64,
    results: std::vec::IntoIter<Found>,
}

/// What one operation of a transaction brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The entries that were read.
    pub(crate) entries: Vec<Entry>,
    /// How many keys were in the range or were deleted, whatever was shown of them.
    pub(crate) count: i64,
    /// Whether not all were shown that were asked for.
    pub(crate) more: bool,
}

impl Reply {
    /// The result of the next operation.
    pub(crate) fn next(&mut self) -> Found {
        self.results.next().unwrap_or_default()
    }

    /// The same of one that cannot be missing: none must not be taken for an empty range.
    pub(crate) fn shown(&mut self, asked: Asked<'_>) -> Result<Found, BackendError> {
        let missing = || BackendError::new(ErrorKind::Ambiguous, format!("{}: etcd left out what was asked for", asked.what));
        self.results.next().ok_or_else(missing)
    }

    /// The results of all operations that are left.
    pub(crate) fn rest(self) -> impl Iterator<Item = Found> {
        self.results
    }
}

/// A read of a range, outside of a transaction.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) found: Found,
    pub(crate) revision: i64,
}

/// What stands at the head of an answer.
pub(crate) trait Headed {
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ty),+) => { $(impl Headed for $answer {
        fn header(&self) -> Option<&ResponseHeader> {
            self.header()
        }
    })+ };
}

headed!(GetResponse, StatusResponse, TxnResponse, LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse);

/// So many transactions are under way at once, more than an etcd of the same datacenter needs to be busy. It refuses requests once some thousands are, and the
/// client's part of each costs more the more there are.
pub(crate) const AT_ONCE: usize = 256;

/// So many keys are read at once.
pub(crate) const PAGE: i64 = 512;

/// Where one page of a range ends and the next begins. Keys that one transaction made have one revision: the next page begins with that of the
/// last key again, and what was shown of it is left out.
#[derive(Debug, Default)]
pub(crate) struct Seam {
    revision: i64,
    shown: Vec<Vec<u8>>,
}

impl Seam {
    /// Takes out of a page what the last one showed; the revision with which the next begins, `None` where there is none.
    pub(crate) fn join(&mut self, asked: Asked<'_>, page: &mut Found) -> Result<Option<i64>, BackendError> {
        page.entries.retain(|entry| entry.created != self.revision || !self.shown.contains(&entry.key));
        if !page.more {
            return Ok(None);
        }
        let Some(last) = page.entries.last().map(|entry| entry.created) else {
            let message = format!("{}: more keys of one revision than are read at once", asked.what);
            return Err(BackendError::new(ErrorKind::Transient, message));
        };
        if last != self.revision {
            (self.revision, self.shown) = (last, Vec::new());
        }
        let of_last = page.entries.iter().filter(|entry| entry.created == last);
        self.shown.extend(of_last.map(|entry| entry.key.clone()));
        Ok(Some(last))
    }
}

impl Api {
    pub(crate) fn new(endpoints: Endpoints, attempt: Duration) -> Self {
        Self { endpoints, attempt, room: Semaphore::new(AT_ONCE), calls: Calls::default(), cluster: OnceLock::new() }
    }

    /// The cluster, once it has answered.
    pub(crate) fn cluster(&self) -> Option<u64> {
        self.cluster.get().copied()
    }

    /// Sends a transaction, which is put together anew wherever it is sent.
    #[allow(clippy::manual_async_fn)] // an `async fn` keeps room for its arguments twice
    pub(crate) fn txn(
        &self,
        asked: &Asked<'_>,
        txn: impl Fn() -> Txn,
    ) -> impl Future<Output = Result<Result<Reply, Refusal>, BackendError>> {
        async move {
            let _permit = self.room.acquire().await;
            let ask = |connected: Arc<Connected>| {
                let txn = txn();
                self.calls.begin(async move { connected.kv().txn(txn).await })
            };
            Ok(self.call_in_place(asked, ask).await?.map(|answer| {
                let revision = revision(answer.header());
                let results: Vec<Found> = answer.op_responses().into_iter().map(found).collect();
                Reply { succeeded: answer.succeeded(), revision, results: results.into_iter() }
            }))
        }
    }

    /// One page of a range, linearizable.
    pub(crate) async fn page(
        &self,
        asked: Asked<'_>,
        start: &[u8],
        options: GetOptions,
    ) -> Result<Result<Page, Refusal>, BackendError> {
        let ask = |connected: Arc<Connected>| {
            let (start, options) = (start.to_vec(), options.clone());
            async move { connected.kv().get(start, Some(options)).await }
        };
        Ok(self.call(asked, ask).await?.map(|answer| Page { revision: revision(answer.header()), found: entries(&answer) }))
    }

    /// What a member says of itself.
    pub(crate) async fn status(&self) -> Result<StatusResponse, BackendError> {
        let asked = Asked { what: "asking a member how it is", writes: false, keys: None };
        let ask = |connected: Arc<Connected>| async move { connected.maintenance().status().await };
        self.call(asked, ask).await?.map_err(|refusal| unexpected(asked, refusal))
    }

    /// Grants a lease of this id, or of one that etcd chooses; which, and for how long.
    pub(crate) async fn grant(&self, lease: Option<Lease>, ttl: Duration) -> Result<(Lease, Duration), BackendError> {
        let asked = Asked { what: "opening a session", writes: true, keys: None };
        // Leases live for whole seconds: less than was asked for would be lost too soon.
        let seconds = i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX);
        let ask = |connected: Arc<Connected>| async move {
            let options = lease.map(|lease| LeaseGrantOptions::new().with_id(lease.0));
            connected.lease().grant(seconds, options).await
        };
        let granted = self.call(asked, ask).await?.map_err(|refusal| unexpected(asked, refusal))?;
        let id = Lease(granted.id());
        if granted.ttl() <= 0 || lease.is_some_and(|lease| lease != id) {
            return Err(BackendError::new(ErrorKind::Invalid, "opening a session: etcd granted another lease than was asked for"));
        }
        Ok((id, Duration::from_secs(granted.ttl().unsigned_abs())))
    }

    /// Renews a lease on a stream of its own; `None` when it is not known. With `asks_ttl` its whole ttl is asked for too.
    ///
    /// Another cluster may know a lease of the same id, as one does that was restored from a snapshot: over a connection of which nothing is
    /// known yet, the answer that tells the cluster is waited for.
    pub(crate) async fn keep_alive(&self, lease: Lease, asks_ttl: bool) -> Result<Option<Option<Duration>>, BackendError> {
        let asked = Asked { what: "renewing the session", writes: false, keys: None };
        let ask = |connected: Arc<Connected>| async move {
            let (mut keeper, mut answers) = connected.lease().keep_alive(lease.0).await?;
            if !asks_ttl && connected.is_ours() {
                return Ok(Renewed(None));
            }
            // The first answer is not shown by the client.
            keeper.keep_alive().await?;
            match answers.message().await? {
                Some(answer) if answer.ttl() > 0 => Ok(Renewed(Some(answer))),
                _ => Err(Error::LeaseKeepAliveError("lease not found".to_owned())),
            }
        };
        match self.call(asked, ask).await? {
            Ok(Renewed(answer)) => Ok(Some(answer.map(|answer| Duration::from_secs(answer.ttl().unsigned_abs())))),
            Err(Refusal::LeaseGone) => Ok(None),
            Err(refusal) => Err(unexpected(asked, refusal)),
        }
    }

    /// Revokes a lease; one that is not known too.
    pub(crate) async fn revoke(&self, lease: Lease) -> Result<(), BackendError> {
        let asked = Asked { what: "closing the session", writes: true, keys: None };
        let ask = |connected: Arc<Connected>| async move { connected.lease().revoke(lease.0).await };
        match self.call(asked, ask).await? {
            Ok(_) | Err(Refusal::LeaseGone) => Ok(()),
            Err(refusal) => Err(unexpected(asked, refusal)),
        }
    }

    /// Whether a lease is known.
    pub(crate) async fn is_alive(&self, lease: Lease) -> Result<bool, BackendError> {
        let asked = Asked { what: "looking after the session", writes: false, keys: None };
        let ask = |connected: Arc<Connected>| async move { connected.lease().time_to_live(lease.0, None).await };
        match self.call(asked, ask).await? {
            Ok(answer) => Ok(answer.ttl() >= 0),
            Err(Refusal::LeaseGone) => Ok(false),
            Err(refusal) => Err(unexpected(asked, refusal)),
        }
    }

    /// Asks once, or once at each endpoint as long as nothing was applied.
    pub(crate) async fn call<T, F, Fut>(&self, asked: Asked<'_>, ask: F) -> Result<Result<T, Refusal>, BackendError>
    where
        T: Headed,
        F: Fn(Arc<Connected>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        // Apart, for it takes kilobytes: whoever waits for room, or holds a lock, is not to carry them.
        self.call_in_place(&asked, |connected| Box::pin(ask(connected))).await
    }

    /// The same of a call that is small.
    #[allow(clippy::manual_async_fn)] // an `async fn` keeps room for its arguments twice
    fn call_in_place<T, F, Fut>(&self, asked: &Asked<'_>, ask: F) -> impl Future<Output = Result<Result<T, Refusal>, BackendError>>
    where
        T: Headed,
        F: Fn(Arc<Connected>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        async move {
            let (mut elsewhere, mut authenticated) = (self.endpoints.len(), false);
            loop {
                elsewhere -= 1;
                let connected = match self.endpoints.present() {
                    Some(connected) => connected,
                    // Apart, since every call carries what this takes, and hardly one connects.
                    None => match Box::pin(self.endpoints.connect()).await {
                        Ok(connected) => connected,
                        Err(error) => match not_connected(*asked, error) {
                            Failure::Elsewhere(_) if elsewhere > 0 => continue,
                            Failure::Elsewhere(error) | Failure::Token(error) | Failure::Told { error, .. } => return Err(error),
                            Failure::LeaseGone | Failure::Compacted => return Err(silent(*asked)),
                        },
                    },
                };
                let failed = {
                    let mut attempt = self.endpoints.watch_over(&connected);
                    let answer = timeout(self.attempt, ask(Arc::clone(&connected))).await;
                    attempt.answered();
                    let endpoint = self.endpoints.name(&connected);
                    if let Ok(answer) = &answer {
                        tracing::trace!(what = asked.what, endpoint, ok = answer.is_ok(), "etcd answered");
                    }
                    match answer {
                        Ok(Ok(answer)) => return self.of_our_cluster(*asked, &connected, answer).map(Ok),
                        Ok(Err(error)) => failure(*asked, error),
                        Err(_) => {
                            self.endpoints.suspect(&connected);
                            return Err(silent(*asked));
                        }
                    }
                };
                match failed {
                    Failure::LeaseGone => return Ok(Err(Refusal::LeaseGone)),
                    Failure::Compacted => return Ok(Err(Refusal::Compacted)),
                    Failure::Told { error, sound } => {
                        if !sound {
                            self.endpoints.suspect(&connected);
                        }
                        return Err(error);
                    }
                    Failure::Elsewhere(error) => {
                        self.endpoints.suspect(&connected);
                        if elsewhere == 0 {
                            return Err(error);
                        }
                    }
                    Failure::Token(error) => {
                        if authenticated || !Box::pin(self.authenticate(&connected)).await {
                            return Err(error);
                        }
                        authenticated = true;
                        elsewhere += 1;
                    }
                }
            }
        }
    }

    /// Asks for a new token; whether there is one.
    async fn authenticate(&self, connected: &Connected) -> bool {
        matches!(timeout(self.attempt, connected.authenticate()).await, Ok(Ok(())))
    }

    fn of_our_cluster<T: Headed>(&self, asked: Asked<'_>, connected: &Arc<Connected>, answer: T) -> Result<T, BackendError> {
        let Some(header) = answer.header() else { return Ok(answer) };
        if *self.cluster.get_or_init(|| header.cluster_id()) == header.cluster_id() {
            connected.is_found_ours();
            return Ok(answer);
        }
        self.endpoints.suspect(connected);
        let message = format!("{}: the endpoints belong to different clusters; name those of one only", asked.what);
        Err(BackendError::new(ErrorKind::Conflict, message))
    }
}

/// A renewal that was answered, with the answer where the client shows it.
struct Renewed(Option<LeaseKeepAliveResponse>);

impl Headed for Renewed {
    fn header(&self) -> Option<&ResponseHeader> {
        self.0.as_ref().and_then(LeaseKeepAliveResponse::header)
    }
}

/// Reads a range in the order of creation.
pub(crate) fn by_creation(end: &[u8], order: SortOrder, limit: i64) -> GetOptions {
    GetOptions::new().with_range(end).with_sort(SortTarget::Create, order).with_limit(limit)
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, ResponseHeader::revision)
}

fn found(answer: TxnOpResponse) -> Found {
    match answer {
        TxnOpResponse::Get(answer) => entries(&answer),
        TxnOpResponse::Delete(answer) => Found { count: answer.deleted(), ..Found::default() },
        TxnOpResponse::Put(_) | TxnOpResponse::Txn(_) => Found::default(),
    }
}

fn entries(answer: &GetResponse) -> Found {
    Found { entries: answer.kvs().iter().map(Entry::from).collect(), count: answer.count(), more: answer.more() }
}

/// An answer that this request cannot have.
pub(crate) fn unexpected(asked: Asked<'_>, refusal: Refusal) -> BackendError {
    let kind = if asked.writes { ErrorKind::Ambiguous } else { ErrorKind::Transient };
    BackendError::new(kind, format!("{}: unexpected answer {refusal:?}", asked.what))
}
