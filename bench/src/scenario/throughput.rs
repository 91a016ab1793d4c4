//! Independent keys, each locked and released by a task of its own, all through one client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Plan;
use crate::Outcome;
use crate::arm::Arm;
use crate::client::Client;
use crate::progress;
use crate::stats::Samples;
use crate::stores::Stores;

/// What one arm showed with so many keys.
pub struct Throughput {
    /// Which.
    pub arm: Arm,
    /// How many keys at once.
    pub keys: usize,
    /// Pairs of lock and release in a second.
    pub samples: Samples,
    /// Why it did not get through.
    pub failure: Option<String>,
}

const ARMS: [Arm; 7] = [Arm::RawEtcd, Arm::RawEtcdLine, Arm::Etcd, Arm::RawConsul, Arm::RawConsulGuarded, Arm::Consul, Arm::Fair];

/// How long all of it takes, about.
pub fn expected(plan: &Plan) -> Duration {
    const PAIR_OF_EACH: Duration = Duration::from_micros(1_500);
    let (rounds, least) = plan.throughput;
    let pairs: usize = plan.keys.iter().map(|&keys| keys + rounds * least.max(keys)).sum();
    PAIR_OF_EACH * pairs as u32
}

/// All arms in turns, for each number of keys.
pub async fn measure(stores: &Stores, plan: &Plan) -> Outcome<Vec<Throughput>> {
    let mut measured = Vec::new();
    let (rounds, least) = plan.throughput;
    for (nth, &keys) in plan.keys.iter().enumerate() {
        let mut clients = Vec::new();
        for arm in ARMS {
            let client = Arc::new(Client::connect(arm, &stores.place(arm)).await?);
            progress::say(&format!("throughput: {} with {keys} keys", arm.name()));
            // Every key is met, and every connection made.
            let failure = flood(&client, arm, keys, 1).await.err().map(|error| error.to_string());
            clients.push((client, Throughput { arm, keys, samples: Samples::default(), failure }));
        }
        for round in 0..rounds {
            progress::step(&format!("throughput with {keys} keys"), nth * rounds + round, plan.keys.len() * rounds);
            for (client, one) in clients.iter_mut().filter(|(_, one)| one.failure.is_none()) {
                match flood(client, one.arm, keys, least.div_ceil(keys)).await {
                    Ok(rate) => one.samples.add(vec![rate]),
                    Err(error) => one.failure = Some(error.to_string()),
                }
            }
        }
        for (client, arm) in clients {
            client.end().await?;
            measured.push(arm);
        }
    }
    Ok(measured)
}

/// Locks and releases each key so often, all keys at once; pairs in a second.
async fn flood(client: &Arc<Client>, arm: Arm, keys: usize, each: usize) -> Outcome<f64> {
    let began = Instant::now();
    // They end with their pairs, or with this.
    let mut tasks = JoinSet::new();
    for n in 0..keys {
        let (client, key) = (Arc::clone(client), format!("bench/throughput/{arm:?}/{n}"));
        tasks.spawn(async move {
            for _ in 0..each {
                let hold = client.lock(&key).await?;
                client.release(hold).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok((keys * each) as f64 / began.elapsed().as_secs_f64())
}
