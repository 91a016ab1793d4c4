//! The real locker on the real clients, against fake servers over a simulated network, in virtual time.
//!
//! `DLOCK_SIM_SEEDS=a..b` chooses other seeds.
#![allow(missing_docs)]

use std::collections::BTreeMap;

use dlock_sim::campaign::seeds_or;
use dlock_sim::history::Event;
use dlock_sim::plan::{Fault, FaultKind, Faults, Plan, Site, Tier};
use dlock_sim::run::run;
use dlock_sim::wire;

/// As its seed has it.
fn swarm(tier: Tier, seed: u64) -> Plan {
    Plan::of_seed(tier, seed)
}

/// The same with every kind of fault, and many of them.
fn storm(tier: Tier, seed: u64) -> Plan {
    let faults = Faults::Drawn { seed, per_mille: 100, budget: 30, kinds: FaultKind::ALL.to_vec() };
    Plan { faults, ..swarm(tier, seed) }
}

/// Runs plans; what they brought, by name, and what was wrong.
fn run_all(plans: impl Iterator<Item = Plan>) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut broken = Vec::new();
    for plan in plans {
        let ran = run(&plan);
        if let Some(violation) = ran.violation {
            broken.push(format!("{violation}\n  {}", serde_json::to_string(&ran.plan).unwrap()));
        }
        *counts.entry("schedules".to_owned()).or_default() += 1;
        for line in ran.history.lines() {
            let name = match &line.event {
                Event::Ended { cause, .. } => format!("ended {cause:?}"),
                Event::Refused { why, .. } => format!("refused {why:?}"),
                Event::Lost { reason, .. } => format!("lost {reason:?}"),
                Event::Released { outcome, .. } => format!("release {outcome:?}"),
                Event::WroteUnfenced { late, .. } => format!("wrote unfenced, late {late}"),
                Event::Struck { fault, .. } => format!("struck {}", kind(*fault)),
                Event::Sent { slot, .. } => format!("sent {:?}", slot.site),
                event => serde_json::to_value(event).unwrap()["event"].as_str().unwrap().to_owned(),
            };
            *counts.entry(name).or_default() += 1;
        }
    }
    println!("{counts:#?}");
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    counts
}

fn kind(fault: Fault) -> String {
    format!("{fault:?}").split('(').next().unwrap().to_owned()
}

/// What must have come about when everything goes wrong at once, beyond what went wrong.
fn prove(tier: Tier, ends: &[&str]) {
    let counts = run_all(seeds_or(0..200).map(|seed| storm(tier, seed)));
    let missing = |name: &String| !counts.contains_key(name);
    let kinds = FaultKind::ALL.map(|kind| format!("struck {kind:?}"));
    let calls = [Site::Open, Site::Renew, Site::Audit, Site::Close, Site::Claim, Site::Wait, Site::Confirm, Site::Release];
    let calls = calls.into_iter().chain([Site::Disturbed]).map(|site| format!("sent {site:?}"));
    let ends = ends.iter().map(|&end| end.to_owned());
    let never: Vec<String> = kinds.into_iter().chain(calls).chain(ends).filter(missing).collect();
    assert!(never.is_empty(), "never came about: {never:?}");
}

#[test]
fn consuls_client_keeps_every_promise_when_everything_goes_wrong_at_once() {
    prove(
        Tier::Wire,
        &["ended GivenBack", "ended Lapsed", "ended Interference", "lost Expired", "lost TakenOver", "refused TimedOut"],
    );
}

#[test]
fn consuls_client_in_fair_mode_keeps_every_promise_when_everything_goes_wrong_at_once() {
    prove(
        Tier::WireFair,
        &["queued", "ended GivenBack", "ended Lapsed", "ended Interference", "lost Expired", "lost KeyDeleted", "refused TimedOut"],
    );
}

#[test]
fn etcds_client_keeps_every_promise_when_everything_goes_wrong_at_once() {
    prove(
        Tier::WireEtcd,
        &["ended GivenBack", "ended Lapsed", "ended Interference", "lost Expired", "lost KeyDeleted", "refused TimedOut"],
    );
}

#[test]
fn nothing_goes_wrong_where_no_fault_strikes() {
    for tier in [Tier::WireFair, Tier::WireEtcd] {
        let counts = run_all(seeds_or(0..50).map(|seed| swarm(tier, seed).with_faults(Vec::new())));
        for never in ["lost Expired", "lost SessionGone", "ended Lapsed", "refused Failed", "release Unknown"] {
            assert_eq!(counts.get(never), None, "{tier:?}: {never}");
        }
    }
}

#[test]
fn one_plan_is_one_history() {
    for tier in [Tier::Wire, Tier::WireFair, Tier::WireEtcd] {
        for plan in seeds_or(0..100).flat_map(|seed| [swarm(tier, seed), storm(tier, seed)]) {
            let (first, second) = (wire::run(&plan), wire::run(&plan));
            assert_eq!(first.struck, second.struck, "{plan:?}");
            assert_eq!(first.history.fingerprint(), second.history.fingerprint(), "{plan:?}");
        }
    }
}

#[test]
fn what_struck_replays_without_its_seed() {
    let tiers = [Tier::Wire, Tier::WireFair, Tier::WireEtcd].into_iter();
    for plan in tiers.flat_map(|tier| seeds_or(0..30).map(move |seed| storm(tier, seed))) {
        let ran = wire::run(&plan);
        let again = wire::run(&plan.with_faults(ran.struck.clone()));
        assert_eq!(ran.history.fingerprint(), again.history.fingerprint(), "{plan:?}");
    }
}
