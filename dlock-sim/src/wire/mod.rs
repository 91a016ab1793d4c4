//! Tier C: the real `Locker` on the real client of a backend, against a fake server over a simulated network, in virtual time.
//!
//! The client is the one that production uses, down to its requests. What differs from one store to the next is what surroundings its
//! clients have: the servers, and the way to them. One plan is one history.

use std::sync::Arc;
use std::time::Duration;

use dlock::Locker;
use dlock_core::LockBackend;
use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::history::Event;
use crate::plan::{Config, Plan, Tier};
use crate::run::Ran;

pub mod consul;
pub mod etcd;
mod life;
mod scene;

use life::{Life, Surroundings};
use scene::Scene;

/// Runs a plan. Which store it is, its tier says: a fake Consul is like a Consul, a fake etcd like an etcd.
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
    if plan.tier == Tier::WireEtcd {
        let world = etcd::World::new(&scene);
        let around: Arc<dyn Surroundings> = Arc::clone(&world) as _;
        live_through(&scene, &around, |client| world.backend(&plan.config, client)).await;
    } else {
        let world = consul::World::new(&scene, plan.tier == Tier::WireFair);
        let around: Arc<dyn Surroundings> = Arc::clone(&world) as _;
        live_through(&scene, &around, |client| world.backend(&plan.config, client)).await;
    }
    scene.ran()
}

/// All lives, from the first request until everybody has left.
async fn live_through<B: LockBackend>(scene: &Arc<Scene>, around: &Arc<dyn Surroundings>, backend: impl Fn(u8) -> B) {
    let mut lives = begin(scene, around, backend);
    let mut alive = Vec::new();
    _ = timeout(storm(&scene.config), gather(&mut lives, &mut alive)).await;
    around.heal();
    scene.calm_down();
    // Those who get no answer by then never will; the history shows it.
    _ = timeout(patience(&scene.config), gather(&mut lives, &mut alive)).await;
    lives.shutdown().await;
    alive.sort_by_key(|(client, _)| *client);
    leave(scene, around.as_ref(), alive).await;
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
        let life = Life { client, locker, scene, around };
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
async fn leave(scene: &Scene, around: &dyn Surroundings, alive: Vec<(u8, Locker)>) {
    let ttl = scene.config.ttl();
    let leaving = alive.iter().map(|(client, locker)| async move {
        let (began, within) = (Instant::now(), 4 * ttl + Duration::from_secs(10));
        let report = locker.shutdown(within).await;
        // A session whose opening was never answered is told as not closed; what really stays is looked for at the end.
        let unclean = !report.left.is_empty() || began.elapsed() >= within;
        let unclean = unclean.then(|| format!("{report:?}"));
        let sessions = around.known_sessions(*client).into_iter().map(|id| format!("session {id}, of which it knows"));
        for what in unclean.into_iter().chain(sessions) {
            scene.push(Some(*client), Event::Left { what });
        }
    });
    join_all(leaving).await;
    drop(alive);
    // By then what is still under way has arrived, what nobody renews has lapsed, and no request waits any more.
    sleep((8 * ttl).max(Duration::from_secs(90))).await;
    for (client, what) in around.left() {
        scene.push(client, Event::Left { what });
    }
    // One task is the store's own.
    let tasks = Handle::current().metrics().num_alive_tasks() - 1;
    if tasks > 0 {
        scene.push(None, Event::Left { what: format!("{tasks} tasks") });
    }
}
