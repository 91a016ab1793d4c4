//! Who holds a key, and who waits.

use dlock_core::{Holder, Place, Published};

use crate::conformance::{Shown, Stage};

/// Never held, and not held any more.
pub async fn a_free_key_has_no_holder(stage: &Stage) -> Shown {
    let client = stage.client().await;
    assert_eq!(client.holders(&stage.key("never")).await, 0);
    let claim = stage.claim("k");
    client.held(&claim).await;
    client.release(&claim).await;
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// What the holder published, for anybody who looks.
pub async fn a_holder_is_shown_with_its_metadata(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    let token = client.held(&claim).await;
    let seen = other.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders.len(), 1);
    let holder = &seen.holders[0];
    assert_eq!(holder.owner(), Some(stage.owner().as_str()));
    assert_eq!(holder.acquired_at(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(holder.claim(), Some(claim.id));
    assert_eq!(holder.published.metadata().and_then(|metadata| metadata.get("purpose")), Some("conformance"));
    assert!(holder.token.is_none_or(|told| told == token));
    assert!(holder.session.as_ref().is_none_or(|told| *told == client.session));
    Ok(())
}

/// Looking takes nothing and leaves nothing, and an old look is not handed out again.
pub async fn a_look_changes_nothing_and_is_never_stale(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    for _ in 0..5 {
        let claim = stage.claim("k");
        assert_eq!(other.holder(&claim.key).await, None);
        client.held(&claim).await;
        assert_eq!(other.holder(&claim.key).await, Some(claim.id));
        assert_eq!(client.holder(&claim.key).await, Some(claim.id));
        assert!(client.release(&claim).await);
    }
    Ok(())
}

/// First come first, where the store knows.
pub async fn those_in_line_are_shown_in_order(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claims = [stage.claim("k"), stage.claim("k"), stage.claim("k")];
    let mut waiters = Vec::new();
    for claim in &claims {
        let waiter = stage.client().await;
        waiter.claim(claim, Place::Queue).await;
        waiters.push(waiter);
    }
    let seen = client.backend.inspect(&stage.key("k")).await.unwrap();
    assert_eq!(seen.holders[0].claim(), Some(claims[0].id));
    if let Some(waiters) = seen.waiters {
        let waiters: Vec<_> = waiters.iter().map(Holder::claim).collect();
        assert_eq!(waiters, [Some(claims[1].id), Some(claims[2].id)]);
    } else {
        assert!(!client.is_fifo(), "a store with a queue knows who is in it");
    }
    Ok(())
}

/// Nothing is hidden, and nothing taken for a lock of ours.
pub async fn what_is_no_lock_is_shown_raw(stage: &Stage) -> Shown {
    let client = stage.client().await;
    for (n, value) in ["data", "{\"a\":1}", "[\"a\"]", "{\"a\":\"b\"", "null", "\u{1f512}"].into_iter().enumerate() {
        let key = stage.key(&format!("k{n}"));
        stage.put_foreign(&key, value).await?;
        let seen = client.backend.inspect(&key).await.unwrap();
        assert_eq!(seen.holders.len(), 1);
        assert_eq!(seen.holders[0].published, Published::Raw(value.into()), "{value}");
        assert_eq!(seen.holders[0].claim(), None);
    }
    Ok(())
}
