//! The backend on a real Consul, request by request.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{
    Cause, Claim, ClaimId, Cursor, ErrorKind, FencingToken, Granted, Hint, Key, LockBackend, Metadata, Mode, Place, Published,
    Release, Renewal, SessionId, SessionRequest, Standing, TtlRange,
};
use dlock_testkit::proxy::{FaultProxy, Matching};
use dlock_testkit::servers::{ConsulAgent, http};

/// Go's flags for a lock.
const GO_FLAGS: &str = "3304740253564472344";

struct Bench {
    agent: ConsulAgent,
    proxy: FaultProxy,
    consul: Consul,
    session: SessionId,
}

async fn bench() -> Bench {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let consul = Consul::new(options(&proxy)).unwrap();
    let session = open(&consul, Duration::from_secs(60)).await;
    proxy.reset();
    Bench { agent, proxy, consul, session }
}

fn options(proxy: &FaultProxy) -> ConsulOptions {
    let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    ConsulOptions::new().address(&proxy.address().to_string()).unwrap().ttl_range(ttl)
}

async fn open(consul: &Consul, ttl: Duration) -> SessionId {
    let request = SessionRequest { id: SessionId::new("ignored"), ttl, owner: "host/1/test".into() };
    consul.open(&request).await.unwrap().id
}

fn claim(key: &str, id: u128) -> Claim {
    Claim {
        id: ClaimId::from_bits(id),
        key: Key::new(key).unwrap(),
        mode: Mode::Exclusive,
        owner: "host/1/test".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

async fn held(consul: &Consul, session: &SessionId, claim: &Claim) -> u64 {
    match consul.claim(session, claim, Place::Try).await.unwrap() {
        Standing::Held { token } => token.get(),
        other => panic!("not held: {other:?}"),
    }
}

async fn raw(agent: &ConsulAgent, method: &str, path: &str, body: &str) -> String {
    http(agent.address(), method, path, &[], body).await.unwrap().body
}

#[tokio::test]
async fn a_key_whose_state_is_known_costs_one_request_to_take_and_one_to_give_back() {
    let bench = bench().await;
    // The first key that is met is looked at, and found absent; from then on new keys are taken without looking.
    held(&bench.consul, &bench.session, &claim("warm-up", 1)).await;
    for (n, key) in [(2, "absent"), (3, "absent")] {
        bench.proxy.reset();
        held(&bench.consul, &bench.session, &claim(key, n)).await;
        assert_eq!(bench.consul.release(&bench.session, &claim(key, n)).await.unwrap(), Release::Released);
        assert_eq!(bench.proxy.requests().len(), 2, "{:?}", bench.proxy.requests());
    }
}

#[tokio::test]
async fn a_key_that_is_met_for_the_first_time_costs_three() {
    let bench = bench().await;
    held(&bench.consul, &bench.session, &claim("k", 1)).await;
    bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap();
    let other = Consul::new(options(&bench.proxy)).unwrap();
    let session = open(&other, Duration::from_secs(60)).await;
    bench.proxy.reset();
    held(&other, &session, &claim("k", 2)).await;
    assert_eq!(other.release(&session, &claim("k", 2)).await.unwrap(), Release::Released);
    assert_eq!(bench.proxy.requests().len(), 3, "{:?}", bench.proxy.requests());
}

#[tokio::test]
async fn tokens_grow_over_release_deletion_and_other_sessions() {
    let bench = bench().await;
    let mut last = 0;
    for n in 0..4 {
        let session = open(&bench.consul, Duration::from_secs(60)).await;
        let token = held(&bench.consul, &session, &claim("k", n)).await;
        assert!(token > last);
        last = token;
        bench.consul.release(&session, &claim("k", n)).await.unwrap();
        if n % 2 == 0 {
            raw(&bench.agent, "DELETE", "/v1/kv/k", "").await;
        }
    }
}

#[tokio::test]
async fn a_claim_is_idempotent_also_when_its_reply_was_lost() {
    let bench = bench().await;
    let lock = Matching::any().path("/v1/txn").body("\"lock\"");
    bench.proxy.next(lock, dlock_testkit::proxy::Fault::DropResponse);
    let lost = bench.consul.claim(&bench.session, &claim("k", 1), Place::Try).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Ambiguous);
    let token = held(&bench.consul, &bench.session, &claim("k", 1)).await;
    assert_eq!(held(&bench.consul, &bench.session, &claim("k", 1)).await, token);
}

#[tokio::test]
async fn a_claim_that_arrives_after_its_release_has_no_effect() {
    let bench = bench().await;
    for key in ["absent", "existing"] {
        if key == "existing" {
            held(&bench.consul, &bench.session, &claim(key, 1)).await;
            bench.consul.release(&bench.session, &claim(key, 1)).await.unwrap();
        }
        let under_way = bench.proxy.hold_next(Matching::any().path("/v1/txn").body("\"lock\""));
        let late = claim(key, 2);
        let given_up = tokio::select! {
            answer = bench.consul.claim(&bench.session, &late, Place::Try) => Some(answer),
            () = under_way.sent() => None,
        };
        assert!(given_up.is_none());
        let undone = bench.consul.release(&bench.session, &late).await.unwrap();
        // An index never comes back; a key's absence does when somebody deletes it.
        assert_eq!(undone, if key == "absent" { Release::Unfenced { had: false } } else { Release::NotHeld });
        // In between the same session takes and releases it once more.
        held(&bench.consul, &bench.session, &claim(key, 3)).await;
        bench.consul.release(&bench.session, &claim(key, 3)).await.unwrap();
        let (status, body) = under_way.deliver(bench.agent.address()).await.unwrap();
        assert_eq!(status, 409, "{body}");
        assert!(bench.consul.inspect(&late.key).await.unwrap().holders.is_empty());
    }
}

#[tokio::test]
async fn a_late_or_repeated_release_never_frees_a_successor() {
    let bench = bench().await;
    let under_way = bench.proxy.hold_next(Matching::any().path("/v1/txn").body("\"unlock\""));
    held(&bench.consul, &bench.session, &claim("k", 1)).await;
    let first = claim("k", 1);
    tokio::select! {
        answer = bench.consul.release(&bench.session, &first) => panic!("{answer:?}"),
        () = under_way.sent() => {}
    }
    assert_eq!(bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap(), Release::Released);
    held(&bench.consul, &bench.session, &claim("k", 2)).await;
    assert_eq!(under_way.deliver(bench.agent.address()).await.unwrap().0, 409);
    assert_eq!(bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap(), Release::NotHeld);
    let holder = &bench.consul.inspect(&claim("k", 2).key).await.unwrap().holders[0];
    assert_eq!(holder.claim(), Some(ClaimId::from_bits(2)));
}

#[tokio::test]
async fn a_release_whose_reply_was_lost_still_says_released() {
    let bench = bench().await;
    held(&bench.consul, &bench.session, &claim("k", 1)).await;
    bench.proxy.next(Matching::any().body("\"unlock\""), dlock_testkit::proxy::Fault::DropResponse);
    assert_eq!(bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap_err().kind(), ErrorKind::Ambiguous);
    assert_eq!(bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap(), Release::Released);
}

#[tokio::test]
async fn a_key_that_is_no_lock_is_a_conflict_and_left_as_it_is() {
    let bench = bench().await;
    raw(&bench.agent, "PUT", "/v1/kv/precious?flags=7", "data").await;
    let before = raw(&bench.agent, "GET", "/v1/kv/precious", "").await;
    // Also when the key is expected to be absent.
    held(&bench.consul, &bench.session, &claim("warm-up", 1)).await;
    let error = bench.consul.claim(&bench.session, &claim("precious", 2), Place::Queue).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("flags 7"), "{error}");
    assert_eq!(bench.consul.release(&bench.session, &claim("precious", 2)).await.unwrap(), Release::NotHeld);
    assert_eq!(raw(&bench.agent, "GET", "/v1/kv/precious", "").await, before);
    let seen = bench.consul.inspect(&Key::new("precious").unwrap()).await.unwrap();
    assert_eq!(seen.holders[0].published, Published::Raw(b"data".to_vec()));
}

#[tokio::test]
async fn flags_and_value_are_gos_while_held_and_after() {
    let bench = bench().await;
    let mut metadata = Metadata::new();
    metadata.insert("hostname", "wörker-1").unwrap();
    let claim = Claim { metadata: Some(Arc::new(metadata)), ..claim("jobs/nightly/.lock", 1) };
    held(&bench.consul, &bench.session, &claim).await;
    let value = raw(&bench.agent, "GET", "/v1/kv/jobs/nightly/.lock?raw", "").await;
    let flags = raw(&bench.agent, "GET", "/v1/kv/jobs/nightly/.lock", "").await;
    assert!(flags.contains(GO_FLAGS), "{flags}");
    let expected = r#"{"claim":"00000000000000000000000000000001","hostname":"wörker-1","lockAcquisitionTime":"2026-01-01T00:00:00Z","owner":"host/1/test"}"#;
    assert_eq!(value, expected);
    bench.consul.release(&bench.session, &claim).await.unwrap();
    assert_eq!(raw(&bench.agent, "GET", "/v1/kv/jobs/nightly/.lock?raw", "").await, value);
    assert!(raw(&bench.agent, "GET", "/v1/kv/jobs/nightly/.lock", "").await.contains(GO_FLAGS));
}

#[tokio::test]
async fn keys_reach_the_store_as_they_are_written() {
    let bench = bench().await;
    let names = ["with space/a", "a?b#c%d+e", "Ключ/ö", "%2e%2e/x", "a/b", "a"];
    for (n, name) in names.into_iter().enumerate() {
        let claim = claim(name, n as u128 + 1);
        held(&bench.consul, &bench.session, &claim).await;
        assert_eq!(bench.consul.inspect(&claim.key).await.unwrap().holders.len(), 1, "{name}");
    }
    let stored: BTreeSet<String> = serde_json::from_str(&raw(&bench.agent, "GET", "/v1/kv/?keys", "").await).unwrap();
    assert_eq!(stored, names.map(str::to_owned).into());
    let listed = bench.consul.list("a").await.unwrap();
    let names: Vec<_> = listed.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(names, ["a", "a/b", "a?b#c%d+e"]);
}

#[tokio::test]
async fn a_waiter_is_woken_by_a_release_and_told_of_the_holder() {
    let bench = bench().await;
    held(&bench.consul, &bench.session, &claim("k", 1)).await;
    let other = open(&bench.consul, Duration::from_secs(60)).await;
    let busy = bench.consul.claim(&other, &claim("k", 2), Place::Queue).await.unwrap();
    let Standing::Busy { holder: Some(holder), cursor } = busy else { panic!("{busy:?}") };
    assert_eq!(holder.owner(), Some("host/1/test"));
    let waiting = claim("k", 2);
    let woken = tokio::join!(bench.consul.wait(&other, &waiting, cursor), async {
        while bench.proxy.open_requests() == 0 {
            tokio::task::yield_now().await;
        }
        bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap();
    });
    assert_eq!(woken.0.unwrap().hint, Hint::MaybeFree);
    bench.proxy.reset();
    held(&bench.consul, &other, &claim("k", 2)).await;
    assert_eq!(bench.proxy.requests().len(), 1, "the wake told the index");
}

#[tokio::test]
async fn sessions_lapse_close_and_stay_gone() {
    let bench = bench().await;
    let short = open(&bench.consul, Duration::from_secs(3)).await;
    assert!(matches!(bench.consul.renew(&short).await.unwrap(), Renewal::Renewed { ttl } if ttl == Duration::from_secs(3)));
    held(&bench.consul, &short, &claim("k", 1)).await;
    let woken = bench.consul.wait(&bench.session, &claim("k", 2), Cursor(1)).await.unwrap();
    let Hint::StillHeld { .. } = woken.hint else { panic!("{woken:?}") };
    let woken = bench.consul.wait(&bench.session, &claim("k", 2), woken.cursor).await.unwrap();
    assert_eq!(woken.hint, Hint::MaybeFree, "the session lapsed");
    assert_eq!(bench.consul.renew(&short).await.unwrap(), Renewal::Gone);
    assert_eq!(bench.consul.claim(&short, &claim("other", 3), Place::Try).await.unwrap(), Standing::SessionGone);
    bench.consul.close(&short).await.unwrap();
    assert_eq!(bench.consul.release(&short, &claim("k", 1)).await.unwrap(), Release::NotHeld);
}

#[tokio::test]
async fn a_ttl_that_the_server_refuses_is_told_with_the_range() {
    let agent = ConsulAgent::builder().ttl_min(None).start().await.unwrap();
    let consul = Consul::new(ConsulOptions::new().address(&agent.address().to_string()).unwrap()).unwrap();
    let request = SessionRequest { id: SessionId::new("x"), ttl: Duration::from_secs(9), owner: "o".into() };
    let error = consul.open(&request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("from 10s to 86400s"), "{error}");
}

#[tokio::test]
async fn an_audit_of_many_takes_a_request_for_64_and_finds_who_lost_what() {
    let bench = bench().await;
    let mut granted = Vec::new();
    for n in 0..130 {
        let claim = claim(&format!("k{n}"), n + 1);
        held(&bench.consul, &bench.session, &claim).await;
        let token = dlock_core::FencingToken::new(1).unwrap();
        granted.push(Granted { claim: Arc::new(claim), token });
    }
    bench.proxy.reset();
    assert_eq!(bench.consul.audit(&bench.session, &granted).await.unwrap(), []);
    assert_eq!(bench.proxy.requests().len(), 3);
    raw(&bench.agent, "DELETE", "/v1/kv/k7", "").await;
    raw(&bench.agent, "PUT", &format!("/v1/kv/k100?release={}", bench.session), "").await;
    let found = bench.consul.audit(&bench.session, &granted).await.unwrap();
    let found: Vec<_> = found.iter().map(|found| (found.claim.bits(), found.cause)).collect();
    assert_eq!(found, [(8, Cause::KeyDeleted), (101, Cause::TakenOver)]);
}

#[tokio::test]
async fn a_dead_holders_lock_delay_is_told_as_a_delay() {
    let bench = bench().await;
    let body = r#"{"TTL":"60s","NodeChecks":[],"LockDelay":"30s"}"#;
    let foreign = raw(&bench.agent, "PUT", "/v1/session/create", body).await;
    let foreign = foreign.split('"').nth(3).unwrap();
    raw(&bench.agent, "PUT", &format!("/v1/kv/k?acquire={foreign}&flags={GO_FLAGS}"), "").await;
    raw(&bench.agent, "PUT", &format!("/v1/session/destroy/{foreign}"), "").await;
    let delayed = bench.consul.claim(&bench.session, &claim("k", 1), Place::Try).await.unwrap();
    assert!(matches!(delayed, Standing::Delayed { .. }), "{delayed:?}");
}

#[tokio::test]
async fn amended_metadata_keeps_the_token_and_the_release() {
    let bench = bench().await;
    held(&bench.consul, &bench.session, &claim("k", 1)).await;
    let mut metadata = Metadata::new();
    metadata.insert("phase", "two").unwrap();
    assert!(bench.consul.amend(&bench.session, &claim("k", 1), &metadata).await.unwrap());
    let seen = bench.consul.inspect(&claim("k", 1).key).await.unwrap();
    assert_eq!(seen.holders[0].published.metadata().and_then(|metadata| metadata.get("phase")), Some("two"));
    bench.proxy.reset();
    assert_eq!(bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap(), Release::Released);
    assert_eq!(bench.proxy.requests().len(), 1);
    assert!(raw(&bench.agent, "GET", "/v1/kv/k?raw", "").await.contains("\"phase\":\"two\""));
    assert!(!bench.consul.amend(&bench.session, &claim("k", 1), &metadata).await.unwrap());
}

#[tokio::test]
async fn a_token_is_not_inherited_by_whoever_keeps_the_value() {
    let bench = bench().await;
    let token = FencingToken::new(held(&bench.consul, &bench.session, &claim("k", 1)).await).unwrap();
    assert!(bench.consul.amend(&bench.session, &claim("k", 1), &Metadata::new()).await.unwrap());
    let key = &claim("k", 1).key;
    assert_eq!(bench.consul.inspect(key).await.unwrap().holders[0].token, Some(token));
    bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap();
    // As Go programs do that read the pair, and acquire with it.
    let value = raw(&bench.agent, "GET", "/v1/kv/k?raw", "").await;
    assert!(value.contains("fencingToken"), "{value}");
    let foreign = open(&bench.consul, Duration::from_secs(60)).await;
    raw(&bench.agent, "PUT", &format!("/v1/kv/k?acquire={foreign}&flags={GO_FLAGS}"), &value).await;
    let seen = bench.consul.inspect(key).await.unwrap().holders.remove(0);
    assert!(seen.token > Some(token), "{seen:?}");
    assert!(!bench.consul.evict(key, token).await.unwrap(), "the term of that token is over");
    assert!(bench.consul.evict(key, seen.token.unwrap()).await.unwrap());
}

#[tokio::test]
async fn a_lock_whose_value_somebody_overwrote_is_given_back_with_that_value() {
    let bench = bench().await;
    for (n, key, flags) in [(1, "value", GO_FLAGS), (2, "value-and-flags", "0")] {
        held(&bench.consul, &bench.session, &claim(key, n)).await;
        raw(&bench.agent, "PUT", &format!("/v1/kv/{key}?flags={flags}"), "precious").await;
        assert_eq!(bench.consul.release(&bench.session, &claim(key, n)).await.unwrap(), Release::Released, "{key}");
        let left = raw(&bench.agent, "GET", &format!("/v1/kv/{key}"), "").await;
        assert!(!left.contains("Session") && left.contains(&format!("\"Flags\": {flags},")), "{left}");
        assert_eq!(raw(&bench.agent, "GET", &format!("/v1/kv/{key}?raw"), "").await, "precious");
    }
    held(&bench.consul, &bench.session, &claim("value", 3)).await;
    // By its flags it is no lock any more.
    let refused = bench.consul.claim(&bench.session, &claim("value-and-flags", 4), Place::Try).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn only_the_present_grant_is_evicted() {
    let bench = bench().await;
    let token = held(&bench.consul, &bench.session, &claim("k", 1)).await;
    let key = Key::new("k").unwrap();
    assert!(!bench.consul.evict(&key, dlock_core::FencingToken::new(token + 1).unwrap()).await.unwrap());
    assert!(bench.consul.evict(&key, dlock_core::FencingToken::new(token).unwrap()).await.unwrap());
    assert!(bench.consul.inspect(&key).await.unwrap().holders.is_empty());
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let agent = ConsulAgent::builder().acl().start().await.unwrap();
    let with = |token: &str| {
        let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
        Consul::new(ConsulOptions::new().address(&agent.address().to_string()).unwrap().token(token).ttl_range(ttl)).unwrap()
    };
    let request = SessionRequest { id: SessionId::new("x"), ttl: Duration::from_secs(60), owner: "o".into() };
    let no_session = with(&agent.token_with(r#"key_prefix "" { policy = "write" }"#).unwrap());
    let error = no_session.open(&request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("session_prefix"), "{error}");

    let no_key = with(&agent.token_with(r#"session_prefix "" { policy = "write" } key_prefix "" { policy = "read" }"#).unwrap());
    let session = no_key.open(&request).await.unwrap().id;
    let error = no_key.claim(&session, &claim("locks/a", 1), Place::Try).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains(r#"key "locks/a" { policy = "write" }"#), "{error}");

    let unknown = "11111111-2222-3333-4444-555555555555";
    let error = with(unknown).open(&request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("does not know the token") && !error.to_string().contains(unknown), "{error}");
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let agent = ConsulAgent::builder().with_unix_socket().start().await.unwrap();
    let url = format!("consul+unix://{}", agent.unix_socket().display());
    let consul = Consul::from_url(&url).unwrap();
    let session = open(&consul, Duration::from_secs(60)).await;
    held(&consul, &session, &claim("k", 1)).await;
    bench_release(&consul, &session).await;
}

async fn bench_release(consul: &Consul, session: &SessionId) {
    assert_eq!(consul.release(session, &claim("k", 1)).await.unwrap(), Release::Released);
}

#[tokio::test]
async fn a_renewal_after_a_hung_one_goes_out_on_a_fresh_connection() {
    let bench = bench().await;
    let renewals = Matching::any().path("/v1/session/renew");
    bench.proxy.next(renewals.clone(), dlock_testkit::proxy::Fault::Hang);
    let sent = async {
        while bench.proxy.count(&renewals) == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    tokio::select! {
        renewed = bench.consul.renew(&bench.session) => panic!("it does not hang: {renewed:?}"),
        () = sent => {}
    }
    assert!(matches!(bench.consul.renew(&bench.session).await.unwrap(), Renewal::Renewed { .. }));
}

#[tokio::test]
async fn a_hundred_waiting_keys_stay_within_the_connections_allowed() {
    let bench = bench().await;
    let proxy = FaultProxy::start(bench.agent.address()).await.unwrap();
    let consul = Consul::new(options(&proxy).max_connections(16)).unwrap();
    let session = open(&consul, Duration::from_secs(60)).await;
    let mut waits = tokio::task::JoinSet::new();
    for n in 0..100 {
        let holding = claim(&format!("k{n}"), n + 1);
        held(&bench.consul, &bench.session, &holding).await;
        let busy = consul.claim(&session, &claim(&format!("k{n}"), n + 1_000), Place::Queue).await.unwrap();
        let Standing::Busy { cursor, .. } = busy else { panic!("{busy:?}") };
        let (consul, session) = (consul.clone(), session.clone());
        waits.spawn(async move { consul.wait(&session, &claim(&format!("k{n}"), n + 1_000), cursor).await.unwrap().hint });
    }
    for n in 0..100 {
        bench.consul.release(&bench.session, &claim(&format!("k{n}"), n + 1)).await.unwrap();
    }
    let hints = tokio::time::timeout(Duration::from_secs(60), waits.join_all()).await.unwrap();
    assert!(hints.iter().all(|hint| *hint == Hint::MaybeFree), "{hints:?}");
    assert!(proxy.most_connections() <= 16, "{}", proxy.most_connections());
}

#[tokio::test]
async fn waits_that_are_given_up_do_not_use_up_the_connections_of_the_agent() {
    // It keeps a request that waits, and its connection, also when the client has gone.
    let agent = ConsulAgent::builder().connections_per_client(30).start().await.unwrap();
    let consul = Consul::new(ConsulOptions::new().address(&agent.address().to_string()).unwrap().max_connections(16)).unwrap();
    let (holder, session) = (open(&consul, Duration::from_secs(60)).await, open(&consul, Duration::from_secs(60)).await);
    let waiting = |n| claim(&format!("k{n}"), n + 1_000);
    let mut cursors = Vec::new();
    for n in 0..40 {
        held(&consul, &holder, &claim(&format!("k{n}"), n + 1)).await;
        let Standing::Busy { cursor, .. } = consul.claim(&session, &waiting(n), Place::Queue).await.unwrap() else {
            panic!("it must be held");
        };
        cursors.push((n, cursor));
    }
    for _ in 0..2 {
        for &(n, cursor) in &cursors {
            let waited = tokio::time::timeout(Duration::from_millis(20), consul.wait(&session, &waiting(n), cursor)).await;
            assert!(waited.is_err(), "{waited:?}");
        }
    }
    // It takes other connections still.
    assert!(raw(&agent, "GET", "/v1/kv/k0?keys", "").await.contains("\"k0\""));
    let Renewal::Renewed { .. } = consul.renew(&holder).await.unwrap() else { panic!("the session must be there") };
}

#[test]
fn a_backend_may_be_dropped_outside_of_its_runtime_with_a_wait_that_was_given_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = runtime.block_on(async {
        let bench = bench().await;
        held(&bench.consul, &bench.session, &claim("k", 1)).await;
        let other = open(&bench.consul, Duration::from_secs(60)).await;
        let waiting = claim("k", 2);
        let Standing::Busy { cursor, .. } = bench.consul.claim(&other, &waiting, Place::Queue).await.unwrap() else {
            panic!("it must be held");
        };
        tokio::select! {
            biased;
            woken = bench.consul.wait(&other, &waiting, cursor) => panic!("{woken:?}"),
            () = async {
                while bench.proxy.count(&Matching::any().path("/v1/kv/k?index=")) == 0 {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        bench.consul.release(&bench.session, &claim("k", 1)).await.unwrap();
        // Answered, and heard by nobody.
        while bench.proxy.open_requests() > 0 {
            tokio::task::yield_now().await;
        }
        bench
    });
    let Bench { agent, proxy, consul, .. } = bench;
    drop(consul);
    drop((agent, proxy));
}

#[tokio::test]
async fn disturbances_are_told_by_session_and_by_claim() {
    let bench = bench().await;
    let token = held(&bench.consul, &bench.session, &claim("k", 1)).await;
    let granted = Granted { claim: Arc::new(claim("k", 1)), token: dlock_core::FencingToken::new(token).unwrap() };
    let quiet = bench.consul.disturbed(&bench.session, Some(&granted), None);
    assert!(tokio::time::timeout(Duration::from_millis(300), quiet).await.is_err(), "nothing happened yet");
    let (told, ()) = tokio::join!(bench.consul.disturbed(&bench.session, Some(&granted), None), async {
        raw(&bench.agent, "DELETE", "/v1/kv/k", "").await;
    });
    told.unwrap();
    let (told, ()) = tokio::join!(bench.consul.disturbed(&bench.session, None, None), async {
        while bench.proxy.count(&Matching::any().path("/v1/session/info")) < 2 {
            tokio::task::yield_now().await;
        }
        raw(&bench.agent, "PUT", &format!("/v1/session/destroy/{}", bench.session), "").await;
    });
    told.unwrap();
}

#[tokio::test]
async fn what_is_too_large_or_not_offered_is_refused_before_it_is_sent() {
    let bench = bench().await;
    let mut metadata = Metadata::new();
    metadata.insert("big", "x".repeat(400_000)).unwrap();
    let large = Claim { metadata: Some(Arc::new(metadata)), ..claim("k", 1) };
    assert_eq!(bench.consul.claim(&bench.session, &large, Place::Try).await.unwrap_err().kind(), ErrorKind::Invalid);
    let shared = Claim { mode: Mode::Shared, ..claim("k", 1) };
    assert_eq!(bench.consul.claim(&bench.session, &shared, Place::Try).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(bench.proxy.requests().len(), 0);
}

#[tokio::test]
async fn an_attempt_that_is_not_answered_ends_at_its_limit() {
    // Connections are taken, and nobody reads from them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let options = ConsulOptions::new().address(&address).unwrap().attempt_limit(Duration::from_millis(200)).unwrap();
    let consul = Consul::new(options).unwrap();
    let began = std::time::Instant::now();
    let error = consul.inspect(&Key::new("k").unwrap()).await.unwrap_err();
    assert!(error.kind().is_passing(), "{error}");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(200) && took < ConsulOptions::DEFAULT_ATTEMPT, "{took:?}");
}
