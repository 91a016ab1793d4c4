//! What a real Consul is found to be, with and without what a token needs.
#![allow(missing_docs)]

use std::time::Duration;

use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{Check, Finding, LockBackend, TtlRange};
use dlock_testkit::servers::{ConsulAgent, http};

fn options(agent: &ConsulAgent) -> ConsulOptions {
    let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    ConsulOptions::new().address(&agent.address().to_string()).unwrap().ttl_range(ttl)
}

async fn found(options: ConsulOptions) -> Vec<Finding> {
    Consul::new(options).unwrap().probe().await
}

/// Those of this check that are not fine, each as a line.
fn told(found: &[Finding], check: Check) -> Vec<String> {
    found.iter().filter(|found| found.check == check && found.remedy().is_some()).map(Finding::to_string).collect()
}

const ALL: &str =
    r#"session_prefix "" { policy = "write" } key_prefix "" { policy = "write" } agent_prefix "" { policy = "read" }"#;

#[tokio::test]
async fn a_token_that_may_do_all_finds_everything_fine_in_either_mode() {
    let agent = ConsulAgent::builder().acl().start().await.unwrap();
    let token = agent.token_with(ALL).unwrap();
    for fair in [false, true] {
        let found = found(options(&agent).token(token.clone()).fair(fair)).await;
        assert!(found.iter().all(|found| found.remedy().is_none()), "{found:?}");
        let checks: Vec<_> = found.iter().map(|found| found.check).collect();
        let permissions = [Check::Permissions; 2];
        assert_eq!(checks, [&[Check::Reachable, Check::Leader, Check::Version, Check::Ttl], &permissions[..]].concat());
        assert!(!format!("{found:?}").contains(&token), "a finding shows the token");
    }
    let keys = http(agent.address(), "GET", "/v1/kv/?keys", &[("X-Consul-Token", &token)], "").await.unwrap();
    assert_eq!((keys.status, keys.body.trim()), (200, "[]"), "no key was made");
}

#[tokio::test]
async fn a_missing_rule_is_named_for_what_it_is_needed() {
    let agent = ConsulAgent::builder().acl().start().await.unwrap();
    let with = async |rules: &str| found(options(&agent).token(agent.token_with(rules).unwrap())).await;

    let no_session = with(r#"key_prefix "" { policy = "write" } agent_prefix "" { policy = "read" }"#).await;
    let [broken] = &told(&no_session, Check::Permissions)[..] else { panic!("{no_session:?}") };
    assert!(broken.starts_with("permissions broken") && broken.contains(r#"session_prefix "" { policy = "write" }"#), "{broken}");

    // Whoever may lock below one prefix only may still do all it wants.
    let one_prefix = with(r#"key_prefix "locks/" { policy = "write" } session_prefix "" { policy = "write" }"#).await;
    let [doubtful] = &told(&one_prefix, Check::Permissions)[..] else { panic!("{one_prefix:?}") };
    assert!(doubtful.starts_with("permissions doubtful") && doubtful.contains(r#"key_prefix "<prefix>""#), "{doubtful}");
    let [version] = &told(&one_prefix, Check::Version)[..] else { panic!("{one_prefix:?}") };
    assert!(version.starts_with("version doubtful") && version.contains(r#"agent_prefix "" { policy = "read" }"#), "{version}");

    let unknown = "11111111-2222-3333-4444-555555555555";
    let unknown_token = found(options(&agent).token(unknown)).await;
    let permissions = told(&unknown_token, Check::Permissions).join("\n");
    assert!(permissions.contains("permissions broken") && permissions.contains("CONSUL_HTTP_TOKEN"), "{permissions}");
    assert!(!permissions.contains(unknown), "{permissions}");
}

#[tokio::test]
async fn a_ttl_that_the_servers_refuse_is_told_with_theirs() {
    let agent = ConsulAgent::builder().ttl_min(Some("20s")).start().await.unwrap();
    let found = found(options(&agent)).await;
    let [doubtful] = &told(&found, Check::Ttl)[..] else { panic!("{found:?}") };
    assert!(doubtful.contains("20s to 86400s") && doubtful.contains("ttl_range"), "{doubtful}");
    assert_eq!(told(&found, Check::Permissions), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_is_not_registered_by_a_look() {
    let agent = ConsulAgent::start().await.unwrap();
    let absent = found(options(&agent).external_node("locks")).await;
    let [doubtful] = &told(&absent, Check::Permissions)[..] else { panic!("{absent:?}") };
    assert!(
        doubtful.starts_with("permissions doubtful") && doubtful.contains(r#"node "locks" { policy = "write" }"#),
        "{doubtful}"
    );
    let nodes = http(agent.address(), "GET", "/v1/catalog/nodes", &[], "").await.unwrap();
    assert!(!nodes.body.contains("locks"), "{}", nodes.body);
    let unknown = found(options(&agent).node("nowhere")).await;
    let [broken] = &told(&unknown, Check::Permissions)[..] else { panic!("{unknown:?}") };
    assert!(broken.contains("\"nowhere\"") && broken.ends_with("register it, or use external_node"), "{broken}");
}

#[tokio::test]
async fn where_nobody_listens_that_is_all_there_is_to_tell() {
    let mut agent = ConsulAgent::start().await.unwrap();
    let options = options(&agent);
    agent.kill().unwrap();
    let found = found(options).await;
    let [finding] = &found[..] else { panic!("{found:?}") };
    let line = finding.to_string();
    assert!(line.starts_with("reachable broken: asking who leads: no connection to Consul: "), "{line}");
    assert!(line.contains("refused") && line.contains("CONSUL_HTTP_ADDR"), "{line}");
}
