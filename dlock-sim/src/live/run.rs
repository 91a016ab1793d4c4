//! A run from the first server to the last word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dlock_testkit::servers::StartError;

use super::fleet::{Contract, Fleet};
use super::proof::{Proof, prove};
use super::register::{RegisterServer, Registers, Tally};
use super::store::{Operator, PREFIX, Running, SECRET, Store};
use super::storm::{Kind, Misfortune, Span, StormError, Strike, strike_servers};
use super::told::histories;
use super::worker::Job;
use super::{Clock, Told};
use crate::history::{Event, Line};

/// What a run is to be like.
#[derive(Clone, Debug)]
pub struct Live {
    /// Where workers contend.
    pub store: Store,
    /// Draws what goes wrong and what workers do. Processes and servers keep their own time, so another run of the same seed meets the same
    /// faults in the same order, but not the same instants.
    pub seed: u64,
    /// How long things go wrong.
    pub storm: Duration,
    /// Goes on, for at most as long again, until everything has gone wrong once.
    pub complete: bool,
    /// Of the workers' sessions.
    pub ttl: Duration,
    /// The program that does [`work`](super::worker::work).
    pub program: PathBuf,
    /// Where histories and logs go; a folder of the run's own is made in it.
    pub folder: PathBuf,
}

/// What a run brought.
#[derive(Clone, Debug)]
pub struct Outcome {
    live: Live,
    /// What went wrong.
    pub strikes: Vec<Strike>,
    /// What was found in the histories.
    pub proof: Proof,
    /// What became of the updates.
    pub tally: Tally,
    /// What was left at the servers although it should have lapsed.
    pub leftovers: Vec<String>,
    /// How many lines the workers logged of what they sent to the store.
    pub logged: usize,
    /// Those of them that tell a secret.
    pub told_secrets: Vec<String>,
    /// How long the storm took.
    pub took: Duration,
    /// Where the histories are.
    pub folder: PathBuf,
}

/// Why a run could not be made; says nothing about locks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The servers did not start.
    #[error(transparent)]
    Servers(#[from] StartError),
    /// The storm could not go on.
    #[error(transparent)]
    Storm(#[from] StormError),
    /// Something local failed.
    #[error("processes, files or sockets failed")]
    Io(#[from] io::Error),
    /// The cluster could not be asked what is left.
    #[error("the servers could not be asked what is left")]
    Unasked(#[source] io::Error),
}

const SERVERS: usize = 3;
const WORKERS: usize = 5;
const BRISK_KEYS: usize = 8;
const SLOW_KEYS: usize = 3;
const TASKS: u32 = 5;
/// How long it may take until every key was held once more, and until all servers answer an operator.
const RECOVERY: Duration = Duration::from_secs(20);
/// How long workers may take to give everything back and end.
const FAREWELL: Duration = Duration::from_secs(20);

/// Runs it. Everything that it started has ended when it returns, or when it is dropped.
pub async fn run(live: &Live) -> Result<Outcome, LiveError> {
    let folder = live.folder.join(format!("{}-{:016x}", live.store, live.seed));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let Running { mut servers, operator, access } = live.store.start(SERVERS).await?;
    let named = |kind: &str, number: usize| (0..number).map(|n| format!("{PREFIX}{kind}-{n}")).collect::<Vec<_>>();
    let (brisk, slow) = (named("brisk", BRISK_KEYS), named("slow", SLOW_KEYS));
    let keys = [brisk.clone(), slow.clone()].concat();
    let clock = Clock::start();
    let (told, listening) = channel();
    let registers = Arc::new(Registers::new(&keys, clock, told.clone()));
    let register_server = RegisterServer::start(Arc::clone(&registers)).await?;
    let job = Job {
        registers: register_server.address(),
        clock,
        ttl: live.ttl,
        brisk,
        slow: slow.clone(),
        tasks: TASKS,
        seed: live.seed,
    };
    let contract = Contract { program: live.program.clone(), folder: folder.clone(), job, access };
    let mut fleet = Fleet::start(contract, &servers.addresses(), WORKERS, told.clone()).await?;

    let storm = live.storm.as_micros() as u64;
    let until = clock.now() + storm;
    let span = Span { until, latest: if live.complete { until + storm } else { until } };
    let began = Instant::now();
    let misfortune = Misfortune { store: live.store, fleet: &mut fleet, operator: &*operator, slow: &slow, clock, ttl: live.ttl };
    let (of_servers, of_workers) =
        tokio::join!(strike_servers(&mut *servers, clock, live.ttl, live.seed, span), misfortune.strike(live.seed, span));
    let mut strikes = of_servers?;
    strikes.extend(of_workers?);
    let took = began.elapsed();
    let healed = clock.now();
    // Nobody listens any more if this fails, and then the run has failed already.
    _ = told.send(Told { key: None, line: Line { at: healed, client: None, event: Event::Healed } });
    // Sessions of the killed lapse within two ttl of the last election.
    tokio::time::sleep(live.ttl * 4).await;
    let mut heard = Vec::new();
    recover(&keys, healed, &listening, &mut heard).await;
    fleet.dismiss(FAREWELL).await?;
    let leftovers = lapse(&*operator, live.ttl * 2).await.map_err(LiveError::Unasked)?;

    strikes.sort_by_key(|strike| strike.from);
    for (nth, strike) in (0..).zip(&strikes) {
        strike.told(nth).into_iter().for_each(|line| _ = told.send(line));
    }
    heard.extend(listening.try_iter());
    let histories = histories(&keys, heard);
    for (key, history) in &histories {
        fs::write(folder.join(format!("{}.jsonl", key.trim_start_matches(PREFIX))), history.to_json_lines())?;
    }
    let told: Vec<String> = strikes.iter().map(|strike| format!("{strike:?}\n")).collect();
    fs::write(folder.join("strikes.txt"), told.concat())?;
    let proof = prove(live.store, &histories, &strikes, live.ttl);
    let (logged, told_secrets) = read_logs(&folder, live.store.logs())?;
    Ok(Outcome { live: live.clone(), strikes, proof, tally: registers.tally(), leftovers, logged, told_secrets, took, folder })
}

/// How many lines in the logs of a folder are of what was sent to the store, and all that tell the secret.
fn read_logs(folder: &Path, target: &str) -> io::Result<(usize, Vec<String>)> {
    let (mut logged, mut told) = (0, Vec::new());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        // A killed process may end in the middle of a character.
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        logged += text.lines().filter(|line| line.contains("TRACE") && line.contains(target)).count();
        let secrets = text.lines().filter(|line| line.contains(SECRET));
        told.extend(secrets.map(|line| format!("{}: {line}", path.display())));
    }
    Ok((logged, told))
}

/// Waits until every key was held once more, or for too long, as [`prove`] will object: a key whose holder lapses as late as it may, and that
/// few ask for, is no failure.
async fn recover(keys: &[String], healed: u64, listening: &Receiver<Told>, heard: &mut Vec<Told>) {
    let began = Instant::now();
    let is_held = |told: &Told| told.line.at > healed && matches!(told.line.event, Event::Held { .. });
    loop {
        heard.extend(listening.try_iter());
        let held: BTreeSet<&String> = heard.iter().filter(|told| is_held(told)).filter_map(|told| told.key.as_ref()).collect();
        if keys.iter().all(|key| held.contains(key)) || began.elapsed() > RECOVERY {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What is still at the servers after so long. Whoever does not answer is asked again.
async fn lapse(operator: &dyn Operator, within: Duration) -> io::Result<Vec<String>> {
    let began = Instant::now();
    loop {
        let asked = began.elapsed();
        match operator.leftovers().await {
            Ok(left) if left.is_empty() || asked > within => return Ok(left),
            Err(error) if asked > within + RECOVERY => return Err(error),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Outcome {
    /// Below this, there was too little going on for the run to say anything. A tenth of what an ordinary machine brings.
    pub const LEAST_PER_SECOND: f64 = 10.0;

    /// Answered operations of the lock in a second of the storm.
    pub fn per_second(&self) -> f64 {
        self.proof.in_storm as f64 / self.took.as_secs_f64()
    }

    /// Everything for which the run must be called failed.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.proof.violations.clone();
        if self.tally.lost_fenced > 0 {
            failures.push(format!("{} fenced updates are lost", self.tally.lost_fenced));
        }
        failures.extend(self.leftovers.iter().map(|left| format!("left over: {left}")));
        failures.extend(self.told_secrets.iter().map(|line| format!("a secret is told in {line}")));
        if self.logged == 0 {
            let target = self.live.store.logs();
            failures.push(format!(
                "void: the workers logged nothing of what they sent; leave DLOCK_LIVE_LOG unset, or let it hold {target}=trace"
            ));
        }
        if self.per_second() < Self::LEAST_PER_SECOND {
            let least = Self::LEAST_PER_SECOND;
            failures.push(format!("void: {:.0} lock operations a second, fewer than {least}", self.per_second()));
        }
        failures
    }

    /// The kinds that never struck.
    pub fn missed(&self) -> Vec<Kind> {
        Kind::all(self.live.store).filter(|kind| self.strikes.iter().all(|strike| strike.kind != *kind)).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { live, strikes, proof, tally, took, .. } = self;
        let proved = format!("proof: live on {}", live.store);
        writeln!(
            f,
            "{proved}: seed {}, {SERVERS} servers, {WORKERS} workers, {} keys, ttl {:?}, {:.0} s",
            live.seed,
            BRISK_KEYS + SLOW_KEYS,
            live.ttl,
            took.as_secs_f64()
        )?;
        writeln!(
            f,
            "{proved}: {} lock operations in the storm, {:.0} a second; in all held {}, refused {}, released {}",
            proof.in_storm,
            self.per_second(),
            proof.held,
            listed(&proof.refused),
            listed(&proof.released)
        )?;
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for strike in strikes {
            *kinds.entry(format!("{:?}", strike.kind)).or_default() += 1;
        }
        writeln!(f, "{proved}: {} faults: {}", strikes.len(), listed(&kinds))?;
        let closest = proof.closest.map_or_else(|| "none".to_owned(), |closest| format!("{closest:.1?}"));
        writeln!(f, "{proved}: losses: {}; told before the next holder by {closest} at least", listed(&proof.lost))?;
        writeln!(
            f,
            "{proved}: believed on beside the next holder: {} that stood still; {} after an operator's act and {} after an early end by \
             the store, for {:.1?} at most",
            proof.stood_still, proof.after_interference, proof.after_early_end, proof.longest_after_interference
        )?;
        writeln!(f, "{proved}: without being stopped, a worker stood still for {:.1?} at most", proof.longest_hiccup)?;
        writeln!(f, "{proved}: held in the order of their tokens: {} of {}", proof.held - proof.overtaken, proof.held)?;
        writeln!(f, "{proved}: fenced updates {}, refused {}, lost {}", tally.fenced, tally.refused, tally.lost_fenced)?;
        let rate = 100.0 * tally.lost_unfenced as f64 / tally.unfenced.max(1) as f64;
        writeln!(
            f,
            "{proved}: unfenced updates {}, by a past holder {}, lost {} ({rate:.3} %)",
            tally.unfenced, tally.late, tally.lost_unfenced
        )?;
        writeln!(f, "{proved}: secrets told {}, in the logs of {} requests", self.told_secrets.len(), self.logged)?;
        let (left, violations) = (self.leftovers.len(), proof.violations.len());
        write!(f, "{proved}: explained by an order {} operations, left over {left}, violations {violations}", proof.explained)
    }
}

fn listed(counts: &BTreeMap<String, usize>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_log_is_found() {
        let folder = std::env::temp_dir().join(format!("dlock-sim-logs-{:016x}", fastrand::u64(..)));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("worker-1.log"), "TRACE dlock_consul::api: answered\nWARN another\n").unwrap();
        fs::write(folder.join("brisk-1.jsonl"), SECRET).unwrap();
        assert_eq!(read_logs(&folder, "dlock_consul").unwrap(), (1, Vec::new()));
        fs::write(folder.join("worker-2.log"), format!("X-Consul-Token: {SECRET}\n")).unwrap();
        let (logged, told) = read_logs(&folder, "dlock_consul").unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((logged, told.len()), (1, 1));
        assert!(told[0].ends_with(&format!("worker-2.log: X-Consul-Token: {SECRET}")), "{told:?}");
    }
}
