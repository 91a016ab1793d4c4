//! Which place in a client's life a call to etcd stands for.

use super::api::Asked;
use super::message::{Request, TxnRequest};
use crate::plan::Site;

/// The site of a call; `holds` when its client holds the key.
pub(super) fn site(asked: &Asked, holds: bool) -> Site {
    match asked {
        Asked::Grant(_) => Site::Open,
        Asked::KeepAlive(_) => Site::Renew,
        Asked::Revoke(_) => Site::Close,
        Asked::Txn(txn) => of_txn(txn),
        Asked::Alone(_) | Asked::Compact(_) => Site::Release,
        // Looking again after a compaction, or whether the lease is still there.
        Asked::Range(_) | Asked::TimeToLive(_) if holds => Site::Disturbed,
        Asked::Range(_) | Asked::TimeToLive(_) => Site::Confirm,
    }
}

fn of_txn(txn: &TxnRequest) -> Site {
    let has = |wanted: fn(&Request) -> bool| txn.success.iter().filter_map(|operation| operation.request.as_ref()).any(wanted);
    let puts = has(|request| matches!(request, Request::Put(_)));
    // What is released may leave a tombstone.
    let deletes = has(|request| matches!(request, Request::DeleteRange(_)));
    match (deletes, puts, txn.compare.is_empty()) {
        (true, _, _) => Site::Release,
        (false, true, _) => Site::Claim,
        (false, false, true) => Site::Audit,
        (false, false, false) => Site::Confirm,
    }
}

/// The site of a watch: of an entry of one's own, or of whoever is ahead.
pub(super) fn of_watch(key: &[u8], is_own: impl Fn(i64) -> bool) -> Site {
    if lease_in(key).is_some_and(is_own) { Site::Disturbed } else { Site::Wait }
}

/// The lease after which an entry is named.
pub(super) fn lease_in(key: &[u8]) -> Option<i64> {
    let place = std::str::from_utf8(key).ok()?.rsplit(['/', '\0']).next()?;
    Some(u64::from_str_radix(place.split('.').next()?, 16).ok()?.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcd::message::{Compare, DeleteRangeRequest, LeaseRequest, PutRequest, RangeRequest, RequestOp};

    fn txn(compares: usize, operations: Vec<Request>) -> Asked {
        let success = operations.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
        Asked::Txn(TxnRequest { compare: vec![Compare::default(); compares], success, failure: Vec::new() })
    }

    #[test]
    fn every_call_has_its_site() {
        let (put, range) = (Request::Put(PutRequest::default()), Request::Range(RangeRequest::default()));
        let delete = Request::DeleteRange(DeleteRangeRequest::default());
        for (asked, expected) in [
            (txn(2, vec![put.clone(), range.clone()]), Site::Claim),
            (txn(0, vec![delete.clone()]), Site::Release),
            (txn(0, vec![delete, put]), Site::Release),
            (txn(1, vec![range.clone(), range.clone()]), Site::Confirm),
            (txn(0, vec![range]), Site::Audit),
            (Asked::Revoke(7), Site::Close),
            (Asked::KeepAlive(7), Site::Renew),
            (Asked::TimeToLive(LeaseRequest { id: 7, keys: false }), Site::Confirm),
        ] {
            assert_eq!(site(&asked, false), expected, "{asked:?}");
        }
        assert_eq!(site(&Asked::Range(RangeRequest::default()), true), Site::Disturbed);
    }

    #[test]
    fn a_watch_of_another_entry_waits_for_it() {
        assert_eq!(of_watch(b"locks/one/7f.1", |lease| lease == 0x7f), Site::Disturbed);
        assert_eq!(of_watch(b"locks/one/7e.1", |lease| lease == 0x7f), Site::Wait);
        assert_eq!(lease_in(b"locks/one\x007f.1"), Some(0x7f));
        assert_eq!(lease_in(b"locks/one/x"), None);
    }
}
