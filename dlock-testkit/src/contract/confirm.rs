//! Asking whether a kept place is first.

use dlock_core::{Cursor, ErrorKind, Place, Standing};

use super::{Client, Harness, claim_of};

/// First come, first served; a store without a queue refuses the question.
pub async fn the_first_in_line_is_confirmed_and_no_other(harness: &dyn Harness) {
    let clients = [Client::new(harness).await, Client::new(harness).await, Client::new(harness).await];
    let claims = [claim_of("k"), claim_of("k"), claim_of("k")];
    if !clients[0].is_fifo() {
        let refused = clients[0].backend.confirm(&clients[0].session, &claims[0], Cursor(0)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        return;
    }
    for (client, claim) in clients.iter().zip(&claims) {
        client.claim(claim, Place::Queue).await;
    }
    for first in 0..3 {
        for other in first + 1..3 {
            let standing = clients[other].backend.confirm(&clients[other].session, &claims[other], Cursor(0)).await.unwrap();
            assert!(matches!(standing, Standing::Waiting { .. }), "{other} behind {first}: {standing:?}");
        }
        let standing = clients[first].backend.confirm(&clients[first].session, &claims[first], Cursor(0)).await.unwrap();
        assert!(matches!(standing, Standing::Held { .. }), "{first}: {standing:?}");
        assert!(clients[first].release(&claims[first]).await);
    }
}

/// A confirmation never creates a place.
pub async fn a_place_is_never_made_by_asking(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if client.is_fifo() {
        let claim = claim_of("k");
        let standing = client.backend.confirm(&client.session, &claim, Cursor(0)).await.unwrap();
        assert_eq!(standing, Standing::ClaimGone);
        client.held(&claim_of("k")).await;
    }
    assert_eq!(client.holders(&claim_of("other").key).await, 0);
}
