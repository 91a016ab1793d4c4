//! The locker on a real Consul when somebody else meddles, when keys have odd names, and when connections are scarce.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::time::{Duration, Instant};

use dlock::{LockError, Locker, Loss, ReleaseOutcome};
use dlock_consul::{Consul, ConsulOptions};
use dlock_testkit::proxy::{Fault, FaultProxy, Matching};
use dlock_testkit::servers::{ConsulAgent, http};
use support::{LONG, at, bench, claims, get, holder, options, put, txns, within};

#[tokio::test]
async fn a_key_overwritten_by_a_plain_put_is_given_back() {
    for flags in ["", "?flags=3304740253564472344"] {
        let bench = bench(LONG).await;
        let guard = bench.locker.lock("k").await.unwrap();
        put(&bench.agent, &format!("/v1/kv/k{flags}"), "edited by hand").await;
        assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released), "flags {flags:?}");
        assert_eq!(holder(&bench.agent, "k").await, None, "flags {flags:?}");
        let value = get(&bench.agent, "/v1/kv/k?raw").await;
        assert_eq!(value, "edited by hand", "somebody's value is no business of ours");
    }
}

#[tokio::test]
async fn an_ended_session_is_the_reason_every_time() {
    let bench = bench(LONG).await;
    for n in 0..40 {
        let key = format!("ended/{n}");
        bench.proxy.reset();
        let guard = bench.locker.lock(&key).await.unwrap();
        // So that both watches return at once.
        let of_key = format!("/v1/kv/{key}?index=");
        let is_of_session = |path: &str| path.starts_with("/v1/session/info/") && path.contains("?index=");
        let watched = async || {
            let asked = bench.proxy.requests();
            let is_watched = |of: &dyn Fn(&str) -> bool| asked.iter().any(|seen| of(&seen.path));
            is_watched(&|path| path.starts_with(&of_key)) && is_watched(&is_of_session)
        };
        within(LONG, "key and session watched", watched).await;
        let session = holder(&bench.agent, &key).await.unwrap();
        put(&bench.agent, &format!("/v1/session/destroy/{session}"), "").await;
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), guard.lost()).await, Ok(Loss::SessionGone), "{n}");
    }
}

#[tokio::test]
async fn a_check_that_turns_critical_is_told_as_the_end_of_the_session() {
    let agent = ConsulAgent::start().await.unwrap();
    let check = r#"{"ID":"disk","Name":"disk","TTL":"1h","Status":"passing"}"#;
    put(&agent, "/v1/agent/check/register", check).await;
    let options = options(&agent.address().to_string()).node_checks(["disk"]);
    let locker = Locker::builder(Consul::new(options).unwrap()).ttl(LONG).build().unwrap();
    // Opened once the agent has told the catalog of the check.
    let guard = locker.lock("checked").await.unwrap();
    put(&agent, "/v1/agent/check/fail/disk", "").await;
    assert_eq!(tokio::time::timeout(LONG / 10, guard.lost()).await, Ok(Loss::SessionGone));
    put(&agent, "/v1/agent/check/pass/disk", "").await;
    assert!(matches!(locker.try_lock("another").await, Ok(Some(_))), "another session is opened");
}

#[tokio::test]
async fn beyond_sixteen_locks_interference_is_told_within_a_third_of_the_ttl() {
    let ttl = Duration::from_secs(15);
    let bench = bench(ttl).await;
    let mut guards = Vec::new();
    for n in 0..20 {
        guards.push(bench.locker.lock(format!("many/{n}")).await.unwrap());
    }
    within(LONG, "only the session watched", async || bench.proxy.open_requests() == 1).await;
    let began = Instant::now();
    http(bench.agent.address(), "DELETE", "/v1/kv/many/7", &[], "").await.unwrap();
    assert_eq!(guards[7].lost().await, Loss::KeyDeleted);
    assert!(began.elapsed() < before_two_renewals(ttl), "{:?}", began.elapsed());
    assert_eq!(guards[8].check(), Ok(()));
}

/// Renewals, with which audits go out, come every third of the ttl, give or take a tenth of that.
fn before_two_renewals(ttl: Duration) -> Duration {
    ttl / 10 * 6
}

#[tokio::test]
async fn with_few_connections_no_more_is_watched_than_can_be() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let ttl = Duration::from_secs(15);
    let options = options(&proxy.address().to_string()).max_connections(ConsulOptions::LEAST_MAX_CONNECTIONS);
    let locker = Locker::builder(Consul::new(options).unwrap()).ttl(ttl).build().unwrap();
    let guards = [locker.lock("few/1").await.unwrap(), locker.lock("few/2").await.unwrap(), locker.lock("few/3").await.unwrap()];
    within(Duration::from_secs(5), "only the session watched", async || proxy.open_requests() == 1).await;
    let session = holder(&agent, "few/3").await.unwrap();
    put(&agent, &format!("/v1/kv/few/3?release={session}&flags=3304740253564472344"), "").await;
    let told = tokio::time::timeout(before_two_renewals(ttl), guards[2].lost()).await;
    assert_eq!(told, Ok(Loss::TakenOver));
}

#[tokio::test]
async fn a_keys_name_is_no_answer() {
    let bench = bench(LONG).await;
    let other = at(&bench.agent.address().to_string(), LONG);
    for key in ["jobs/invalid session", "jobs/due to lock delay", "jobs/Permission denied"] {
        // Known, so that the claim goes out with a guard.
        bench.locker.lock(key).await.unwrap().release().await.unwrap();
        let guard = other.lock(key).await.unwrap();
        bench.proxy.reset();
        let got = bench.locker.lock(key).wait_at_most(Duration::from_secs(1)).await.map(drop);
        assert!(matches!(got, Err(LockError::TimedOut { .. })), "{key}: {got:?}");
        assert_eq!(bench.proxy.count(&Matching::any().path("/v1/session/create")), 0, "{key}");
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_wait_that_shares_reads_is_no_hot_loop() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let options = options(&proxy.address().to_string()).max_connections(ConsulOptions::LEAST_MAX_CONNECTIONS);
    let locker = Locker::builder(Consul::new(options).unwrap()).ttl(LONG).build().unwrap();
    let other = at(&agent.address().to_string(), LONG);
    let mut held = Vec::new();
    let mut waiting = Vec::new();
    // Two waits have a connection of their own, so the third key shares.
    for n in 0..2 {
        held.push(other.lock(format!("long/{n}")).await.unwrap());
        waiting.push(tokio::spawn(locker.lock(format!("long/{n}")).into_future()));
    }
    within(Duration::from_secs(5), "two wait", async || proxy.open_requests() == 2).await;
    // A first shared wait that ends well: the last shared read saw the key free.
    let guard = other.lock("k").await.unwrap();
    let first = tokio::spawn(locker.lock("k").into_future());
    within(Duration::from_secs(5), "the third reads", async || proxy.count(&txns().body("\"get\"")) > 0).await;
    guard.release().await.unwrap();
    first.await.unwrap().unwrap().release().await.unwrap();
    // Another holds it again, and we wait again.
    let _guard = other.lock("k").await.unwrap();
    let _second = tokio::spawn(locker.lock("k").into_future());
    let reads = proxy.count(&txns().body("\"get\""));
    within(Duration::from_secs(5), "it reads again", async || proxy.count(&txns().body("\"get\"")) > reads).await;
    proxy.reset();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (claims, all) = (proxy.count(&claims()), proxy.requests().len());
    assert!(claims <= 1 && all <= 10, "{claims} claims and {all} requests in 3 s of waiting");
}

#[tokio::test]
async fn a_lost_reply_to_a_contended_release_is_not_told_as_lost_before() {
    let bench = bench(LONG).await;
    let proxy = FaultProxy::start(bench.agent.address()).await.unwrap();
    let other = at(&proxy.address().to_string(), LONG);
    let guard = bench.locker.lock("k").await.unwrap();
    let waiter = tokio::spawn(other.lock("k").into_future());
    let waits = Matching::any().method("GET").path("/v1/kv/k?index=");
    within(Duration::from_secs(5), "the other waits", async || proxy.count(&waits) > 0).await;
    guard.check().unwrap();
    bench.proxy.next(txns().body("\"unlock\""), Fault::DropResponse);
    let outcome = guard.release().await;
    let _next = waiter.await.unwrap().unwrap();
    assert_eq!(outcome, Ok(ReleaseOutcome::Released));
}

#[tokio::test]
async fn the_largest_metadata_can_be_undone() {
    let bench = bench(LONG).await;
    let elsewhere = at(&bench.agent.address().to_string(), LONG);
    // Two claims whose replies are lost: one is found out, the other, given up by its caller, is undone by a fence.
    bench.locker.lock("large").metadata("v", "x".repeat(379_000)).await.unwrap().release().await.unwrap();
    let _under_way = bench.proxy.hold_next(claims());
    let waited = Duration::from_secs(1);
    let given_up = bench.locker.lock("large").metadata("v", "x".repeat(379_000)).wait_at_most(waited).await;
    assert!(matches!(given_up, Err(LockError::TimedOut { .. })), "{given_up:?}");
    within(Duration::from_secs(10), "fenced", async || bench.proxy.count(&txns().body("\"unlock\"")) >= 2).await;
    let sessions = get(&bench.agent, "/v1/session/list").await.matches("\"dlock:").count();
    elsewhere.lock("large").wait_at_most(Duration::from_secs(5)).await.unwrap().release().await.unwrap();
    assert_eq!(sessions, 1, "an undo that cannot be sent retires the session");
}

#[tokio::test]
async fn no_call_hangs_longer_than_its_limit() {
    // Far less than an attempt may take, and far more than a busy machine adds.
    let limit = Duration::from_secs(10);
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let locker = || {
        let options = options(&proxy.address().to_string()).attempt_limit(LONG).unwrap();
        Locker::builder(Consul::new(options).unwrap()).ttl(LONG).build().unwrap()
    };
    let known = locker();
    let guard = known.lock("k").await.unwrap();
    proxy.swallow(true);
    let began = Instant::now();
    assert!(guard.release().await.is_err(), "nobody can know");
    assert!(began.elapsed() < limit, "release: {:?}", began.elapsed());
    let began = Instant::now();
    let waited = known.lock("other").wait_at_most(Duration::from_secs(1)).await;
    assert!(matches!(waited, Err(LockError::TimedOut { .. })), "{waited:?}");
    assert!(began.elapsed() < limit, "wait_at_most: {:?}", began.elapsed());
    let began = Instant::now();
    assert!(locker().ready(Duration::from_secs(1)).await.is_err());
    assert!(began.elapsed() < limit, "ready: {:?}", began.elapsed());
    let began = Instant::now();
    assert!(!known.shutdown(Duration::from_secs(1)).await.is_clean());
    assert!(began.elapsed() < limit, "shutdown: {:?}", began.elapsed());
}
