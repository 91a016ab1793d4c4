//! How much memory calls take while nothing is under way of them: those who wait for a connection, for room, or for news, may be many.
#![allow(missing_docs)]

use std::sync::Arc;

use dlock_core::{Claim, ClaimId, FencingToken, Granted, Key, LockBackend, Mode, Place, SessionId};
use dlock_etcd::{Etcd, EtcdOptions};

/// glibc has chunks of up to so many bytes at hand for each thread; for larger ones it looks through what all threads share.
const AT_HAND: usize = 1_032;

#[test]
fn a_call_carries_no_request_of_kilobytes_before_it_is_sent() {
    let etcd = Etcd::new(EtcdOptions::new()).unwrap();
    let (session, key) = (SessionId::from_bits(7), Key::new("k").unwrap());
    let (id, mode) = (ClaimId::from_bits(1), Mode::Exclusive);
    let claim = Claim { id, key, mode, owner: "".into(), acquired_at: "".into(), metadata: None };
    let granted = Granted { claim: Arc::new(claim.clone()), token: FencingToken::new(1).unwrap() };
    let size = |call: &dyn Send| size_of_val(call);
    for (what, size, most) in [
        ("claim", size(&*etcd.claim(&session, &claim, Place::Queue)), AT_HAND),
        ("release", size(&*etcd.release(&session, &claim)), AT_HAND),
        ("disturbed", size(&*etcd.disturbed(&session, Some(&granted), None)), 1_024),
    ] {
        assert!(size <= most, "a call of {what} takes {size} bytes");
    }
}
