//! The number that tells an old holder from a new one.

use dlock_core::{Place, Standing};
use tokio::time::{sleep, timeout};

use super::{Client, Harness, claim_of};

/// Within a session, between sessions, between clients.
pub async fn every_grant_has_a_greater_one(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let clients = [client.again(harness).await, client, Client::new(harness).await];
    let mut last = None;
    for client in clients.iter().cycle().take(7) {
        let claim = claim_of("k");
        let token = client.held(&claim).await;
        assert!(Some(token) > last, "{token} after {last:?}");
        last = Some(token);
        assert!(client.release(&claim).await);
    }
}

/// A key that is made anew goes on counting.
pub async fn a_deletion_does_not_set_them_back(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let mut last = None;
    for _ in 0..3 {
        let claim = claim_of("k");
        let token = client.held(&claim).await;
        assert!(Some(token) > last, "{token} after {last:?}");
        last = Some(token);
        harness.delete(&claim.key).await;
        client.release(&claim).await;
    }
}

/// A successor of a holder that lapsed has a greater one.
pub async fn an_expiry_does_not_set_them_back(harness: &dyn Harness) {
    let silent = Client::with_ttl(harness, harness.short_ttl()).await;
    let token = silent.held(&claim_of("k")).await;
    let client = Client::new(harness).await;
    let times = silent.backend.capabilities().lapses_within_ttls;
    let claim = claim_of("k");
    let granted = async {
        loop {
            if let Standing::Held { token } = client.claim(&claim, Place::Try).await {
                return token;
            }
            sleep(harness.short_ttl() / 10).await;
        }
    };
    let later = timeout(harness.short_ttl() * times + harness.prompt(), granted).await.expect("the session must lapse");
    assert!(later > token, "{later} after {token}");
}
