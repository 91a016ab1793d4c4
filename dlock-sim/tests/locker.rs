//! Schedules of the real `Locker` on the store in memory, one per seed.
//!
//! `DLOCK_SIM_SEEDS=a..b` chooses the seeds.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use dlock_sim::campaign;
use dlock_sim::history::{End, Event, History, Line, Op, Outcome, Reason, Refusal};
use dlock_sim::locker;
use dlock_sim::plan::{FaultKind, Plan, Tier};
use dlock_sim::run::Ran;

fn seeds() -> Range<u64> {
    campaign::seeds_or(0..2_000)
}

fn plan(seed: u64) -> Plan {
    Plan::of_seed(Tier::Locker, seed)
}

/// Every seed with its run; made once for all tests.
fn runs() -> &'static [(u64, Ran)] {
    static RUNS: OnceLock<Vec<(u64, Ran)>> = OnceLock::new();
    RUNS.get_or_init(|| {
        let began = Instant::now();
        let runs: Vec<_> = seeds().map(|seed| (seed, locker::run(&plan(seed)))).collect();
        let lines: usize = runs.iter().map(|(_, ran)| ran.history.lines().len()).sum();
        let took = began.elapsed();
        println!("{} schedules, {lines} lines in {took:.1?}: {:.0}/s", runs.len(), runs.len() as f64 / took.as_secs_f64());
        runs
    })
}

/// The seeds of which some line, seen with all that came before, is wrong.
fn wrong(judge: impl Fn(&History) -> Option<String>) -> Vec<(u64, String)> {
    runs().iter().filter_map(|(seed, ran)| Some((*seed, judge(&ran.history)?))).collect()
}

#[test]
fn tokens_grow_with_every_grant_and_are_those_that_holders_have() {
    let wrong = wrong(|history| {
        let mut granted = BTreeMap::new();
        history.lines().iter().find_map(|line| match line.event {
            Event::Granted { op, token } => {
                let last = granted.last_key_value().map_or(0, |(token, _)| *token);
                granted.insert(token, op);
                (token <= last || op == Op::MAX).then(|| format!("{line:?} after {last}"))
            }
            Event::Held { op, token } => (granted.get(&token) != Some(&op)).then(|| format!("{line:?} was never granted")),
            _ => None,
        })
    });
    assert_eq!(wrong, []);
}

#[test]
fn nobody_believes_falsely() {
    let wrong = wrong(|history| {
        let line = history.lines().iter().find(|line| matches!(line.event, Event::StillBelieves { .. }))?;
        Some(format!("{line:?}"))
    });
    assert_eq!(wrong, []);
}

#[test]
fn nothing_is_left() {
    let wrong = wrong(|history| {
        let line = history.lines().iter().find(|line| matches!(line.event, Event::Left { .. }))?;
        Some(format!("{line:?}"))
    });
    assert_eq!(wrong, []);
}

#[test]
fn everyone_who_lives_is_answered_once() {
    let wrong = wrong(|history| {
        let mut waiting = BTreeMap::new();
        let mut strange = None;
        for line in history.lines() {
            match line.event {
                Event::Wants { op, .. } => _ = waiting.insert(op, line.client),
                Event::Held { op, .. } | Event::Refused { op, .. } if waiting.remove(&op).is_none() => {
                    strange = strange.or(Some(format!("{line:?} answers nobody")));
                }
                Event::Crashed => waiting.retain(|_, client| *client != line.client),
                _ => {}
            }
        }
        strange.or((!waiting.is_empty()).then(|| format!("{waiting:?} are not answered")))
    });
    assert_eq!(wrong, []);
}

/// What only a client that takes steps can bring about.
fn is_a_step(line: &Line) -> bool {
    use Event as E;
    let asks = matches!(line.event, E::Wants { .. } | E::Held { .. } | E::Refused { .. } | E::Lost { .. });
    asks || matches!(line.event, E::Releasing { .. } | E::Released { .. } | E::Sent { .. } | E::Answered { .. })
}

#[test]
fn who_is_paused_or_crashed_takes_no_step() {
    let wrong = wrong(|history| {
        let mut still = BTreeMap::new();
        history.lines().iter().find_map(|line| {
            match line.event {
                Event::Paused { until } => {
                    let stands = still.entry(line.client).or_insert(0);
                    *stands = until.max(*stands);
                }
                Event::Crashed => _ = still.insert(line.client, u64::MAX),
                _ => {}
            }
            let stands = still.get(&line.client).is_some_and(|until| line.at < *until);
            (stands && is_a_step(line)).then(|| format!("{line:?}"))
        })
    });
    assert_eq!(wrong, []);
}

#[test]
fn every_kind_of_fault_and_of_end_comes_about() {
    let mut seen = BTreeSet::new();
    for line in runs().iter().flat_map(|(_, ran)| ran.history.lines()) {
        seen.insert(match &line.event {
            Event::Struck { fault, .. } => format!("{fault:?}").split('(').next().unwrap_or_default().to_owned(),
            Event::Lost { reason, .. } => format!("Lost {reason:?}"),
            Event::Refused { why, .. } => format!("Refused {why:?}"),
            Event::Released { outcome, .. } => format!("Released {outcome:?}"),
            Event::Ended { cause, .. } => format!("Ended {cause:?}"),
            Event::Wrote { accepted: false, .. } => "Fenced".to_owned(),
            Event::WroteUnfenced { late: true, .. } => "Late".to_owned(),
            _ => continue,
        });
    }
    let reasons = [Reason::Expired, Reason::SessionGone, Reason::KeyDeleted, Reason::TakenOver, Reason::HeldTooLong];
    let refusals = [Refusal::Busy, Refusal::TimedOut, Refusal::Cancelled, Refusal::Failed];
    let outcomes = [Outcome::Released, Outcome::NotHeld, Outcome::Unknown];
    let mut wanted: BTreeSet<_> = FaultKind::ALL.iter().map(|kind| format!("{kind:?}")).collect();
    wanted.extend(reasons.iter().map(|reason| format!("Lost {reason:?}")));
    wanted.extend(refusals.iter().map(|why| format!("Refused {why:?}")));
    wanted.extend(outcomes.iter().map(|outcome| format!("Released {outcome:?}")));
    wanted.extend([End::GivenBack, End::Lapsed, End::Interference].iter().map(|cause| format!("Ended {cause:?}")));
    wanted.extend(["Fenced".to_owned(), "Late".to_owned()]);
    assert_eq!(wanted.difference(&seen).collect::<Vec<_>>(), [""; 0]);
}

const REPEATED: Range<u64> = 0..500;

fn fingerprints() -> Vec<u64> {
    REPEATED.map(|seed| locker::run(&plan(seed)).history.fingerprint()).collect()
}

#[test]
fn a_seed_is_a_history() {
    let (first, again) = (fingerprints(), fingerprints());
    assert_eq!(first, again);
    // For the test that runs this one in a process of its own.
    println!();
    for fingerprint in first {
        println!("fingerprint {fingerprint}");
    }
}

#[test]
fn a_seed_is_a_history_in_another_process_too() {
    let itself = std::env::current_exe().unwrap();
    let arguments = ["--exact", "--nocapture", "a_seed_is_a_history"];
    let output = Command::new(itself).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let theirs: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("fingerprint ")?.parse().ok()).collect();
    assert!(!theirs.is_empty(), "{text}");
    assert_eq!(theirs, fingerprints());
}
