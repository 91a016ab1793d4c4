//! Campaigns, terms, and what ends them, on both profiles of the store in memory, in virtual time.
#![allow(missing_docs)]

mod support;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock::{FencingToken, LockError, Loss, ReleaseOutcome};
use support::{key, pass, secs, stores};
use tokio_util::sync::CancellationToken;

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_next_takes_over_when_it_resigns() {
    for (memory, first) in stores() {
        let second = support::locker(&memory);
        let term = first.election("scheduler").metadata("zone", "a").campaign().await.unwrap();
        let campaign = tokio::spawn(async move { second.election("scheduler").campaign().await.map(|term| term.token()) });
        pass(secs(30)).await;
        assert!(!campaign.is_finished());
        let seen = first.inspect("scheduler").await.unwrap();
        assert_eq!(seen.holders[0].published.metadata().and_then(|metadata| metadata.get("zone")), Some("a"));
        let token = term.token();
        assert_eq!(term.resign().await, Ok(ReleaseOutcome::Released));
        assert!(campaign.await.unwrap().unwrap() > token);
    }
}

#[tokio::test(start_paused = true)]
async fn lead_works_term_after_term_until_it_breaks() {
    for (memory, locker) in stores() {
        let terms = AtomicU32::new(0);
        let value = locker
            .election("scheduler")
            .lead(|term| {
                let so_far = terms.fetch_add(1, Ordering::SeqCst);
                async move {
                    assert_eq!(term.check(), Ok(()));
                    if so_far < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break("done") }
                }
            })
            .await
            .unwrap();
        assert_eq!((value, terms.load(Ordering::SeqCst)), ("done", 4));
        assert!(memory.control().claims().is_empty(), "it resigned");
        assert_eq!(memory.control().grants(&key("scheduler")).len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_term_drops_the_work_and_campaigns_again_with_a_greater_token() {
    for (memory, locker) in stores() {
        let tokens: Arc<Mutex<Vec<Option<FencingToken>>>> = Arc::default();
        let seen = Arc::clone(&tokens);
        let leading = tokio::spawn(async move {
            let work = |term: dlock::Held| {
                let seen = Arc::clone(&seen);
                async move {
                    seen.lock().unwrap().push(term.token());
                    std::future::pending::<()>().await;
                    ControlFlow::Break(())
                }
            };
            locker.election("scheduler").lead(work).await
        });
        for _ in 0..3 {
            pass(secs(2)).await;
            assert!(memory.control().expire_session_of(&key("scheduler")));
        }
        pass(secs(2)).await;
        let tokens = tokens.lock().unwrap().clone();
        assert_eq!(tokens.len(), 4);
        assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{tokens:?}");
        leading.abort();
        pass(secs(1)).await;
        assert!(memory.control().claims().is_empty(), "a dropped leader gives up its term");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_continues_lets_another_in() {
    for (memory, first) in stores() {
        let second = support::locker(&memory);
        let busy = tokio::spawn(async move {
            let work = |_| async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                ControlFlow::<()>::Continue(())
            };
            first.election("scheduler").lead(work).await
        });
        pass(secs(1)).await;
        let term = tokio::time::timeout(secs(5), second.election("scheduler").campaign()).await.expect("it starves").unwrap();
        assert_eq!(term.check(), Ok(()));
        busy.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_campaign_is_cancelled_and_a_term_that_began_goes_on() {
    for (memory, locker) in stores() {
        let token = CancellationToken::new();
        let other = support::locker(&memory);
        let term = other.election("scheduler").cancel_on(token.clone()).campaign().await.unwrap();
        let election = locker.election("scheduler").cancel_on(token.clone());
        let campaign = tokio::spawn(async move { election.campaign().await.map(drop) });
        pass(secs(1)).await;
        token.cancel();
        assert!(matches!(campaign.await.unwrap(), Err(LockError::Cancelled { .. })));
        assert_eq!(term.check(), Ok(()));
        drop(term);
        pass(secs(1)).await;
        assert!(memory.control().claims().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_leading() {
    for (memory, locker) in stores() {
        let leader = locker.clone();
        let leading = tokio::spawn(async move {
            leader.election("scheduler").lead(|term| async move { ControlFlow::<Loss>::Break(term.lost().await) }).await
        });
        pass(secs(1)).await;
        assert!(locker.shutdown(secs(3)).await.is_clean());
        assert!(matches!(leading.await.unwrap(), Err(LockError::ShutDown) | Ok(Loss::Shutdown)));
        assert!(memory.control().sessions().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_name_and_a_reserved_entry_are_refused() {
    for (memory, locker) in stores() {
        assert!(matches!(locker.election("a//b").campaign().await, Err(LockError::Key(_))));
        assert!(matches!(locker.election("a").metadata("claim", "x").campaign().await, Err(LockError::Options(_))));
        assert_eq!(memory.control().all_calls(), 0);
    }
}
