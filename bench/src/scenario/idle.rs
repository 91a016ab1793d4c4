//! Locks that are just held: what they cost the server, and their process.

use std::time::Duration;

use dlock_testkit::proxy::{FaultProxy, Matching};

use super::Plan;
use crate::Outcome;
use crate::arm::Arm;
use crate::progress;
use crate::stores::{Stores, place};
use crate::worker::Holder;

/// What one arm showed with so many locks.
pub struct Idle {
    /// Which.
    pub arm: Arm,
    /// How many were held.
    pub locks: usize,
    /// For how long.
    pub watched: Duration,
    /// Renewals of the session in that time.
    pub renewals: usize,
    /// Other requests in that time.
    pub others: usize,
    /// The most connections at once, with those that took the locks.
    pub connections: usize,
    /// Bytes of heap for each lock beyond the first; `None` for a single one.
    pub heap: Option<f64>,
}

/// Until everything is watched that will be.
const SETTLE: Duration = Duration::from_secs(2);

/// All arms at once, each through a proxy and in a process of its own.
pub async fn measure(stores: &Stores, plan: &Plan) -> Outcome<Vec<Idle>> {
    let mut holding = Vec::new();
    for arm in [Arm::Etcd, Arm::Consul] {
        for &locks in plan.held {
            progress::say(&format!("idle: {} takes {locks} locks", arm.name()));
            let proxy = stores.proxy(arm.server().ok_or("it has a server")?).await?;
            let mut holder = Holder::start(arm, &place(arm, proxy.address()), locks)?;
            holder.ready().await?;
            holding.push((arm, locks, proxy, holder));
        }
    }
    tokio::time::sleep(SETTLE).await;
    holding.iter().for_each(|(_, _, proxy, _)| proxy.reset());
    progress::say(&format!("idle: all are held for {:?}", plan.idle));
    tokio::time::sleep(plan.idle).await;
    let mut measured = Vec::new();
    for (arm, locks, proxy, holder) in holding {
        let (renewals, others) = counts(&proxy);
        let connections = proxy.most_connections();
        let heap = holder.heap().await?;
        measured.push(Idle { arm, locks, watched: plan.idle, renewals, others, connections, heap });
    }
    Ok(measured)
}

fn counts(proxy: &FaultProxy) -> (usize, usize) {
    let renewal = ["/v1/session/renew", "/etcdserverpb.Lease/LeaseKeepAlive"];
    let renewals = renewal.iter().map(|path| proxy.count(&Matching::any().path(path))).sum();
    (renewals, proxy.requests().len() - renewals)
}
