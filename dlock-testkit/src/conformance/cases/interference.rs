//! Finding out that somebody else ended a lock.

use dlock_core::{Cause, ClaimId, Cursor, Granted, Interference, Renewal};
use tokio::time::timeout;

use crate::conformance::{Ability, Client, NotShown, Shown, Stage};

async fn audit(client: &Client, granted: &[Granted]) -> Vec<Interference> {
    client.backend.audit(&client.session, granted).await.expect("an audit must be answered")
}

fn claims(found: &[Interference]) -> Vec<ClaimId> {
    found.iter().map(|found| found.claim).collect()
}

/// No false alarm, however many claims are asked about.
pub async fn an_audit_finds_nothing_where_nothing_happened(stage: &Stage) -> Shown {
    stage.claims(Ability::Audits).await?;
    let client = stage.client().await;
    let mut granted = Vec::new();
    for n in 0..70 {
        granted.push(client.granted(&stage.claim(&format!("k{n}"))).await);
    }
    assert_eq!(audit(&client, &granted).await, []);
    assert_eq!(audit(&client, &[]).await, []);
    Ok(())
}

/// One verdict for the one that is concerned.
pub async fn an_audit_tells_a_deleted_key(stage: &Stage) -> Shown {
    stage.claims(Ability::Audits).await?;
    let client = stage.client().await;
    let granted = [client.granted(&stage.claim("kept")).await, client.granted(&stage.claim("deleted")).await];
    stage.delete(&granted[1].claim.key).await?;
    let found = audit(&client, &granted).await;
    assert_eq!(found, [Interference { claim: granted[1].claim.id, cause: Cause::KeyDeleted }]);
    Ok(())
}

/// The key is there, and not ours.
pub async fn an_audit_tells_a_release_by_force(stage: &Stage) -> Shown {
    stage.claims(Ability::Audits).await?;
    let client = stage.client().await;
    let granted = [client.granted(&stage.claim("kept")).await, client.granted(&stage.claim("forced")).await];
    stage.release_by_force(&granted[1].claim.key).await?;
    assert_eq!(claims(&audit(&client, &granted).await), [granted[1].claim.id]);
    Ok(())
}

/// Another's grant is not ours.
pub async fn an_audit_tells_a_successor(stage: &Stage) -> Shown {
    stage.claims(Ability::Audits).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    let granted = [client.granted(&stage.claim("k")).await];
    stage.release_by_force(&granted[0].claim.key).await?;
    other.held(&stage.claim("k")).await;
    assert_eq!(claims(&audit(&client, &granted).await), [granted[0].claim.id]);
    Ok(())
}

/// Of many that are lost at once each is found, wherever it stands among the others.
pub async fn an_audit_finds_each_of_many(stage: &Stage) -> Shown {
    stage.claims(Ability::Audits).await?;
    let client = stage.client().await;
    let mut granted = Vec::new();
    for n in 0..70 {
        granted.push(client.granted(&stage.claim(&format!("k{n}"))).await);
    }
    let lost = [0, 1, 63, 64, 69];
    for n in lost {
        stage.delete(&granted[n].claim.key).await?;
    }
    let mut found = claims(&audit(&client, &granted).await);
    let mut expected: Vec<_> = lost.iter().map(|n| granted[*n].claim.id).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    Ok(())
}

/// A watch that returns at once would be polling.
pub async fn a_watch_is_quiet_while_nothing_happens(stage: &Stage) -> Shown {
    stage.claims(Ability::WatchedClaims).await?;
    let client = stage.client().await;
    let granted = client.granted(&stage.claim("k")).await;
    let (of_claim, of_session) = tokio::join!(
        timeout(stage.prompt(), client.backend.disturbed(&client.session, Some(&granted), None)),
        timeout(stage.prompt(), client.backend.disturbed(&client.session, None, None)),
    );
    assert!(of_claim.is_err() && of_session.is_err(), "{of_claim:?} {of_session:?}");
    Ok(())
}

/// Also when it happened before the watch began.
pub async fn a_watch_tells_of_a_deleted_key(stage: &Stage) -> Shown {
    stage.claims(Ability::WatchedClaims).await?;
    for before in [false, true] {
        assert_watched(stage, before, async |granted| stage.delete(&granted.claim.key).await).await?;
    }
    Ok(())
}

/// The key may stay where it is.
pub async fn a_watch_tells_of_a_release_by_force(stage: &Stage) -> Shown {
    stage.claims(Ability::WatchedClaims).await?;
    for before in [false, true] {
        assert_watched(stage, before, async |granted| stage.release_by_force(&granted.claim.key).await).await?;
    }
    Ok(())
}

async fn assert_watched(stage: &Stage, before: bool, happens: impl AsyncFn(&Granted) -> Result<(), NotShown>) -> Shown {
    let client = stage.client().await;
    let granted = client.granted(&stage.claim("k")).await;
    let told = async {
        if before {
            happens(&granted).await?;
        }
        let watch = client.backend.disturbed(&client.session, Some(&granted), None);
        tokio::pin!(watch);
        if !before {
            assert!(timeout(stage.moment(), &mut watch).await.is_err(), "nothing has happened yet");
            happens(&granted).await?;
        }
        watch.await.expect("a watch must be answered");
        client.release(&granted.claim).await;
        Ok(())
    };
    timeout(stage.patience().await, told).await.expect("the watch must return")
}

/// A watch may return early, but looks after its own claim: an audit then finds nothing.
pub async fn a_watch_of_one_claim_costs_no_other(stage: &Stage) -> Shown {
    stage.claims(Ability::WatchedClaims).await?;
    stage.claims(Ability::Audits).await?;
    let client = stage.client().await;
    let (mine, other) = (client.granted(&stage.claim("mine")).await, client.granted(&stage.claim("other")).await);
    stage.delete(&other.claim.key).await?;
    let watch = async {
        let mut cursor: Option<Cursor> = None;
        loop {
            cursor = Some(client.backend.disturbed(&client.session, Some(&mine), cursor).await.expect("a watch must be answered"));
            assert_eq!(audit(&client, std::slice::from_ref(&mine)).await, []);
        }
    };
    assert!(timeout(stage.moment(), watch).await.is_err());
    Ok(())
}

/// The end of a session concerns all it has.
pub async fn a_watch_tells_of_an_ended_session(stage: &Stage) -> Shown {
    stage.claims(Ability::WatchedSession).await?;
    let client = stage.client().await;
    // A session that holds nothing may end unheard.
    client.held(&stage.claim("k")).await;
    let told = async {
        let mut cursor = None;
        let watch = async {
            // A watch may come back early; a renewal tells.
            loop {
                cursor = Some(client.backend.disturbed(&client.session, None, cursor).await.expect("a watch must be answered"));
                if client.backend.renew(&client.session).await.expect("a renewal must be answered") == Renewal::Gone {
                    break;
                }
            }
        };
        tokio::pin!(watch);
        assert!(timeout(stage.moment(), &mut watch).await.is_err(), "nothing has happened yet");
        stage.end_session(&client.session).await?;
        watch.await;
        Ok(())
    };
    timeout(stage.patience().await, told).await.expect("the watch must return")
}
