//! What a real etcd is found to be, with and without what a user needs.
#![allow(missing_docs)]

use std::time::Duration;

use dlock_core::{Check, Finding, LockBackend, TtlRange};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_testkit::servers::EtcdServer;

fn options(server: &EtcdServer) -> EtcdOptions {
    let ttl = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };
    EtcdOptions::new().endpoints([server.address().to_string()]).unwrap().ttl_range(ttl)
}

async fn found(options: EtcdOptions) -> Vec<Finding> {
    Etcd::new(options).unwrap().probe().await
}

/// Those of this check that are not fine, each as a line.
fn told(found: &[Finding], check: Check) -> Vec<String> {
    found.iter().filter(|found| found.check == check && found.remedy().is_some()).map(Finding::to_string).collect()
}

#[tokio::test]
async fn a_sound_server_is_told_with_what_it_is_and_keeps_nothing() {
    let server = EtcdServer::start().await.unwrap();
    let found = found(options(&server)).await;
    let checks: Vec<_> = found.iter().map(|found| found.check).collect();
    let permissions = [Check::Permissions; 2];
    let all = [Check::Reachable, Check::Leader, Check::Version, Check::Storage, Check::Ttl];
    assert_eq!(checks, [&all[..], &permissions[..]].concat());
    // Whichever version the tests run on may have a bug that is worth telling.
    assert!(found.iter().all(|found| found.remedy().is_none() || found.check == Check::Version), "{found:?}");
    assert!(server.gateway().leases().await.unwrap().is_empty());
    assert!(server.gateway().entries("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_missing_permission_is_told_as_broken_where_all_keys_need_it_and_as_doubtful_elsewhere() {
    let server = EtcdServer::builder().auth().start().await.unwrap();
    server.add_user("locks", "pass", "locks/").unwrap();
    let user = |namespace: &str| options(&server).user("locks", "pass").namespace(namespace);
    let within = found(user("locks/")).await;
    assert_eq!(told(&within, Check::Permissions), Vec::<String>::new());

    let elsewhere = found(user("other/")).await;
    let [broken] = &told(&elsewhere, Check::Permissions)[..] else { panic!("{elsewhere:?}") };
    assert!(broken.starts_with("permissions broken") && broken.contains(r#"readwrite --prefix=true "other/""#), "{broken}");

    let anywhere = found(user("")).await;
    let [doubtful] = &told(&anywhere, Check::Permissions)[..] else { panic!("{anywhere:?}") };
    assert!(doubtful.starts_with("permissions doubtful") && doubtful.contains("readwrite --prefix=true PREFIX"), "{doubtful}");

    let wrong = found(options(&server).user("locks", "secret")).await;
    let [broken] = &told(&wrong, Check::Permissions)[..] else { panic!("{wrong:?}") };
    assert!(broken.contains("does not accept this user and password") && !broken.contains("secret"), "{broken}");
    assert_eq!(told(&wrong, Check::Reachable), Vec::<String>::new());

    let nobody = found(options(&server)).await;
    let permissions = told(&nobody, Check::Permissions).join("\n");
    assert!(permissions.contains("permissions broken") && permissions.contains("ETCDCTL_USER"), "{permissions}");
}

#[tokio::test]
async fn a_full_database_is_told_once_and_with_what_makes_room() {
    let server = EtcdServer::builder().quota(256 * 1024).start().await.unwrap();
    while server.gateway().put("filler", vec![b'x'; 64 * 1024], 0).await.is_ok() {}
    let found = found(options(&server)).await;
    let [broken] = &told(&found, Check::Storage)[..] else { panic!("{found:?}") };
    assert!(broken.starts_with("storage broken") && broken.contains("NOSPACE") && broken.contains("defrag"), "{broken}");
    assert_eq!(told(&found, Check::Permissions), Vec::<String>::new());
}

#[tokio::test]
async fn a_ttl_that_the_members_raise_is_told() {
    let server = EtcdServer::builder().timing(Duration::from_millis(400), Duration::from_secs(4)).start().await.unwrap();
    let found = found(options(&server)).await;
    let [doubtful] = &told(&found, Check::Ttl)[..] else { panic!("{found:?}") };
    assert!(doubtful.contains("asked for 1s, the members granted 6s") && doubtful.contains("ttl_range"), "{doubtful}");
}

#[tokio::test]
async fn where_nobody_listens_that_is_all_there_is_to_tell() {
    let mut server = EtcdServer::start().await.unwrap();
    server.kill().unwrap();
    let found = found(options(&server)).await;
    let [finding] = &found[..] else { panic!("{found:?}") };
    let line = finding.to_string();
    assert!(line.starts_with("reachable broken: asking a member how it is: no connection to etcd at "), "{line}");
    assert!(line.contains("refused") && line.contains("ETCDCTL_ENDPOINTS"), "{line}");
}
