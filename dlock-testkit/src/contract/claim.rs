//! Entering the contention for a key.

use dlock_core::{Claim, ClaimsPerKey, ErrorKind, Metadata, Mode, Place, SessionId, Standing};
use std::sync::Arc;

use super::{Client, Harness, Sent, claim_of, key};

/// A free key is granted to whoever asks.
pub async fn a_free_key_is_held_at_once(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    client.held(&claim_of("k")).await;
    assert_eq!(client.holders(&key("k")).await, 1);
}

/// A claim is idempotent by its id.
pub async fn a_claim_asked_again_gets_the_same_token(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claim = claim_of("k");
    let token = client.held(&claim).await;
    assert_eq!(client.held(&claim).await, token);
    assert_eq!(client.claim(&claim, Place::Queue).await, Standing::Held { token });
}

/// A lost reply is no answer, and the next attempt finds the grant.
pub async fn a_claim_whose_reply_was_lost_is_found_out(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claim = claim_of("k");
    harness.lose_reply(Sent::Claim);
    let lost = client.backend.claim(&client.session, &claim, Place::Try).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Ambiguous, "{lost}");
    let token = client.held(&claim).await;
    assert_eq!(client.held(&claim).await, token);
    assert!(client.release(&claim).await);
    assert_eq!(client.holders(&key("k")).await, 0);
}

/// Whoever only tries keeps no place.
pub async fn a_try_at_a_taken_key_is_busy_and_leaves_nothing(harness: &dyn Harness) {
    let (holder, other) = (Client::new(harness).await, Client::new(harness).await);
    let claim = claim_of("k");
    holder.held(&claim).await;
    let busy = other.claim(&claim_of("k"), Place::Try).await;
    assert!(matches!(busy, Standing::Busy { .. }), "{busy:?}");
    assert!(holder.release(&claim).await);
    assert_eq!(holder.holders(&key("k")).await, 0);
}

/// A store with a queue keeps a place, one without does not.
pub async fn a_taken_key_is_waited_for_in_the_declared_order(harness: &dyn Harness) {
    let (holder, other) = (Client::new(harness).await, Client::new(harness).await);
    holder.held(&claim_of("k")).await;
    let waiting = claim_of("k");
    let standing = other.claim(&waiting, Place::Queue).await;
    match (&standing, other.is_fifo()) {
        (Standing::Waiting { ahead: Some(1) | None, .. }, true) | (Standing::Busy { .. }, false) => {}
        _ => panic!("{standing:?}"),
    }
    let again = other.claim(&waiting, Place::Queue).await;
    assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&standing), "asked again it stands as before");
}

/// Contention is an answer that names the holder.
pub async fn whoever_finds_a_key_taken_is_told_by_whom(harness: &dyn Harness) {
    let (holder, other) = (Client::new(harness).await, Client::new(harness).await);
    let claim = claim_of("k");
    holder.held(&claim).await;
    let Standing::Busy { holder: told, .. } = other.claim(&claim_of("k"), Place::Try).await else { panic!("granted twice") };
    if let Some(told) = told {
        assert_eq!(told.owner(), Some("host/1/contract"));
        assert_eq!(told.claim(), Some(claim.id));
    }
}

/// A store that knows a lock by its session alone declares that, and the gate of the process keeps the second claim away.
pub async fn a_session_is_not_granted_a_key_twice_or_says_so(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    client.held(&claim_of("k")).await;
    let second = client.claim(&claim_of("k"), Place::Try).await;
    if client.backend.capabilities().claims_per_key == ClaimsPerKey::Many {
        assert!(matches!(second, Standing::Busy { .. }), "{second:?}");
    }
}

/// A forgotten session is an answer.
pub async fn an_unknown_session_is_told(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    harness.end_session(&client.session).await;
    assert_eq!(client.claim(&claim_of("k"), Place::Try).await, Standing::SessionGone);
    assert_eq!(client.claim(&claim_of("k"), Place::Queue).await, Standing::SessionGone);
    let never = SessionId::new("11111111-2222-3333-4444-555555555555");
    let standing = client.backend.claim(&never, &claim_of("k"), Place::Try).await.unwrap();
    assert_eq!(standing, Standing::SessionGone);
}

/// What is no lock is never overwritten.
pub async fn a_key_used_for_something_else_is_a_conflict_and_left_alone(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    harness.put_foreign(&key("k")).await;
    let before = client.backend.inspect(&key("k")).await.unwrap();
    for place in [Place::Try, Place::Queue] {
        let claim = claim_of("k");
        let error = client.backend.claim(&client.session, &claim, place).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(!client.release(&claim).await);
    }
    assert_eq!(client.backend.inspect(&key("k")).await.unwrap(), before);
}

/// What is not declared is refused cleanly.
pub async fn a_mode_that_is_not_declared_is_refused(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let two = std::num::NonZeroU32::new(2).expect("two is not zero");
    let capabilities = client.backend.capabilities();
    for (mode, declared) in [(Mode::Shared, capabilities.shared), (Mode::Permits(two), capabilities.permits)] {
        let claim = Claim { mode, ..claim_of("k") };
        let answer = client.backend.claim(&client.session, &claim, Place::Try).await;
        if !declared {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }
    assert_eq!(client.holders(&key("k")).await, 0);
}

/// The declared limit is the limit.
pub async fn what_does_not_fit_is_refused(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let limit = client.backend.capabilities().limits.metadata_bytes;
    let of_size = |bytes: usize| {
        let mut metadata = Metadata::new();
        metadata.insert("big", "x".repeat(bytes)).expect("no reserved name");
        Claim { metadata: Some(Arc::new(metadata)), ..claim_of("k") }
    };
    let error = client.backend.claim(&client.session, &of_size(limit), Place::Try).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains(&limit.to_string()), "names the limit: {error}");
    let fits = of_size(limit - 512);
    client.held(&fits).await;
    assert!(client.release(&fits).await);
}

/// Keys reach the store as they are written; what nests or needs encoding is another key.
pub async fn keys_are_taken_verbatim(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    for name in ["a", "a/b", "A", "with space", "a?b#c%d+e", "%2e%2e/x", "Ключ/ö", "a/.lock", "..."] {
        let claim = claim_of(name);
        client.held(&claim).await;
        let seen = client.backend.inspect(&claim.key).await.unwrap();
        assert_eq!(seen.holders[0].claim(), Some(claim.id), "{name}");
    }
}
