//! The face of the [`Store`] towards the network: endpoints, bodies, statuses.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dlock_consul::{Answer, Method, Request};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::store::{Entry, Session, Store, well_formed};
use super::txn::txn;
use crate::plan::hash;

/// A Consul in this process, one agent for all. It knows no time but what it is told.
#[derive(Clone, Debug)]
pub struct FakeConsul {
    /// What its servers know.
    pub store: Store,
    seed: u64,
    opened: u64,
}

/// What a request waits for before it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// An index above this.
    pub above: u64,
    /// Or this long.
    pub wait: Duration,
    /// Of what.
    pub on: Watched,
}

/// What a waiting request looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each is what its name says
pub enum Watched {
    Key(String),
    /// All keys that begin so.
    Keys(String),
    Session(String),
}

/// A key as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Shown {
    lock_index: u64,
    key: String,
    flags: u64,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    create_index: u64,
    modify_index: u64,
}

impl Shown {
    pub(super) fn of(key: &str, entry: &Entry) -> Self {
        Self {
            lock_index: entry.lock_index,
            key: key.to_owned(),
            flags: entry.flags,
            value: (!entry.value.is_empty()).then(|| STANDARD.encode(&entry.value)),
            session: entry.session.clone(),
            create_index: entry.created,
            modify_index: entry.modified,
        }
    }

    pub(super) fn without_value(self) -> Self {
        Self { value: None, ..self }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownSession<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    node: &'static str,
    lock_delay: u64,
    behavior: &'static str,
    #[serde(rename = "TTL")]
    ttl: &'a str,
    node_checks: [&'static str; 0],
    service_checks: Option<()>,
    create_index: u64,
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: String,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    behavior: String,
}

impl Default for Create {
    fn default() -> Self {
        Self { name: String::new(), ttl: String::new(), lock_delay: "15s".to_owned(), behavior: String::new() }
    }
}

#[derive(Serialize)]
struct Created<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
}

/// A path with its query taken apart.
struct Target<'a> {
    path: String,
    query: Vec<(&'a str, &'a str)>,
}

impl<'a> Target<'a> {
    fn of(target: &'a str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")));
        Self { path: percent_decode_str(path).decode_utf8_lossy().into_owned(), query: query.collect() }
    }

    /// Whether it is about all keys that begin with the path.
    fn is_of_many(&self) -> bool {
        self.get("recurse").is_some() || self.get("keys").is_some()
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.query.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

impl FakeConsul {
    /// A Consul that draws the ids of its sessions from a seed.
    pub fn new(store: Store, seed: u64) -> Self {
        Self { store, seed, opened: 0 }
    }

    /// What a request waits for; `None` when it is answered at once.
    pub fn waits(request: &Request) -> Option<Waits> {
        let target = Target::of(&request.target);
        let above = target.get("index")?.parse().ok().filter(|above| *above > 0)?;
        let wait = target.get("wait").and_then(|wait| duration(wait).ok()).unwrap_or(Duration::from_secs(300));
        let on = match target.path.strip_prefix("/v1/kv/") {
            Some(prefix) if target.is_of_many() => Watched::Keys(prefix.to_owned()),
            Some(key) => Watched::Key(key.to_owned()),
            None => Watched::Session(target.path.strip_prefix("/v1/session/info/")?.to_owned()),
        };
        (request.method == Method::Get).then_some(Waits { above, wait, on })
    }

    /// Whether a request that waits is answered now. One about a session is not woken by other sessions, but counts them once it looks, as
    /// it does when it comes (`looks`).
    pub fn has_news(&self, waits: &Waits, looks: bool) -> bool {
        match &waits.on {
            Watched::Key(key) => self.store.index_of(key) > waits.above,
            Watched::Keys(prefix) => self.store.list(prefix).1 > waits.above,
            Watched::Session(id) => (looks || self.store.session(id).is_none()) && self.store.sessions_index() > waits.above,
        }
    }

    /// Applies a request and answers it; one that waits as if its wait were over.
    pub fn answer(&mut self, at: Duration, request: &Request) -> Answer {
        let target = Target::of(&request.target);
        let put = request.method == Method::Put;
        let Some(endpoint) = target.path.strip_prefix("/v1/") else { return refuse(404, "") };
        match endpoint.split_once('/').unwrap_or((endpoint, "")) {
            ("txn", "") if put => txn(&mut self.store, at, &request.body),
            ("kv", "") if !target.is_of_many() => refuse(400, "Missing key name"),
            ("kv", key) if put => self.put(at, key, &target, &request.body),
            ("kv", key) => self.get(key, &target),
            ("session", rest) => match rest.split_once('/').unwrap_or((rest, "")) {
                ("create", "") if put => self.create(at, &request.body),
                (_, "") => refuse(400, "Missing session"),
                ("renew", id) if put => self.renew(at, id),
                ("destroy", id) if put => match well_formed(id) {
                    Ok(()) => {
                        self.store.end(at, id);
                        told(200, None, &true)
                    }
                    Err(error) => refuse(500, error),
                },
                ("info", id) => self.info(id),
                _ => refuse(404, ""),
            },
            _ => refuse(404, ""),
        }
    }

    fn create(&mut self, at: Duration, body: &[u8]) -> Answer {
        let create: Create = match serde_json::from_slice(if body.is_empty() { b"{}" } else { body }) {
            Ok(create) => create,
            Err(error) => return refuse(400, format!("Request decode failed: {error}")),
        };
        let lock_delay = match duration(&create.lock_delay) {
            Ok(delay) => delay,
            Err(error) => return refuse(400, format!("Request decode failed: {error}")),
        };
        let deletes = match create.behavior.as_str() {
            "" | "release" => false,
            "delete" => true,
            other => return refuse(500, format!("Invalid Behavior setting '{other}'")),
        };
        let ttl = match duration(if create.ttl.is_empty() { "0s" } else { &create.ttl }) {
            Ok(ttl) => ttl,
            Err(error) => return refuse(500, format!("Session TTL '{}' invalid: {error}", create.ttl)),
        };
        self.opened += 1;
        let bits = [hash(&[self.seed, self.opened, 0]), hash(&[self.seed, self.opened, 1])];
        let hex = format!("{:016x}{:016x}", bits[0], bits[1]);
        let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        let session = Session { name: create.name, ttl_text: create.ttl, ttl, lock_delay, deletes, created: 0, lapses_at: None };
        match self.store.open(at, &id, session) {
            Ok(()) => told(200, None, &Created { id: &id }),
            Err(error) => refuse(500, error),
        }
    }

    fn renew(&mut self, at: Duration, id: &str) -> Answer {
        if let Err(error) = well_formed(id) {
            return refuse(500, error);
        }
        match self.store.renew(at, id) {
            Some(session) => told(200, None, &[shown(id, session)]),
            None => refuse(404, format!("Session id '{id}' not found")),
        }
    }

    fn info(&self, id: &str) -> Answer {
        match well_formed(id) {
            Ok(()) => {
                let found: Vec<_> = self.store.session(id).map(|session| shown(id, session)).into_iter().collect();
                told(200, Some(self.store.sessions_index()), &found)
            }
            Err(error) => Answer { index: Some(1), ..refuse(500, error) },
        }
    }

    fn get(&self, key: &str, target: &Target<'_>) -> Answer {
        let (entries, index) = if target.is_of_many() {
            self.store.list(key)
        } else {
            (self.store.entry(key).map(|entry| (key, entry)).into_iter().collect(), self.store.index_of(key))
        };
        if entries.is_empty() {
            return Answer { index: Some(index), ..refuse(404, "") };
        }
        if target.get("keys").is_some() {
            return told(200, Some(index), &entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>());
        }
        told(200, Some(index), &entries.into_iter().map(|(key, entry)| Shown::of(key, entry)).collect::<Vec<_>>())
    }

    /// The old way to write: one key, and no reason why not.
    fn put(&mut self, at: Duration, key: &str, target: &Target<'_>, body: &[u8]) -> Answer {
        let flags = target.get("flags").and_then(|flags| flags.parse().ok()).unwrap_or(0);
        let (store, value) = (&mut self.store, body.to_vec());
        let wrote = match (target.get("acquire"), target.get("release"), target.get("cas")) {
            (Some(_), None, None) if store.is_delayed(at, key) => Ok(false),
            (Some(session), None, None) => {
                let index = store.log();
                store.lock(key, index, session, flags, value).map(|entry| entry.is_some())
            }
            (None, Some(session), None) => {
                let index = store.log();
                store.unlock(key, index, session, flags, value).map(|entry| entry.is_some())
            }
            (None, None, Some(expected)) => {
                let index = store.log();
                Ok(store.cas(key, index, expected.parse().unwrap_or(0), flags, value).is_some())
            }
            (None, None, None) => {
                let index = store.log();
                store.set(key, index, flags, value);
                Ok(true)
            }
            _ => return refuse(400, "Conflicting flags"),
        };
        match wrote {
            Ok(wrote) => told(200, None, &wrote),
            Err(error) => refuse(500, error),
        }
    }
}

fn shown<'a>(id: &'a str, session: &'a Session) -> ShownSession<'a> {
    ShownSession {
        id,
        name: &session.name,
        node: "n1",
        lock_delay: session.lock_delay.as_nanos() as u64,
        behavior: if session.deletes { "delete" } else { "release" },
        ttl: &session.ttl_text,
        node_checks: [],
        service_checks: None,
        create_index: session.created,
        modify_index: session.created,
    }
}

/// A refusal in words.
pub(super) fn refuse(status: u16, body: impl Into<String>) -> Answer {
    Answer { status, index: None, body: body.into() }
}

/// An answer in JSON.
pub(super) fn told(status: u16, index: Option<u64>, value: &impl Serialize) -> Answer {
    let body = serde_json::to_string(value).unwrap_or_else(|error| unreachable!("plain data is always JSON: {error}"));
    Answer { status, index, body }
}

/// A duration as Go reads it, as far as sessions and waits need.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration {text:?}");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let seconds = match &text[digits..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}
