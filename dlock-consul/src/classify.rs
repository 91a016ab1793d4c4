//! What a status and a body of Consul's mean for the caller.

use std::error::Error as _;
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind};
use thiserror::Error;

use crate::transport::{TransportError, TransportErrorKind};
use crate::wire::parse_go_duration;

/// What was asked for, and what it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// In words, for messages.
    pub(crate) what: &'static str,
    /// Whether it may change the store.
    pub(crate) writes: bool,
    /// The permission it needs.
    pub(crate) needs: Needs<'a>,
}

/// The ACL rule without which a request is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Needs<'a> {
    Nothing,
    SessionWrite {
        /// The node of the session, unless it is the agent's.
        node: Option<&'a str>,
    },
    SessionRead,
    NodeWrite(&'a str),
    KeyWrite(&'a str),
    KeyRead(&'a str),
    /// Of a key and what stands below it.
    LineRead(&'a str),
    /// Of many keys at once.
    KeysRead,
    /// Of a key and what stands below it.
    LineWrite(&'a str),
    /// Of whatever keys are to be locked.
    KeysWrite,
    AgentRead,
}

impl Needs<'_> {
    pub(crate) fn rule(self) -> String {
        match self {
            Self::Nothing => "to be let in at all".to_owned(),
            Self::SessionWrite { node: Some(node) } => format!(r#"session "{node}" {{ policy = "write" }}"#),
            Self::NodeWrite(node) => {
                format!(r#"node "{node}" {{ policy = "write" }}, or somebody who has it must register the node {node:?} before"#)
            }
            Self::SessionWrite { node: None } => {
                r#"session_prefix "" { policy = "write" }, or session "<node>" with the name of the agent's node"#.to_owned()
            }
            Self::SessionRead => r#"session_prefix "" { policy = "read" }"#.to_owned(),
            Self::KeyWrite(key) => format!(r#"key "{key}" {{ policy = "write" }}"#),
            Self::KeysRead => r#"key_prefix "<prefix>" { policy = "read" } with the prefix of the locked keys"#.to_owned(),
            Self::KeysWrite => r#"key_prefix "<prefix>" { policy = "write" } with the prefix of the locked keys"#.to_owned(),
            Self::AgentRead => r#"agent_prefix "" { policy = "read" } for that, which no lock needs"#.to_owned(),
            Self::LineWrite(key) => format!(r#"key_prefix "{key}" {{ policy = "write" }}"#),
            Self::LineRead(key) => format!(r#"key_prefix "{key}" {{ policy = "read" }}"#),
            Self::KeyRead(key) => format!(r#"key "{key}" {{ policy = "read" }}"#),
        }
    }
}

/// An answer other than success, as an error.
pub(crate) fn status(asked: Asked<'_>, status: u16, body: &str) -> BackendError {
    let body = body.trim();
    let unsure = if asked.writes { ErrorKind::Ambiguous } else { ErrorKind::Transient };
    let kind = match status {
        401 => {
            let message = format!("{}: a user and password are wanted; set CONSUL_HTTP_AUTH to user:password", asked.what);
            return BackendError::new(ErrorKind::Denied, message);
        }
        403 => return denied(asked, body),
        429 => ErrorKind::Overloaded,
        // Consul's own limit says so; from anything in between, a 503 may come after the request was passed on.
        503 if body.contains("rate limit") => ErrorKind::Overloaded,
        400 if ["\"ns\"", "\"partition\""].iter().any(|name| body.contains(&format!("parameter: {name}"))) => {
            let message = format!(
                "{}: this Consul has no namespaces or partitions, which are a feature of Consul Enterprise; set none (CONSUL_NAMESPACE, \
                 CONSUL_PARTITION), or put a prefix before the keys",
                asked.what
            );
            return BackendError::new(ErrorKind::Invalid, message);
        }
        300..=399 | 400 | 405 | 413 => ErrorKind::Invalid,
        500 if is_definitive(body) => return definitive(asked, body),
        _ => unsure,
    };
    let said = format!("{}: Consul answered {} {}", asked.what, status, excerpt(body));
    BackendError::new(kind, said.trim_end().to_owned())
}

/// A request that brought no answer.
pub(crate) fn transport(asked: Asked<'_>, error: TransportError) -> BackendError {
    let unsure = if asked.writes { ErrorKind::Ambiguous } else { ErrorKind::Transient };
    let kind = match error.kind {
        TransportErrorKind::NotConnected => ErrorKind::Transient,
        TransportErrorKind::Unusable => ErrorKind::Invalid,
        TransportErrorKind::TimedOut | TransportErrorKind::Broken => unsure,
    };
    BackendError::new(kind, format!("{}: {}", asked.what, error.kind)).caused_by(error.source)
}

/// An answer that is not what the API promises.
pub(crate) fn unreadable(asked: Asked<'_>, error: serde_json::Error) -> BackendError {
    let kind = if asked.writes { ErrorKind::Ambiguous } else { ErrorKind::Transient };
    BackendError::new(kind, format!("{}: the answer is not Consul's", asked.what)).caused_by(error)
}

/// A permission is missing; a transaction says so in its own errors, everything else by status 403.
pub(crate) fn denied(asked: Asked<'_>, body: &str) -> BackendError {
    let message = if body.contains("ACL not found") {
        format!("{}: Consul does not know the token; set CONSUL_HTTP_TOKEN, or wait if it was made just now", asked.what)
    } else {
        format!("{}: permission denied; the token needs {}", asked.what, asked.needs.rule())
    };
    BackendError::new(ErrorKind::Denied, message)
}

fn is_definitive(body: &str) -> bool {
    ["Permission denied", "ACL not found", "Invalid Session TTL", "Missing check", "is in critical state", "No path to datacenter"]
        .iter()
        .chain(&["Invalid Behavior", "failed session lookup", "missing session"])
        .any(|text| body.contains(text))
}

fn definitive(asked: Asked<'_>, body: &str) -> BackendError {
    if body.contains("Permission denied") || body.contains("ACL not found") {
        return denied(asked, body);
    }
    if body.contains("No path to datacenter") {
        let message = format!("{}: the agent knows no servers of the datacenter that was asked for", asked.what);
        return BackendError::new(ErrorKind::Invalid, message);
    }
    if let Some((min, max)) = ttl_range(body) {
        let message = format!("{}: this Consul accepts a ttl from {min:?} to {max:?} (session_ttl_min)", asked.what);
        return BackendError::new(ErrorKind::Invalid, message).caused_by(RefusedTtl { min, max });
    }
    if let Some(check) = between(body, "Check '", "' is in critical state") {
        let message = format!("{}: the check {check:?} is critical, and Consul opens no session until it is not", asked.what);
        return BackendError::new(ErrorKind::Transient, message);
    }
    if let Some(check) = between(body, "Missing check '", "' registration") {
        // As it is for a moment when an agent or a service has just started.
        let message = format!("{}: the session's node has no check with the id {check:?}, or not yet", asked.what);
        return BackendError::new(ErrorKind::Transient, message);
    }
    BackendError::new(ErrorKind::Invalid, format!("{}: Consul answered {}", asked.what, excerpt(body)))
}

/// What an answer says between two texts.
fn between(body: &str, before: &str, after: &str) -> Option<String> {
    let (_, rest) = body.split_once(before)?;
    Some(excerpt(rest.split_once(after)?.0))
}

/// The servers accept other lifetimes of sessions.
#[derive(Clone, Copy, Debug, Error)]
#[error("the ttl is not from {min:?} to {max:?}")]
pub(crate) struct RefusedTtl {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl RefusedTtl {
    /// What the servers accept, if that is why a session was refused.
    pub(crate) fn of(error: &BackendError) -> Option<&Self> {
        error.source()?.downcast_ref()
    }
}

/// The bounds in `Invalid Session TTL '9000000000', must be between [10s=24h0m0s]`.
fn ttl_range(body: &str) -> Option<(Duration, Duration)> {
    let (_, range) = body.split_once("must be between [")?;
    let (min, max) = range.split_once(']')?.0.split_once('=')?;
    Some((parse_go_duration(min)?, parse_go_duration(max)?))
}

/// So much of a body as fits into a line, without what would move the cursor of a terminal.
pub(crate) fn excerpt(body: &str) -> String {
    let line = body.lines().next().unwrap_or_default();
    let line: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Asked<'_> = Asked { what: "claiming", writes: true, needs: Needs::KeyWrite("locks/a") };
    const READ: Asked<'_> = Asked { what: "reading", writes: false, needs: Needs::KeyRead("locks/a") };

    fn kind(asked: Asked<'_>, code: u16, body: &str) -> ErrorKind {
        status(asked, code, body).kind()
    }

    #[test]
    fn every_status_has_its_meaning() {
        for (code, body, expected) in [
            (400, "Invalid query parameter: \"ns\"", ErrorKind::Invalid),
            (401, "", ErrorKind::Denied),
            (403, "Permission denied", ErrorKind::Denied),
            (404, "404 page not found", ErrorKind::Ambiguous),
            (403, "ACL not found", ErrorKind::Denied),
            (413, "Request body too large", ErrorKind::Invalid),
            (429, "Your IP is issuing too many concurrent connections", ErrorKind::Overloaded),
            (500, "No cluster leader", ErrorKind::Ambiguous),
            (500, "rpc error making call: EOF", ErrorKind::Ambiguous),
            (500, "rpc error making call: Permission denied", ErrorKind::Denied),
            (500, "Invalid Session TTL '9000000000', must be between [10s=24h0m0s]", ErrorKind::Invalid),
            (500, "No path to datacenter", ErrorKind::Invalid),
            (500, "rpc error making call: Check 'disk' is in critical state", ErrorKind::Transient),
            (500, "Missing check 'disk' registration", ErrorKind::Transient),
            (503, "rate limit exceeded for operation that can only be performed by the leader", ErrorKind::Overloaded),
            (301, "", ErrorKind::Invalid),
            (502, "bad gateway", ErrorKind::Ambiguous),
        ] {
            assert_eq!(kind(WRITE, code, body), expected, "{code} {body}");
        }
    }

    #[test]
    fn a_failed_read_has_changed_nothing() {
        assert_eq!(kind(READ, 500, "No cluster leader"), ErrorKind::Transient);
    }

    #[test]
    fn what_a_body_says_is_one_line_of_text() {
        let controls = status(READ, 500, "\x1b[2J\rall is well\nreally").to_string();
        assert_eq!(controls, "reading: Consul answered 500 [2Jall is well");
        assert_eq!(status(READ, 502, "").to_string(), "reading: Consul answered 502");
        let cut = status(READ, 500, &format!("{} more", "k".repeat(199))).to_string();
        assert!(cut.ends_with('k'), "{cut:?}");
    }

    #[test]
    fn messages_name_what_is_missing() {
        let denied = status(WRITE, 403, "Permission denied").to_string();
        assert!(denied.contains(r#"key "locks/a" { policy = "write" }"#), "{denied}");
        for body in ["Check 'disk' is in critical state", "Missing check 'disk' registration"] {
            let told = status(WRITE, 500, body).to_string();
            assert!(told.contains("check") && told.contains(r#""disk""#), "{told}");
        }
        let no_namespaces = "Bad request: Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature";
        let no_namespaces = status(WRITE, 400, no_namespaces).to_string();
        assert!(no_namespaces.contains("CONSUL_NAMESPACE"), "{no_namespaces}");
        let range = "Invalid Session TTL '9000000000', must be between [10s=24h0m0s]";
        let range = status(WRITE, 500, range).to_string();
        assert!(range.contains("from 10s to 86400s"), "{range}");
    }
}
