//! What a store may offer beyond locking.

use dlock_core::{ErrorKind, FencingToken, Metadata, Place};
use tokio::time::{sleep, timeout};

use crate::conformance::{Ability, Sent, Shown, Stage};

fn metadata(name: &str, value: impl Into<String>) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert(name, value).expect("the name is not reserved");
    metadata
}

/// The grant stays what it was.
pub async fn amended_metadata_is_read_by_others_and_the_token_stays(stage: &Stage) -> Shown {
    stage.claims(Ability::Amends).await?;
    let client = stage.client().await;
    let claim = stage.claim("k");
    let token = client.held(&claim).await;
    let before = client.backend.inspect(&claim.key).await.unwrap();
    assert!(client.backend.amend(&client.session, &claim, &metadata("phase", "two")).await.unwrap());
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    let read = seen.holders[0].published.metadata().expect("metadata");
    assert_eq!((read.get("phase"), read.get("purpose")), (Some("two"), None));
    assert_eq!(seen.holders[0].claim(), Some(claim.id));
    assert_eq!(seen.holders[0].token, before.holders[0].token, "to others it is the same grant");
    assert_eq!(client.held(&claim).await, token);
    assert!(client.release(&claim).await, "what was amended can be released");
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// What is not held cannot be amended: neither before nor after, nor by another.
pub async fn only_a_holder_amends(stage: &Stage) -> Shown {
    stage.claims(Ability::Amends).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    let (claim, waiting, phase) = (stage.claim("k"), stage.claim("k"), metadata("phase", "two"));
    assert!(!client.backend.amend(&client.session, &claim, &phase).await.unwrap(), "not held yet");
    client.held(&claim).await;
    other.claim(&waiting, Place::Queue).await;
    assert!(!other.backend.amend(&other.session, &waiting, &phase).await.unwrap(), "held by another");
    assert!(!other.backend.amend(&other.session, &claim, &phase).await.unwrap(), "held by another session");
    other.release(&waiting).await;
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata(), Some(&claim.published()));
    assert!(client.release(&claim).await);
    assert!(!client.backend.amend(&client.session, &claim, &phase).await.unwrap(), "not held any more");
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// By the token that others read, and by no other.
pub async fn what_was_amended_is_ended_by_its_token(stage: &Stage) -> Shown {
    stage.claims(Ability::Amends).await?;
    stage.claims(Ability::Evicts).await?;
    let client = stage.client().await;
    let claim = stage.claim("k");
    let token = client.held(&claim).await;
    for phase in ["two", "three"] {
        assert!(client.backend.amend(&client.session, &claim, &metadata("phase", phase)).await.unwrap());
    }
    let later = FencingToken::new(token.get() + 1).expect("more than zero");
    assert!(!client.backend.evict(&claim.key, later).await.unwrap());
    assert!(client.backend.evict(&claim.key, token).await.unwrap());
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// An amendment that nobody waits for any more arrives after the next one was answered.
pub async fn a_late_amendment_never_undoes_a_later_one(stage: &Stage) -> Shown {
    stage.claims(Ability::Amends).await?;
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    let late = stage.hold(Sent::Amend)?;
    let (two, three) = (metadata("phase", "two"), metadata("phase", "three"));
    tokio::select! {
        biased;
        answer = client.backend.amend(&client.session, &claim, &two) => panic!("answered while under way: {answer:?}"),
        () = late.sent() => {}
    }
    assert!(client.backend.amend(&client.session, &claim, &three).await.unwrap());
    late.deliver().await;
    sleep(stage.moment()).await;
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata().and_then(|read| read.get("phase")), Some("three"));
    assert!(client.release(&claim).await);
    Ok(())
}

/// An amendment that arrives after the release, when another holds the key.
pub async fn a_late_amendment_never_touches_a_successor(stage: &Stage) -> Shown {
    stage.claims(Ability::Amends).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    let (first, second) = (stage.claim("k"), stage.claim("k"));
    client.held(&first).await;
    let (late, two) = (stage.hold(Sent::Amend)?, metadata("phase", "two"));
    tokio::select! {
        biased;
        answer = client.backend.amend(&client.session, &first, &two) => panic!("answered while under way: {answer:?}"),
        () = late.sent() => {}
    }
    assert!(client.release(&first).await);
    other.held(&second).await;
    late.deliver().await;
    sleep(stage.moment()).await;
    let seen = other.backend.inspect(&second.key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata(), Some(&second.published()));
    assert!(other.release(&second).await);
    Ok(())
}

/// The limit holds for what is amended too.
pub async fn an_amendment_that_does_not_fit_changes_nothing(stage: &Stage) -> Shown {
    stage.claims(Ability::Amends).await?;
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    let big = metadata("big", "x".repeat(client.backend.capabilities().limits.metadata_bytes));
    let error = client.backend.amend(&client.session, &claim, &big).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata(), Some(&claim.published()));
    Ok(())
}

/// Held keys only, in the order of the keys.
pub async fn held_keys_are_listed_by_prefix_in_order(stage: &Stage) -> Shown {
    stage.claims(Ability::Lists).await?;
    let client = stage.client().await;
    let released = stage.claim("jobs/released");
    for claim in [stage.claim("jobs/b"), stage.claim("jobs/a"), stage.claim("jobs2"), stage.claim("other"), released.clone()] {
        client.held(&claim).await;
    }
    client.release(&released).await;
    let listed =
        async |prefix: String| -> Vec<_> { client.backend.list(&prefix).await.unwrap().into_iter().map(|(key, _)| key).collect() };
    let prefix = stage.prefix();
    assert_eq!(listed(format!("{prefix}jobs/")).await, [stage.key("jobs/a"), stage.key("jobs/b")]);
    assert_eq!(listed(format!("{prefix}jobs")).await.len(), 3, "a prefix is no folder");
    assert_eq!(listed(prefix.clone()).await.len(), 4);
    assert!(listed(format!("{prefix}nothing/")).await.is_empty());
    Ok(())
}

/// A list shows what a look shows.
pub async fn a_listed_key_is_shown_with_its_holder(stage: &Stage) -> Shown {
    stage.claims(Ability::Lists).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    client.held(&claim).await;
    let listed = other.backend.list(&stage.prefix()).await.unwrap();
    let seen = other.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(listed, [(claim.key.clone(), seen.holders[0].clone())]);
    Ok(())
}

/// By a grant, and by its end.
pub async fn a_change_is_told(stage: &Stage) -> Shown {
    stage.claims(Ability::TellsChanges).await?;
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    let mut cursor = client.backend.changed(&claim.key, None).await.unwrap();
    for held in [true, false] {
        let told = async {
            let change = client.backend.changed(&claim.key, Some(cursor));
            tokio::pin!(change);
            assert!(timeout(stage.moment(), &mut change).await.is_err(), "nothing has happened yet");
            if held {
                assert!(client.release(&claim).await);
            } else {
                client.held(&stage.claim("k")).await;
            }
            change.await.expect("a change must be told")
        };
        let later = timeout(stage.patience().await, told).await.expect("the change must be told");
        assert!(later > cursor);
        cursor = later;
    }
    Ok(())
}

/// Whoever follows a key misses nothing between two questions.
pub async fn a_change_between_two_questions_is_told(stage: &Stage) -> Shown {
    stage.claims(Ability::TellsChanges).await?;
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    let cursor = client.backend.changed(&claim.key, None).await.unwrap();
    assert!(client.release(&claim).await);
    let told = client.backend.changed(&claim.key, Some(cursor));
    let later = timeout(stage.patience().await, told).await.expect("the change must be told");
    assert!(later.unwrap() > cursor);
    Ok(())
}

/// A token names a grant, so nobody is evicted by mistake.
pub async fn only_the_present_grant_is_evicted(stage: &Stage) -> Shown {
    stage.claims(Ability::Evicts).await?;
    let (client, operator) = (stage.client().await, stage.client().await);
    let (first, second) = (stage.claim("k"), stage.claim("k"));
    let past = client.held(&first).await;
    let never = FencingToken::new(u64::MAX).expect("it is not zero");
    assert!(!operator.backend.evict(&first.key, never).await.unwrap());
    client.release(&first).await;
    assert!(!operator.backend.evict(&first.key, past).await.unwrap(), "a grant that was given back");
    let present = client.held(&second).await;
    assert!(!operator.backend.evict(&second.key, past).await.unwrap(), "a past grant");
    assert_eq!(client.holder(&second.key).await, Some(second.id));
    assert!(operator.backend.evict(&second.key, present).await.unwrap());
    assert_eq!(client.holders(&second.key).await, 0);
    assert!(!client.release(&second).await);
    Ok(())
}

/// Whoever was evicted can come back, as another grant.
pub async fn whoever_was_evicted_can_claim_again(stage: &Stage) -> Shown {
    stage.claims(Ability::Evicts).await?;
    let client = stage.client().await;
    let (first, second) = (stage.claim("k"), stage.claim("k"));
    let present = client.held(&first).await;
    assert!(client.backend.evict(&first.key, present).await.unwrap());
    assert!(client.held(&second).await > present);
    assert_eq!(client.holder(&second.key).await, Some(second.id));
    Ok(())
}
