//! Shutdown: what it ends, what it reports, and that nothing slips through while it goes on.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;

use dlock::{LockError, ReleaseOutcome};
use dlock_testkit::memory::{Call, Outage};
use support::{pass, secs, stores};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn an_acquisition_that_wakes_after_shutdown_opens_no_session() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let mut waiting = Box::pin(locker.lock("a").into_future());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        guard.release().await.unwrap();
        assert!(locker.shutdown(secs(5)).await.is_clean());
        assert!(matches!(waiting.await, Err(LockError::ShutDown)));
        pass(secs(120)).await;
        assert_eq!(memory.control().sessions(), [], "kept alive after a clean shutdown");
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_at_the_gate_that_comes_as_shutdown_begins_opens_no_session() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let mut at_the_gate = Box::pin(locker.lock("a").into_future());
        assert!(futures_util::poll!(&mut at_the_gate).is_pending());
        guard.release().await.unwrap();
        memory.control().delay_next(Call::Open, secs(1));
        let mut shutdown = Box::pin(locker.shutdown(secs(5)));
        assert!(futures_util::poll!(&mut shutdown).is_pending());
        // Turn and shutdown are news to it at once, while the shutdown still goes on.
        assert!(matches!(at_the_gate.await, Err(LockError::ShutDown)));
        let report = shutdown.await;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(memory.control().sessions(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_answered_as_shutdown_begins_is_given_back() {
    for (memory, locker) in stores() {
        locker.ready(secs(1)).await.unwrap();
        memory.control().delay_next(Call::Claim, secs(1));
        let mut waiting = Box::pin(locker.lock("a").into_future());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        pass(secs(1)).await;
        let mut shutdown = Box::pin(locker.shutdown(secs(3)));
        assert!(futures_util::poll!(&mut shutdown).is_pending());
        assert!(matches!(waiting.await, Err(LockError::ShutDown)));
        assert!(shutdown.await.is_clean());
        assert_eq!((memory.control().claims(), memory.control().sessions()), (vec![], vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_was_not_answered_is_reported() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        drop(guard);
        let report = locker.shutdown(secs(3)).await;
        assert_eq!(memory.control().claims().len(), 1);
        assert_eq!((report.left.len(), report.closed), (1, false), "{report:?}");
        assert!(report.left[0].lapses_within <= secs(30), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_not_called_given_back() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        let let_go = async {
            tokio::task::yield_now().await;
            drop(guard);
        };
        let (report, ()) = tokio::join!(locker.shutdown(secs(20)), let_go);
        assert_eq!(memory.control().claims().len(), 1);
        assert_eq!((report.given_back.len(), report.left.len()), (0, 1), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_whose_release_is_deferred_is_reported() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").hold_at_least(secs(3600)).await.unwrap();
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Deferred));
        let report = locker.shutdown(secs(3)).await;
        assert_eq!(memory.control().claims().len(), 1);
        assert_eq!(report.left.len(), 1, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_once_what_it_waits_for_has_lapsed() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").hold_at_least(secs(3600)).await.unwrap();
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Deferred));
        memory.control().outage(Some(Outage::Hanging));
        let begun = Instant::now();
        let report = locker.shutdown(secs(600)).await;
        assert!(begun.elapsed() < secs(60), "{:?} {report:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_was_never_answered_is_not_called_closed() {
    for (memory, locker) in stores() {
        memory.control().lose_reply_of_next(Call::Open);
        let mut lock = Box::pin(locker.lock("a").into_future());
        assert!(futures_util::poll!(&mut lock).is_pending());
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        drop(lock);
        let report = locker.shutdown(secs(5)).await;
        assert!(!memory.control().sessions().is_empty(), "no opening was sent");
        assert!(!report.closed, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_a_store_that_hangs_ends_in_time() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        let begun = Instant::now();
        let report = locker.shutdown(secs(2)).await;
        assert_eq!(begun.elapsed(), secs(2));
        assert!(!report.is_clean());
        assert!(guard.check().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_first_session_is_told_of_the_shutdown() {
    for (memory, locker) in stores() {
        memory.control().outage(Some(Outage::Hanging));
        let mut ready = Box::pin(locker.ready(secs(600)));
        assert!(futures_util::poll!(&mut ready).is_pending());
        locker.shutdown(secs(1)).await;
        let ended = ready.await;
        assert!(matches!(ended, Err(LockError::ShutDown)), "{ended:?}");
    }
}
