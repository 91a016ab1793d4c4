//! What sessions hang on, on a real agent: checks, nodes, and what becomes of held keys.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use dlock_consul::{Behavior, Consul, ConsulOptions};
use dlock_core::{
    BackendError, Claim, ClaimId, ErrorKind, Key, LockBackend, Mode, Place, Release, Renewal, SessionId, SessionRequest, Standing,
    TtlRange,
};
use dlock_testkit::proxy::{FaultProxy, Matching};
use dlock_testkit::servers::{ConsulAgent, http};

const TTL: Duration = Duration::from_secs(20);

fn options(agent: &ConsulAgent) -> ConsulOptions {
    let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    ConsulOptions::new().address(&agent.address().to_string()).unwrap().ttl_range(ttl)
}

async fn open(options: &ConsulOptions) -> Result<(Consul, SessionId), BackendError> {
    let consul = Consul::new(options.clone()).unwrap();
    let request = SessionRequest { id: SessionId::new("ignored"), ttl: TTL, owner: "host/1/test".into() };
    let session = consul.open(&request).await?.id;
    Ok((consul, session))
}

/// Opens a session once its checks let it; what an agent is told reaches the catalog a moment later.
async fn opened(options: &ConsulOptions) -> (Consul, SessionId) {
    let began = Instant::now();
    loop {
        match open(options).await {
            Ok(opened) => return opened,
            Err(error) => {
                assert!(error.kind() == ErrorKind::Transient && began.elapsed() < Duration::from_secs(10), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
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

async fn held((consul, session): &(Consul, SessionId), claim: &Claim) -> u64 {
    match consul.claim(session, claim, Place::Try).await.unwrap() {
        Standing::Held { token } => token.get(),
        other => panic!("not held: {other:?}"),
    }
}

async fn raw(agent: &ConsulAgent, method: &str, path: &str, body: &str) -> String {
    let reply = http(agent.address(), method, path, &[], body).await.unwrap();
    assert!(reply.status == 200 || reply.status == 404, "{path}: {} {}", reply.status, reply.body);
    reply.body
}

async fn node_check(agent: &ConsulAgent, status: &str) {
    let body = format!(r#"{{"ID":"disk","Name":"disk","TTL":"1h","Status":"{status}"}}"#);
    raw(agent, "PUT", "/v1/agent/check/register", &body).await;
}

async fn service_check(agent: &ConsulAgent) {
    let body = r#"{"ID":"web","Name":"web","Check":{"CheckID":"web-alive","TTL":"1h","Status":"passing"}}"#;
    raw(agent, "PUT", "/v1/agent/service/register", body).await;
}

#[tokio::test]
async fn a_check_that_turns_critical_ends_the_session_and_its_key_is_kept_from_others() {
    let agent = ConsulAgent::start().await.unwrap();
    node_check(&agent, "passing").await;
    service_check(&agent).await;
    let other = open(&options(&agent)).await.unwrap();
    for (n, check, options) in
        [(1, "disk", options(&agent).node_checks(["disk"])), (2, "web-alive", options(&agent).service_checks(["web-alive"]))]
    {
        let checked = opened(&options).await;
        held(&checked, &claim(check, n)).await;
        let (told, _) = tokio::join!(
            async {
                let began = Instant::now();
                let mut cursor = None;
                loop {
                    cursor = Some(checked.0.disturbed(&checked.1, None, cursor).await.unwrap());
                    if checked.0.renew(&checked.1).await.unwrap() == Renewal::Gone {
                        return began.elapsed();
                    }
                }
            },
            async { raw(&agent, "PUT", &format!("/v1/agent/check/fail/{check}"), "").await },
        );
        assert!(told < TTL / 2, "{check}: told after {told:?}");
        let delayed = other.0.claim(&other.1, &claim(check, n + 10), Place::Try).await.unwrap();
        assert!(matches!(delayed, Standing::Delayed { .. }), "{check}: {delayed:?}");
    }
}

#[tokio::test]
async fn a_lock_delay_of_none_gives_the_keys_of_a_checked_session_away_at_once() {
    let agent = ConsulAgent::start().await.unwrap();
    node_check(&agent, "passing").await;
    let checked = opened(&options(&agent).node_checks(["disk"]).lock_delay(Duration::ZERO).unwrap()).await;
    let first = held(&checked, &claim("k", 1)).await;
    raw(&agent, "PUT", &format!("/v1/session/destroy/{}", checked.1), "").await;
    let other = open(&options(&agent)).await.unwrap();
    assert!(held(&other, &claim("k", 2)).await > first);
}

#[tokio::test]
async fn while_a_check_is_critical_or_missing_no_session_is_opened_and_the_check_is_named() {
    let agent = ConsulAgent::start().await.unwrap();
    let checked = options(&agent).node_checks(["disk"]);
    let missing = open(&checked).await.unwrap_err();
    assert!(missing.to_string().contains(r#"no check with the id "disk""#), "{missing}");
    assert_eq!(missing.kind(), ErrorKind::Transient);
    node_check(&agent, "critical").await;
    let began = Instant::now();
    let critical = loop {
        let error = open(&checked).await.unwrap_err();
        if error.to_string() != missing.to_string() || began.elapsed() > Duration::from_secs(10) {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(critical.to_string().contains(r#"the check "disk" is critical"#), "{critical}");
    assert_eq!(critical.kind(), ErrorKind::Transient);
    raw(&agent, "PUT", "/v1/agent/check/pass/disk", "").await;
    opened(&checked).await;
}

#[tokio::test]
async fn a_session_on_an_external_node_outlives_the_agents_node() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let external = options(&agent).address(&proxy.address().to_string()).unwrap().external_node("locks");
    let agents = open(&options(&agent)).await.unwrap();
    let kept = open(&external).await.unwrap();
    open(&external).await.unwrap();
    assert_eq!(proxy.count(&Matching::any().path("/v1/catalog/register")), 1, "it is registered once");
    held(&kept, &claim("k", 1)).await;
    let node = format!("n{}", agent.address().port());
    raw(&agent, "PUT", "/v1/catalog/deregister", &format!(r#"{{"Node":"{node}"}}"#)).await;
    assert_eq!(agents.0.renew(&agents.1).await.unwrap(), Renewal::Gone);
    assert!(matches!(kept.0.renew(&kept.1).await.unwrap(), Renewal::Renewed { .. }));
    assert_eq!(kept.0.release(&kept.1, &claim("k", 1)).await.unwrap(), Release::Released);
}

#[tokio::test]
async fn a_node_that_is_there_is_left_as_it_is() {
    let agent = ConsulAgent::start().await.unwrap();
    raw(&agent, "PUT", "/v1/catalog/register", r#"{"Node":"locks","Address":"10.1.2.3","NodeMeta":{"of":"operators"}}"#).await;
    let before = raw(&agent, "GET", "/v1/catalog/node/locks", "").await;
    open(&options(&agent).external_node("locks")).await.unwrap();
    let named = open(&options(&agent).node("locks")).await.unwrap();
    assert_eq!(raw(&agent, "GET", "/v1/catalog/node/locks", "").await, before);
    let info = raw(&agent, "GET", &format!("/v1/session/info/{}", named.1), "").await;
    assert!(info.contains(r#""Node": "locks""#), "{info}");
}

#[tokio::test]
async fn a_node_that_nobody_registered_is_named() {
    let agent = ConsulAgent::start().await.unwrap();
    let error = open(&options(&agent).node("nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(r#"no node "nowhere""#) && error.to_string().contains("external_node"), "{error}");
}

#[tokio::test]
async fn the_permissions_for_a_node_are_named() {
    let agent = ConsulAgent::builder().acl().start().await.unwrap();
    let with = |rules: &str| options(&agent).external_node("locks").token(agent.token_with(rules).unwrap());
    let nothing = open(&with(r#"key_prefix "" { policy = "write" }"#)).await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Denied);
    assert!(nothing.to_string().contains(r#"session "locks" { policy = "write" }"#), "{nothing}");
    let session = r#"session "locks" { policy = "write" }"#;
    let no_node = open(&with(session)).await.unwrap_err();
    assert_eq!(no_node.kind(), ErrorKind::Denied);
    assert!(no_node.to_string().contains(r#"node "locks" { policy = "write" }"#), "{no_node}");
    open(&with(&format!(r#"{session} node "locks" {{ policy = "write" }}"#))).await.unwrap();
    // Once the node is there, nobody needs to register it.
    open(&with(session)).await.unwrap();
}

#[tokio::test]
async fn keys_go_with_a_session_that_deletes_and_tokens_grow_all_the_same() {
    let agent = ConsulAgent::start().await.unwrap();
    let other = open(&options(&agent)).await.unwrap();
    let deleting = open(&options(&agent).behavior(Behavior::Delete)).await.unwrap();
    raw(&agent, "PUT", "/v1/kv/precious?flags=7", "data").await;
    let conflict = deleting.0.claim(&deleting.1, &claim("precious", 9), Place::Try).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    let given_back = held(&deleting, &claim("given-back", 1)).await;
    deleting.0.release(&deleting.1, &claim("given-back", 1)).await.unwrap();
    let first = held(&deleting, &claim("k", 2)).await;
    raw(&agent, "PUT", &format!("/v1/session/destroy/{}", deleting.1), "").await;
    assert_eq!(raw(&agent, "GET", "/v1/kv/?keys", "").await.replace(char::is_whitespace, ""), r#"["given-back","precious"]"#);
    assert!(held(&other, &claim("k", 3)).await > first);
    assert!(held(&other, &claim("given-back", 4)).await > given_back);
}

#[tokio::test]
async fn a_claim_that_a_deletion_lets_through_is_announced_and_ends_with_its_session() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let ours = options(&agent).address(&proxy.address().to_string()).unwrap();
    for (n, key, close_first) in [(1, "closed", true), (2, "open", false)] {
        let late = claim(key, n);
        let (consul, session) = open(&ours).await.unwrap();
        let under_way = proxy.hold_next(Matching::any().path("/v1/txn").body("\"lock\""));
        tokio::select! {
            answer = consul.claim(&session, &late, Place::Try) => panic!("{answer:?}"),
            () = under_way.sent() => {}
        }
        // Told as no fence, whereupon core ends the session.
        assert_eq!(consul.release(&session, &late).await.unwrap(), Release::Unfenced { had: false });
        let deleting = open(&options(&agent).behavior(Behavior::Delete)).await.unwrap();
        held(&deleting, &claim(key, n + 10)).await;
        raw(&agent, "PUT", &format!("/v1/session/destroy/{}", deleting.1), "").await;
        if close_first {
            consul.close(&session).await.unwrap();
        }
        let (status, body) = under_way.deliver(agent.address()).await.unwrap();
        assert_eq!(status, if close_first { 409 } else { 200 }, "{body}");
        consul.close(&session).await.unwrap();
        assert!(consul.inspect(&late.key).await.unwrap().holders.is_empty());
    }
}
