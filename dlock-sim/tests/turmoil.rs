//! The real locker on the unmodified etcd-client, on turmoil: a simulated network that is not ours, with hosts whose clocks are their own.
//!
//! Campaigns run on the network in `dlock_sim::wire::etcd`, which leaps over idle time; turmoil ticks through it. Here it shows that what is
//! found there does not hang on how that network treats connections: turmoil loses what it cannot deliver, and never sends it again.
//! `DLOCK_SIM_SEEDS=a..b` chooses other seeds.
#![allow(missing_docs)]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dlock::{FencingToken, Locker};
use dlock_etcd::{Connection, Dialer, Etcd, EtcdOptions};
use dlock_sim::campaign::seeds_or;
use dlock_sim::plan::hash;
use dlock_sim::wire::etcd::FakeEtcd;
use tokio::time::sleep;
use turmoil::net::{TcpListener, TcpStream};
use turmoil::{Builder, Sim};

const CLIENTS: [&str; 3] = ["a", "b", "c"];
const ROUNDS: u64 = 4;
const TTL: Duration = Duration::from_secs(2);

/// What happened, in order: when, to whom, what, and with which token.
type Told = Arc<Mutex<Vec<(Duration, &'static str, &'static str, u64)>>>;

/// Connections over turmoil's network.
#[derive(Debug)]
struct Turmoil;

#[async_trait]
impl Dialer for Turmoil {
    async fn dial(&self, endpoint: &str) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(TcpStream::connect(endpoint).await?))
    }
}

async fn etcd() -> turmoil::Result {
    let etcd = Arc::new(FakeEtcd::start());
    let listener = TcpListener::bind("0.0.0.0:2379").await?;
    loop {
        let (connection, _) = listener.accept().await?;
        let etcd = Arc::clone(&etcd);
        tokio::spawn(async move { etcd.serve(connection).await });
    }
}

/// Takes the lock round after round, and writes under it; a lost lock is taken anew.
async fn life(name: &'static str, seed: u64, told: Told) -> turmoil::Result {
    let tell = |what, token| {
        told.lock().unwrap().push((turmoil::sim_elapsed().unwrap(), name, what, token));
    };
    let draw = |what: u64, most: u64| Duration::from_millis(hash(&[seed, u64::from(name.as_bytes()[0]), what]) % most);
    let options = EtcdOptions::new().endpoints(["etcd:2379"])?;
    let locker = Locker::builder(Etcd::with_dialer(&options, Arc::new(Turmoil))?).ttl(TTL).name(name).build()?;
    for round in 0..ROUNDS {
        sleep(draw(10 * round, 500)).await;
        let guard = loop {
            match locker.lock("one").await {
                Ok(guard) => break guard,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let token = guard.token().map_or(0, FencingToken::get);
        tell("holds", token);
        for step in 1..4 {
            sleep(draw(10 * round + step, 1_500)).await;
            if guard.check().is_err() {
                break;
            }
            tell("writes", token);
        }
        match guard.check() {
            Ok(()) => tell("gives back", token),
            Err(_) => tell("lost", token),
        }
        _ = guard.release().await;
    }
    locker.shutdown(Duration::from_secs(10)).await;
    tell("ends", 0);
    Ok(())
}

/// Cuts clients off, or holds up what they send, now and then in the first 30 seconds.
fn disturb(sim: &Sim<'_>, seed: u64, second: u64) {
    if second >= 30 {
        for client in CLIENTS {
            sim.release(client, "etcd");
            sim.repair(client, "etcd");
        }
        return;
    }
    let bits = hash(&[seed, 0xD1, second]);
    let client = CLIENTS[(bits >> 8) as usize % CLIENTS.len()];
    match bits % 5 {
        0 => sim.partition(client, "etcd"),
        1 => sim.hold(client, "etcd"),
        2 => sim.release(client, "etcd"),
        3 => sim.repair(client, "etcd"),
        _ => {}
    }
}

fn simulate(seed: u64) -> Vec<(Duration, &'static str, &'static str, u64)> {
    fastrand::seed(seed);
    let mut builder = Builder::new();
    builder.rng_seed(seed).simulation_duration(Duration::from_secs(600)).tick_duration(Duration::from_millis(2));
    let mut sim = builder.max_message_latency(Duration::from_millis(20)).tcp_capacity(4_096).build();
    let told = Told::default();
    sim.host("etcd", etcd);
    for name in CLIENTS {
        sim.client(name, life(name, seed, Arc::clone(&told)));
    }
    let mut second = 0;
    loop {
        let over = sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if over {
            break;
        }
        if sim.elapsed().as_secs() > second {
            second += 1;
            disturb(&sim, seed, second);
        }
    }
    drop(sim);
    Arc::try_unwrap(told).unwrap().into_inner().unwrap()
}

#[test]
fn the_lock_excludes_on_a_network_that_loses_what_it_cannot_deliver() {
    let (mut schedules, mut writes, mut lost) = (0, 0, 0);
    for seed in seeds_or(0..10) {
        let told = simulate(seed);
        let mut highest = 0;
        for (at, name, what, token) in &told {
            match *what {
                "writes" => {
                    assert!(*token >= highest, "seed {seed}: {name} writes with {token} after {highest}, at {at:?}: {told:?}");
                    highest = *token;
                    writes += 1;
                }
                "lost" => lost += 1,
                _ => {}
            }
        }
        let ended = told.iter().filter(|(_, _, what, _)| *what == "ends").count();
        assert_eq!(ended, CLIENTS.len(), "seed {seed}: everybody ends: {told:?}");
        assert_eq!(told, simulate(seed), "seed {seed} is one history");
        schedules += 1;
    }
    println!(
        "proof: turmoil: {schedules} schedules of the unmodified etcd-client, each twice the same, {writes} writes, {lost} locks lost"
    );
    assert!(lost > 0, "nobody lost anything: the network is too kind");
}
