//! Many who want the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dlock::{FencingToken, Locker};
use dlock_testkit::conformance::{Shown, Stage};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Party, key, locker};

/// Takes the lock so many times, and fails if anybody else is inside; the tokens of its grants.
async fn enter(locker: Locker, a: String, inside: Arc<AtomicU32>, times: u32) -> Vec<FencingToken> {
    let mut tokens = Vec::new();
    for _ in 0..times {
        let guard = locker.lock(&a).await.unwrap();
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "somebody else is inside");
        sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
        tokens.extend(guard.token());
        guard.release().await.unwrap();
    }
    tokens
}

async fn assert_all_enter_alone(lockers: impl IntoIterator<Item = Locker>, a: &str, times: u32) {
    let inside = Arc::default();
    let mut tasks = JoinSet::new();
    let mut grants = 0;
    for locker in lockers {
        tasks.spawn(enter(locker, a.to_owned(), Arc::clone(&inside), times));
        grants += times as usize;
    }
    let mut tokens: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), grants, "every grant has a token of its own");
}

/// Tasks of one process.
pub async fn a_hundred_tasks_are_never_inside_together(stage: &Stage) -> Shown {
    let locker = locker(stage).await;
    assert_all_enter_alone(std::iter::repeat_n(locker, 100), &key(stage, "a"), 1).await;
    Ok(())
}

/// Several processes; every one is granted, again and again.
pub async fn many_lockers_are_never_inside_together(stage: &Stage) -> Shown {
    let mut lockers = Vec::new();
    for _ in 0..8 {
        lockers.push(locker(stage).await);
    }
    assert_all_enter_alone(lockers, &key(stage, "a"), 5).await;
    Ok(())
}

/// A counter that is read, thought about, and written.
pub async fn no_update_is_lost_under_the_lock(stage: &Stage) -> Shown {
    let counters: [Arc<AtomicU32>; 2] = Default::default();
    let mut tasks = JoinSet::new();
    for worker in 0..6 {
        let locker = locker(stage).await;
        let work: Vec<_> =
            ["one", "two"].into_iter().zip(&counters).map(|(name, counter)| (key(stage, name), Arc::clone(counter))).collect();
        tasks.spawn(async move {
            for turn in 0..6 {
                let (name, counter) = &work[(worker + turn) % 2];
                let guard = locker.lock(name).await.unwrap();
                let read = counter.load(Ordering::Relaxed);
                // One of them is quick, the others are not.
                sleep(std::time::Duration::from_millis(if worker == 0 { 0 } else { 2 })).await;
                counter.store(read + 1, Ordering::Relaxed);
                guard.release().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(counters.map(|counter| counter.load(Ordering::Relaxed)), [18, 18]);
    Ok(())
}

/// Twenty names, taken and given back, dropped or held on to at random.
pub async fn any_order_of_taking_and_giving_back_leaves_nothing(stage: &Stage) -> Shown {
    let lockers = [locker(stage).await, locker(stage).await, locker(stage).await];
    let mut held = Vec::new();
    for _ in 0..200 {
        let (locker, name) = (&lockers[fastrand::usize(..3)], key(stage, &format!("k{}", fastrand::u32(..20))));
        match locker.try_lock(&name).await.unwrap() {
            Some(guard) => held.push(guard),
            None => assert!(held.iter().any(|guard: &dlock::LockGuard| guard.key().as_str() == name), "{name} is held by nobody"),
        }
        if held.len() > 10 {
            let guard = held.swap_remove(fastrand::usize(..held.len()));
            assert_eq!(guard.check(), Ok(()));
            guard.release().await.unwrap();
        }
    }
    drop(held);
    for n in 0..20 {
        super::assert_free_within(stage.patience().await * 2, &lockers[0], &key(stage, &format!("k{n}"))).await;
    }
    Ok(())
}

/// No herd: what waits in this process costs the store nothing.
pub async fn a_handover_within_a_process_costs_two_calls(stage: &Stage) -> Shown {
    let Party { locker, line } = Party::new(stage).await;
    locker.ready(stage.patience().await).await.unwrap();
    let guard = locker.lock(key(stage, "a")).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let (locker, a) = (locker.clone(), key(stage, "a"));
        tasks.spawn(async move { locker.lock(&a).await.unwrap().release().await.unwrap() });
    }
    sleep(stage.moment()).await;
    let before = line.calls();
    guard.release().await.unwrap();
    tasks.join_all().await;
    let calls = line.calls() - before;
    // Where time passes, the lock may be held for long enough to be watched.
    let watching = u64::from(!stage.in_virtual_time().await);
    assert!(calls <= 2 * 100 + 1 + watching, "{calls} calls for 101 releases and 100 claims");
    Ok(())
}

/// Waiting is not polling.
pub async fn whoever_waits_asks_once(stage: &Stage) -> Shown {
    let (here, elsewhere, a) = (Party::new(stage).await, locker(stage).await, key(stage, "a"));
    let _guard = elsewhere.lock(&a).await.unwrap();
    here.locker.ready(stage.patience().await).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        tasks.spawn(std::future::IntoFuture::into_future(here.locker.lock(&a)));
    }
    sleep(stage.moment() * 5).await;
    let before = here.line.calls();
    sleep(stage.prompt()).await;
    assert!(here.line.calls() <= before + 1, "{} calls while nothing happened", here.line.calls() - before);
    Ok(())
}

/// A busy process lets a remote waiter in.
pub async fn many_turns_of_one_process_let_another_in(stage: &Stage) -> Shown {
    let (busy, remote, a) = (locker(stage).await, locker(stage).await, key(stage, "a"));
    let guard = busy.lock(&a).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..200 {
        let (locker, a) = (busy.clone(), a.clone());
        tasks.spawn(async move {
            let _guard = locker.lock(&a).await.unwrap();
            sleep(std::time::Duration::from_millis(10)).await;
        });
    }
    let waiting = tokio::spawn(async move { remote.lock(&a).await.map(drop) });
    sleep(stage.moment() * 3).await;
    drop(guard);
    timeout(stage.patience().await * 10, waiting).await.expect("the remote waiter starves").unwrap().unwrap();
    let mut served = 0;
    while tasks.try_join_next().is_some() {
        served += 1;
    }
    assert!(served < 200, "everybody here was served first");
    Ok(())
}
