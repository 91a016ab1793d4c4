//! What an operator does to sessions and keys, by Consul's plain API, and what is found there at the end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use dlock_testkit::servers::{HttpReply, http};
use serde::Deserialize;

use super::worker;

/// A way to all servers; asks the first that answers.
#[derive(Clone, Debug)]
pub struct Operator {
    servers: Vec<SocketAddr>,
}

/// A session of dlock's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpenSession {
    #[serde(rename = "ID")]
    id: String,
    name: String,
}

impl OpenSession {
    /// The worker whose it is.
    pub fn client(&self) -> Option<u8> {
        let client = self.name.rsplit_once('-')?.1.parse().ok()?;
        self.name.ends_with(&worker::name(client)).then_some(client)
    }

    /// Whether it holds this key.
    pub fn holds(&self, held: &HeldKey) -> bool {
        held.session == self.id
    }
}

/// A key that a session holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// The key.
    pub key: String,
    session: String,
    flags: u64,
}

/// Whether something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was.
    Surely,
    /// Nobody answered: perhaps it is still done later.
    Perhaps,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyEntry {
    key: String,
    flags: u64,
    #[serde(default)]
    session: String,
}

impl Operator {
    /// How long one server may take to answer.
    const PATIENCE: Duration = Duration::from_secs(1);

    /// An operator of these servers.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    /// The sessions of dlock's, as any server knows them.
    pub async fn sessions(&self) -> io::Result<Vec<OpenSession>> {
        sessions(&self.read("/v1/session/list?stale").await?)
    }

    /// The keys that are held, as any server knows them.
    pub async fn held(&self, prefix: &str) -> io::Result<Vec<HeldKey>> {
        held(&self.read(&format!("/v1/kv/{prefix}?recurse&stale")).await?)
    }

    /// Ends a session.
    pub async fn end(&self, session: &OpenSession) -> Done {
        self.act("PUT", &format!("/v1/session/destroy/{}", session.id)).await
    }

    /// Deletes a key, held or not.
    pub async fn delete(&self, key: &str) -> Done {
        self.act("DELETE", &format!("/v1/kv/{key}")).await
    }

    /// Releases a key in its holder's name.
    pub async fn release(&self, held: &HeldKey) -> Done {
        let HeldKey { key, session, flags } = held;
        self.act("PUT", &format!("/v1/kv/{key}?release={session}&flags={flags}")).await
    }

    /// What is left of workers at each server: sessions and held keys.
    pub async fn leftovers(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        for server in &self.servers {
            let alone = Self::new(vec![*server]);
            left.extend(alone.sessions().await?.into_iter().map(|session| format!("{session:?} at {server}")));
            left.extend(alone.held(prefix).await?.into_iter().map(|held| format!("{held:?} at {server}")));
        }
        Ok(left)
    }

    /// The list at a path; an empty one where there is nothing.
    async fn read(&self, path: &str) -> io::Result<String> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for server in &self.servers {
            match ask(*server, "GET", path).await {
                Ok(reply) if reply.status == 200 => return Ok(reply.body),
                Ok(reply) if reply.status == 404 => return Ok("[]".to_owned()),
                Ok(reply) => last = io::Error::other(format!("{path}: {} {}", reply.status, reply.body)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn act(&self, method: &str, path: &str) -> Done {
        let mut perhaps = false;
        for server in &self.servers {
            match ask(*server, method, path).await {
                Ok(reply) if reply.status == 200 => return if perhaps { Done::Perhaps } else { Done::Surely },
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) | Err(_) => perhaps = true,
            }
        }
        Done::Perhaps
    }
}

async fn ask(server: SocketAddr, method: &str, path: &str) -> io::Result<HttpReply> {
    match tokio::time::timeout(Operator::PATIENCE, http(server, method, path, &[], "")).await {
        Ok(reply) => reply,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn sessions(body: &str) -> io::Result<Vec<OpenSession>> {
    let all: Vec<OpenSession> = serde_json::from_str(body)?;
    Ok(all.into_iter().filter(|session| session.name.starts_with("dlock:")).collect())
}

fn held(body: &str) -> io::Result<Vec<HeldKey>> {
    let entries: Vec<KeyEntry> = serde_json::from_str(body)?;
    let held = entries.into_iter().filter(|entry| !entry.session.is_empty());
    Ok(held.map(|KeyEntry { key, flags, session }| HeldKey { key, session, flags }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_ours_are_known_by_their_names_and_workers_by_their_numbers() {
        let body = r#"[{"ID":"a","Name":"dlock:host/7/worker-12"},{"ID":"b","Name":""},{"ID":"c","Name":"dlock:host/8/live"}]"#;
        let found = sessions(body).unwrap();
        assert_eq!(found.iter().map(OpenSession::client).collect::<Vec<_>>(), [Some(12), None]);
    }

    #[test]
    fn a_key_without_a_session_is_free() {
        let body = r#"[{"Key":"a","Flags":3304740253564472344,"Session":"s","Value":null},{"Key":"b","Flags":0,"Value":null}]"#;
        let found = held(body).unwrap();
        assert_eq!(found, [HeldKey { key: "a".to_owned(), session: "s".to_owned(), flags: 3_304_740_253_564_472_344 }]);
    }
}
