//! Tier C: the real `Locker` on the real Consul client, against a fake Consul over a simulated network, in virtual time.
//!
//! The client is the one that production uses, down to its requests; behind its [`Transport`](dlock_consul::Transport) a [`FakeConsul`] answers
//! with the statuses, bodies and texts of a real one, which a test compares. One plan is one history.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock::Locker;
use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{LockBackend, TtlRange};
use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::history::Event;
use crate::plan::{Config, Fault, Plan};
use crate::run::Ran;

mod cluster;
mod http;
mod life;
mod network;
mod scene;
mod sites;
mod store;
mod txn;

use cluster::{Cluster, KEY, OP};
pub use http::{FakeConsul, Waits, Watched};
use life::{Life, Surroundings};
use network::{Line, Network};
use scene::Scene;
pub use store::{Entry, Rules, Session, Store};

/// Runs a plan. The profile of its store says nothing here: a fake Consul is like a Consul.
pub fn run(plan: &Plan) -> Ran {
    let _chance = Chance::from_seed(plan.config.seed);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| unreachable!("a runtime without sockets needs nothing of the system: {error}"));
    runtime.block_on(simulate(plan))
}

/// Lets this thread draw from a seed, and from where it was before once dropped.
struct Chance(fastrand::Rng);

impl Chance {
    fn from_seed(seed: u64) -> Self {
        let before = fastrand::Rng::new();
        fastrand::seed(seed);
        Self(before)
    }
}

impl Drop for Chance {
    fn drop(&mut self) {
        fastrand::seed(self.0.u64(..));
    }
}

async fn simulate(plan: &Plan) -> Ran {
    let scene = Arc::new(Scene::new(plan));
    let cluster = Cluster::new(Arc::clone(&scene));
    // Ends with the runtime.
    tokio::spawn(Arc::clone(&cluster).lapse());
    let network = Network::new(Arc::clone(&scene), Arc::clone(&cluster));
    let around: Arc<dyn Surroundings> = Arc::new(World { cluster: Arc::clone(&cluster), network: Arc::clone(&network) });
    let mut lives = begin(&scene, &around, |client| consul(&plan.config, &network, client));
    let mut alive = Vec::new();
    _ = timeout(storm(&plan.config), gather(&mut lives, &mut alive)).await;
    network.heal();
    scene.calm_down();
    // Those who get no answer by then never will; the history shows it.
    _ = timeout(patience(&plan.config), gather(&mut lives, &mut alive)).await;
    lives.shutdown().await;
    alive.sort_by_key(|(client, _)| *client);
    leave(&scene, &cluster, alive).await;
    scene.ran()
}

/// Starts every client's life, each on a backend of its own.
fn begin<B: LockBackend>(
    scene: &Arc<Scene>,
    around: &Arc<dyn Surroundings>,
    backend: impl Fn(u8) -> B,
) -> JoinSet<Option<(u8, Locker)>> {
    let mut lives = JoinSet::new();
    for client in 0..scene.config.clients {
        let builder = Locker::builder(backend(client)).ttl(scene.config.ttl()).name(format!("client-{client}"));
        let locker = builder.build().unwrap_or_else(|error| unreachable!("plans draw what the store accepts: {error}"));
        let (scene, around) = (Arc::clone(scene), Arc::clone(around));
        let life = Life { client, locker, scene, around, key: KEY, op_name: OP };
        lives.spawn(async move { Some((client, life.live().await?)) });
    }
    lives
}

/// Takes in the lockers of those whose rounds are over, until all are. Free to drop.
async fn gather(lives: &mut JoinSet<Option<(u8, Locker)>>, alive: &mut Vec<(u8, Locker)>) {
    while let Some(ended) = lives.join_next().await {
        alive.extend(ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
}

/// The client that production uses, at one end of the network.
fn consul(config: &Config, network: &Arc<Network>, client: u8) -> Consul {
    let range = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    let mut options = ConsulOptions::new().ttl_range(range);
    // Some must do with as few connections as there can be.
    if config.draw(&[5, client.into()]).is_multiple_of(4) {
        options = options.max_connections(ConsulOptions::LEAST_MAX_CONNECTIONS);
    }
    Consul::with_transport(&options, Arc::new(Line { network: Arc::clone(network), client }))
}

/// How long things go wrong: about as long as all rounds take.
fn storm(config: &Config) -> Duration {
    let rounds = u32::from(config.clients) * u32::from(config.rounds);
    Duration::from_millis((rounds * config.hold_ms / 2 + 4 * config.ttl_ms).into())
}

/// How long clients get from then on to end their rounds: far more than they need, and a bound.
fn patience(config: &Config) -> Duration {
    let rounds = u32::from(config.clients) * u32::from(config.rounds);
    // A waiting request whose answer was lost is given up after a minute.
    let once = Duration::from_millis((3 * config.ttl_ms + config.hold_ms + config.lock_delay_ms).into()) + Duration::from_secs(10);
    once * (rounds + 1) + Duration::from_secs(120)
}

/// Every client that lives shuts down; what it leaves behind is told.
async fn leave(scene: &Scene, cluster: &Cluster, alive: Vec<(u8, Locker)>) {
    let ttl = scene.config.ttl();
    let leaving = alive.iter().map(|(client, locker)| async move {
        let (began, within) = (Instant::now(), 4 * ttl + Duration::from_secs(10));
        let report = locker.shutdown(within).await;
        // A session whose opening was never answered is told as not closed; what really stays is looked for at the end.
        let unclean = !report.left.is_empty() || began.elapsed() >= within;
        let unclean = unclean.then(|| format!("{report:?}"));
        let sessions = cluster.known_sessions(*client).into_iter().map(|id| format!("session {id}, of which it knows"));
        for what in unclean.into_iter().chain(sessions) {
            scene.push(Some(*client), Event::Left { what });
        }
    });
    join_all(leaving).await;
    drop(alive);
    // By then what is still under way has arrived, what nobody renews has lapsed, and no request waits any more.
    sleep((8 * ttl).max(Duration::from_secs(90))).await;
    for (client, what) in cluster.left() {
        scene.push(client, Event::Left { what });
    }
    // One task is the store's own.
    let tasks = Handle::current().metrics().num_alive_tasks() - 1;
    if tasks > 0 {
        scene.push(None, Event::Left { what: format!("{tasks} tasks") });
    }
}

/// What surrounds the clients here.
#[derive(Debug)]
struct World {
    cluster: Arc<Cluster>,
    network: Arc<Network>,
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
}
