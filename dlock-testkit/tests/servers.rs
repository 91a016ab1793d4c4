//! The servers that other tests stand on.
#![cfg(feature = "servers")]
#![allow(missing_docs)]

use std::net::TcpStream;
use std::time::Duration;

use dlock_testkit::servers::{ConsulAgent, ConsulCluster, http};

#[tokio::test]
async fn two_agents_run_side_by_side_and_die_with_their_handles() {
    let (one, two) = (ConsulAgent::start().await.unwrap(), ConsulAgent::start().await.unwrap());
    assert_ne!(one.address(), two.address());
    for agent in [&one, &two] {
        assert_eq!(http(agent.address(), "GET", "/v1/status/leader", &[], "").await.unwrap().status, 200);
    }
    let address = one.address();
    drop(one);
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn a_frozen_agent_answers_when_it_goes_on() {
    let agent = ConsulAgent::start().await.unwrap();
    agent.pause().unwrap();
    let frozen = tokio::time::timeout(Duration::from_millis(300), http(agent.address(), "GET", "/v1/status/leader", &[], "")).await;
    assert!(frozen.is_err());
    agent.resume().unwrap();
    assert_eq!(http(agent.address(), "GET", "/v1/status/leader", &[], "").await.unwrap().status, 200);
}

#[tokio::test]
async fn data_survives_a_restart() {
    let mut agent = ConsulAgent::builder().persistent().start().await.unwrap();
    assert_eq!(http(agent.address(), "PUT", "/v1/kv/k", &[], "value").await.unwrap().body.trim(), "true");
    agent.restart().await.unwrap();
    assert_eq!(http(agent.address(), "GET", "/v1/kv/k?raw", &[], "").await.unwrap().body, "value");
}

#[tokio::test]
async fn without_a_token_nothing_is_allowed() {
    let agent = ConsulAgent::builder().acl().start().await.unwrap();
    assert_eq!(http(agent.address(), "PUT", "/v1/kv/k", &[], "value").await.unwrap().status, 403);
    let token = agent.token_with(r#"key "k" { policy = "write" }"#).unwrap();
    assert_eq!(http(agent.address(), "PUT", "/v1/kv/k", &[("X-Consul-Token", &token)], "value").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_cluster_elects_a_leader_and_another_when_it_dies() {
    let mut cluster = ConsulCluster::start(3).await.unwrap();
    let leader = cluster.elected().await.expect("a leader");
    cluster.agents()[leader].kill().unwrap();
    let began = std::time::Instant::now();
    loop {
        if cluster.leader().await.is_some_and(|now| now != leader) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no new leader");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
