//! Which place in a client's life a request to Consul stands for.

use dlock_consul::{Lane, Method, Request};
use serde::Deserialize;

use crate::plan::Site;

#[derive(Deserialize)]
struct Sent {
    #[serde(rename = "KV")]
    kv: Op,
}

#[derive(Deserialize)]
struct Op {
    #[serde(rename = "Verb")]
    verb: String,
    #[serde(rename = "Key", default)]
    key: String,
}

/// What is part of the name of every tombstone in fair mode.
const UNDONE: &str = "/.dlock-undone/";

/// The site of a request; `holds` when its client holds the key.
pub(super) fn site(request: &Request, holds: bool) -> Site {
    let path = request.target.split('?').next().unwrap_or_default();
    match (request.method, request.lane) {
        (Method::Put, Lane::Session { .. }) if path.ends_with("/create") => Site::Open,
        (Method::Put, Lane::Session { .. }) if path.contains("/renew/") => Site::Renew,
        (Method::Put, Lane::Session { .. }) => Site::Close,
        (Method::Put, _) => txn(&request.body),
        (Method::Get, Lane::Waiting) if holds || path.contains("/session/info/") => Site::Disturbed,
        (Method::Get, Lane::Waiting) => Site::Wait,
        _ => Site::Confirm,
    }
}

/// Whether a request is for a place in line, in fair mode.
pub(super) fn asks_for_ticket(request: &Request) -> bool {
    let sent: Vec<Sent> = serde_json::from_slice(&request.body).unwrap_or_default();
    let has = |verb: &str| sent.iter().any(|sent| sent.kv.verb == verb);
    has("lock") && has("get-tree")
}

fn txn(body: &[u8]) -> Site {
    let sent: Vec<Sent> = serde_json::from_slice(body).unwrap_or_default();
    let has = |verb: &str| sent.iter().any(|sent| sent.kv.verb == verb);
    // What stands in line is taken out of it by deletion, and kept out by a tombstone.
    let undone = |sent: &Sent| sent.kv.verb == "delete" || sent.kv.verb == "lock" && sent.kv.key.contains(UNDONE);
    if sent.iter().any(undone) {
        return Site::Release;
    }
    // The fence of an undone claim locks and unlocks at once.
    match (has("lock"), has("unlock"), has("check-session")) {
        (false, false, _) if has("get-tree") => Site::Confirm,
        (_, true, _) => Site::Release,
        (true, false, _) => Site::Claim,
        (false, false, true) => Site::Audit,
        (false, false, false) => Site::Wait,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request(method: Method, target: &str, body: &str, lane: Lane) -> Request {
        Request::new(method, target, lane, Duration::from_secs(1)).with_body(body)
    }

    #[test]
    fn every_request_has_its_site() {
        let session = Lane::Session { fresh: false };
        for (method, target, body, lane, expected) in [
            (Method::Put, "/v1/session/create", "{}", session, Site::Open),
            (Method::Put, "/v1/session/renew/x", "", session, Site::Renew),
            (Method::Put, "/v1/session/destroy/x", "", session, Site::Close),
            (Method::Get, "/v1/session/info/x?index=3&wait=55s", "", Lane::Waiting, Site::Disturbed),
            (Method::Get, "/v1/kv/k?index=3&wait=55s", "", Lane::Waiting, Site::Wait),
            (Method::Get, "/v1/kv/k?consistent", "", Lane::Short, Site::Confirm),
            (Method::Put, "/v1/txn", r#"[{"KV":{"Verb":"check-index"}},{"KV":{"Verb":"lock"}}]"#, Lane::Short, Site::Claim),
            (Method::Put, "/v1/txn", r#"[{"KV":{"Verb":"lock"}},{"KV":{"Verb":"unlock"}}]"#, Lane::Short, Site::Release),
            (Method::Put, "/v1/txn?consistent", r#"[{"KV":{"Verb":"check-session"}}]"#, Lane::Short, Site::Audit),
            (Method::Put, "/v1/txn", r#"[{"KV":{"Verb":"lock"}},{"KV":{"Verb":"get-tree"}}]"#, Lane::Short, Site::Claim),
            (
                Method::Put,
                "/v1/txn?consistent",
                r#"[{"KV":{"Verb":"get"}},{"KV":{"Verb":"get-tree"}}]"#,
                Lane::Short,
                Site::Confirm,
            ),
            (Method::Put, "/v1/txn", r#"[{"KV":{"Verb":"check-session"}},{"KV":{"Verb":"delete"}}]"#, Lane::Short, Site::Release),
            (Method::Put, "/v1/txn", r#"[{"KV":{"Verb":"lock","Key":"k/.dlock-undone/s.c/"}}]"#, Lane::Short, Site::Release),
        ] {
            assert_eq!(site(&request(method, target, body, lane), false), expected, "{target} {body}");
        }
        let held = request(Method::Get, "/v1/kv/k?index=3&wait=55s", "", Lane::Waiting);
        assert_eq!(site(&held, true), Site::Disturbed);
    }
}
