//! Undoing what a claim has, for good.

use dlock_core::{ErrorKind, Place};

use super::{Client, Harness, Sent, claim_of};

/// A released key can be had by another.
pub async fn what_is_released_is_free(harness: &dyn Harness) {
    let (client, other) = (Client::new(harness).await, Client::new(harness).await);
    let claim = claim_of("k");
    client.held(&claim).await;
    assert!(client.release(&claim).await);
    assert_eq!(client.holders(&claim.key).await, 0);
    other.held(&claim_of("k")).await;
}

/// There may be nothing to undo, and nothing is disturbed.
pub async fn what_was_never_claimed_is_not_held(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    assert!(!client.release(&claim_of("absent")).await);
    let held = claim_of("k");
    client.held(&held).await;
    assert!(!client.release(&claim_of("k")).await, "another claim of the same session");
    assert_eq!(client.holders(&held.key).await, 1);
    assert!(client.release(&held).await);
}

/// Asked again, a release finds nothing, whoever holds the key by then.
pub async fn a_repeated_release_never_frees_a_successor(harness: &dyn Harness) {
    let (client, other) = (Client::new(harness).await, Client::new(harness).await);
    let first = claim_of("k");
    client.held(&first).await;
    assert!(client.release(&first).await);
    for successor in [&client, &other] {
        let claim = claim_of("k");
        successor.held(&claim).await;
        assert!(!client.release(&first).await);
        assert_eq!(successor.holders(&claim.key).await, 1);
        assert!(successor.release(&claim).await);
    }
}

/// A copy of a release that arrives after the next grant has no effect, also within one session.
pub async fn a_late_release_never_frees_a_successor(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let (first, second) = (claim_of("k"), claim_of("k"));
    client.held(&first).await;
    let late = harness.hold(Sent::Release);
    tokio::select! {
        answer = client.backend.release(&client.session, &first) => panic!("answered while under way: {answer:?}"),
        () = late.sent() => {}
    }
    assert!(client.release(&first).await);
    client.held(&second).await;
    late.deliver().await;
    let seen = client.backend.inspect(&second.key).await.unwrap();
    assert_eq!(seen.holders[0].claim(), Some(second.id));
}

/// A release is a fence: no copy of its claim can take effect later, even if the same session held the key in between.
pub async fn a_claim_that_arrives_after_its_release_has_no_effect(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    if !client.backend.capabilities().fences {
        return assert_retired(harness, &client).await;
    }
    for meetings in 0..2 {
        for _ in 0..meetings {
            let claim = claim_of("k");
            client.held(&claim).await;
            assert!(client.release(&claim).await);
        }
        let late = late_claim(harness, &client).await;
        let between = claim_of("k");
        client.held(&between).await;
        assert!(client.release(&between).await);
        late.deliver().await;
        assert_eq!(client.holders(&between.key).await, 0, "after {meetings} meetings");
    }
}

/// A store that cannot fence has its session closed, which must do as well.
async fn assert_retired(harness: &dyn Harness, client: &Client) {
    let late = late_claim(harness, client).await;
    client.backend.close(&client.session).await.unwrap();
    late.deliver().await;
    assert_eq!(client.holders(&claim_of("k").key).await, 0);
}

/// A claim that is under way, given up, and undone.
async fn late_claim(harness: &dyn Harness, client: &Client) -> Box<dyn super::UnderWay> {
    let claim = claim_of("k");
    let late = harness.hold(Sent::Claim);
    tokio::select! {
        answer = client.backend.claim(&client.session, &claim, Place::Queue) => panic!("answered while under way: {answer:?}"),
        () = late.sent() => {}
    }
    assert!(!client.release(&claim).await);
    late
}

/// Perhaps it was applied: asked again, the store says so.
pub async fn a_lost_reply_is_found_out(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claim = claim_of("k");
    client.held(&claim).await;
    harness.lose_reply(Sent::Release);
    let lost = client.backend.release(&client.session, &claim).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Ambiguous, "{lost}");
    client.release(&claim).await;
    assert_eq!(client.holders(&claim.key).await, 0);
    client.held(&claim_of("k")).await;
}

/// Whoever waits can give up; those behind move up, the holder does not notice.
pub async fn a_place_in_line_is_given_up(harness: &dyn Harness) {
    let (holder, waiter) = (Client::new(harness).await, Client::new(harness).await);
    let (held, waiting) = (claim_of("k"), claim_of("k"));
    holder.held(&held).await;
    waiter.claim(&waiting, Place::Queue).await;
    assert_eq!(waiter.release(&waiting).await, waiter.is_fifo(), "a place is something, where the store has them");
    assert_eq!(holder.holders(&held.key).await, 1);
    assert!(holder.release(&held).await);
    assert_eq!(holder.holders(&held.key).await, 0);
}

/// There is nothing left to release, and that is an answer.
pub async fn a_session_that_ended_took_its_claims_along(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claim = claim_of("k");
    client.held(&claim).await;
    harness.end_session(&client.session).await;
    assert!(!client.release(&claim).await);
}
