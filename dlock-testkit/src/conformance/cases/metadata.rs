//! What a holder tells those who look.

use std::sync::Arc;

use dlock_core::{Claim, ErrorKind, Metadata, Place};

use crate::conformance::{Shown, Stage};

/// A claim whose published metadata takes exactly so many bytes of JSON.
fn of_size(stage: &Stage, bytes: usize) -> Claim {
    let with = |value: String| {
        let mut metadata = Metadata::new();
        metadata.insert("big", value).expect("the name is not reserved");
        Claim { metadata: Some(Arc::new(metadata)), ..stage.claim("k") }
    };
    let size = |claim: &Claim| serde_json::to_vec(&claim.published()).expect("a map of strings is JSON").len();
    let empty = size(&with(String::new()));
    let claim = with("x".repeat(bytes - empty));
    assert_eq!(size(&claim), bytes);
    claim
}

/// The declared limit fits, and comes back whole.
pub async fn metadata_of_exactly_the_limit_is_taken(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = of_size(stage, client.backend.capabilities().limits.metadata_bytes);
    client.held(&claim).await;
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata(), Some(&claim.published()));
    assert!(client.release(&claim).await);
    Ok(())
}

/// One byte more is refused before anything is changed, and the limit named.
pub async fn metadata_of_one_byte_more_is_refused(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let limit = client.backend.capabilities().limits.metadata_bytes;
    let claim = of_size(stage, limit + 1);
    let error = client.backend.claim(&client.session, &claim, Place::Try).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains(&limit.to_string()), "names the limit: {error}");
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// Whatever is text comes back as it was, in names and in values.
pub async fn any_text_comes_back_as_it_was(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let texts = [
        "",
        " ",
        "\"",
        "\\",
        "\\u0000",
        "\0",
        "\u{1}\u{1f}\u{7f}",
        "line\nbreak\r\ttab",
        "</script>",
        "{\"a\":1}",
        "null",
        "Ключ",
        "日本語",
        "\u{202e}right to left",
        "\u{feff}mark",
        "\u{fffd}\u{ffff}",
        "\u{2028}\u{2029}",
        "👩‍👩‍👧",
        "e\u{301}",
        "' OR 1=1",
    ];
    let mut metadata = Metadata::new();
    for (n, text) in texts.iter().enumerate() {
        metadata.insert(*text, format!("named by {n}")).expect("the name is not reserved");
        metadata.insert(format!("value {n}"), *text).expect("the name is not reserved");
    }
    let claim = Claim { metadata: Some(Arc::new(metadata)), ..stage.claim("k") };
    client.held(&claim).await;
    let seen = stage.client().await.backend.inspect(&claim.key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata(), Some(&claim.published()));
    assert!(client.release(&claim).await);
    Ok(())
}

/// Without a word of the user's, a lock still says whose it is.
pub async fn a_claim_without_metadata_says_whose_it_is(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = Claim { metadata: None, ..stage.claim("k") };
    client.held(&claim).await;
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    let published = seen.holders[0].published.metadata().expect("an object of strings");
    let names: Vec<_> = published.iter().map(|(name, _)| name).collect();
    assert_eq!(names, [Metadata::CLAIM, Metadata::ACQUIRED_AT, Metadata::OWNER]);
    assert_eq!(seen.holders[0].owner(), Some(stage.owner().as_str()));
    Ok(())
}

/// The names that dlock writes cannot be set by users, so nobody can pose as another claim.
pub async fn reserved_names_say_what_the_claim_says(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let mut metadata = Metadata::new();
    for name in Metadata::RESERVED {
        assert!(metadata.insert(name, "forged").is_err(), "{name}");
        metadata.insert(name.to_uppercase(), "another name").expect("only the exact name is reserved");
    }
    let claim = Claim { metadata: Some(Arc::new(metadata)), ..stage.claim("k") };
    client.held(&claim).await;
    let seen = client.backend.inspect(&claim.key).await.unwrap();
    let holder = &seen.holders[0];
    assert_eq!((holder.claim(), holder.owner()), (Some(claim.id), Some(stage.owner().as_str())));
    assert_eq!(holder.acquired_at(), Some("2026-01-01T00:00:00Z"));
    Ok(())
}
