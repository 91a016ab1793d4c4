//! etcd's transactions: conditions, and what is done when they are met or not, all of it at one revision.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::message::{
    CREATE, Compare, DESCEND, DeleteRangeRequest, DeleteRangeResponse, EQUAL, GREATER, Header, KeyValue, LESS, MOD, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Request, RequestOp, Response, ResponseOp, Target, TxnRequest, TxnResponse, UNSORTED,
    VALUE, VERSION,
};
use super::store::{Status, Store};

/// The most operations that one takes, on each of its sides.
const MOST: usize = 128;

impl Store {
    /// What stands at the head of an answer. This cluster has one member as far as clients can tell.
    pub(super) fn header(&self) -> Header {
        Header { cluster_id: 0xC1, member_id: 0x11, revision: self.revision, raft_term: 2 }
    }

    /// Answers `KV/Txn`.
    pub(super) fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, Status> {
        well_formed(txn)?;
        let mut draft = self.clone();
        draft.revision += 1;
        let before = draft.changes();
        let mut reply = draft.evaluate(txn)?;
        // A transaction that changed nothing has no revision of its own.
        if draft.changes() == before {
            draft.revision -= 1;
        }
        reply.header = Some(draft.header());
        *self = draft;
        Ok(reply)
    }

    /// Answers `KV/Range`.
    pub(super) fn range(&self, range: &RangeRequest) -> Result<RangeResponse, Status> {
        if range.key.is_empty() {
            return Err(Status::NO_KEY);
        }
        let past;
        let keys = if range.revision > 0 {
            past = self.as_of(range.revision)?;
            &past
        } else {
            &self.keys
        };
        let mut kvs: Vec<_> = within(keys, &range.key, &range.range_end).cloned().collect();
        let count = count_of(kvs.len());
        kvs.retain(|kv| {
            let above = |bound: i64, at: i64| bound == 0 || at >= bound;
            let below = |bound: i64, at: i64| bound == 0 || at <= bound;
            above(range.min_mod_revision, kv.mod_revision)
                && below(range.max_mod_revision, kv.mod_revision)
                && above(range.min_create_revision, kv.create_revision)
                && below(range.max_create_revision, kv.create_revision)
        });
        if range.sort_order != UNSORTED || range.sort_target != 0 {
            kvs.sort_by(|one, other| {
                let order = match range.sort_target {
                    VERSION_ORDER => one.version.cmp(&other.version),
                    CREATE_ORDER => one.create_revision.cmp(&other.create_revision),
                    MOD_ORDER => one.mod_revision.cmp(&other.mod_revision),
                    VALUE_ORDER => one.value.cmp(&other.value),
                    _ => one.key.cmp(&other.key),
                };
                if range.sort_order == DESCEND { order.reverse() } else { order }
            });
        }
        let limit = usize::try_from(range.limit).unwrap_or_default();
        let more = !range.count_only && limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if range.count_only {
            kvs.clear();
        }
        if range.keys_only {
            for kv in &mut kvs {
                kv.value.clear();
            }
        }
        Ok(RangeResponse { header: Some(self.header()), kvs, more, count })
    }

    /// How many changes there were: events, not revisions.
    fn changes(&self) -> usize {
        self.since(self.revision).len()
    }

    fn evaluate(&mut self, txn: &TxnRequest) -> Result<TxnResponse, Status> {
        let succeeded = txn.compare.iter().all(|compare| self.is_met(compare));
        let operations = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::new();
        for operation in operations {
            let response = match &operation.request {
                Some(Request::Range(range)) => Response::Range(self.range(range)?),
                Some(Request::Put(put)) => Response::Put(self.write(put)?),
                Some(Request::DeleteRange(delete)) => Response::DeleteRange(self.remove(delete)),
                Some(Request::Txn(nested)) => Response::Txn(self.evaluate(nested)?),
                None => return Err(Status::NO_KEY),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: Some(Header::default()), succeeded, responses })
    }

    fn write(&mut self, put: &PutRequest) -> Result<PutResponse, Status> {
        if put.lease != 0 && !self.knows(put.lease) {
            return Err(Status::NO_LEASE);
        }
        self.put(put.key.clone(), put.value.clone(), put.lease);
        Ok(PutResponse { header: Some(self.header()) })
    }

    fn remove(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let keys: Vec<_> = within(&self.keys, &delete.key, &delete.range_end).map(|kv| kv.key.clone()).collect();
        let deleted = count_of(keys.iter().filter(|key| self.delete(key)).count());
        DeleteRangeResponse { header: Some(self.header()), deleted }
    }

    /// Whether all keys in the range of a condition meet it; what is not there counts as a key of zeros, without a value to compare.
    fn is_met(&self, compare: &Compare) -> bool {
        let mut keys = within(&self.keys, &compare.key, &compare.range_end).peekable();
        if keys.peek().is_none() {
            return compare.target != VALUE && holds(compare, &KeyValue::default());
        }
        keys.all(|kv| holds(compare, kv))
    }
}

/// As in `RangeRequest.SortTarget`.
const VERSION_ORDER: i32 = 1;
const CREATE_ORDER: i32 = 2;
const MOD_ORDER: i32 = 3;
const VALUE_ORDER: i32 = 4;

fn count_of(keys: usize) -> i64 {
    i64::try_from(keys).unwrap_or(i64::MAX)
}

fn holds(compare: &Compare, kv: &KeyValue) -> bool {
    let number = match (compare.target, &compare.with) {
        (VALUE, Some(Target::Value(value))) => return meets(compare.result, kv.value.cmp(value)),
        (VALUE, _) => return meets(compare.result, kv.value.as_slice().cmp(&[])),
        (VERSION, Some(Target::Version(version))) => kv.version.cmp(version),
        (VERSION, _) => kv.version.cmp(&0),
        (CREATE, Some(Target::Create(revision))) => kv.create_revision.cmp(revision),
        (CREATE, _) => kv.create_revision.cmp(&0),
        (MOD, Some(Target::Mod(revision))) => kv.mod_revision.cmp(revision),
        (MOD, _) => kv.mod_revision.cmp(&0),
        (_, Some(Target::Lease(lease))) => kv.lease.cmp(lease),
        (_, _) => kv.lease.cmp(&0),
    };
    meets(compare.result, number)
}

fn meets(result: i32, found: Ordering) -> bool {
    match result {
        EQUAL => found.is_eq(),
        GREATER => found.is_gt(),
        LESS => found.is_lt(),
        _ => found.is_ne(),
    }
}

/// The keys of a range: one without an end, all from there on if the end is a NUL.
fn within<'a>(keys: &'a BTreeMap<Vec<u8>, KeyValue>, key: &[u8], end: &[u8]) -> impl Iterator<Item = &'a KeyValue> {
    let (from, end) = (key.to_vec(), end.to_vec());
    keys.range(from.clone()..).map(|(_, kv)| kv).take_while(move |kv| covers(&from, &end, &kv.key))
}

/// Whether a key is in a range, given that it is not before it.
pub(super) fn covers(from: &[u8], end: &[u8], key: &[u8]) -> bool {
    match end {
        [] => key == from,
        [0] => key >= from,
        end => key >= from && key < end,
    }
}

/// What is refused before anybody looks at the keys.
fn well_formed(txn: &TxnRequest) -> Result<(), Status> {
    if txn.compare.len().max(txn.success.len()).max(txn.failure.len()) > MOST {
        return Err(Status::TOO_MANY_OPS);
    }
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Status::NO_KEY);
    }
    for side in [&txn.success, &txn.failure] {
        for operation in side {
            match &operation.request {
                Some(Request::Range(RangeRequest { key, .. })) if key.is_empty() => return Err(Status::NO_KEY),
                Some(Request::Put(PutRequest { key, .. })) if key.is_empty() => return Err(Status::NO_KEY),
                Some(Request::DeleteRange(DeleteRangeRequest { key, .. })) if key.is_empty() => return Err(Status::NO_KEY),
                Some(Request::Txn(nested)) => well_formed(nested)?,
                Some(_) => {}
                None => return Err(Status::NO_KEY),
            }
        }
    }
    written(&txn.success)?;
    written(&txn.failure)?;
    Ok(())
}

/// What operations write: keys, and ranges that they delete.
type Written<'a> = (BTreeSet<&'a [u8]>, Vec<(&'a [u8], &'a [u8])>);

/// No key may be written twice at one revision, and none both written and deleted. Of the two sides of a nested transaction only one is taken.
fn written(side: &[RequestOp]) -> Result<Written<'_>, Status> {
    let requests = || side.iter().filter_map(|operation| operation.request.as_ref());
    let covered = |deletes: &[(&[u8], &[u8])], key: &[u8]| deletes.iter().any(|(from, end)| covers(from, end, key));
    let mut puts: BTreeSet<&[u8]> = BTreeSet::new();
    let mut deletes: Vec<(&[u8], &[u8])> = Vec::new();
    for request in requests() {
        if let Request::DeleteRange(delete) = request {
            deletes.push((&delete.key, &delete.range_end));
        }
    }
    for request in requests() {
        let Request::Txn(nested) = request else { continue };
        let ((then, deleted_then), (otherwise, deleted_otherwise)) = (written(&nested.success)?, written(&nested.failure)?);
        let nested: BTreeSet<_> = then.union(&otherwise).copied().collect();
        if nested.iter().any(|key| puts.contains(key) || covered(&deletes, key)) {
            return Err(Status::DUPLICATE_KEY);
        }
        puts.extend(nested);
        deletes.extend(deleted_then);
        deletes.extend(deleted_otherwise);
    }
    for request in requests() {
        let Request::Put(put) = request else { continue };
        if !puts.insert(&put.key) || covered(&deletes, &put.key) {
            return Err(Status::DUPLICATE_KEY);
        }
    }
    Ok((puts, deletes))
}
