//! Namespace, partition and datacenter: what is sent to an agent that has them, and what a real one says that has not.
#![allow(missing_docs)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Answer, Consul, ConsulOptions, Request, Transport, TransportError};
use dlock_core::{
    Claim, ClaimId, Cursor, ErrorKind, FencingToken, Granted, Key, LockBackend, Metadata, Mode, Place, SessionId, SessionRequest,
    Standing,
};
use dlock_testkit::servers::{ConsulAgent, http};

/// Notes every request, and answers as an agent that keeps one key, held from the second request for it on.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Request>>);

#[async_trait]
impl Transport for Recorder {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        let entry = r#"{"Key":"a","Flags":3304740253564472344,"Value":null,"ModifyIndex":9,"Session":"s"}"#;
        let body = match request.target.split(['?', '/']).nth(2).unwrap_or_default() {
            "txn" => format!(r#"{{"Results":[{{"KV":{entry}}},{{"KV":{entry}}}],"Errors":null}}"#),
            "kv" if self.0.lock().unwrap().iter().any(|asked| asked.target.starts_with("/v1/kv")) => format!("[{entry}]"),
            "kv" => format!("[{}]", entry.replace(r#","Session":"s""#, "")),
            _ if request.target.contains("create") => r#"{"ID":"s"}"#.to_owned(),
            _ => r#"[{"ID":"s","TTL":"60s"}]"#.to_owned(),
        };
        self.0.lock().unwrap().push(request);
        Ok(Answer { status: 200, index: Some(10), body })
    }
}

fn request() -> SessionRequest {
    SessionRequest { id: SessionId::new("x"), ttl: Duration::from_secs(60), owner: "o".into() }
}

fn claim() -> Claim {
    Claim {
        id: ClaimId::from_bits(1),
        key: Key::new("a").unwrap(),
        mode: Mode::Exclusive,
        owner: "o".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

/// Sends at least one of every request that there is.
async fn everything(options: &ConsulOptions) -> Vec<Request> {
    let recorder = Arc::new(Recorder::default());
    let consul = Consul::with_transport(options, recorder.clone());
    let session = consul.open(&request()).await.unwrap().id;
    let (claim, token) = (claim(), FencingToken::new(9).unwrap());
    let granted = Granted { claim: Arc::new(claim.clone()), token };
    consul.renew(&session).await.unwrap();
    consul.claim(&session, &claim, Place::Try).await.unwrap();
    consul.wait(&session, &claim, Cursor(3)).await.unwrap();
    consul.audit(&session, std::slice::from_ref(&granted)).await.unwrap();
    consul.amend(&session, &claim, &Metadata::new()).await.unwrap();
    // It returns, for the index went back.
    consul.disturbed(&session, None, Some(Cursor(11))).await.unwrap();
    consul.changed(&claim.key, None).await.unwrap();
    consul.inspect(&claim.key).await.unwrap();
    consul.list("a b").await.unwrap();
    consul.evict(&claim.key, token).await.unwrap();
    consul.release(&session, &claim).await.unwrap();
    consul.close(&session).await.unwrap();
    recorder.0.lock().unwrap().clone()
}

#[tokio::test]
async fn every_request_names_namespace_partition_and_datacenter() {
    let options = ConsulOptions::new().namespace("team a").partition("east").datacenter("dc2");
    let requests = everything(&options).await;
    for endpoint in
        ["session/create", "session/renew", "session/info", "session/destroy", "kv/a?", "kv/a%20b?recurse", "wait=", "txn"]
    {
        assert!(requests.iter().any(|request| request.target.contains(endpoint)), "{endpoint} was never asked");
    }
    for Request { target, .. } in &requests {
        let (path, query) = target.split_once('?').unwrap();
        assert!(query.ends_with("ns=team%20a&partition=east&dc=dc2"), "{target}");
        assert!(!path.contains("ns=") && query.matches("ns=").count() == 1, "{target}");
    }
}

#[tokio::test]
async fn every_operation_of_a_transaction_names_its_namespace_and_partition() {
    let requests = everything(&ConsulOptions::new().namespace("team").partition("east")).await;
    let transactions: Vec<_> = requests.iter().filter(|request| request.target.starts_with("/v1/txn")).collect();
    assert!(transactions.len() >= 4, "{transactions:?}");
    for transaction in transactions {
        let operations: Vec<serde_json::Value> = serde_json::from_slice(&transaction.body).unwrap();
        for operation in operations {
            assert_eq!((&operation["KV"]["Namespace"], &operation["KV"]["Partition"]), (&"team".into(), &"east".into()));
        }
    }
}

#[tokio::test]
async fn who_names_none_sends_none() {
    for request in everything(&ConsulOptions::new().namespace("").partition("").datacenter("")).await {
        let (target, body) = (&request.target, String::from_utf8_lossy(&request.body));
        for name in ["ns=", "partition=", "dc=", "Namespace", "Partition"] {
            assert!(!target.contains(name) && !body.contains(name), "{target}: {body}");
        }
    }
}

#[tokio::test]
async fn a_real_agent_locks_in_its_own_datacenter_by_name_and_refuses_what_it_has_not() {
    let agent = ConsulAgent::start().await.unwrap();
    let options = ConsulOptions::new().address(&agent.address().to_string()).unwrap();
    let consul = Consul::new(options.clone().datacenter("dc1")).unwrap();
    let session = consul.open(&request()).await.unwrap().id;
    assert!(matches!(consul.claim(&session, &claim(), Place::Try).await.unwrap(), Standing::Held { .. }));
    let kept = http(agent.address(), "GET", "/v1/kv/a", &[], "").await.unwrap().body;
    assert!(kept.contains(session.as_str()), "{kept}");
    for (elsewhere, hint) in [
        (options.clone().datacenter("dc2"), "no servers of the datacenter"),
        (options.namespace("team"), "a feature of Consul Enterprise"),
    ] {
        let error = Consul::new(elsewhere).unwrap().open(&request()).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(hint), "{error}");
    }
}
