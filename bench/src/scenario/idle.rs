//! Locks that are just held: what they cost the server, and their process.

use std::time::Duration;

use dlock_testkit::proxy::{FaultProxy, Matching};

use super::Plan;
use crate::Outcome;
use crate::arm::Arm;
use crate::progress;
use crate::stores::{Stores, place};
use crate::worker::{Holder, Kept};

/// What one arm showed with so many locks.
pub struct Idle {
    /// Which.
    pub arm: Arm,
    /// How many were held.
    pub locks: usize,
    /// How many of them were still held at the end of it.
    pub held: usize,
    /// For how long.
    pub watched: Duration,
    /// Renewals of the session in that time.
    pub renewals: usize,
    /// Other requests in that time.
    pub others: usize,
    /// Connections at the end of it.
    pub connections: usize,
    /// What they cost their process at the end of it.
    pub kept: Kept,
}

/// Until everything is watched that will be.
const SETTLE: Duration = Duration::from_secs(2);

/// All arms at once, each through a proxy and in a process of its own.
pub async fn measure(stores: &Stores, plan: &Plan) -> Outcome<Vec<Idle>> {
    let mut holding = Vec::new();
    for arm in [Arm::Etcd, Arm::Consul, Arm::RsConsul] {
        for &locks in plan.held {
            let proxy = stores.proxy(arm.server().ok_or("this arm asks no server")?).await?;
            let holder = Holder::start(arm, &place(arm, proxy.address()), locks)?;
            holding.push((arm, locks, proxy, holder));
        }
    }
    for (arm, locks, _, holder) in &mut holding {
        progress::say(&format!("idle: {} takes {locks} locks", arm.name()));
        holder.ready().await?;
    }
    tokio::time::sleep(SETTLE).await;
    for (_, _, proxy, _) in &holding {
        proxy.reset();
    }
    progress::step(&format!("idle: all are held for {:?}", plan.idle), 0, 1);
    tokio::time::sleep(plan.idle).await;
    let mut measured = Vec::new();
    for (arm, locks, proxy, holder) in holding {
        let (renewals, others) = counts(&proxy);
        let connections = connections(proxy.address().port())?;
        let held = stores.held(arm, &held_under(arm, locks)).await?;
        let kept = holder.kept().await?;
        measured.push(Idle { arm, locks, held, watched: plan.idle, renewals, others, connections, kept });
    }
    Ok(measured)
}

/// How the names of all keys begin that are held by so many locks of an arm; others hold at the same time.
pub fn held_under(arm: Arm, locks: usize) -> String {
    format!("bench/held/{arm:?}/{locks}/")
}

/// How long all of it takes, about.
pub fn expected(plan: &Plan) -> Duration {
    const TAKING: Duration = Duration::from_secs(6);
    TAKING + SETTLE + plan.idle
}

/// Connections of this machine that lead to a port of it and are open.
fn connections(port: u16) -> Outcome<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let leads = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        let (remote, state) = (columns.next(), columns.next());
        remote.is_some_and(|remote| remote.ends_with(&format!(":{port:04X}"))) && state == Some("01")
    };
    Ok(table.lines().filter(leads).count())
}

fn counts(proxy: &FaultProxy) -> (usize, usize) {
    let renewal = ["/v1/session/renew", "/etcdserverpb.Lease/LeaseKeepAlive"];
    let renewals = renewal.iter().map(|path| proxy.count(&Matching::any().path(path))).sum();
    (renewals, proxy.requests().len() - renewals)
}
