//! Many schedules of the pure machines: each keeps what is promised of it, and each is the same every time.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::time::Instant;

use dlock_sim::check::check;
use dlock_sim::history::{End, Event, History, Op};
use dlock_sim::machines;
use dlock_sim::plan::{FaultKind, Faults, Plan, Tier};
use serde_json::Value;

/// The plan of a seed, and the same with more faults than the swarm draws.
fn plans(seed: u64) -> [Plan; 2] {
    let plan = Plan::of_seed(Tier::Machines, seed);
    let storm = Faults::Drawn { seed, per_mille: 100, budget: 20, kinds: FaultKind::ALL.to_vec() };
    [plan.clone(), Plan { faults: storm, ..plan }]
}

/// What is wrong with a history at first sight; the checker knows more.
fn wrong(plan: &Plan, history: &History) -> Option<String> {
    let mut highest = 0;
    let mut ended: BTreeMap<Op, End> = BTreeMap::new();
    let mut pending = BTreeMap::new();
    for line in history.lines() {
        match &line.event {
            Event::Granted { token, .. } if *token <= highest => return Some(format!("{line:?} after token {highest}")),
            Event::Granted { token, .. } => highest = *token,
            Event::Ended { op, cause, .. } => _ = ended.insert(*op, *cause),
            // Interference is believed in until it is heard of.
            Event::StillBelieves { op, .. } if ended.get(op) != Some(&End::Interference) => return Some(format!("{line:?}")),
            Event::Left { .. } => return Some(format!("{line:?}")),
            Event::Wants { op, .. } => _ = pending.insert(*op, line.client),
            Event::Held { op, .. } | Event::Refused { op, .. } => _ = pending.remove(op),
            Event::Crashed => pending.retain(|_, client| *client != line.client),
            _ => {}
        }
    }
    if let Some(op) = pending.keys().next() {
        return Some(format!("acquisition {op} was never answered"));
    }
    check(plan, history).map(|violation| violation.to_string())
}

fn holds(seeds: std::ops::Range<u64>) {
    let began = Instant::now();
    let (mut runs, mut lines) = (0_u32, 0);
    for seed in seeds {
        for plan in plans(seed) {
            let ran = machines::run(&plan);
            if let Some(wrong) = wrong(&plan, &ran.history) {
                panic!(
                    "{wrong}\n{}\n{}",
                    serde_json::to_string(&plan.with_faults(ran.struck)).unwrap(),
                    ran.history.to_json_lines()
                );
            }
            runs += 1;
            lines += ran.history.lines().len();
        }
    }
    println!("{runs} schedules, {:.0}/s, {} lines each", f64::from(runs) / began.elapsed().as_secs_f64(), lines / runs as usize);
}

#[test]
fn every_schedule_keeps_its_promises() {
    holds(0..10_000);
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..500 {
        for plan in plans(seed) {
            let (first, again) = (machines::run(&plan), machines::run(&plan));
            assert_eq!(first.history.fingerprint(), again.history.fingerprint(), "seed {seed}");
        }
    }
}

#[test]
fn what_struck_replays_without_the_seed() {
    for seed in 0..500 {
        for plan in plans(seed) {
            let ran = machines::run(&plan);
            let again = machines::run(&plan.with_faults(ran.struck.clone()));
            assert_eq!(again.history.fingerprint(), ran.history.fingerprint(), "seed {seed}");
            assert_eq!(again.struck, ran.struck, "seed {seed}");
        }
    }
}

/// What an enum's value is called where it is written down.
fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value).unwrap() {
        Value::String(name) => name,
        Value::Object(object) => match object.get("event") {
            Some(event) => event.as_str().unwrap().to_owned(),
            None => object.keys().next().unwrap().clone(),
        },
        other => panic!("{other} has no name"),
    }
}

#[test]
fn every_kind_of_fault_strikes_and_every_event_happens() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..2_000 {
        for plan in plans(seed) {
            let ran = machines::run(&plan);
            let names = ran.struck.iter().map(|struck| name(&struck.fault));
            for name in names.chain(ran.history.lines().iter().map(|line| name(&line.event))) {
                *seen.entry(name).or_default() += 1;
            }
        }
    }
    println!("{seen:?}");
    let events = [
        "wants",
        "held",
        "refused",
        "lost",
        "releasing",
        "released",
        "crashed",
        "paused",
        "granted",
        "ended",
        "still_believes",
        "wrote",
        "wrote_unfenced",
        "struck",
        "sent",
        "applied",
        "answered",
        "healed",
    ];
    for wanted in FaultKind::ALL.iter().map(name).chain(events.map(str::to_owned)) {
        assert!(seen.contains_key(&wanted), "{wanted} never happened: {seen:?}");
    }
}
