//! Lock and release of a free key with an open session: how long, and how many requests.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Plan;
use crate::Outcome;
use crate::arm::Arm;
use crate::client::Client;
use crate::progress;
use crate::stats::{Samples, micros};
use crate::stores::{Stores, place};

/// What one arm showed.
pub struct Uncontended {
    /// Which.
    pub arm: Arm,
    /// Requests for a pair, where requests are sent.
    pub requests: Option<f64>,
    /// Microseconds of a pair.
    pub samples: Samples,
}

const ARMS: [Arm; 15] = [
    Arm::RawEtcd,
    Arm::Etcd,
    Arm::RawEtcdLine,
    Arm::LockService,
    Arm::RawConsul,
    Arm::RawConsulPool,
    Arm::RawConsulGuarded,
    Arm::Consul,
    Arm::RawConsulLine,
    Arm::Fair,
    Arm::RsConsul,
    Arm::RawSqlite,
    Arm::Sqlite,
    Arm::RawMemory,
    Arm::Memory,
];
/// Thirty bytes.
const KEY: &str = "billing/invoices/2026/00012345";
/// A process that meets a key for the first time may ask once more, and connects.
const WARM_UP: usize = 10;
/// Over so many pairs requests are counted.
const COUNTED: usize = 100;

/// How long all of it takes, about.
pub fn expected(plan: &Plan) -> Duration {
    const PAIR_OF_EACH: Duration = Duration::from_millis(6);
    const COUNTING: Duration = Duration::from_secs(3);
    const COMMAND_OF_EACH: Duration = Duration::from_millis(60);
    let (rounds, a_round) = plan.pairs;
    PAIR_OF_EACH * (rounds * a_round) as u32 + COUNTING + COMMAND_OF_EACH * plan.commands as u32
}

/// All arms in turns, then the commands, then the counts.
pub async fn measure(stores: &Stores, plan: &Plan) -> Outcome<Vec<Uncontended>> {
    let mut measured: Vec<Uncontended> = Vec::new();
    let mut clients = Vec::new();
    for arm in ARMS {
        let client = Arc::new(Client::connect(arm, &stores.place(arm)).await?);
        pairs(Arc::clone(&client), key(arm), WARM_UP).await?;
        clients.push(client);
        measured.push(Uncontended { arm, requests: None, samples: Samples::default() });
    }
    let (rounds, a_round) = plan.pairs;
    for round in 0..rounds {
        if round % 10 == 0 {
            progress::step("lock and release", round, rounds);
        }
        for turn in 0..ARMS.len() {
            // Nobody always comes after the same one.
            let place = (turn + round) % ARMS.len();
            measured[place].samples.add(pairs(Arc::clone(&clients[place]), key(ARMS[place]), a_round).await?);
        }
    }
    for client in &clients {
        client.end().await?;
    }
    for arm in &mut measured {
        arm.requests = requests(stores, arm.arm).await?;
    }
    for arm in [Arm::EtcdctlLock, Arm::ConsulLock] {
        progress::say(&format!("lock and release: {}", arm.name()));
        measured.push(Uncontended { arm, requests: None, samples: commands(stores, arm, plan.commands).await? });
    }
    Ok(measured)
}

/// Each arm has a key of its own, for arms share a store.
fn key(arm: Arm) -> String {
    format!("{KEY}/{arm:?}")
}

/// So many pairs, one after another, in a task as a service has it.
async fn pairs(client: Arc<Client>, key: String, count: usize) -> Outcome<Vec<f64>> {
    let task = async move {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            let hold = client.lock(&key).await?;
            client.release(hold).await?;
            times.push(micros(began.elapsed()));
        }
        Ok(times)
    };
    // Ends with the pairs; the caller waits for it.
    tokio::spawn(task).await?
}

/// Through a proxy that counts, apart from what is timed.
async fn requests(stores: &Stores, arm: Arm) -> Outcome<Option<f64>> {
    let Some(server) = arm.server() else { return Ok(None) };
    let proxy = stores.proxy(server).await?;
    let client = Arc::new(Client::connect(arm, &place(arm, proxy.address())).await?);
    pairs(Arc::clone(&client), key(arm), WARM_UP).await?;
    proxy.reset();
    pairs(Arc::clone(&client), key(arm), COUNTED).await?;
    let count = proxy.requests().len();
    client.end().await?;
    Ok(Some(count as f64 / COUNTED as f64))
}

/// The command, one after another, each from the start of its process to its end.
async fn commands(stores: &Stores, arm: Arm, count: usize) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let mut command = if arm == Arm::ConsulLock { stores.consul.command() } else { stores.etcd.command() };
        command.args(["lock", "bench/command", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let status = tokio::process::Command::from(command).kill_on_drop(true).status().await?;
        if !status.success() {
            return Err(format!("{}: {status}", arm.name()).into());
        }
        samples.add(vec![micros(began.elapsed())]);
    }
    Ok(samples)
}
