//! The unmodified etcd-client against a fake etcd, which speaks gRPC as a real one does, as a test compares.
//!
//! The network lies below HTTP/2, behind the client's [`Dialer`]: connections freeze, break and are forgotten as bytes. What goes wrong with
//! single calls does so where the servers have read them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::TtlRange;
use dlock_etcd::{Connection, Dialer, Etcd, EtcdOptions};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use super::life::Surroundings;
use super::scene::Scene;
use crate::plan::{Config, Fault, Plan, Tier};

mod api;
mod calls;
mod cluster;
mod message;
mod network;
mod rpc;
mod sites;
mod store;
mod txn;

use calls::Members;
use cluster::{Cluster, Silence};
use network::{Link, Network};
use rpc::Handler;
use store::Rules;

/// The members and the ways to them.
#[derive(Debug)]
pub(super) struct World {
    scene: Arc<Scene>,
    cluster: Arc<Cluster>,
    network: Arc<Network>,
}

/// An etcd in this process with which nothing goes wrong, in the time of the runtime that it is started on.
#[derive(Debug)]
pub struct FakeEtcd(Arc<World>);

impl FakeEtcd {
    /// One of which nobody has made use yet, a millisecond away. Ends with the runtime.
    pub fn start() -> Self {
        Self::start_at(Duration::from_millis(1))
    }

    /// One that is so far away.
    pub fn start_at(latency: Duration) -> Self {
        let mut plan = Plan::of_seed(Tier::WireEtcd, 0).with_faults(Vec::new());
        plan.config.latency_ms = latency.as_millis() as u32;
        plan.config.jitter = false;
        let scene = Arc::new(Scene::new(&plan));
        Self(World::around(&scene, Cluster::new(Arc::clone(&scene), Rules::default(), None)))
    }

    /// Serves a connection that somebody else's network made, until either side ends it.
    pub async fn serve(&self, io: impl AsyncRead + AsyncWrite + Unpin) {
        let members = self.0.members(&self.0.network.link(0));
        // How a connection ended is of no concern.
        _ = rpc::serve(io, members).await;
    }

    /// Makes connections to it.
    pub fn dialer(&self) -> Arc<dyn Dialer> {
        Arc::new(Line { world: Arc::clone(&self.0), client: 0 })
    }
}

/// A client's way to the members.
#[derive(Debug)]
struct Line {
    world: Arc<World>,
    client: u8,
}

impl World {
    pub(super) fn new(scene: &Arc<Scene>) -> Arc<Self> {
        Self::around(scene, Cluster::drawn(Arc::clone(scene)))
    }

    fn around(scene: &Arc<Scene>, cluster: Arc<Cluster>) -> Arc<Self> {
        // Ends with the runtime.
        tokio::spawn(Arc::clone(&cluster).lapse());
        Arc::new(Self { scene: Arc::clone(scene), cluster, network: Network::new(Arc::clone(scene)) })
    }

    /// The members at their end of a connection.
    fn members(&self, link: &Arc<Link>) -> Arc<dyn Handler> {
        Arc::new(Members {
            scene: Arc::clone(&self.scene),
            cluster: Arc::clone(&self.cluster),
            network: Arc::clone(&self.network),
            link: Arc::clone(link),
        })
    }

    /// The client that production uses, at one end of the network.
    pub(super) fn backend(self: &Arc<Self>, config: &Config, client: u8) -> Etcd {
        let range = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };
        // Some have no other member to turn to.
        let members = if config.draw(&[5, client.into()]).is_multiple_of(3) { 1 } else { 3 };
        let endpoints = (1..=members).map(|member| format!("etcd{member}:2379"));
        let options = EtcdOptions::new().ttl_range(range).endpoints(endpoints);
        let options = options.unwrap_or_else(|error| unreachable!("these are endpoints: {error}"));
        let etcd = Etcd::with_dialer(&options, Arc::new(Line { world: Arc::clone(self), client }));
        etcd.unwrap_or_else(|error| unreachable!("nothing is read from outside: {error}"))
    }
}

#[async_trait]
impl Dialer for Line {
    async fn dial(&self, _: &str) -> io::Result<Box<dyn Connection>> {
        let World { scene, cluster, network } = &*self.world;
        let client = self.client;
        network.thaw(client).await;
        sleep(scene.config.latency(&[3, client.into(), scene.now().as_micros() as u64])).await;
        network.reach(client).await;
        network.thaw(client).await;
        if cluster.outage().is_some_and(|outage| outage.kind == Silence::Down) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = network.connect(client);
        // Ends when the client's end is dropped.
        tokio::spawn(rpc::serve(far, self.world.members(&near.link)));
        Ok(Box::new(near))
    }
}

#[async_trait]
impl Surroundings for World {
    async fn thaw(&self, client: u8) {
        self.network.thaw(client).await;
    }

    fn freeze(&self, client: u8, so_long: Duration) {
        self.network.freeze(client, so_long);
    }

    fn crash(&self, client: u8) {
        self.network.crash(client);
    }

    fn interfere(&self, fault: Fault) {
        self.cluster.interfere(fault);
    }

    fn heal(&self) {
        self.network.heal();
        self.cluster.heal();
    }

    fn known_sessions(&self, client: u8) -> Vec<String> {
        self.cluster.known_sessions(client)
    }

    fn left(&self) -> Vec<(Option<u8>, String)> {
        self.cluster.left()
    }
}
