//! Who holds a key, and who waits.

use dlock_core::{Place, Published};

use super::{Client, Harness, claim_of, key};

/// Never held, and not held any more.
pub async fn a_free_key_has_no_holder(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    assert_eq!(client.holders(&key("never")).await, 0);
    let claim = claim_of("k");
    client.held(&claim).await;
    client.release(&claim).await;
    assert_eq!(client.holders(&claim.key).await, 0);
}

/// What the holder published, for anybody who looks.
pub async fn a_holder_is_shown_with_its_metadata(harness: &dyn Harness) {
    let (client, other) = (Client::new(harness).await, Client::new(harness).await);
    let claim = claim_of("k");
    let token = client.held(&claim).await;
    let seen = other.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders.len(), 1);
    let holder = &seen.holders[0];
    assert_eq!(holder.owner(), Some("host/1/contract"));
    assert_eq!(holder.acquired_at(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(holder.claim(), Some(claim.id));
    assert_eq!(holder.published.metadata().and_then(|metadata| metadata.get("purpose")), Some("contract"));
    assert!(holder.token.is_none_or(|told| told == token));
    assert!(holder.session.as_ref().is_none_or(|told| *told == client.session));
}

/// First come first, where the store knows.
pub async fn those_in_line_are_shown_in_order(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claims = [claim_of("k"), claim_of("k"), claim_of("k")];
    for claim in &claims {
        let waiter = Client::new(harness).await;
        waiter.claim(claim, Place::Queue).await;
    }
    let seen = client.backend.inspect(&key("k")).await.unwrap();
    assert_eq!(seen.holders[0].claim(), Some(claims[0].id));
    if let Some(waiters) = seen.waiters {
        let waiters: Vec<_> = waiters.iter().map(dlock_core::Holder::claim).collect();
        assert_eq!(waiters, [Some(claims[1].id), Some(claims[2].id)]);
    } else {
        assert!(!client.is_fifo(), "a store with a queue knows who is in it");
    }
}

/// Nothing is hidden, and nothing taken for a lock.
pub async fn what_is_no_lock_is_shown_raw(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    harness.put_foreign(&key("k")).await;
    let seen = client.backend.inspect(&key("k")).await.unwrap();
    assert_eq!(seen.holders.len(), 1);
    assert!(matches!(seen.holders[0].published, Published::Raw(_)), "{:?}", seen.holders[0]);
}
