//! Tier B: the real `Locker` on the in-memory store, in virtual time.
//!
//! Every client is a `Life` of its own, with its own locker, its own network and some workers that share its session and its
//! gate; dlock's tasks run in it too, so that a pause stops and a crash ends all of them. Time is tokio's, paused, in steps of a millisecond.
//! A client's clock that runs slow is the store's that runs fast: all clients of a run drift alike.
//!
//! A run has two parts. Until some drawn moment faults strike; what is left of the rounds goes on once nothing of them is felt any more. A caller
//! whose reply was lost is not told, and a waiting request may last 75 seconds: so long after the last fault a waiter may have to wait for nothing.
//! Then every living client shuts down, and nothing may be left.

mod client;
mod life;
mod network;
mod tenure;
mod world;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use dlock::{Key, Locker, ShutdownReport};
use dlock_testkit::memory::{Control, Memory};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::client::Client;
use self::life::Life;
use self::network::{Link, ms};
use self::world::World;
use crate::history::Event;
use crate::plan::{Config, Plan};
use crate::run::Ran;

/// What the draw is for that all of dlock's own draws come from.
const SEED: u64 = 0;
/// What the draw is for that says how long faults strike.
const STORM: u64 = 4;

/// Runs a plan.
pub fn run(plan: &Plan) -> Ran {
    // A runtime of its own: where timers stand in its wheel depends on when it began.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| unreachable!("a runtime without I/O needs nothing of the system: {error}"));
    fastrand::seed(plan.config.draw(&[SEED]));
    runtime.block_on(simulate(plan))
}

async fn simulate(plan: &Plan) -> Ran {
    let config = &plan.config;
    let named =
        |name: String| Key::new(name).unwrap_or_else(|error| unreachable!("a letter and a number are a valid key: {error}"));
    let keys = plan
        .tenancy()
        .map_or_else(|| vec![named("k".to_owned())], |tenancy| (0..tenancy.keys()).map(|n| named(format!("k{n}"))).collect());
    let world = Arc::new(World::new(plan, keys));
    let memory = store(config, &world);
    let control = memory.control();
    let time = tokio::spawn(async move { control.keep_time().await });
    let clients: Vec<_> = (0..config.clients).map(|number| client(number, &memory, &world)).collect();
    for client in &clients {
        client.start();
    }

    // However it goes on, it ends: what is not answered by then is missing in the history.
    let rounds = u32::from(config.clients) * u32::from(config.rounds);
    let a_round = ms(config.hold_ms) * 2 + config.ttl() * 4 + ms(config.lock_delay_ms) + Duration::from_secs(2);
    let storm = config.ttl() + config.chance(&[STORM]).of(a_round * config.rounds.into());
    _ = timeout(storm, world.all_done()).await;
    sleep_until(world.calm_down()).await;
    world.note(None, Event::Healed);
    _ = timeout(a_round * rounds + LONGEST_WAIT * 2, world.all_done()).await;

    let alive: Vec<_> = clients.into_iter().filter(|client| !client.life.has_crashed()).collect();
    shut_down(&alive, &memory.control(), &world).await;
    // What crashed clients had lapses, and so do sessions whose opening was never answered.
    sleep(config.ttl() * 2 + ms(config.latency_ms) * 2).await;
    look_for_leftovers(&alive, &memory.control(), &world);
    time.abort();
    let (struck, history) = world.end();
    Ran { struck, history }
}

/// The longest that dlock waits for one answer.
const LONGEST_WAIT: Duration = Duration::from_secs(75);

fn store(config: &Config, world: &Arc<World>) -> Memory {
    let store = Memory::builder(config.profile).lapses_after_percent(config.lapses_after_percent);
    let store = store.lock_delay(ms(config.lock_delay_ms)).clock_fast_by(config.drift_ppm);
    store.calls_in_flight(NonZeroUsize::new(config.calls_in_flight.into())).observer(world.clone()).build()
}

fn client(number: u8, memory: &Memory, world: &Arc<World>) -> Arc<Client> {
    let life = Arc::new(Life::new(number, Arc::clone(world)));
    let link = Link { client: number, world: Arc::clone(world), control: memory.control() };
    let keeping = Arc::clone(&life);
    let builder = Locker::builder(memory.over(Arc::new(link))).ttl(world.config.ttl());
    let locker = builder.spawn_with(move |task| keeping.run(task)).build();
    let locker = locker.unwrap_or_else(|error| unreachable!("the ttl of a plan is valid: {error}"));
    Arc::new(Client { locker, life, world: Arc::clone(world), control: memory.control() })
}

/// Ends every client in good order, and notes what that left.
async fn shut_down(clients: &[Arc<Client>], control: &Control, world: &World) {
    let within = world.config.ttl() * 3 + Duration::from_secs(10);
    join_all(clients.iter().map(|client| async move {
        let began = Instant::now();
        let ShutdownReport { left, closed, .. } = client.locker.shutdown(within).await;
        let number = Some(client.life.client);
        // A session whose opening was never answered is told as not closed; what really stays is looked for at the end.
        if !left.is_empty() || began.elapsed() >= within {
            let what = format!("a shutdown left {} locks, all sessions closed: {closed}", left.len());
            world.note(number, Event::Left { what });
        }
        // Where sessions can live on without their clients' knowledge, what they have is only gone later.
        let claims = if world.sessions_lived_on() { Vec::new() } else { control.claims() };
        for (_, _, claim) in claims {
            if let Some((whose, op)) = world.whose(claim)
                && Some(whose) == number
            {
                world.note(number, Event::Left { what: format!("a claim of {op} after the shutdown of its client") });
            }
        }
    }))
    .await;
}

/// Notes what is there when nothing should be.
fn look_for_leftovers(clients: &[Arc<Client>], control: &Control, world: &World) {
    for client in clients {
        let tasks = client.life.tasks_left();
        if tasks > 0 {
            world.note(Some(client.life.client), Event::Left { what: format!("{tasks} tasks after a shutdown") });
        }
    }
    for (_, _, claim) in control.claims() {
        let whose = world.whose(claim);
        world.note(whose.map(|(client, _)| client), Event::Left { what: "a claim at the store".to_owned() });
    }
    let sessions = control.sessions().len();
    if sessions > 0 {
        world.note(None, Event::Left { what: format!("{sessions} sessions at the store") });
    }
}
