//! What an operator does at an etcd, over its gateway for JSON.

use std::io;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::http::http;

/// An etcd as an operator reaches it: by plain requests, past every client library and proxy.
#[derive(Clone, Copy, Debug)]
pub struct EtcdGateway {
    address: SocketAddr,
    /// Name and password, where there are users.
    user: Option<(&'static str, &'static str)>,
}

/// Something stored under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdEntry {
    /// The key.
    pub key: Vec<u8>,
    /// What is under it.
    pub value: Vec<u8>,
    /// The revision that made the key.
    pub create_revision: i64,
    /// The lease it goes with; 0 for none.
    pub lease: i64,
}

/// Whom a member takes itself and the leader for.
pub(super) struct Status {
    pub(super) member: u64,
    pub(super) leader: Option<u64>,
}

impl EtcdGateway {
    /// The gateway of the etcd at this address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, user: None }
    }

    /// The same for a user with this name and password, who is asked for before every request: what a member knows of users that came
    /// to it, it forgets with its process.
    #[must_use]
    pub fn as_user(mut self, name: &'static str, password: &'static str) -> Self {
        self.user = Some((name, password));
        self
    }

    /// Puts a value under a key, without a lease where it is 0.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, lease: i64) -> io::Result<()> {
        let request = json!({ "key": encode(key), "value": encode(value), "lease": lease.to_string() });
        self.ask("/v3/kv/put", &request).await.map(drop)
    }

    /// Puts a key if another was made at this revision and is still there; whether it was.
    pub async fn put_if(&self, made: (&str, u64), key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> io::Result<bool> {
        let (condition, revision) = made;
        let request = json!({
            "compare": [{ "key": encode(condition), "target": "CREATE", "result": "EQUAL", "create_revision": revision.to_string() }],
            "success": [{ "request_put": { "key": encode(key), "value": encode(value) } }],
        });
        let reply = self.ask("/v3/kv/txn", &request).await?;
        // What is false is left out.
        Ok(reply["succeeded"].as_bool().unwrap_or(false))
    }

    /// Deletes a key; how many keys that were.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> io::Result<i64> {
        let reply = self.ask("/v3/kv/deleterange", &json!({ "key": encode(key) })).await?;
        Ok(number(&reply["deleted"]))
    }

    /// Everything under keys that begin so, the oldest key first; everything there is where that is nothing.
    pub async fn entries(&self, prefix: impl AsRef<[u8]>) -> io::Result<Vec<EtcdEntry>> {
        let prefix = prefix.as_ref();
        // How etcd writes the first of all keys.
        let start = if prefix.is_empty() { &[0] } else { prefix };
        let request =
            json!({ "key": encode(start), "range_end": encode(after(prefix)), "sort_target": "CREATE", "sort_order": "ASCEND" });
        let reply = self.ask("/v3/kv/range", &request).await?;
        let entry = |kv: &Value| EtcdEntry {
            key: decode(&kv["key"]),
            value: decode(&kv["value"]),
            create_revision: number(&kv["create_revision"]),
            lease: number(&kv["lease"]),
        };
        Ok(reply["kvs"].as_array().into_iter().flatten().map(entry).collect())
    }

    /// Grants a lease of so many seconds; its id and the seconds that it got.
    pub async fn grant(&self, seconds: i64) -> io::Result<(i64, i64)> {
        let reply = self.ask("/v3/lease/grant", &json!({ "TTL": seconds.to_string() })).await?;
        Ok((number(&reply["ID"]), number(&reply["TTL"])))
    }

    /// Revokes a lease, if it is there.
    pub async fn revoke(&self, lease: i64) -> io::Result<()> {
        match self.ask("/v3/lease/revoke", &json!({ "ID": lease.to_string() })).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            revoked => revoked.map(drop),
        }
    }

    /// The ids of all leases.
    pub async fn leases(&self) -> io::Result<Vec<i64>> {
        let reply = self.ask("/v3/lease/leases", &json!({})).await?;
        Ok(reply["leases"].as_array().into_iter().flatten().map(|lease| number(&lease["ID"])).collect())
    }

    pub(super) async fn status(&self) -> io::Result<Status> {
        // Asked by nobody in particular, so that a member without a leader answers too.
        let reply = self.send("/v3/maintenance/status", &json!({}), None).await?;
        let id = |value: &Value| value.as_str().and_then(|id| id.parse().ok());
        let member = id(&reply["header"]["member_id"]).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Status { member, leader: id(&reply["leader"]).filter(|id| *id != 0) })
    }

    pub(super) async fn transfer_leadership(&self, heir: u64) -> io::Result<()> {
        self.ask("/v3/maintenance/transfer-leadership", &json!({ "targetID": heir.to_string() })).await.map(drop)
    }

    async fn ask(&self, path: &str, request: &Value) -> io::Result<Value> {
        let Some((name, password)) = self.user else { return self.send(path, request, None).await };
        let user = json!({ "name": name, "password": password });
        let known = self.send("/v3/auth/authenticate", &user, None).await?;
        self.send(path, request, known["token"].as_str()).await
    }

    async fn send(&self, path: &str, request: &Value, token: Option<&str>) -> io::Result<Value> {
        let headers: Vec<(&str, &str)> = token.iter().map(|token| ("Authorization", *token)).collect();
        let reply = http(self.address, "POST", path, &headers, &request.to_string()).await?;
        match reply.status {
            200 => serde_json::from_str(&reply.body).map_err(io::Error::from),
            404 => Err(io::Error::new(io::ErrorKind::NotFound, format!("{path}: {}", reply.body))),
            _ => Err(io::Error::other(format!("{path}: {} {}", reply.status, reply.body))),
        }
    }
}

/// The first key after all that begin so.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // How etcd writes that there is none.
    vec![0]
}

/// Numbers of 64 bits are strings in the JSON of protobuf, and left out where they are 0.
fn number(value: &Value) -> i64 {
    value.as_str().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn decode(value: &Value) -> Vec<u8> {
    value.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok()).unwrap_or_default()
}
