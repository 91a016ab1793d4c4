//! What tests of the locker on a real Consul share: an agent, a proxy before it, a locker.
#![allow(dead_code, missing_docs)] // each test binary uses a part

use std::future::Future;
use std::time::{Duration, Instant};

use dlock::Locker;
use dlock_consul::{Consul, ConsulOptions};
use dlock_core::TtlRange;
use dlock_testkit::proxy::{FaultProxy, Matching};
use dlock_testkit::servers::{ConsulAgent, http};

pub struct Bench {
    pub agent: ConsulAgent,
    pub proxy: FaultProxy,
    pub locker: Locker,
}

pub async fn bench(ttl: Duration) -> Bench {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let locker = locker(&proxy, ttl);
    locker.ready(Duration::from_secs(30)).await.unwrap();
    Bench { agent, proxy, locker }
}

pub fn locker(proxy: &FaultProxy, ttl: Duration) -> Locker {
    at(&proxy.address().to_string(), ttl)
}

pub fn at(address: &str, ttl: Duration) -> Locker {
    Locker::builder(Consul::new(options(address)).unwrap()).ttl(ttl).name("live").build().unwrap()
}

pub fn options(address: &str) -> ConsulOptions {
    let range = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    ConsulOptions::new().address(address).unwrap().ttl_range(range)
}

pub fn txns() -> Matching {
    Matching::any().path("/v1/txn")
}

pub fn claims() -> Matching {
    txns().body("\"lock\"")
}

pub async fn get(agent: &ConsulAgent, path: &str) -> String {
    http(agent.address(), "GET", path, &[], "").await.unwrap().body
}

pub async fn put(agent: &ConsulAgent, path: &str, body: &str) -> String {
    http(agent.address(), "PUT", path, &[], body).await.unwrap().body
}

/// Which session holds a key, asked of the agent itself.
pub async fn holder(agent: &ConsulAgent, key: &str) -> Option<String> {
    let body = get(agent, &format!("/v1/kv/{key}?consistent")).await;
    let (_, rest) = body.split_once("\"Session\": \"").or_else(|| body.split_once("\"Session\":\""))?;
    rest.split('"').next().map(str::to_owned)
}

/// Waits until something becomes so, and fails when it does not within the limit.
pub async fn within<F: Future<Output = bool>>(limit: Duration, what: &str, mut so: impl FnMut() -> F) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub const LONG: Duration = Duration::from_secs(60);
