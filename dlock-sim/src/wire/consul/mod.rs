//! The real Consul client against a [`FakeConsul`], which answers with the statuses, bodies and texts of a real one, as a test compares.
//!
//! The network lies behind the client's [`Transport`](dlock_consul::Transport), request by request.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Consul, ConsulOptions};
use dlock_core::TtlRange;

use super::life::Surroundings;
use super::scene::Scene;
use crate::plan::{Config, Fault};

mod cluster;
mod http;
mod network;
mod sites;
mod store;
mod txn;

use cluster::Cluster;
pub use http::{FakeConsul, Waits, Watched};
use network::{Line, Network};
pub use store::{Entry, Rules, Session, Store};

/// The servers and the way to them.
#[derive(Debug)]
pub(super) struct World {
    cluster: Arc<Cluster>,
    network: Arc<Network>,
    fair: bool,
}

impl World {
    /// With clients in fair mode, or without.
    pub(super) fn new(scene: &Arc<Scene>, fair: bool) -> Arc<Self> {
        let cluster = Cluster::new(Arc::clone(scene));
        // Ends with the runtime.
        tokio::spawn(Arc::clone(&cluster).lapse());
        let network = Network::new(Arc::clone(scene), Arc::clone(&cluster), fair);
        Arc::new(Self { cluster, network, fair })
    }

    /// The client that production uses, at one end of the network.
    pub(super) fn backend(&self, config: &Config, client: u8) -> Consul {
        let range = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
        let mut options = ConsulOptions::new().ttl_range(range).fair(self.fair);
        // Some must do with as few connections as there can be.
        if config.draw(&[5, client.into()]).is_multiple_of(4) {
            options = options.max_connections(ConsulOptions::LEAST_MAX_CONNECTIONS);
        }
        Consul::with_transport(&options, Arc::new(Line { network: Arc::clone(&self.network), client }))
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
    }

    fn known_sessions(&self, client: u8) -> Vec<String> {
        self.cluster.known_sessions(client)
    }

    fn left(&self) -> Vec<(Option<u8>, String)> {
        self.cluster.left()
    }
}
