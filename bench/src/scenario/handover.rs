//! From the call that gives a lock back to the return of the next call that takes it.
//!
//! All contenders take the lock over and over in processes of their own, so that there is always the same number of waiters. They note times on the
//! clock that all processes of a machine share.

use super::Plan;
use crate::Outcome;
use crate::arm::Arm;
use crate::progress;
use crate::stats::Samples;
use crate::stores::Stores;
use crate::worker::{Contend, Crew, Tenure};

/// Where those who wait live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All tasks of one process, which share a locker.
    OneProcess,
    /// Spread over up to ten processes, each contender with a session of its own.
    Spread,
}

/// What one arm showed with so many waiters.
pub struct Handover {
    /// Which.
    pub arm: Arm,
    /// Where they waited.
    pub placement: Placement,
    /// How many waited.
    pub waiters: usize,
    /// Microseconds from the release call to the next grant.
    pub samples: Samples,
}

/// So many processes at most.
const PROCESSES: usize = 10;
/// Of a round so much is not counted, until all wait.
const WARM_UP: f64 = 0.25;

impl Placement {
    /// What people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneProcess => "one process",
            Self::Spread => "several processes",
        }
    }

    /// How many clients each process has, and how many tasks each client.
    fn crews(self, arm: Arm, contenders: usize) -> Vec<(usize, usize)> {
        match self {
            // A bare client knows nothing of its neighbours: two of one process wait for the store, like two of two processes.
            Self::OneProcess if arm.floor().is_none() => vec![(contenders, 1)],
            Self::OneProcess => vec![(1, contenders)],
            Self::Spread => {
                let processes = contenders.min(PROCESSES);
                (0..processes).map(|n| ((contenders + n) / processes, 1)).collect()
            }
        }
    }
}

/// All arms in turns.
pub async fn measure(stores: &Stores, plan: &Plan) -> Outcome<Vec<Handover>> {
    let mut measured = arms(plan.waiters);
    let (rounds, usual) = plan.handovers;
    for round in 0..rounds {
        for arm in &mut measured {
            let Handover { arm, placement, waiters, samples } = arm;
            progress::step(&format!("handover: {}, {waiters} waiting in {}", arm.name(), placement.name()), round, rounds);
            let crews = placement.crews(*arm, *waiters + 1);
            // Its tenures are longer.
            let length = if *arm == Arm::LockService { usual * 3 } else { usual };
            let order = Contend {
                arm: *arm,
                place: stores.place(*arm),
                key: format!("bench/handover/{round}/{waiters}/{placement:?}/{arm:?}"),
                length,
            };
            samples.add(handovers(race(&order, &crews).await?, WARM_UP));
        }
    }
    Ok(measured)
}

fn arms(waiters: &[usize]) -> Vec<Handover> {
    let mut arms = Vec::new();
    let mut add = |arm, placement, waiters| arms.push(Handover { arm, placement, waiters, samples: Samples::default() });
    for placement in [Placement::Spread, Placement::OneProcess] {
        for arm in [Arm::RawEtcd, Arm::RawConsul] {
            add(arm, placement, 1);
        }
        for &waiters in waiters {
            for arm in [Arm::Etcd, Arm::Consul, Arm::Fair] {
                add(arm, placement, waiters);
            }
        }
    }
    add(Arm::LockService, Placement::Spread, 1);
    arms
}

/// Lets all crews contend for the key; their tenures.
async fn race(order: &Contend, crews: &[(usize, usize)]) -> Outcome<Vec<Tenure>> {
    let mut running = Vec::new();
    for &(clients, tasks) in crews {
        running.push(Crew::start(order, clients, tasks)?);
    }
    for crew in &mut running {
        crew.ready().await?;
    }
    for crew in &mut running {
        crew.go().await?;
    }
    let mut tenures = Vec::new();
    for crew in running {
        tenures.extend(crew.tenures().await?);
    }
    Ok(tenures)
}

/// Microseconds between each release call and the next grant, after the beginning.
fn handovers(mut tenures: Vec<Tenure>, warm_up: f64) -> Vec<f64> {
    tenures.sort_unstable_by_key(|tenure| tenure.granted);
    let (Some(first), Some(last)) = (tenures.first(), tenures.last()) else { return Vec::new() };
    let from = first.granted + ((last.granted - first.granted) as f64 * warm_up) as u64;
    let next = tenures.windows(2).filter(|pair| pair[0].granted >= from);
    // One who is granted before the other asked to release would be a broken lock.
    next.map(|pair| (pair[1].granted as f64 - pair[0].released as f64) / 1e3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handovers_count_from_the_release_call_to_the_next_grant() {
        let tenure = |granted, released| Tenure { granted, released };
        let tenures = vec![tenure(20_000, 30_000), tenure(0, 10_000), tenure(33_000, 40_000)];
        assert_eq!(handovers(tenures.clone(), 0.0), [10.0, 3.0]);
        assert_eq!(handovers(tenures, 0.5), [3.0]);
        assert!(handovers(Vec::new(), 0.5).is_empty());
    }

    #[test]
    fn every_contender_has_a_place() {
        for contenders in [2, 11, 101] {
            for placement in [Placement::OneProcess, Placement::Spread] {
                let crews = placement.crews(Arm::Etcd, contenders);
                assert_eq!(crews.iter().map(|(clients, tasks)| clients * tasks).sum::<usize>(), contenders);
                assert!(crews.len() <= PROCESSES && crews.iter().all(|(clients, _)| *clients > 0));
            }
        }
    }
}
