//! The harness of a real Consul, for any backend that speaks to one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, Ownership, SessionId};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::harness::{Harness, Hook, Hooked, SecondProcess, Sent, UnderWay};
use crate::proxy::{Fault, FaultProxy, Held, Matching};
use crate::servers::{ConsulAgent, http, shared_consul};

/// The flags by which Consul's own tools know a lock.
const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// A real agent with fault proxies before it; shared by all tests of the process unless it is [alone](Harness::alone).
pub struct OnConsul {
    connect: Connect,
    server: SocketAddr,
    /// Its own agent, where it has one.
    agent: Option<tokio::sync::Mutex<ConsulAgent>>,
    /// Clients are behind the last; those before are cut off or failing.
    proxies: Mutex<Vec<FaultProxy>>,
    process: Option<PathBuf>,
    allowed: Vec<Hook>,
    /// Whether clients stand in line by tickets.
    fair: bool,
}

/// How a client is made that speaks to an agent at this address.
pub type Connect = fn(SocketAddr) -> Arc<dyn LockBackend>;

impl OnConsul {
    /// A harness whose clients are made by `connect`. The least ttl of its agents is 200 ms.
    pub async fn start(connect: Connect) -> Self {
        Self::at(connect, shared_consul().await, None).await
    }

    async fn at(connect: Connect, server: SocketAddr, agent: Option<ConsulAgent>) -> Self {
        let proxy = FaultProxy::start(server).await.expect("a proxy must start");
        let allowed = vec![Hook::SecondProcess];
        Self {
            connect,
            server,
            agent: agent.map(tokio::sync::Mutex::new),
            proxies: Mutex::new(vec![proxy]),
            process: None,
            allowed,
            fair: false,
        }
    }

    /// With a program that is called with `address key ttl-in-milliseconds`, takes the key, says so by a line, and holds it until
    /// its standard input is closed.
    #[must_use]
    pub fn with_second_process(mut self, program: impl Into<PathBuf>) -> Self {
        self.process = Some(program.into());
        self.allowed.clear();
        self
    }

    /// For clients in dlock's fair mode: what an operator does to a key, he does to the tickets below it as well.
    #[must_use]
    pub fn fair(mut self) -> Self {
        self.fair = true;
        self
    }

    fn proxies(&self) -> MutexGuard<'_, Vec<FaultProxy>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which requests of such a backend are of this kind.
    pub fn matching(sent: Sent) -> Matching {
        match sent {
            Sent::Open => Matching::any().path("/v1/session/create"),
            Sent::Renew => Matching::any().path("/v1/session/renew"),
            Sent::Claim => Matching::any().path("/v1/txn").body("\"lock\""),
            Sent::Release => Matching::any().path("/v1/txn").body("\"unlock\""),
            Sent::Amend => Matching::any().path("/v1/txn").body("\"cas\""),
        }
    }

    /// Which requests of a backend in fair mode are of this kind: whatever it locks, it takes its ticket away with every release.
    pub fn matching_fair(sent: Sent) -> Matching {
        match sent {
            Sent::Claim => Matching::any().path("/v1/txn").message(|body| has(body, "\"lock\"") && !has(body, "\"delete\"")),
            Sent::Release => Matching::any().path("/v1/txn").body("\"delete\""),
            Sent::Open | Sent::Renew | Sent::Amend => Self::matching(sent),
        }
    }

    fn sent(&self, sent: Sent) -> Matching {
        if self.fair { Self::matching_fair(sent) } else { Self::matching(sent) }
    }

    /// What an operator asks of the agent, past the proxies.
    async fn operate(&self, method: &str, path: &str, body: &str) -> String {
        let reply = http(self.server, method, path, &[], body).await.expect("the agent must answer an operator");
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.body);
        reply.body
    }

    /// Spoils the proxy of the clients that exist, and starts another for those to come.
    async fn spoil(&self, how: impl FnOnce(&FaultProxy)) {
        let fresh = FaultProxy::start(self.server).await.expect("a proxy must start");
        let mut proxies = self.proxies();
        how(proxies.last().expect("there is always a last proxy"));
        proxies.push(fresh);
    }

    fn own_agent(&self) -> &tokio::sync::Mutex<ConsulAgent> {
        self.agent.as_ref().expect("only asked of a harness that is alone")
    }
}

fn has(body: &[u8], part: &str) -> bool {
    body.windows(part.len()).any(|window| window == part.as_bytes())
}

#[async_trait]
impl Harness for OnConsul {
    fn name(&self) -> String {
        if self.fair { "Consul fair".to_owned() } else { "Consul".to_owned() }
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        let address = self.proxies().last().expect("there is always a last proxy").address();
        (self.connect)(address)
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn long_ttl(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn prompt(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn missing_hooks_allowed(&self) -> &[Hook] {
        &self.allowed
    }

    async fn alone(&self) -> Option<Box<dyn Harness>> {
        let agent = ConsulAgent::builder().persistent().start().await.expect("an agent must start");
        let alone = Self::at(self.connect, agent.address(), Some(agent)).await;
        Some(Box::new(Self { process: self.process.clone(), allowed: self.allowed.clone(), fair: self.fair, ..alone }))
    }

    async fn heal(&self) {
        if let Some(agent) = &self.agent {
            agent.lock().await.resume().expect("the agent must go on");
        }
        for proxy in self.proxies().iter() {
            proxy.swallow(false);
            proxy.clear();
        }
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        self.operate("PUT", &format!("/v1/session/destroy/{session}"), "").await;
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Hooked {
        self.operate("DELETE", &format!("/v1/kv/{key}"), "").await;
        if self.fair {
            self.operate("DELETE", &format!("/v1/kv/{key}/.dlock/?recurse"), "").await;
        }
        Ok(())
    }

    async fn release_by_force(&self, key: &Key) -> Hooked {
        let entry = self.operate("GET", &format!("/v1/kv/{key}"), "").await;
        let entries: Vec<HashMap<String, serde_json::Value>> = serde_json::from_str(&entry).expect("Consul answers JSON");
        let session = entries[0].get("Session").and_then(|session| session.as_str()).expect("somebody holds the key");
        self.operate("PUT", &format!("/v1/kv/{key}?release={session}&flags={LOCK_FLAGS}"), "").await;
        if self.fair {
            let tickets = self.operate("GET", &format!("/v1/kv/{key}/.dlock/?keys"), "").await;
            let tickets: Vec<String> = serde_json::from_str(&tickets).expect("Consul answers JSON");
            for ticket in tickets.iter().filter(|ticket| ticket.contains(&format!("/{session}."))) {
                self.operate("DELETE", &format!("/v1/kv/{ticket}"), "").await;
            }
        }
        Ok(())
    }

    async fn put_foreign(&self, key: &Key, value: &str) -> Hooked {
        self.operate("PUT", &format!("/v1/kv/{key}?flags=7"), value).await;
        Ok(())
    }

    async fn write_if(&self, ownership: &Ownership) -> Hooked<bool> {
        let key = format!("data/{}", ownership.key);
        let Ownership { key: lock, session, revision, .. } = ownership;
        let ops = serde_json::json!([
            {"KV": {"Verb": "check-session", "Key": lock, "Session": session.as_str()}},
            {"KV": {"Verb": "check-index", "Key": lock, "Index": revision}},
            // "written"
            {"KV": {"Verb": "set", "Key": key, "Value": "d3JpdHRlbg=="}},
        ]);
        let reply = http(self.server, "PUT", "/v1/txn", &[], &ops.to_string()).await.expect("the agent must answer an operator");
        assert!(matches!(reply.status, 200 | 409), "{}", reply.body);
        Ok(reply.status == 200)
    }

    async fn sessions(&self, owner: &str) -> Hooked<usize> {
        let all = self.operate("GET", "/v1/session/list", "").await;
        let all: Vec<HashMap<String, serde_json::Value>> = serde_json::from_str(&all).expect("Consul answers JSON");
        let of_owner = |session: &&HashMap<String, serde_json::Value>| {
            session.get("Name").and_then(|name| name.as_str()).is_some_and(|name| name.ends_with(owner))
        };
        Ok(all.iter().filter(of_owner).count())
    }

    fn lose_reply(&self, of: Sent) -> Hooked {
        self.proxies().last().expect("there is always a last proxy").next(self.sent(of), Fault::DropResponse);
        Ok(())
    }

    fn hold(&self, what: Sent) -> Hooked<Box<dyn UnderWay>> {
        let held = self.proxies().last().expect("there is always a last proxy").hold_next(self.sent(what));
        Ok(Box::new(OnTheWay { held, server: self.server }))
    }

    async fn cut(&self) -> Hooked {
        self.spoil(|proxy| proxy.swallow(true)).await;
        Ok(())
    }

    async fn fail(&self) -> Hooked {
        self.spoil(|proxy| proxy.all(Matching::any(), Fault::Answer(500, "No cluster leader".to_owned()))).await;
        Ok(())
    }

    async fn freeze(&self) -> Hooked {
        self.own_agent().lock().await.pause().expect("the agent must stop");
        Ok(())
    }

    async fn restart(&self) -> Hooked {
        self.own_agent().lock().await.restart().await.expect("the agent must start again");
        Ok(())
    }

    async fn second_process(&self, key: &Key, ttl: Duration) -> Hooked<Box<dyn SecondProcess>> {
        let Some(program) = &self.process else { return Err(Hook::SecondProcess) };
        let mut child = Command::new(program)
            .args([self.server.to_string(), key.to_string(), ttl.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program must start");
        let out = child.stdout.take().expect("its output is piped");
        let said = BufReader::new(out).lines().next_line().await.expect("it must say something");
        assert!(said.is_some(), "it ended without holding the key");
        Ok(Box::new(Process(child)))
    }
}

struct OnTheWay {
    held: Held,
    server: SocketAddr,
}

#[async_trait]
impl UnderWay for OnTheWay {
    async fn sent(&self) {
        self.held.sent().await;
    }

    async fn deliver(&self) {
        self.held.deliver(self.server).await.expect("the agent must answer");
    }
}

struct Process(Child);

#[async_trait]
impl SecondProcess for Process {
    async fn finish(mut self: Box<Self>) {
        drop(self.0.stdin.take());
        let status = self.0.wait().await.expect("it is our child");
        assert!(status.success(), "{status}");
    }

    async fn kill(mut self: Box<Self>) {
        self.0.kill().await.expect("it is our child");
    }
}
