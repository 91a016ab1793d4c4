//! Finding out that somebody else ended a lock.

use dlock_core::{Cause, ErrorKind, Granted, Interference};
use tokio::time::timeout;

use super::{Client, Harness, claim_of};

async fn audit(client: &Client, granted: &[Granted]) -> Vec<Interference> {
    client.backend.audit(&client.session, granted).await.expect("an audit must be answered")
}

/// What is not declared is refused; says whether it is declared.
async fn audits(client: &Client) -> bool {
    let declared = client.backend.capabilities().audits;
    if !declared {
        assert_eq!(client.backend.audit(&client.session, &[]).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    declared
}

/// No false alarm, however many claims are asked about.
pub async fn an_audit_finds_nothing_where_nothing_happened(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if !audits(&client).await {
        return;
    }
    let mut granted = Vec::new();
    for n in 0..70 {
        granted.push(client.granted(&claim_of(&format!("k{n}"))).await);
    }
    assert_eq!(audit(&client, &granted).await, []);
    assert_eq!(audit(&client, &[]).await, []);
}

/// One verdict for the one that is concerned.
pub async fn an_audit_tells_a_deleted_key(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if !audits(&client).await {
        return;
    }
    let granted = [client.granted(&claim_of("kept")).await, client.granted(&claim_of("deleted")).await];
    harness.delete(&granted[1].claim.key).await;
    let found = audit(&client, &granted).await;
    assert_eq!(found, [Interference { claim: granted[1].claim.id, cause: Cause::KeyDeleted }]);
}

/// The key is there, and not ours.
pub async fn an_audit_tells_a_forced_release(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if !audits(&client).await {
        return;
    }
    let granted = [client.granted(&claim_of("kept")).await, client.granted(&claim_of("forced")).await];
    harness.release_by_force(&granted[1].claim.key).await;
    let found = audit(&client, &granted).await;
    assert_eq!(found.iter().map(|found| found.claim).collect::<Vec<_>>(), [granted[1].claim.id]);
}

/// Another's grant is not ours.
pub async fn an_audit_tells_a_successor(harness: &dyn Harness) {
    let (client, other) = (Client::new(harness).await, Client::new(harness).await);
    if !audits(&client).await {
        return;
    }
    let granted = [client.granted(&claim_of("k")).await];
    harness.release_by_force(&granted[0].claim.key).await;
    other.held(&claim_of("k")).await;
    assert_eq!(audit(&client, &granted).await.len(), 1);
}

/// A watch that returns at once would be polling.
pub async fn a_watch_is_quiet_while_nothing_happens(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let granted = client.granted(&claim_of("k")).await;
    if client.backend.capabilities().watched_claims.is_none() {
        let refused = client.backend.disturbed(&client.session, None, None).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        return;
    }
    let watch = client.backend.disturbed(&client.session, Some(&granted), None);
    assert!(timeout(harness.prompt(), watch).await.is_err());
}

/// Also when it happened before the watch began.
pub async fn a_watch_tells_of_a_deleted_key(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if client.backend.capabilities().watched_claims.is_none_or(|most| most == 0) {
        return;
    }
    for before in [false, true] {
        let granted = client.granted(&claim_of("k")).await;
        let told = async {
            if before {
                harness.delete(&granted.claim.key).await;
            }
            let watch = client.backend.disturbed(&client.session, Some(&granted), None);
            tokio::pin!(watch);
            if !before {
                assert!(timeout(harness.prompt() / 10, &mut watch).await.is_err());
                harness.delete(&granted.claim.key).await;
            }
            watch.await.expect("a watch must be answered");
        };
        timeout(harness.prompt(), told).await.expect("the watch must return");
    }
}

/// The end of a session concerns all it has.
pub async fn a_watch_tells_of_an_ended_session(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if client.backend.capabilities().watched_claims.is_none() {
        return;
    }
    let told = async {
        let mut cursor = None;
        let watch = async {
            // A watch may return early; a renewal tells.
            loop {
                cursor = Some(client.backend.disturbed(&client.session, None, cursor).await.expect("a watch must be answered"));
                if client.backend.renew(&client.session).await.expect("a renewal must be answered") == dlock_core::Renewal::Gone {
                    return;
                }
            }
        };
        tokio::pin!(watch);
        assert!(timeout(harness.prompt() / 10, &mut watch).await.is_err());
        harness.end_session(&client.session).await;
        watch.await;
    };
    timeout(harness.prompt(), told).await.expect("the watch must return");
}
