//! The locker on a real Consul, with a proxy in between that counts and holds: costs, dropped futures, a cluster, peers.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use dlock::{LockGuard, ReleaseOutcome};
use dlock_testkit::proxy::{FaultProxy, Matching};
use dlock_testkit::servers::{ConsulAgent, ConsulCluster, http};
use support::{LONG, at, bench, claims, get, holder, locker, put, txns, within};
use tokio::task::JoinSet;

#[tokio::test]
async fn a_lock_and_its_release_cost_two_requests_and_three_at_the_first_meeting() {
    let bench = bench(LONG).await;
    let other = locker(&bench.proxy, LONG);
    other.ready(Duration::from_secs(5)).await.unwrap();
    // What is to be expected of a key that was never met is learnt from the last one beside it: a wrong guess costs a request.
    for (locker, key, cost, why) in [
        (&bench.locker, "jobs/a", 3, "nothing is known of its neighbours, so it is looked at first"),
        (&bench.locker, "jobs/b", 2, "absent, as the last one was"),
        (&bench.locker, "jobs/b", 2, "its last index is known"),
        (&other, "jobs/a", 3, "it exists, and is met for the first time"),
        (&other, "jobs/b", 3, "it exists, as the last one did"),
        (&other, "jobs/c", 3, "absent, unlike the last one"),
        (&other, "cron/a", 3, "nothing is known of its neighbours"),
        (&bench.locker, "jobs/c", 4, "it exists, unlike the last one"),
    ] {
        bench.proxy.reset();
        locker.lock(key).await.unwrap().release().await.unwrap();
        assert_eq!(bench.proxy.requests().len(), cost, "{key}: {why}: {:?}", bench.proxy.requests());
    }
}

#[tokio::test]
async fn a_hundred_tasks_of_one_process_cost_at_most_three_requests_for_a_handover() {
    let bench = bench(LONG).await;
    bench.proxy.reset();
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let locker = bench.locker.clone();
        tasks.spawn(async move {
            let guard = locker.lock("k").await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        });
    }
    let mut tokens = tasks.join_all().await;
    let requests = bench.proxy.requests().len();
    assert!(requests <= 300, "{requests} requests for 100 handovers");
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 100, "every grant has a token of its own");
}

#[tokio::test]
async fn a_waiting_process_has_one_request_outstanding_per_key() {
    let bench = bench(LONG).await;
    let _elsewhere = at(&bench.agent.address().to_string(), LONG).lock("k").await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        tasks.spawn(bench.locker.lock("k").into_future());
    }
    let waits = Matching::any().method("GET").path("/v1/kv/k?index=");
    within(Duration::from_secs(5), "waiting", async || bench.proxy.count(&waits) == 1 && bench.proxy.open_requests() == 1).await;
    bench.proxy.reset();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.proxy.open_requests(), 1);
    assert_eq!(bench.proxy.requests().len(), 0, "{:?}", bench.proxy.requests());
}

#[tokio::test]
async fn a_thousand_idle_locks_cost_a_renewal_and_sixteen_audits_for_a_third_of_the_ttl() {
    let ttl = Duration::from_secs(12);
    let bench = bench(ttl).await;
    let mut tasks = JoinSet::new();
    for n in 0..1000 {
        tasks.spawn(bench.locker.lock(format!("k{n}")).into_future());
    }
    let guards: Vec<LockGuard> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
    // The session is looked at before it is waited for.
    let session = holder(&bench.agent, "k0").await.unwrap();
    let watch = Matching::any().method("GET").path(&format!("/v1/session/info/{session}?index="));
    let settled = async || bench.proxy.count(&watch) > 0 && bench.proxy.open_requests() == 1;
    within(Duration::from_secs(10), "only the session watched", settled).await;
    bench.proxy.reset();
    tokio::time::sleep(ttl).await;
    let renewals = bench.proxy.count(&Matching::any().path("/v1/session/renew"));
    let audits = bench.proxy.count(&txns());
    assert!((2..=4).contains(&renewals), "{renewals}");
    assert!(audits <= 16 * (renewals + 1), "{audits} audits with {renewals} renewals");
    assert_eq!(bench.proxy.requests().len(), renewals + audits, "nothing else");
    // Audits may be under way.
    within(Duration::from_secs(10), "only the session watched", async || bench.proxy.open_requests() == 1).await;
    assert!(guards.iter().all(|guard| guard.check().is_ok()));
}

#[tokio::test]
async fn up_to_sixteen_locks_are_watched_each_by_one_request() {
    let bench = bench(LONG).await;
    let mut guards = Vec::new();
    for n in 0..16 {
        guards.push(bench.locker.lock(format!("k{n}")).await.unwrap());
    }
    within(Duration::from_secs(5), "17 waiting requests", async || bench.proxy.open_requests() == 17).await;
    drop(guards);
}

#[tokio::test]
async fn a_claim_of_an_absent_key_delayed_past_a_deletion_finds_its_session_gone() {
    let bench = bench(LONG).await;
    bench.locker.lock("warm-up").await.unwrap().release().await.unwrap();
    let under_way = bench.proxy.hold_next(claims());
    let waiting = tokio::spawn(bench.locker.lock("k").into_future());
    under_way.sent().await;
    waiting.abort();
    within(Duration::from_secs(10), "undone", async || !get(&bench.agent, "/v1/kv/k").await.is_empty()).await;
    within(Duration::from_secs(5), "its session closed", async || get(&bench.agent, "/v1/session/list").await.trim() == "[]").await;
    http(bench.agent.address(), "DELETE", "/v1/kv/k", &[], "").await.unwrap();
    let (status, body) = under_way.deliver(bench.agent.address()).await.unwrap();
    assert_eq!(status, 409, "{body}");
    assert_eq!(holder(&bench.agent, "k").await, None);
}

#[tokio::test]
async fn an_acquisition_dropped_at_any_poll_leaves_no_claim() {
    let agent = ConsulAgent::start().await.unwrap();
    let elsewhere = at(&agent.address().to_string(), LONG);
    let mut finished = [false; 2];
    for (contended, finished) in finished.iter_mut().enumerate() {
        // Until a whole acquisition, from the opening of the session on, was polled to its end.
        for polls in 1..=200 {
            let proxy = FaultProxy::start(agent.address()).await.unwrap();
            let locker = locker(&proxy, LONG);
            let key = format!("dropped/{contended}/{polls}");
            let mut theirs = if contended == 1 { Some(elsewhere.lock(&key).await.unwrap()) } else { None };
            {
                let mut future = pin!(locker.lock(&key).into_future());
                for poll in 0..polls {
                    if futures_util::poll!(&mut future).is_ready() {
                        *finished = true;
                        break;
                    }
                    // Given back while we wait: the grant may come at any poll from here on.
                    if poll == polls / 2 {
                        theirs = None;
                    }
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
            }
            drop(theirs);
            within(Duration::from_secs(10), &key, async || proxy.open_requests() <= 1 && holder(&agent, &key).await.is_none())
                .await;
            // And it can be had again, so that its gate is open too.
            locker.lock(&key).wait_at_most(Duration::from_secs(5)).await.unwrap().release().await.unwrap();
            assert!(locker.shutdown(Duration::from_secs(5)).await.is_clean());
            if *finished {
                break;
            }
        }
    }
    assert_eq!(finished, [true; 2], "never polled to the end");
}

#[tokio::test]
async fn locks_survive_the_death_of_the_clusters_leader() {
    let ttl = Duration::from_secs(15);
    let mut cluster = ConsulCluster::start(3).await.unwrap();
    let leader = cluster.elected().await.expect("a leader");
    let follower = (leader + 1) % 3;
    let locker = at(&cluster.agents()[follower].address().to_string(), ttl);
    let guard = locker.lock("k").await.unwrap();
    cluster.agents()[leader].kill().unwrap();
    tokio::time::sleep(ttl + Duration::from_secs(3)).await;
    assert_eq!(guard.check(), Ok(()));
    assert_eq!(guard.release().await, Ok(ReleaseOutcome::Released));
}

#[tokio::test]
async fn consuls_own_lock_command_and_ours_never_overlap() {
    let agent = ConsulAgent::start().await.unwrap();
    let locker = at(&agent.address().to_string(), LONG);
    let folder = tempfile::tempdir().unwrap();
    let (marker, holding) = (folder.path().join("marker"), folder.path().join("holding"));

    // Ours first: theirs waits.
    let guard = locker.lock("jobs/.lock").await.unwrap();
    std::fs::write(&holding, "").unwrap();
    let (held, goes_on) = (marker.display(), holding.display());
    let touch = format!("echo held > {held}; while [ -e {goes_on} ]; do sleep 0.05; done; rm {held}");
    let mut theirs = agent.command().args(["lock", "jobs", &touch]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let contends = async || get(&agent, "/v1/session/list").await.contains("Consul lock for");
    within(Duration::from_secs(20), "theirs contends", contends).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!marker.exists(), "both hold it");
    guard.release().await.unwrap();

    // Theirs now: ours waits until it is done.
    within(Duration::from_secs(20), "theirs holds it", async || marker.exists()).await;
    assert!(locker.try_lock("jobs/.lock").await.unwrap().is_none(), "both hold it");
    let mut waiting = locker.lock("jobs/.lock").wait_at_most(Duration::from_secs(20)).into_future();
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut waiting).await.is_err(), "both hold it");
    std::fs::remove_file(&holding).unwrap();
    let guard = waiting.await.unwrap();
    assert!(!marker.exists(), "both hold it");
    assert!(theirs.wait().unwrap().success());
    assert_eq!(guard.check(), Ok(()));
}

#[tokio::test]
async fn a_go_program_on_the_same_key_is_excluded_and_excludes() {
    let bench = bench(LONG).await;
    // What Go's api.Lock and sameervitian/dlock send: their session, the lock's flags, a JSON value.
    let session = put(&bench.agent, "/v1/session/create", r#"{"Name":"Consul API Lock","TTL":"15s"}"#).await;
    let session = session.split('"').nth(3).unwrap().to_owned();
    let acquire = format!("/v1/kv/k?acquire={session}&flags=3304740253564472344");
    let value = r#"{"hostname":"go-1","lockAcquisitionTime":"2026-01-01T00:00:00Z"}"#;
    assert_eq!(put(&bench.agent, &acquire, value).await.trim(), "true");
    assert!(bench.locker.try_lock("k").await.unwrap().is_none());
    let seen = bench.locker.inspect("k").await.unwrap();
    assert_eq!(seen.holders[0].published.metadata().and_then(|metadata| metadata.get("hostname")), Some("go-1"));
    put(&bench.agent, &format!("/v1/kv/k?release={session}&flags=3304740253564472344"), value).await;
    let guard = bench.locker.lock("k").wait_at_most(Duration::from_secs(5)).await.unwrap();
    assert_eq!(put(&bench.agent, &acquire, value).await.trim(), "false");
    guard.release().await.unwrap();
    let body = get(&bench.agent, "/v1/kv/k").await;
    assert!(body.contains("3304740253564472344"), "Go refuses a key with other flags: {body}");
    assert_eq!(put(&bench.agent, &acquire, value).await.trim(), "true");
}

#[tokio::test]
async fn connecting_says_what_is_wrong() {
    let error = dlock::connect("consul://127.0.0.1:1").await.unwrap_err();
    let mut told = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    assert!(told.contains("127.0.0.1:1") && told.contains("no connection to Consul"), "{told}");
    let agent = ConsulAgent::start().await.unwrap();
    assert!(dlock::connect(&agent.url()).await.is_ok());
}
