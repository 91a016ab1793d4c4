//! The contract on a real Consul.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{Key, LockBackend, SessionId, TtlRange};
use dlock_testkit::contract::{Harness, Sent, UnderWay};
use dlock_testkit::proxy::{Fault, FaultProxy, Held, Matching};
use dlock_testkit::servers::{ConsulAgent, http};

struct OnConsul {
    agent: ConsulAgent,
    proxy: FaultProxy,
}

impl OnConsul {
    async fn start() -> Self {
        let agent = ConsulAgent::start().await.unwrap();
        let proxy = FaultProxy::start(agent.address()).await.unwrap();
        Self { agent, proxy }
    }

    async fn put(&self, method: &str, path: &str, body: &str) -> String {
        let reply = http(self.agent.address(), method, path, &[], body).await.unwrap();
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.body
    }

    fn matching(sent: Sent) -> Matching {
        let verb = match sent {
            Sent::Claim => "\"lock\"",
            Sent::Release => "\"unlock\"",
        };
        Matching::any().path("/v1/txn").body(verb)
    }
}

#[async_trait]
impl Harness for OnConsul {
    async fn client(&self) -> Arc<dyn LockBackend> {
        let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
        let options = ConsulOptions::new().address(&self.proxy.address().to_string()).unwrap().ttl_range(ttl);
        Arc::new(Consul::new(options).unwrap())
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

    async fn end_session(&self, session: &SessionId) {
        self.put("PUT", &format!("/v1/session/destroy/{session}"), "").await;
    }

    async fn delete(&self, key: &Key) {
        self.put("DELETE", &format!("/v1/kv/{key}"), "").await;
    }

    async fn release_by_force(&self, key: &Key) {
        let entry = self.put("GET", &format!("/v1/kv/{key}"), "").await;
        let (_, session) = entry.split_once("\"Session\":\"").or_else(|| entry.split_once("\"Session\": \"")).unwrap();
        let session = session.split('"').next().unwrap();
        self.put("PUT", &format!("/v1/kv/{key}?release={session}&flags=3304740253564472344"), "").await;
    }

    async fn put_foreign(&self, key: &Key) {
        self.put("PUT", &format!("/v1/kv/{key}?flags=7"), "data").await;
    }

    fn lose_reply(&self, of: Sent) {
        self.proxy.next(Self::matching(of), Fault::DropResponse);
    }

    fn hold(&self, what: Sent) -> Box<dyn UnderWay> {
        Box::new(OnTheWay { held: self.proxy.hold_next(Self::matching(what)), server: self.agent.address() })
    }
}

struct OnTheWay {
    held: Held,
    server: std::net::SocketAddr,
}

#[async_trait]
impl UnderWay for OnTheWay {
    async fn sent(&self) {
        self.held.sent().await;
    }

    async fn deliver(&self) {
        self.held.deliver(self.server).await.unwrap();
    }
}

dlock_testkit::contract! { #[tokio::test] OnConsul::start().await }
