//! What can be asked of etcd: which message belongs to which method, and what it does to the [`Store`].

use std::time::Duration;

use prost::Message;

use super::message::{
    CompactionRequest, DELETED, DeleteRangeRequest, Event, LeaseGrantRequest, LeaseRequest, LeaseResponse, NO_DELETE, NO_PUT,
    PutRequest, RangeRequest, Request, RequestOp, Response, TimeToLiveResponse, TxnRequest, WatchCreate, WatchResponse,
};
use super::store::{Status, Store, revision_of};
use super::txn::covers;

/// A call with one request.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Range(RangeRequest),
    Txn(TxnRequest),
    /// A put or a deletion by itself, of which etcd makes a transaction too.
    Alone(Request),
    Compact(i64),
    Grant(LeaseGrantRequest),
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive(LeaseRequest),
}

impl Asked {
    /// Reads the request of a method.
    pub(super) fn read(method: &str, message: &[u8]) -> Result<Self, Status> {
        fn decode<T: Message + Default>(message: &[u8]) -> Result<T, Status> {
            T::decode(message).map_err(|_| Status::MALFORMED)
        }
        Ok(match method {
            "/etcdserverpb.KV/Range" => Self::Range(decode(message)?),
            "/etcdserverpb.KV/Txn" => Self::Txn(decode(message)?),
            "/etcdserverpb.KV/Put" => Self::Alone(Request::Put(decode::<PutRequest>(message)?)),
            "/etcdserverpb.KV/DeleteRange" => Self::Alone(Request::DeleteRange(decode::<DeleteRangeRequest>(message)?)),
            "/etcdserverpb.KV/Compact" => Self::Compact(decode::<CompactionRequest>(message)?.revision),
            "/etcdserverpb.Lease/LeaseGrant" => Self::Grant(decode(message)?),
            "/etcdserverpb.Lease/LeaseRevoke" => Self::Revoke(decode::<LeaseRequest>(message)?.id),
            "/etcdserverpb.Lease/LeaseKeepAlive" => Self::KeepAlive(decode::<LeaseRequest>(message)?.id),
            "/etcdserverpb.Lease/LeaseTimeToLive" => Self::TimeToLive(decode(message)?),
            _ => return Err(Status::UNKNOWN_METHOD),
        })
    }

    /// The lease that whoever asks must know of.
    pub(super) fn uses(&self) -> Option<i64> {
        match self {
            Self::KeepAlive(lease) => Some(*lease),
            Self::Txn(txn) => txn.success.iter().find_map(|operation| match &operation.request {
                Some(Request::Put(put)) => Some(put.lease),
                _ => None,
            }),
            _ => None,
        }
    }

    /// Applies it, and answers.
    pub(super) fn apply(&self, store: &mut Store, at: Duration) -> Result<Vec<u8>, Status> {
        let lease = |store: &Store, id, ttl| LeaseResponse { header: Some(store.header()), id, ttl }.encode_to_vec();
        Ok(match self {
            Self::Range(range) => store.range(range)?.encode_to_vec(),
            Self::Txn(txn) => store.txn(txn)?.encode_to_vec(),
            Self::Alone(request) => {
                let alone = RequestOp { request: Some(request.clone()) };
                let txn = TxnRequest { success: vec![alone], ..TxnRequest::default() };
                let reply = store.txn(&txn)?;
                let header = reply.header;
                match reply.responses.into_iter().next().and_then(|response| response.response) {
                    Some(Response::Put(mut put)) => {
                        put.header = header;
                        put.encode_to_vec()
                    }
                    Some(Response::DeleteRange(mut deleted)) => {
                        deleted.header = header;
                        deleted.encode_to_vec()
                    }
                    _ => Vec::new(),
                }
            }
            Self::Compact(revision) => {
                store.compact(*revision)?;
                lease(store, 0, 0)
            }
            Self::Grant(grant) => {
                let (id, ttl) = store.grant(at, grant.id, grant.ttl)?;
                lease(store, id, ttl)
            }
            Self::Revoke(id) => {
                store.revoke(*id)?;
                lease(store, 0, 0)
            }
            Self::KeepAlive(id) => {
                let ttl = store.keep_alive(at, *id);
                lease(store, *id, ttl)
            }
            Self::TimeToLive(asked) => {
                let (ttl, granted_ttl) = store.time_to_live(at, asked.id).unwrap_or((-1, 0));
                let keys = if asked.keys && ttl >= 0 { store.keys_of(asked.id) } else { Vec::new() };
                TimeToLiveResponse { header: Some(store.header()), id: asked.id, ttl, granted_ttl, keys }.encode_to_vec()
            }
        })
    }
}

/// The watches of one stream.
#[derive(Debug, Default)]
pub(super) struct Watching {
    watches: Vec<Watch>,
    made: i64,
}

#[derive(Debug)]
struct Watch {
    id: i64,
    asked: WatchCreate,
    /// The first revision of which it was not told yet.
    next: i64,
}

impl Watching {
    /// Makes a watch; what is answered to that. One that begins too early is ended at once.
    pub(super) fn create(&mut self, store: &Store, asked: WatchCreate) -> Vec<WatchResponse> {
        let id = self.made;
        self.made += 1;
        let made = WatchResponse { header: Some(store.header()), watch_id: id, created: true, ..WatchResponse::default() };
        let next = if asked.start_revision > 0 { asked.start_revision } else { store.revision() + 1 };
        if next < store.compacted() {
            let compact_revision = store.compacted();
            return vec![made, WatchResponse { compact_revision, ..self.cancel(store, id, "") }];
        }
        self.watches.push(Watch { id, asked, next });
        vec![made]
    }

    /// Ends a watch; what is answered to that.
    pub(super) fn cancel(&mut self, store: &Store, id: i64, reason: &str) -> WatchResponse {
        self.watches.retain(|watch| watch.id != id);
        let cancel_reason = reason.to_owned();
        WatchResponse { header: Some(store.header()), watch_id: id, canceled: true, cancel_reason, ..WatchResponse::default() }
    }

    /// What happened since it was told last.
    pub(super) fn news(&mut self, store: &Store) -> Vec<WatchResponse> {
        let mut news = Vec::new();
        for watch in &mut self.watches {
            let events: Vec<_> = store.since(watch.next).iter().filter_map(|event| watch.told(event)).collect();
            watch.next = watch.next.max(store.revision() + 1);
            if !events.is_empty() {
                news.push(WatchResponse { header: Some(store.header()), watch_id: watch.id, events, ..WatchResponse::default() });
            }
        }
        news
    }
}

impl Watch {
    /// An event as this watch tells it.
    fn told(&self, event: &Event) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let filtered = if event.kind == DELETED { NO_DELETE } else { NO_PUT };
        let concerns = revision_of(event) >= self.next && covers(&self.asked.key, &self.asked.range_end, &kv.key);
        let prev_kv = event.prev_kv.clone().filter(|_| self.asked.prev_kv);
        (concerns && !self.asked.filters.contains(&filtered)).then(|| Event { prev_kv, ..event.clone() })
    }
}
