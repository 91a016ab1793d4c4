//! What tests of the locker on a real etcd share: lockers that share nothing but the server, and what the server counts.
#![allow(dead_code, missing_docs)] // each test binary uses a part

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use dlock::Locker;
use dlock_core::TtlRange;
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_testkit::servers::EtcdServer;

/// So long that nothing is renewed or audited meanwhile.
pub const LONG: Duration = Duration::from_secs(600);

/// A locker with connections and a session of its own, as another process has.
pub fn locker(server: &EtcdServer, ttl: Duration) -> Locker {
    at(&[&server.address().to_string()], ttl)
}

pub fn at(endpoints: &[&str], ttl: Duration) -> Locker {
    build(options(endpoints), ttl)
}

pub fn options(endpoints: &[&str]) -> EtcdOptions {
    let range = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };
    EtcdOptions::new().endpoints(endpoints).unwrap().ttl_range(range)
}

pub fn build(options: EtcdOptions, ttl: Duration) -> Locker {
    Locker::builder(Etcd::new(options).unwrap()).ttl(ttl).name("live").build().unwrap()
}

/// How many calls of each kind the server has taken in so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls(BTreeMap<String, u64>);

impl Calls {
    pub async fn of(server: &EtcdServer) -> Self {
        let metrics = server.metrics().await.unwrap();
        let started = metrics.into_iter().filter_map(|(name, value)| {
            let labels = name.strip_prefix("grpc_server_started_total{")?;
            let (_, method) = labels.split_once("grpc_method=\"").filter(|_| labels.contains("\"etcdserverpb."))?;
            Some((method.split('"').next()?.to_owned(), value as u64))
        });
        Self(started.collect())
    }

    /// What came since then, by kind, those that did not come left out.
    pub async fn since(&self, server: &EtcdServer) -> Vec<(String, u64)> {
        let now = Self::of(server).await;
        let new = now.0.into_iter().map(|(method, count)| {
            let before = self.0.get(&method).copied().unwrap_or(0);
            (method, count - before)
        });
        new.filter(|(_, count)| *count > 0).collect()
    }
}

pub fn counted(calls: &[(&str, u64)]) -> Vec<(String, u64)> {
    calls.iter().map(|(method, count)| ((*method).to_owned(), *count)).collect()
}

/// Waits until so many stand in the line of a key.
pub async fn line_of(server: &EtcdServer, key: &str, length: usize) {
    within(Duration::from_secs(10), "in line", async || server.gateway().entries(format!("{key}/")).await.unwrap().len() == length)
        .await;
}

/// The present revision of the store.
pub fn revision(server: &EtcdServer) -> u64 {
    let told = server.run(&["get", "nothing", "--write-out=json"]).unwrap();
    let (_, rest) = told.split_once("\"revision\":").unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// Waits until something becomes so, and fails when it does not within the limit.
pub async fn within<F: Future<Output = bool>>(limit: Duration, what: &str, mut so: impl FnMut() -> F) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
