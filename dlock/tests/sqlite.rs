//! The locker on a file.
#![allow(missing_docs)]

use std::error::Error;
use std::time::Duration;

use dlock::{ConnectError, Locker};
use tempfile::TempDir;

async fn connect(folder: &TempDir) -> Locker {
    dlock::connect(&format!("sqlite://{}/locks.db", folder.path().display())).await.unwrap()
}

#[tokio::test]
async fn a_lock_in_a_file_is_handed_on_with_a_greater_token() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (connect(&folder).await, connect(&folder).await);
    let guard = one.lock("orders/42").metadata("purpose", "charge").await.unwrap();
    let token = guard.token().unwrap();
    assert!(two.try_lock("orders/42").await.unwrap().is_none());
    let waiting = tokio::spawn(async move {
        let guard = two.lock("orders/42").await.unwrap();
        (two, guard)
    });
    // Only once the other stands in line.
    while one.inspect("orders/42").await.unwrap().waiters.unwrap_or_default().is_empty() {
        tokio::task::yield_now().await;
    }
    guard.release().await.unwrap();
    let (two, guard) = waiting.await.unwrap();
    assert!(guard.token().unwrap() > token);
    guard.release().await.unwrap();
    for locker in [one, two] {
        assert!(locker.shutdown(Duration::from_secs(10)).await.is_clean());
    }
}

#[tokio::test]
async fn several_keys_are_taken_together() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (connect(&folder).await, connect(&folder).await);
    let all = one.lock_all(["a", "b"]).await.unwrap();
    assert!(two.try_lock("b").await.unwrap().is_none());
    drop(all);
    two.lock("b").await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_url_or_file_that_cannot_be_used_is_told_why() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("text"), "no database".repeat(1_000)).unwrap();
    let told = async |url: &str| {
        let error: ConnectError = dlock::connect(url).await.unwrap_err();
        let (mut told, mut cause) = (error.to_string(), error.source());
        while let Some(error) = cause {
            told += &format!(": {error}");
            cause = error.source();
        }
        told
    };
    assert!(told("sqlite://locks.db").await.contains("sqlite:///var/lib/app/locks.db"));
    assert!(told("sqlite:///locks.db?busy=1").await.contains("no parameters"));
    let text = told(&format!("sqlite://{}/text", folder.path().display())).await;
    assert!(text.contains("no database"), "{text}");
}
