//! The etcd servers that other tests stand on.
#![cfg(feature = "servers")]
#![allow(missing_docs)]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use dlock_testkit::servers::{EtcdCluster, EtcdGateway, EtcdServer, shared_etcd};

#[tokio::test]
async fn two_servers_run_side_by_side_and_die_with_their_handles() {
    let (one, two) = (EtcdServer::start().await.unwrap(), EtcdServer::start().await.unwrap());
    one.gateway().put("k", "one", 0).await.unwrap();
    assert_eq!(two.gateway().entries("k").await.unwrap(), []);
    let address = one.address();
    drop(one);
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn a_server_for_tests_grants_one_second_and_etcds_own_timing_two() {
    let quick = EtcdServer::start().await.unwrap();
    assert_eq!(quick.gateway().grant(1).await.unwrap().1, 1);
    let slow = EtcdServer::builder().default_timing().start().await.unwrap();
    assert_eq!(slow.gateway().grant(1).await.unwrap().1, 2);
}

#[tokio::test]
async fn all_tests_of_a_process_share_one_server() {
    assert_eq!(shared_etcd().await, shared_etcd().await);
    assert!(TcpStream::connect(shared_etcd().await).is_ok());
}

#[tokio::test]
async fn a_frozen_server_answers_when_it_goes_on() {
    let server = EtcdServer::start().await.unwrap();
    server.pause().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), server.gateway().leases()).await.is_err());
    server.resume().unwrap();
    assert!(server.gateway().leases().await.unwrap().is_empty());
}

#[tokio::test]
async fn data_survives_a_restart() {
    let mut server = EtcdServer::start().await.unwrap();
    server.gateway().put("k", "value", 0).await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(server.gateway().entries("k").await.unwrap()[0].value, b"value");
}

#[tokio::test]
async fn a_revoked_lease_takes_its_keys_along() {
    let server = EtcdServer::start().await.unwrap();
    let gateway = server.gateway();
    let (lease, _) = gateway.grant(600).await.unwrap();
    gateway.put("k", "value", lease).await.unwrap();
    assert_eq!(gateway.entries("k").await.unwrap()[0].lease, lease);
    gateway.revoke(lease).await.unwrap();
    assert_eq!(gateway.entries("k").await.unwrap(), []);
    gateway.revoke(lease).await.unwrap();
}

#[tokio::test]
async fn a_server_with_client_certificates_lets_in_who_has_one() {
    let server = EtcdServer::builder().client_certificates().start().await.unwrap();
    let put = server.tls_command().unwrap().args(["put", "k", "value"]).output().unwrap();
    assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    let mut stranger = std::process::Command::new(server.command().get_program());
    stranger.arg(format!("--endpoints=https://{}", server.tls_address())).arg("--cacert").arg(server.ca_certificate().unwrap());
    let refused = stranger.args(["--command-timeout=1s", "get", "k"]).output().unwrap();
    assert!(!refused.status.success());
}

#[tokio::test]
async fn a_user_may_write_under_its_prefix_only() {
    let server = EtcdServer::builder().auth().start().await.unwrap();
    server.add_user("alice", "secret", "locks/").unwrap();
    let may = |key: &str| {
        let mut command = std::process::Command::new(server.command().get_program());
        command.arg(format!("--endpoints={}", server.address())).args(["--user=alice:secret", "put", key, "v"]);
        command.output().unwrap().status.success()
    };
    assert!(may("locks/a"));
    assert!(!may("other/a"));
    assert!(server.run(&["get", "locks/a"]).unwrap().contains("locks/a"));
}

#[tokio::test]
async fn every_member_of_a_cluster_with_auth_lets_in_root_and_no_stranger() {
    let mut cluster = EtcdCluster::start_with_auth(3).await.unwrap();
    for member in cluster.members() {
        assert!(EtcdGateway::at(member.address()).entries("").await.is_err());
        assert_eq!(member.gateway().entries("").await.unwrap(), []);
        member.gateway().put("k", "value", 0).await.unwrap();
        assert_eq!(member.gateway().entries("").await.unwrap().len(), 1);
        member.gateway().delete("k").await.unwrap();
    }
    assert!(cluster.elected().await.is_some());
}

#[tokio::test]
async fn a_full_server_takes_no_more() {
    let server = EtcdServer::builder().quota(1 << 20).start().await.unwrap();
    let value = vec![b'x'; 1 << 19];
    let mut refused = None;
    for _ in 0..8 {
        refused = server.gateway().put("k", &value, 0).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert!(refused.expect("there is an end to it").to_string().contains("database space exceeded"));
}

#[tokio::test]
async fn a_server_tells_what_it_measures() {
    let server = EtcdServer::start().await.unwrap();
    server.gateway().grant(5).await.unwrap();
    let granted = server.metrics().await.unwrap()["etcd_debugging_lease_granted_total"];
    assert!((granted - 1.0).abs() < f64::EPSILON, "{granted}");
}

#[tokio::test]
async fn a_cluster_hands_leadership_over_and_elects_another_when_its_leader_dies() {
    let mut cluster = EtcdCluster::start(3).await.unwrap();
    let first = cluster.elected().await.expect("a leader");
    let heir = (first + 1) % 3;
    cluster.move_leader(heir).await.unwrap();
    assert_eq!(cluster.elected().await, Some(heir));
    cluster.members()[heir].kill().unwrap();
    let began = Instant::now();
    while cluster.leader().await.is_none_or(|now| now == heir) {
        assert!(began.elapsed() < Duration::from_secs(60), "no new leader");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
