//! What a locker tells of its store.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;

use dlock::{Check, Finding, LockBackend};
use dlock_testkit::memory::{Memory, Outage};
use support::plain::Plain;
use support::{secs, stores};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn a_look_at_the_store_opens_no_session() {
    for (memory, locker) in stores() {
        let found = locker.probe().await;
        assert_eq!(found[0].check, Check::Reachable);
        assert!(found.iter().all(|found| found.remedy().is_none()), "{found:?}");
        assert!(memory.control().sessions().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_found_unreachable_after_five_seconds() {
    for (memory, locker) in stores() {
        memory.control().outage(Some(Outage::Hanging));
        let asked = Instant::now();
        let found = locker.probe().await;
        assert_eq!(asked.elapsed(), secs(5));
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert!(finding.check == Check::Reachable && finding.is_broken(), "{finding}");
        memory.control().outage(Some(Outage::Failing));
        assert!(locker.probe().await.iter().all(Finding::is_broken));
        memory.control().outage(None);
        assert!(!locker.probe().await.iter().any(Finding::is_broken));
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_wraps_another_passes_its_findings_on() {
    let memory = Memory::queue();
    let wrapped: Arc<dyn LockBackend> = Arc::new(Plain::new(memory.clone()));
    let told = |found: Vec<Finding>| found.into_iter().map(|found| (found.check, found.detail)).collect::<Vec<_>>();
    assert_eq!(told(wrapped.probe().await), told(memory.probe().await));
}
