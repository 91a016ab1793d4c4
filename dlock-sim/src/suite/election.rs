//! Campaigns, terms, and what ends them.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock::{FencingToken, Held, Holder, Leader, LockError, Loss, Metadata, ReleaseOutcome};
use dlock_testkit::conformance::{Sent, Shown, Stage};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Party, assert_free_within, brief, brief_locker, holders, key, lapsed, locker, steady, steady_locker, within};

/// One leads, the other waits, and takes over at once with a greater token.
pub async fn one_leads_and_the_next_takes_over_when_it_resigns(stage: &Stage) -> Shown {
    let (first, second, a) = (locker(stage).await, locker(stage).await, key(stage, "scheduler"));
    let term = first.election(&a).metadata("zone", "a").campaign().await.unwrap();
    let campaign = tokio::spawn({
        let a = a.clone();
        async move { second.election(&a).campaign().await.map(|term| term.token()) }
    });
    sleep(stage.moment() * 3).await;
    assert!(!campaign.is_finished());
    let seen = first.inspect(&a).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata().and_then(|metadata| metadata.get("zone")), Some("a"));
    let token = term.token();
    assert_eq!(term.resign().await, Ok(ReleaseOutcome::Released));
    let next = timeout(stage.patience().await, campaign).await.expect("the next is elected at once").unwrap().unwrap();
    assert!(next > token);
    Ok(())
}

/// Of many candidates one leads at any time, and every one does in the end.
pub async fn of_many_candidates_one_leads_at_a_time(stage: &Stage) -> Shown {
    let tokens: Arc<Mutex<Vec<FencingToken>>> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (locker, a, tokens) = (locker(stage).await, key(stage, "scheduler"), Arc::clone(&tokens));
        tasks.spawn(async move {
            let term = locker.election(&a).campaign().await.unwrap();
            tokens.lock().unwrap_or_else(PoisonError::into_inner).extend(term.token());
            assert_eq!(term.check(), Ok(()));
            term.resign().await.unwrap();
        });
    }
    tasks.join_all().await;
    let tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(tokens.len(), 5);
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{tokens:?}");
    Ok(())
}

/// A leader that dies is replaced.
pub async fn a_silent_leader_is_replaced(stage: &Stage) -> Shown {
    let (first, a) = (brief_locker(stage).await, key(stage, "scheduler"));
    let term = first.election(&a).campaign().await.unwrap();
    stage.cut().await?;
    let second = locker(stage).await;
    let next = timeout(lapsed(stage, brief(stage)).await, second.election(&a).campaign()).await;
    let next = next.expect("it must be replaced").unwrap();
    assert!(next.token() > term.token());
    assert_eq!(term.check().unwrap_err().reason, Loss::Expired);
    stage.heal().await;
    Ok(())
}

/// Works term after term until the work breaks.
pub async fn lead_works_term_after_term_until_it_breaks(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "scheduler"));
    let mut terms = 0;
    let work = |term: Held| {
        terms += 1;
        let last = terms == 3;
        async move {
            assert_eq!(term.check(), Ok(()));
            if last { ControlFlow::Break("done") } else { ControlFlow::Continue(()) }
        }
    };
    assert_eq!(locker.election(&a).lead(work).await.unwrap(), "done");
    assert_eq!(terms, 3);
    assert_eq!(holders(&locker, &a).await, 0, "it resigned");
    Ok(())
}

/// A term that is lost drops the work, and the next one has a greater token.
pub async fn a_lost_term_drops_the_work_and_campaigns_again(stage: &Stage) -> Shown {
    let (locker, observer, a) = (steady_locker(stage).await, super::locker(stage).await, key(stage, "scheduler"));
    let tokens: Arc<Mutex<Vec<FencingToken>>> = Arc::default();
    let (seen, election) = (Arc::clone(&tokens), locker.election(&a));
    let leading = tokio::spawn(election.lead(move |term: Held| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).extend(term.token());
        std::future::pending::<ControlFlow<()>>()
    }));
    let terms = || tokens.lock().unwrap_or_else(PoisonError::into_inner).len();
    for term in 1..=3 {
        within(steady(stage).await * 4, "another term", async || terms() == term).await;
        // Long enough to be watched.
        sleep(stage.moment() * 5).await;
        let inspection = observer.inspect(&a).await.unwrap();
        let session = inspection.holders[0].session.clone().expect("a store that ends sessions says whose lock it is");
        stage.end_session(&session).await?;
    }
    within(steady(stage).await * 4, "the last term", async || terms() == 4).await;
    leading.abort();
    assert_free_within(stage.patience().await * 2, &observer, &a).await;
    let tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{tokens:?}");
    Ok(())
}

/// A leader that continues pauses, so that another gets a chance.
pub async fn a_leader_that_continues_lets_another_in(stage: &Stage) -> Shown {
    let (first, second, a) = (locker(stage).await, locker(stage).await, key(stage, "scheduler"));
    let busy = tokio::spawn(first.election(&a).lead(|_| async {
        sleep(Duration::from_millis(10)).await;
        ControlFlow::<()>::Continue(())
    }));
    sleep(stage.moment()).await;
    let term = timeout(stage.patience().await * 5, second.election(&a).campaign()).await.expect("it starves").unwrap();
    assert_eq!(term.check(), Ok(()));
    busy.abort();
    Ok(())
}

/// A campaign ends when it is cancelled; a term that began goes on.
pub async fn a_campaign_is_cancelled_and_a_term_that_began_goes_on(stage: &Stage) -> Shown {
    let (locker, other, a) = (locker(stage).await, super::locker(stage).await, key(stage, "scheduler"));
    let token = CancellationToken::new();
    let term = other.election(&a).cancel_on(token.clone()).campaign().await.unwrap();
    let election = locker.election(&a).cancel_on(token.clone());
    let campaign = tokio::spawn(async move { election.campaign().await.map(drop) });
    sleep(stage.moment()).await;
    token.cancel();
    let ended = timeout(stage.patience().await, campaign).await.expect("it ends when it is cancelled").unwrap();
    assert!(matches!(ended, Err(LockError::Cancelled { .. })), "{ended:?}");
    assert_eq!(term.check(), Ok(()));
    drop(term);
    assert_free_within(stage.patience().await, &other, &a).await;
    Ok(())
}

/// Leading ends with the locker.
pub async fn shutdown_ends_leading(stage: &Stage) -> Shown {
    let (locker, a) = (locker(stage).await, key(stage, "scheduler"));
    let lead = locker.election(&a).lead(|term| async move { ControlFlow::<Loss>::Break(term.lost().await) });
    let leading = tokio::spawn(lead);
    within(stage.patience().await, "it leads", async || holders(&locker, &a).await == 1).await;
    assert!(locker.shutdown(stage.patience().await * 3).await.is_clean());
    let ended = leading.await.unwrap();
    assert!(matches!(ended, Err(LockError::ShutDown) | Ok(Loss::Shutdown)), "{ended:?}");
    Ok(())
}

fn metadata(name: &str, value: &str) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert(name, value).expect("the name is not reserved");
    metadata
}

/// What a leader is known by under this name.
fn says<'a>(leader: &'a Leader, name: &str) -> Option<&'a str> {
    leader.elected()?.published.metadata()?.get(name)
}

/// Another reads what was proclaimed last, under the token of the term, which goes on.
pub async fn a_proclamation_is_read_by_others_and_the_term_stays(stage: &Stage) -> Shown {
    let (leader, other, a) = (locker(stage).await, locker(stage).await, key(stage, "scheduler"));
    let term = leader.election(&a).metadata("zone", "a").metadata("rack", "7").campaign().await.unwrap();
    for zone in ["b", "c"] {
        term.proclaim(metadata("zone", zone)).await.unwrap();
        let seen = other.inspect(&a).await.unwrap();
        assert_eq!(seen.holders[0].token, term.token());
        let read = seen.holders[0].published.metadata().expect("metadata");
        assert_eq!((read.get("zone"), read.get("rack")), (Some(zone), None));
        assert_eq!((term.check(), term.metadata().get("zone")), (Ok(()), Some(zone)));
    }
    let token = term.token();
    assert_eq!(term.resign().await, Ok(ReleaseOutcome::Released));
    let next = timeout(stage.patience().await, other.election(&a).campaign()).await.expect("it is free").unwrap();
    assert!(next.token() > token);
    Ok(())
}

/// Perhaps it was published: asked again, the store says so.
pub async fn a_lost_reply_to_a_proclamation_is_found_out(stage: &Stage) -> Shown {
    let (leader, a) = (locker(stage).await, key(stage, "scheduler"));
    let term = leader.election(&a).campaign().await.unwrap();
    stage.lose_reply(Sent::Amend)?;
    term.proclaim(metadata("zone", "b")).await.unwrap();
    let seen = leader.inspect(&a).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata().and_then(|read| read.get("zone")), Some("b"));
    assert_eq!(seen.holders[0].token, term.token());
    assert_eq!(term.resign().await, Ok(ReleaseOutcome::Released));
    Ok(())
}

/// Who leads is told at once, and then every change.
pub async fn an_observer_is_told_of_leaders_proclamations_and_vacancies(stage: &Stage) -> Shown {
    let (leader, next, a) = (locker(stage).await, locker(stage).await, key(stage, "scheduler"));
    let mut leaders = locker(stage).await.election(&a).observe().unwrap();
    let patience = stage.patience().await;
    let mut told = async || timeout(patience, leaders.next()).await.expect("it must be told").unwrap();
    assert!(matches!(told().await, Leader::Vacant));
    let term = leader.election(&a).metadata("zone", "a").campaign().await.unwrap();
    let elected = told().await;
    assert_eq!((elected.token(), says(&elected, "zone")), (term.token(), Some("a")));
    assert_eq!(elected.elected().and_then(Holder::owner), Some(leader.owner()));
    term.proclaim(metadata("zone", "b")).await.unwrap();
    let proclaimed = told().await;
    assert_eq!((proclaimed.token(), says(&proclaimed, "zone")), (term.token(), Some("b")));
    term.resign().await.unwrap();
    assert!(matches!(told().await, Leader::Vacant));
    let term = next.election(&a).campaign().await.unwrap();
    assert_eq!(told().await.token(), term.token());
    Ok(())
}

/// When the store forgets a leader that is silent, observers hear of it.
pub async fn an_observer_is_told_of_a_silent_leaders_end(stage: &Stage) -> Shown {
    let (leader, a) = (brief_locker(stage).await, key(stage, "scheduler"));
    let term = leader.election(&a).campaign().await.unwrap();
    stage.cut().await?;
    let mut leaders = locker(stage).await.election(&a).observe().unwrap();
    let told = timeout(stage.patience().await, leaders.next()).await.expect("it must be told").unwrap();
    assert_eq!(told.token(), term.token());
    let told = timeout(lapsed(stage, brief(stage)).await, leaders.next()).await.expect("it must be told").unwrap();
    assert!(matches!(told, Leader::Vacant), "{told:?}");
    assert!(term.check().is_err(), "whoever led knew before");
    Ok(())
}

/// While nothing can be known, that is told; and who leads, once it can.
pub async fn an_observer_knows_nothing_while_the_store_is_out_of_reach(stage: &Stage) -> Shown {
    let (leader, a) = (locker(stage).await, key(stage, "scheduler"));
    let term = leader.election(&a).campaign().await.unwrap();
    let mut leaders = brief_locker(stage).await.election(&a).observe().unwrap();
    let told = timeout(stage.patience().await, leaders.next()).await.expect("it must be told").unwrap();
    assert_eq!(told.token(), term.token());
    stage.cut().await?;
    // A waiting request may be the last that was sent before; it is asked again after a ttl.
    let patience = Duration::from_secs(5) + stage.patience().await;
    let told = timeout(brief(stage) + patience, leaders.next()).await.expect("it must be told").unwrap();
    assert!(matches!(told, Leader::Unknown { .. }), "{told:?}");
    stage.heal().await;
    let told = timeout(patience, leaders.next()).await.expect("it must be told").unwrap();
    assert_eq!(told.token(), term.token(), "a long ttl outlives this");
    Ok(())
}

/// Mistakes are told before anything is sent.
pub async fn a_bad_name_and_a_reserved_entry_are_refused(stage: &Stage) -> Shown {
    let party = Party::new(stage).await;
    assert!(matches!(party.locker.election("a//b").campaign().await, Err(LockError::Key(_))));
    assert!(matches!(party.locker.election("a").metadata("claim", "x").campaign().await, Err(LockError::Options(_))));
    assert_eq!(party.line.calls(), 0);
    Ok(())
}
