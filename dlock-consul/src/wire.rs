//! The shapes that Consul sends and takes.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dlock_core::{Claim, ClaimId, FencingToken, Holder, Metadata, Published, SessionId};
use serde::{Deserialize, Serialize};

/// The flags by which Go's `api.Lock` knows a lock; ours are the same, so that both exclude one another.
pub(crate) const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// Everything that has a default of Consul's own is sent, and what is empty is left out only where that means "none".
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CreateSession<'a> {
    pub(crate) name: String,
    #[serde(rename = "TTL")]
    pub(crate) ttl: String,
    pub(crate) lock_delay: String,
    pub(crate) behavior: &'a str,
    /// Left out, it is `serfHealth`.
    pub(crate) node_checks: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) service_checks: Vec<ServiceCheck<'a>>,
    /// Left out, it is that of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ServiceCheck<'a> {
    #[serde(rename = "ID")]
    pub(crate) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RegisterNode<'a> {
    pub(crate) node: &'a str,
    pub(crate) address: &'a str,
    /// A node that is there stays as it is.
    pub(crate) skip_node_update: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CreatedSession {
    #[serde(rename = "ID")]
    pub(crate) id: String,
}

/// An agent, of which only this is looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Agent {
    pub(crate) config: AgentConfig,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AgentConfig {
    pub(crate) version: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SessionEntry {
    #[serde(rename = "TTL", default)]
    pub(crate) ttl: String,
}

/// One operation of a transaction.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Op<'a> {
    #[serde(rename = "KV")]
    kv: Kv<'a>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kv<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<&'a str>,
}

impl<'a> Op<'a> {
    fn new(verb: &'static str, key: &'a str) -> Self {
        let kv = Kv { verb, key, value: None, flags: None, index: None, session: None, namespace: None, partition: None };
        Self { kv }
    }

    /// The same on a key in a namespace and a partition: in a transaction each operation says so for itself.
    pub(crate) fn within(mut self, namespace: Option<&'a str>, partition: Option<&'a str>) -> Self {
        (self.kv.namespace, self.kv.partition) = (namespace, partition);
        self
    }

    pub(crate) fn get(key: &'a str) -> Self {
        Self::new("get", key)
    }

    /// Everything whose name starts so; nothing is no failure.
    pub(crate) fn get_tree(prefix: &'a str) -> Self {
        Self::new("get-tree", prefix)
    }

    /// What is not there counts as deleted.
    pub(crate) fn delete(key: &'a str) -> Self {
        Self::new("delete", key)
    }

    pub(crate) fn check_not_exists(key: &'a str) -> Self {
        Self::new("check-not-exists", key)
    }

    pub(crate) fn check_index(key: &'a str, index: u64) -> Self {
        let mut op = Self::new("check-index", key);
        op.kv.index = Some(index);
        op
    }

    pub(crate) fn check_session(key: &'a str, session: &'a SessionId) -> Self {
        let mut op = Self::new("check-session", key);
        op.kv.session = Some(session.as_str());
        op
    }

    /// `lock`, `unlock` and `cas` overwrite value and flags, so both are always sent.
    pub(crate) fn lock(key: &'a str, session: &'a SessionId, value: &'a str, flags: u64) -> Self {
        let mut op = Self::check_session(key, session);
        (op.kv.verb, op.kv.value, op.kv.flags) = ("lock", Some(value), Some(flags));
        op
    }

    pub(crate) fn unlock(key: &'a str, session: &'a SessionId, value: &'a str, flags: u64) -> Self {
        let mut op = Self::lock(key, session, value, flags);
        op.kv.verb = "unlock";
        op
    }

    pub(crate) fn cas(key: &'a str, index: u64, value: &'a str, flags: u64) -> Self {
        let mut op = Self::check_index(key, index);
        (op.kv.verb, op.kv.value, op.kv.flags) = ("cas", Some(value), Some(flags));
        op
    }
}

/// What a transaction brought.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TxnReply {
    #[serde(default)]
    pub(crate) results: Option<Vec<TxnResult>>,
    #[serde(default)]
    pub(crate) errors: Option<Vec<TxnError>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TxnResult {
    #[serde(rename = "KV")]
    pub(crate) kv: Entry,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TxnError {
    pub(crate) op_index: usize,
    pub(crate) what: String,
}

impl TxnError {
    /// Whether it says this, at its start or its end. The name of the key stands in the middle of most texts and may be anything.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.what.starts_with(text) || self.what.ends_with(text)
    }
}

/// A key as Consul shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Entry {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) flags: u64,
    #[serde(default)]
    pub(crate) value: Option<String>,
    /// The index at which it was made.
    #[serde(default)]
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
    #[serde(default)]
    pub(crate) session: Option<String>,
}

impl Entry {
    /// The session that holds it; a free key has no such field.
    pub(crate) fn holder_session(&self) -> Option<&str> {
        self.session.as_deref().filter(|session| !session.is_empty())
    }

    /// The claim that its value carries, if it is one of dlock's.
    pub(crate) fn claim(&self) -> Option<ClaimId> {
        self.published().metadata()?.get(Metadata::CLAIM)?.parse().ok()
    }

    /// Whether the key can be a lock of ours or of Go's.
    pub(crate) fn is_lock(&self) -> bool {
        self.flags == LOCK_FLAGS
    }

    pub(crate) fn published(&self) -> Published {
        let raw = self.value.as_deref().map(|value| STANDARD.decode(value).unwrap_or_else(|_| value.as_bytes().to_vec()));
        let raw = raw.unwrap_or_default();
        match serde_json::from_slice::<Metadata>(&raw) {
            Ok(metadata) => Published::Metadata(metadata),
            Err(_) => Published::Raw(raw),
        }
    }

    /// The number of the grant: the index that it moved last, unless the metadata was amended since, which keeps the grant's own.
    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token_with(&self.published())
    }

    fn token_with(&self, published: &Published) -> Option<FencingToken> {
        let shown = FencingToken::new(self.modify_index);
        let kept = self.holder_session().and_then(|session| published.metadata()?.token_of(session));
        // A token that is not behind the key's own index was written by somebody else.
        kept.filter(|kept| Some(*kept) < shown).or(shown)
    }

    /// Who holds it.
    pub(crate) fn holder(&self) -> Holder {
        let published = self.published();
        let token = self.token_with(&published);
        let mut holder = Holder::new(published);
        holder.session = self.holder_session().map(SessionId::new);
        holder.token = token;
        holder
    }
}

/// What is kept under a held key, encoded as transactions carry it.
pub(crate) fn encode_value(published: impl Serialize) -> String {
    encode(&json(published))
}

pub(crate) fn encode(json: &[u8]) -> String {
    STANDARD.encode(json)
}

/// The value of a claim's key, as it was amended or as it was claimed.
pub(crate) fn value_of(claim: &Claim, amended: Option<&Metadata>) -> String {
    amended.map_or_else(|| encode_value(claim.publication()), encode_value)
}

/// A claim's publication, or what became of it.
pub(crate) fn json(published: impl Serialize) -> Vec<u8> {
    serde_json::to_vec(&published).expect("a map of strings is always JSON")
}

/// A duration as Go reads it, to the nanosecond: less than was asked for would be believed for too long.
pub(crate) fn go_duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos if nanos % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        _ => format!("{}ns", duration.as_nanos()),
    }
}

/// A duration as Go writes it, such as `1h0m0s`, `15s`, `1.5s`, `200ms`; `None` for anything else.
pub(crate) fn parse_go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        nanos += number
            * match &rest[..unit] {
                "h" => 3.6e12,
                "m" => 6e10,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Some(Duration::from_nanos(nanos.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_travel_both_ways() {
        for (duration, text) in [(15_000, "15s"), (200, "200ms"), (10_500, "10500ms")] {
            let duration = Duration::from_millis(duration);
            assert_eq!(go_duration(duration), text);
            assert_eq!(parse_go_duration(text), Some(duration));
        }
        assert_eq!(go_duration(Duration::from_nanos(15_000_000_001)), "15000000001ns");
        assert_eq!(parse_go_duration("24h0m0s"), Some(Duration::from_secs(86_400)));
        assert_eq!(parse_go_duration("1.5s"), Some(Duration::from_millis(1_500)));
        for nonsense in ["", "s", "15", "15x"] {
            assert_eq!(parse_go_duration(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_free_key_has_no_session_and_flags_keep_all_their_bits() {
        let text = r#"[{"LockIndex":1,"Key":"k","Flags":3304740253564472344,"Value":null,"CreateIndex":3,"ModifyIndex":9}]"#;
        let entries: Vec<Entry> = serde_json::from_str(text).unwrap();
        assert!(entries[0].is_lock());
        assert_eq!(entries[0].holder_session(), None);
        assert_eq!(entries[0].published(), Published::Raw(Vec::new()));
    }
}
