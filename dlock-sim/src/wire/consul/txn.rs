//! Consul's transactions: all of their operations, or none.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dlock_consul::Answer;
use serde::{Deserialize, Serialize};

use super::http::{Shown, refuse, told};
use super::store::Store;

/// The most operations that one takes.
const MOST: usize = 64;
/// The longest body.
const LONGEST: usize = 512 * 1024;

#[derive(Debug, Deserialize)]
struct Sent {
    #[serde(rename = "KV")]
    kv: Op,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Op {
    verb: String,
    key: String,
    value: Option<String>,
    flags: u64,
    index: u64,
    session: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Reply {
    results: Option<Vec<Done>>,
    errors: Option<Vec<Failed>>,
    #[serde(flatten)]
    read: Option<Read>,
}

#[derive(Serialize)]
struct Done {
    #[serde(rename = "KV")]
    kv: Shown,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failed {
    op_index: usize,
    what: String,
}

/// What stands in the reply to a transaction that only reads.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Read {
    index: u64,
    last_contact: u64,
    known_leader: bool,
    consistency_level: &'static str,
}

/// Answers `PUT /v1/txn`.
pub(super) fn txn(store: &mut Store, at: Duration, body: &[u8]) -> Answer {
    if body.len() > LONGEST {
        let hint = "See https://www.consul.io/docs/agent/options.html#txn_max_req_len.";
        return refuse(413, format!("Request body({} bytes) too large, max size: {LONGEST} bytes. {hint}", body.len()));
    }
    let ops: Vec<Op> = match serde_json::from_slice::<Vec<Sent>>(body) {
        Ok(sent) => sent.into_iter().map(|sent| sent.kv).collect(),
        Err(error) => return refuse(400, format!("Failed to parse body: {error}")),
    };
    if ops.len() > MOST {
        return refuse(413, format!("Transaction contains too many operations ({} > {MOST})", ops.len()));
    }
    let mut values = Vec::new();
    for op in &ops {
        match STANDARD.decode(op.value.as_deref().unwrap_or_default()) {
            Ok(value) => values.push(value),
            Err(error) => return refuse(400, format!("Failed to parse body: {error}")),
        }
    }
    let writes = |op: &Op| matches!(op.verb.as_str(), "set" | "cas" | "lock" | "unlock" | "delete" | "delete-cas");
    let reads = !ops.iter().any(writes);
    let read = reads.then_some(Read { index: 0, last_contact: 0, known_leader: true, consistency_level: "" });
    // What the leader refuses by itself never enters the log, and hides what else is wrong.
    let mut errors: Vec<Failed> = failures(ops.iter().map(|op| before(store, at, op).map(|()| Vec::new()))).0;
    let mut results = None;
    if errors.is_empty() {
        let index = if reads { 0 } else { store.log() };
        let mut draft = store.clone();
        let outcome = failures(ops.iter().zip(values).map(|(op, value)| apply(&mut draft, index, op, value)));
        errors = outcome.0;
        if errors.is_empty() {
            *store = draft;
            results = Some(outcome.1);
        }
    }
    let status = if errors.is_empty() { 200 } else { 409 };
    let errors = if errors.is_empty() { None } else { Some(errors) };
    told(status, None, &Reply { results, errors, read })
}

/// Evaluates every operation, also after one has failed: all errors are told.
fn failures(outcomes: impl Iterator<Item = Result<Vec<Shown>, String>>) -> (Vec<Failed>, Vec<Done>) {
    let (mut failed, mut done) = (Vec::new(), Vec::new());
    for (op_index, outcome) in outcomes.enumerate() {
        match outcome {
            Ok(shown) => done.extend(shown.into_iter().map(|kv| Done { kv })),
            Err(what) => failed.push(Failed { op_index, what }),
        }
    }
    (failed, done)
}

fn before(store: &Store, at: Duration, op: &Op) -> Result<(), String> {
    if op.key.is_empty() {
        return Err("Must provide key".to_owned());
    }
    if op.verb == "lock" && store.is_delayed(at, &op.key) {
        return Err(format!("failed to lock key {:?} due to lock delay", op.key));
    }
    Ok(())
}

fn apply(store: &mut Store, index: u64, op: &Op, value: Vec<u8>) -> Result<Vec<Shown>, String> {
    let (key, flags, session) = (op.key.as_str(), op.flags, op.session.as_str());
    // Values are shown to those who asked for them, and to nobody else.
    let entry = match op.verb.as_str() {
        "set" => Some(store.set(key, index, flags, value)),
        "cas" => {
            let stale = || format!("failed to set key {key:?}, index is stale");
            Some(store.cas(key, index, op.index, flags, value).ok_or_else(stale)?)
        }
        "lock" => {
            let held = || format!("failed to lock key {key:?}, lock is already held");
            Some(store.lock(key, index, session, flags, value)?.ok_or_else(held)?)
        }
        "unlock" => {
            let other = || format!("failed to unlock key {key:?}, lock isn't held, or is held by another session");
            Some(store.unlock(key, index, session, flags, value)?.ok_or_else(other)?)
        }
        "get" => {
            let entry = store.entry(key).ok_or_else(|| format!("key {key:?} doesn't exist"))?;
            return Ok(vec![Shown::of(key, entry)]);
        }
        "get-tree" => return Ok(store.list(key).0.into_iter().map(|(key, entry)| Shown::of(key, entry)).collect()),
        "check-index" => {
            let entry = store.entry(key).ok_or_else(|| format!("failed to check index, key {key:?} doesn't exist"))?;
            if entry.modified != op.index {
                let (now, then) = (entry.modified, op.index);
                return Err(format!("failed index check for key {key:?}, current modify index {now} != {then}"));
            }
            Some(entry)
        }
        "check-session" => {
            let entry = store.entry(key).ok_or_else(|| format!("failed to check session, key {key:?} doesn't exist"))?;
            let holder = entry.session.as_deref().unwrap_or_default();
            if holder != session {
                return Err(format!("failed session check for key {key:?}, current session {holder:?} != {session:?}"));
            }
            Some(entry)
        }
        "check-not-exists" => {
            if store.entry(key).is_some() {
                return Err(format!("key {key:?} exists"));
            }
            None
        }
        "delete" => {
            store.delete(key, index);
            None
        }
        "delete-cas" => {
            if store.entry(key).is_some_and(|entry| entry.modified != op.index) {
                return Err(format!("failed to delete key {key:?}, index is stale"));
            }
            store.delete(key, index);
            None
        }
        verb => return Err(format!("unknown KV verb {verb:?}")),
    };
    Ok(entry.map(|entry| Shown::of(key, entry).without_value()).into_iter().collect())
}
