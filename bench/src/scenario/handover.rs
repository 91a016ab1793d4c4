//! From the call that gives a lock back to the return of the next call that takes it.
//!
//! All contenders take the lock over and over in processes of their own, so that there is always the same number of waiters. They note times on the
//! clock that all processes of a machine share.

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::sleep;

use super::Plan;
use crate::Outcome;
use crate::arm::Arm;
use crate::progress;
use crate::stats::Samples;
use crate::stores::{Stores, place};
use crate::worker::{Contend, Crew, Tenure, now};

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
    /// Requests of all contenders for each tenure; `None` for what was not counted.
    pub requests: Option<f64>,
    /// Why a peer did not get through.
    pub failure: Option<String>,
}

/// Those whose handover from one process to the other is held against that of the bare pair.
pub const JUDGED: [Arm; 3] = [Arm::Etcd, Arm::Consul, Arm::Fair];
/// Those of them that stand in line, so that many who wait may not cost much more than one.
pub const JUDGED_IN_LINE: [Arm; 2] = [Arm::Etcd, Arm::Fair];
/// Of a round so much is counted.
const COUNTED: f64 = 0.6;
/// So many contenders are counted at once, where none has more: whoever is kept from waiting again in time makes fewer requests.
const AT_ONCE: usize = 33;
/// So many processes at most.
const PROCESSES: usize = 10;
/// Of a round so much is not counted, until all wait.
const WARM_UP: f64 = 0.25;
/// How long a contender holds the lock.
const HOLD: Duration = Duration::from_millis(8);
/// How long one of the lock service's has waited before it is handed the lock, at least: it hears up to 100 ms late of a release if it has not
/// waited for so long, and is not to be blamed for short tenures.
const WAIT_OF_SERVICE: Duration = Duration::from_millis(150);
/// How long the command holds the lock: until the next process has started, and waits.
const HOLD_OF_COMMAND: Duration = Duration::from_millis(100);
/// So many commands wait at most: each is a process.
const COMMANDS: usize = 10;

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
            Self::OneProcess if arm.is_dlock() => vec![(1, contenders)],
            // A bare client knows nothing of its neighbours: two of one process wait for the store, like two of two processes.
            Self::OneProcess => vec![(contenders, 1)],
            Self::Spread => {
                let processes = contenders.min(PROCESSES);
                (0..processes).map(|n| ((contenders + n) / processes, 1)).collect()
            }
        }
    }
}

impl Handover {
    fn new(arm: Arm, placement: Placement, waiters: usize) -> Self {
        Self { arm, placement, waiters, samples: Samples::default(), requests: None, failure: None }
    }

    /// How long each holds the lock.
    fn hold(&self) -> Duration {
        match self.arm {
            Arm::LockService => HOLD.max(WAIT_OF_SERVICE / self.waiters.max(1) as u32),
            arm if arm.is_command() => HOLD_OF_COMMAND,
            _ => HOLD,
        }
    }

    /// One round, beside which something else is done once it has begun; the tenures, and what that brought.
    async fn race<T>(&self, place: String, name: &str, plan: &Plan, beside: impl AsyncFnOnce() -> T) -> Outcome<(Vec<Tenure>, T)> {
        let Self { arm, placement, waiters, .. } = *self;
        let key = format!("bench/handover/{name}/{waiters}/{placement:?}/{arm:?}");
        let order = Contend { arm, place, key, length: self.length(plan), hold: self.hold() };
        let mut running = Vec::new();
        for (clients, tasks) in placement.crews(arm, waiters + 1) {
            running.push(Crew::start(&order, clients, tasks)?);
        }
        for crew in &mut running {
            crew.ready().await?;
        }
        for crew in &mut running {
            crew.go().await?;
        }
        let brought = beside().await;
        let mut tenures = Vec::new();
        for crew in running {
            tenures.extend(crew.tenures().await?);
        }
        if tenures.len() < 2 {
            return Err("the lock was not handed over".into());
        }
        Ok((tenures, brought))
    }

    /// Counts the requests of one more round, in the midst of it and through a proxy.
    async fn count(&mut self, stores: &Stores, plan: &Plan) -> Outcome<()> {
        let proxy = stores.proxy(self.arm.server().ok_or("this arm asks no server")?).await?;
        let length = self.length(plan);
        let beside = async || {
            sleep(length.mul_f64(WARM_UP)).await;
            proxy.reset();
            let from = now();
            sleep(length.mul_f64(COUNTED)).await;
            (proxy.requests().len(), from..now())
        };
        match self.race(place(self.arm, proxy.address()), "counted", plan, beside).await {
            Ok((tenures, (requests, while_counted))) => {
                let counted = tenures.iter().filter(|tenure| while_counted.contains(&tenure.granted)).count();
                self.requests = (counted > 0).then(|| requests as f64 / counted as f64);
                Ok(())
            }
            Err(error) if self.arm.is_peer() => {
                self.failure = Some(error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a verdict hangs on it.
    fn is_judged(&self, plan: &Plan) -> bool {
        let is_judged = match self.waiters {
            1 => JUDGED.map(|arm| [arm, arm.handover_floor()]).as_flattened().contains(&self.arm),
            waiters => waiters == plan.most_waiters() && JUDGED_IN_LINE.contains(&self.arm),
        };
        self.placement == Placement::Spread && is_judged
    }

    /// How long a round lasts: longer where tenures are, and shorter where one waits and is judged, since there are more of those.
    fn length(&self, plan: &Plan) -> Duration {
        let usual = if self.is_judged(plan) && self.waiters == 1 { plan.handovers_judged.1 } else { plan.handovers.1 };
        usual.mul_f64(self.hold().div_duration_f64(HOLD).clamp(1.0, 3.0))
    }

    /// How many rounds there are: fewer of commands, which take long and are far from all others.
    fn rounds(&self, plan: &Plan) -> usize {
        let (usual, _) = plan.handovers;
        match self.arm {
            _ if self.is_judged(plan) => plan.handovers_judged.0,
            arm if arm.is_command() => usual.div_ceil(2),
            _ => usual,
        }
    }

    /// How long all rounds take, about.
    fn expected(&self, plan: &Plan) -> Duration {
        // To start processes, to connect, and to end.
        let beside = Duration::from_millis(300) + Duration::from_millis(5) * self.waiters as u32;
        (self.length(plan) + beside) * self.rounds(plan) as u32
    }
}

/// How long all of it takes, about.
pub fn expected(plan: &Plan) -> Duration {
    let arms = arms(plan);
    let counting = arms.iter().map(|arm| arm.expected(plan) / arm.rounds(plan) as u32 / AT_ONCE.div_ceil(arm.waiters + 1) as u32);
    arms.iter().map(|arm| arm.expected(plan)).chain(counting).sum()
}

/// All arms in turns.
pub async fn measure(stores: &Stores, plan: &Plan) -> Outcome<Vec<Handover>> {
    let mut measured = arms(plan);
    let steps: usize = measured.iter().map(|one| one.rounds(plan)).sum();
    let mut step = 0;
    let rounds = measured.iter().map(|one| one.rounds(plan)).max().unwrap_or_default();
    for round in 0..rounds {
        for one in measured.iter_mut().filter(|one| round < one.rounds(plan)) {
            let Handover { arm, placement, waiters, .. } = *one;
            progress::step(&format!("handover: {}, {waiters} waiting in {}", arm.name(), placement.name()), step, steps);
            step += 1;
            let tenures = match one.race(stores.place(arm), &format!("timed/{round}"), plan, async || ()).await {
                Err(error) if arm.is_peer() => {
                    progress::say(&format!("{} did not get through: {error}", arm.name()));
                    one.failure = Some(error.to_string());
                    Vec::new()
                }
                raced => raced?.0,
            };
            one.samples.add(handovers(tenures, WARM_UP));
        }
    }
    for &waiters in plan.waiters {
        progress::say(&format!("handover: requests with {waiters} waiting"));
        let counted = |one: &&mut Handover| one.waiters == waiters && one.placement == Placement::Spread && !one.arm.is_command();
        let counting = measured.iter_mut().filter(counted).map(|one| one.count(stores, plan));
        let at_once = AT_ONCE.div_ceil(waiters + 1);
        stream::iter(counting).buffer_unordered(at_once).try_collect::<()>().await?;
    }
    Ok(measured)
}

fn arms(plan: &Plan) -> Vec<Handover> {
    const LINES: [Arm; 3] = [Arm::RawEtcdLine, Arm::Etcd, Arm::LockService];
    const KEYS: [Arm; 4] = [Arm::RawConsul, Arm::RawConsulGuarded, Arm::Consul, Arm::RsConsul];
    const FAIR: [Arm; 2] = [Arm::RawConsulLine, Arm::Fair];
    let mut arms = Vec::new();
    for &waiters in plan.waiters {
        let between = [&LINES[..], &[Arm::RawEtcd], &KEYS, &FAIR].concat();
        arms.extend(between.into_iter().map(|arm| Handover::new(arm, Placement::Spread, waiters)));
    }
    for &waiters in plan.waiters.iter().filter(|&&waiters| waiters <= COMMANDS) {
        arms.extend([Arm::EtcdctlLock, Arm::ConsulLock].map(|arm| Handover::new(arm, Placement::Spread, waiters)));
    }
    let bare = [Arm::RawEtcdLine, Arm::RawConsulGuarded, Arm::RawConsulLine];
    arms.extend(bare.map(|arm| Handover::new(arm, Placement::OneProcess, 1)));
    for &waiters in plan.waiters_within {
        arms.extend([Arm::Etcd, Arm::Consul, Arm::Fair].map(|arm| Handover::new(arm, Placement::OneProcess, waiters)));
    }
    arms
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
