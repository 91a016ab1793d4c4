//! A locker from a URL.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use dlock::{ConnectError, Locker};

#[tokio::test]
async fn a_name_in_memory_is_shared_by_all_who_use_it() {
    let (one, two) = (dlock::connect("memory://shared").await.unwrap(), dlock::connect("memory://shared").await.unwrap());
    let other = dlock::connect("memory://other").await.unwrap();
    let guard = one.lock("a").await.unwrap();
    assert!(two.try_lock("a").await.unwrap().is_none());
    assert!(other.try_lock("a").await.unwrap().is_some());
    guard.release().await.unwrap();
    assert!(two.try_lock("a").await.unwrap().is_some());
}

#[tokio::test]
async fn what_names_no_store_is_refused_with_what_would() {
    for (url, hint) in [
        ("localhost:8500", "consul://127.0.0.1:8500"),
        ("redis://localhost", "known are consul, consul+https, consul+unix, etcd, etcds, sqlite and memory"),
        ("memory://", "memory://demo"),
        ("consul://", "consul://host:port"),
        ("consul://host:notaport", "consul://host:port"),
    ] {
        let error = dlock::connect(url).await.unwrap_err();
        let mut told = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            told += &format!(": {error}");
            cause = error.source();
        }
        assert!(told.contains(hint), "{url}: {told}");
    }
}

#[tokio::test]
async fn options_are_set_before_connecting() {
    let locker = dlock::builder("memory://options").unwrap().ttl(Duration::from_secs(3)).name("worker").connect().await.unwrap();
    assert_eq!(locker.ttl(), Duration::from_secs(3));
    assert!(locker.owner().ends_with("/worker"), "{}", locker.owner());
    let refused = dlock::builder("memory://options").unwrap().ttl(Duration::from_millis(1)).connect().await;
    assert!(matches!(refused, Err(ConnectError::Options(_))), "{refused:?}");
}

#[tokio::test]
async fn a_backend_chosen_at_run_time_takes_options_too() {
    let backend = dlock::backend("memory://chosen").unwrap();
    let locker = Locker::builder_from_arc(Arc::clone(&backend)).ttl(Duration::from_secs(3)).name("worker").build().unwrap();
    assert_eq!(locker.ttl(), Duration::from_secs(3));
    let _guard = locker.lock("a").await.unwrap();
    assert!(Locker::from_arc(backend).try_lock("a").await.unwrap().is_none(), "it is the same store");
}
