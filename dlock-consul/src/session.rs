//! How sessions are opened: what they hang on, and a node that is made for them.

use std::time::Duration;

use dlock_core::{BackendError, ErrorKind, Session, SessionId, SessionRequest};

use crate::api::Api;
use crate::config::{ConsulOptions, Node, Scope, SessionOptions};
use crate::wire::{CreateSession, RegisterNode, ServiceCheck, go_duration};

/// Opens a session as the options say.
pub(crate) async fn open(api: &Api, options: &SessionOptions, request: &SessionRequest) -> Result<Session, BackendError> {
    let body = create(options, api.scope(), request)?;
    let mut id = api.create_session(&body).await?;
    if let (None, Node::External(node)) = (&id, &options.node) {
        api.register_node(&RegisterNode { node, address: NO_ADDRESS, skip_node_update: true }).await?;
        id = api.create_session(&body).await?;
    }
    let id = id.ok_or_else(|| no_node(&options.node, api.scope()))?;
    Ok(Session { id, ttl: request.ttl })
}

/// Opens a session as the options say, but registers no node for it; `None` where one is to be registered first.
pub(crate) async fn open_as_is(
    api: &Api,
    options: &SessionOptions,
    request: &SessionRequest,
) -> Result<Option<SessionId>, BackendError> {
    let id = api.create_session(&create(options, api.scope(), request)?).await?;
    match (id, &options.node) {
        (Some(id), _) => Ok(Some(id)),
        (None, Node::External(_)) => Ok(None),
        (None, node) => Err(no_node(node, api.scope())),
    }
}

/// Where an external node is said to be. Consul wants an address, and nobody looks for the node there.
const NO_ADDRESS: &str = "127.0.0.1";

fn create<'a>(options: &'a SessionOptions, scope: &'a Scope, request: &SessionRequest) -> Result<CreateSession<'a>, BackendError> {
    let namespace = scope.namespace.as_deref();
    Ok(CreateSession {
        name: format!("dlock:{}", request.owner),
        ttl: go_duration(request.ttl),
        lock_delay: go_duration(whole_millis(lock_delay(options, request.ttl)?)),
        behavior: options.behavior().as_str(),
        node_checks: &options.node_checks,
        service_checks: options.service_checks.iter().map(|id| ServiceCheck { id, namespace }).collect(),
        node: options.node.name(),
    })
}

/// A check can end a session while somebody who cannot hear of it believes in it, for as long as its ttl.
fn lock_delay(options: &SessionOptions, ttl: Duration) -> Result<Duration, BackendError> {
    match options.lock_delay {
        Some(delay) => Ok(delay),
        None if !options.has_checks() => Ok(Duration::ZERO),
        None if ttl <= ConsulOptions::LONGEST_LOCK_DELAY => Ok(ttl),
        None => {
            let message = format!(
                "opening a session: a check can end it before its ttl of {ttl:?}, and Consul keeps others from its keys for 60s at most; use \
                 a ttl of at most 60s, or set lock_delay"
            );
            Err(BackendError::new(ErrorKind::Invalid, message))
        }
    }
}

/// Consul takes less than a microsecond for as many seconds.
fn whole_millis(delay: Duration) -> Duration {
    Duration::from_millis(delay.as_nanos().div_ceil(1_000_000) as u64)
}

fn no_node(node: &Node, scope: &Scope) -> BackendError {
    let (kind, message) = match (node, &scope.datacenter) {
        (Node::Registered(node), _) => {
            (ErrorKind::Invalid, format!("there is no node {node:?} in Consul's catalog; register it, or use external_node"))
        }
        // Somebody deregistered it in between.
        (Node::External(node), _) => (ErrorKind::Transient, format!("the node {node:?} is gone from Consul's catalog")),
        (Node::Agents, Some(datacenter)) => {
            let what = format!("the agent's node is not in the catalog of the datacenter {datacenter:?}");
            (ErrorKind::Invalid, format!("{what}; name one that is, by node or external_node"))
        }
        // It comes there when the agent has joined its servers.
        (Node::Agents, None) => (ErrorKind::Transient, "the agent's node is not in Consul's catalog yet".to_owned()),
    };
    BackendError::new(kind, format!("opening a session: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: &ConsulOptions, ttl: Duration) -> Result<String, BackendError> {
        let request = SessionRequest { id: SessionId::new("ignored"), ttl, owner: "n".into() };
        create(&options.sessions, &options.scope, &request).map(|body| serde_json::to_string(&body).expect("it is JSON"))
    }

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn a_create_names_everything_that_has_a_dangerous_default() {
        let expected = r#"{"Name":"dlock:n","TTL":"15s","LockDelay":"0s","Behavior":"release","NodeChecks":[]}"#;
        assert_eq!(asked(&ConsulOptions::new(), TTL).unwrap(), expected);
    }

    #[test]
    fn checks_bring_a_lock_delay_of_the_ttl_along() {
        let node = ConsulOptions::new().node("n1").node_checks(["serfHealth", "disk"]);
        let expected = r#"{"Name":"dlock:n","TTL":"15s","LockDelay":"15s","Behavior":"release","NodeChecks":["serfHealth","disk"],"Node":"n1"}"#;
        assert_eq!(asked(&node, TTL).unwrap(), expected);
        let service = ConsulOptions::new().service_checks(["web"]).namespace("team");
        let service = asked(&service, TTL).unwrap();
        assert!(service.contains(r#""LockDelay":"15s""#), "{service}");
        assert!(service.contains(r#""NodeChecks":[],"ServiceChecks":[{"ID":"web","Namespace":"team"}]"#), "{service}");
    }

    #[test]
    fn a_ttl_that_no_lock_delay_can_cover_is_refused_with_checks() {
        let (checked, long) = (ConsulOptions::new().node_checks(["serfHealth"]), Duration::from_secs(61));
        let error = asked(&checked, long).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("at most 60s"), "{error}");
        assert!(asked(&ConsulOptions::new(), long).is_ok());
        let delayed = asked(&checked.lock_delay(TTL).unwrap(), long).unwrap();
        assert!(delayed.contains(r#""LockDelay":"15s""#), "{delayed}");
    }

    #[test]
    fn a_lock_delay_counts_in_whole_milliseconds() {
        for (delay, sent) in [(Duration::from_nanos(1), "1ms"), (Duration::from_micros(1_500), "2ms"), (Duration::ZERO, "0s")] {
            let body = asked(&ConsulOptions::new().lock_delay(delay).unwrap(), TTL).unwrap();
            assert!(body.contains(&format!(r#""LockDelay":"{sent}""#)), "{body}");
        }
    }
}
