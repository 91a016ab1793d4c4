//! Another process, which ends well or badly.

use std::future::IntoFuture;
use std::time::Duration;

use dlock_testkit::conformance::{Shown, Stage};
use tokio::time::{sleep, timeout};

use super::{key, lapsed, locker};

/// Of the other process, which renews meanwhile.
fn ttl(stage: &Stage) -> Duration {
    stage.short_ttl() * 4
}

/// It holds, we are refused; it ends, we get it.
pub async fn another_process_holds_and_gives_back(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "a"));
    let other = stage.second_process(&stage.key("a"), ttl(stage)).await?;
    assert!(locker.try_lock(&a).await.unwrap().is_none());
    other.finish().await;
    assert!(locker.try_lock(&a).await.unwrap().is_some());
    Ok(())
}

/// It is killed without giving back; its lock lapses.
pub async fn a_killed_process_loses_its_lock(stage: &Stage) -> Shown {
    let (locker, ttl, a) = (locker(stage).await, ttl(stage), key(stage, "a"));
    let other = stage.second_process(&stage.key("a"), ttl).await?;
    other.kill().await;
    assert!(locker.try_lock(&a).await.unwrap().is_none(), "not before its ttl");
    assert!(locker.lock(&a).wait_at_most(lapsed(stage, ttl).await).await.is_ok());
    Ok(())
}

/// It is killed while we wait for it.
pub async fn a_waiter_gets_the_lock_of_a_process_that_is_killed_meanwhile(stage: &Stage) -> Shown {
    let (locker, ttl, a) = (locker(stage).await, ttl(stage), key(stage, "a"));
    let other = stage.second_process(&stage.key("a"), ttl).await?;
    let waiting = tokio::spawn(locker.lock(&a).into_future());
    sleep(ttl * 2).await;
    assert!(!waiting.is_finished(), "it renews");
    other.kill().await;
    let taken = timeout(lapsed(stage, ttl).await, waiting).await.expect("it lapses").unwrap();
    assert!(taken.is_ok(), "{taken:?}");
    Ok(())
}
