//! What a store may offer beyond locking.

use dlock_core::{ErrorKind, FencingToken, Metadata};
use tokio::time::timeout;

use super::{Client, Harness, claim_of, key};

/// The grant stays what it was.
pub async fn amended_metadata_is_read_by_others_and_the_token_stays(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claim = claim_of("k");
    let token = client.held(&claim).await;
    let mut metadata = Metadata::new();
    metadata.insert("phase", "two").expect("no reserved name");
    let amended = client.backend.amend(&client.session, &claim, &metadata).await;
    if !client.backend.capabilities().amends {
        assert_eq!(amended.unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    assert!(amended.unwrap());
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    let read = seen.holders[0].published.metadata().expect("metadata");
    assert_eq!((read.get("phase"), read.get("purpose")), (Some("two"), None));
    assert_eq!(seen.holders[0].claim(), Some(claim.id));
    let again = client.held(&claim).await;
    assert!(again >= token);
    assert!(client.release(&claim).await, "what was amended can be released");
    let late = client.backend.amend(&client.session, &claim, &metadata).await.unwrap();
    assert!(!late, "what is not held cannot be amended");
    assert_eq!(client.holders(&claim.key).await, 0);
}

/// Held keys only, in the order of the keys.
pub async fn held_keys_are_listed_by_prefix_in_order(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let released = claim_of("jobs/released");
    for claim in [claim_of("jobs/b"), claim_of("jobs/a"), claim_of("other"), released.clone()] {
        client.held(&claim).await;
    }
    client.release(&released).await;
    let listed = client.backend.list("jobs/").await;
    if !client.backend.capabilities().lists {
        assert_eq!(listed.unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    let keys: Vec<_> = listed.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [key("jobs/a"), key("jobs/b")]);
    assert_eq!(client.backend.list("").await.unwrap().len(), 3);
    assert!(client.backend.list("nothing/").await.unwrap().is_empty());
}

/// By a grant, and by its end.
pub async fn a_change_is_told(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let claim = claim_of("k");
    if !client.backend.capabilities().tells_changes {
        let refused = client.backend.changed(&claim.key, None).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        return;
    }
    client.held(&claim).await;
    let cursor = client.backend.changed(&claim.key, None).await.unwrap();
    let told = async {
        let change = client.backend.changed(&claim.key, Some(cursor));
        tokio::pin!(change);
        assert!(timeout(harness.prompt() / 10, &mut change).await.is_err(), "nothing has happened yet");
        assert!(client.release(&claim).await);
        change.await.expect("a change must be told")
    };
    let later = timeout(harness.prompt(), told).await.expect("the change must be told");
    assert!(later > cursor);
}

/// A token names a grant, so nobody is evicted by mistake.
pub async fn only_the_present_grant_is_evicted(harness: &dyn Harness) {
    let client = Client::new(harness).await;
    let (first, second) = (claim_of("k"), claim_of("k"));
    let past = client.held(&first).await;
    let answer = client.backend.evict(&first.key, FencingToken::new(u64::MAX).expect("not zero")).await;
    if !client.backend.capabilities().evicts {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    assert!(!answer.unwrap());
    client.release(&first).await;
    let present = client.held(&second).await;
    assert!(!client.backend.evict(&second.key, past).await.unwrap(), "a past grant");
    assert_eq!(client.holders(&second.key).await, 1);
    assert!(client.backend.evict(&second.key, present).await.unwrap());
    assert_eq!(client.holders(&second.key).await, 0);
    assert!(!client.release(&second).await);
}
