//! What becomes on a real etcd of copies of a claim that are under way while it is released.
#![allow(missing_docs)]

use std::time::Duration;

use dlock_core::{Claim, ClaimId, Key, LockBackend, Mode, Place, Release, SessionId, SessionRequest, Standing};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_testkit::proxy::{Fault, FaultProxy, Matching};
use dlock_testkit::servers::EtcdServer;

/// So long what a copy asks last is on its way; less than an attempt takes, and far more than what happens meanwhile.
const ON_ITS_WAY: Duration = Duration::from_secs(3);
const ATTEMPT: Duration = Duration::from_secs(20);

fn claim(id: u128) -> Claim {
    Claim {
        id: ClaimId::from_bits(id),
        key: Key::new("k").unwrap(),
        mode: Mode::Exclusive,
        owner: "host/1/test".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

#[tokio::test]
async fn a_copy_that_still_looks_for_its_claim_does_not_take_the_next_claims_entry_for_it() {
    let server = EtcdServer::start().await.unwrap();
    let proxy = FaultProxy::start_grpc(server.address()).await.unwrap();
    let options = EtcdOptions::new().endpoints([proxy.address().to_string()]).unwrap().attempt_limit(ATTEMPT).unwrap();
    let etcd = Etcd::new(options).unwrap();
    let request = SessionRequest { id: SessionId::new("5eed"), ttl: Duration::from_secs(60), owner: "host/1/test".into() };
    let session = etcd.open(&request).await.unwrap().id;
    let (one, next) = (claim(1), claim(2));

    let held = etcd.claim(&session, &one, Place::Queue).await.unwrap();
    assert!(matches!(held, Standing::Held { .. }), "{held:?}");
    // A look carries no value, which is JSON.
    let looks = Matching::any().path("/etcdserverpb.KV/Txn").message(|message| !message.contains(&b'{'));
    proxy.reset();
    proxy.next(looks.clone(), Fault::Delay(ON_ITS_WAY));
    let copy = {
        let (etcd, session, one) = (etcd.clone(), session.clone(), one.clone());
        tokio::spawn(async move { etcd.claim(&session, &one, Place::Queue).await })
    };
    let sent = async {
        while proxy.count(&looks) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(ATTEMPT, sent).await.expect("the copy is refused, and looks");
    assert_eq!(etcd.release(&session, &one).await.unwrap(), Release::Released);
    let Standing::Held { token } = etcd.claim(&session, &next, Place::Queue).await.unwrap() else { panic!("nobody else wants it") };
    let copied = copy.await.unwrap().unwrap();
    assert!(matches!(copied, Standing::ClaimGone), "{copied:?}, while the next claim holds {token}");
    assert_eq!(etcd.release(&session, &next).await.unwrap(), Release::Released);
}
