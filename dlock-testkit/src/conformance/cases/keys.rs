//! What is locked: names, to the byte.

use dlock_core::{Claim, ErrorKind, InvalidKey, Key, Place};

use crate::conformance::{Client, Shown, Stage};

/// Holds each of these at once, and sees each held by its own claim.
async fn all_held_at_once(stage: &Stage, client: &Client, names: &[&str]) {
    let mut claims = Vec::new();
    for name in names {
        let claim = stage.claim(name);
        client.held(&claim).await;
        claims.push(claim);
    }
    for claim in &claims {
        assert_eq!(client.holder(&claim.key).await, Some(claim.id), "{}", claim.key);
    }
    for claim in &claims {
        assert!(client.release(claim).await, "{}", claim.key);
    }
}

/// Keys reach the store as they are written; what needs encoding is another key.
pub async fn keys_are_taken_verbatim(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let names =
        ["plain", "with space", "a?b#c%d+e", "%2e%2e/x", "Ключ/ö", "a/.lock", "...", "'; --", "\"quoted\"", "{json}", "日本", "🔒"];
    all_held_at_once(stage, &client, &names).await;
    // NFC and NFD spell one word in two ways; a store that makes them one key grants one lock to two owners.
    all_held_at_once(stage, &client, &["caf\u{e9}", "cafe\u{301}", "a b", "a%20b", "a+b"]).await;
    Ok(())
}

/// `a` and `A` are two locks.
pub async fn keys_differ_by_case(stage: &Stage) -> Shown {
    let client = stage.client().await;
    all_held_at_once(stage, &client, &["x_a", "x_A", "X_A", "ß", "SS", "i", "İ"]).await;
    Ok(())
}

fn of_length(stage: &Stage, bytes: usize, last: char) -> Result<Key, InvalidKey> {
    let prefix = stage.prefix();
    Key::new(format!("{prefix}{}{last}", "k".repeat(bytes - prefix.len() - 1)))
}

/// Nothing is cut off: not even the case of the last letter.
pub async fn long_keys_differ_in_their_last_letter(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let limit = client.backend.capabilities().limits.key_bytes;
    for last in ['a', 'A', 'b'] {
        let claim = Claim { key: of_length(stage, limit, last).unwrap(), ..stage.claim("k") };
        client.held(&claim).await;
    }
    for last in ['a', 'A', 'b'] {
        assert_eq!(client.holders(&of_length(stage, limit, last).unwrap()).await, 1);
    }
    Ok(())
}

/// The declared limit is the limit, and what is longer is refused, never shortened.
pub async fn the_longest_key_is_taken_and_one_byte_more_is_refused(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let limit = client.backend.capabilities().limits.key_bytes;
    let longest = Claim { key: of_length(stage, limit, 'k').unwrap(), ..stage.claim("k") };
    client.held(&longest).await;
    assert!(client.release(&longest).await);
    match of_length(stage, limit + 1, 'k') {
        Err(refused) => assert_eq!(refused, InvalidKey::TooLong { bytes: limit + 1 }),
        Ok(key) => {
            let claim = Claim { key, ..stage.claim("k") };
            let error = client.backend.claim(&client.session, &claim, Place::Try).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains(&limit.to_string()), "names the limit: {error}");
        }
    }
    Ok(())
}

/// A key below another is another, however deep.
pub async fn nested_keys_do_not_block_one_another(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let deep = vec!["d"; 100].join("/");
    all_held_at_once(stage, &client, &["a/b/c", "a", "a/b", &deep]).await;
    Ok(())
}

/// A key that begins like another is another, and neither takes, frees nor shows the other.
pub async fn keys_that_begin_alike_do_not_touch_one_another(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let (long, short) = (stage.claim("xyz"), stage.claim("xy"));
    client.held(&long).await;
    assert_eq!(client.holders(&short.key).await, 0);
    other.held(&short).await;
    assert!(other.release(&short).await);
    assert_eq!(client.holder(&long.key).await, Some(long.id));
    let short = stage.claim("xy");
    other.held(&short).await;
    assert!(client.release(&long).await);
    assert_eq!(client.holder(&short.key).await, Some(short.id));
    Ok(())
}
