//! Many schedules of every simulator: each keeps what is promised, each is the same every time, and together they meet what matters.
//!
//! `DLOCK_SIM_MACHINES`, `DLOCK_SIM_LOCKER`, `DLOCK_SIM_BESIDE`, `DLOCK_SIM_WIRE`, `DLOCK_SIM_WIRE_FAIR` and `DLOCK_SIM_WIRE_ETCD` say how many
//! schedules of each simulator are run; `DLOCK_SIM_SEEDS=a..b` chooses other seeds, for all of them.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::time::Instant;

use dlock_sim::campaign::{Campaign, Report, seeds_or};
use dlock_sim::check::together;
use dlock_sim::plan::{Plan, Tier};
use dlock_sim::run::run;
use dlock_sim::sometimes::Sometimes;

/// How many schedules: what a variable says, or so many.
fn budget(variable: &str, usual: u64) -> u64 {
    let said = std::env::var(variable).ok();
    said.map_or(usual, |said| said.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {said:?}")))
}

/// Runs a campaign on both cores and tells what it was.
fn prove(tier: Tier, schedules: u64) -> Report {
    let began = Instant::now();
    let report = Campaign::new(tier, 0..schedules).on(2).prove();
    assert!(report.schedules > 0, "nothing was run");
    let rate = report.schedules as f64 / began.elapsed().as_secs_f64();
    let hours = report.simulated as f64 / 3.6e9;
    println!(
        "proof: {tier:?}: {} schedules, {} lines, {hours:.0} hours simulated, {rate:.0}/s, 0 violations",
        report.schedules, report.lines
    );
    println!("{}", report.seen);
    report
}

#[test]
fn the_machines_keep_their_promises() {
    let report = prove(Tier::Machines, budget("DLOCK_SIM_MACHINES", 1_000_000));
    let never = report.seen.never();
    let all = Sometimes::ALL.len();
    println!("proof: Machines: {} of {all} sometimes counters are above 0", all - never.len());
    assert_eq!(never, [], "the simulation is idle there");
}

#[test]
fn the_locker_keeps_its_promises() {
    prove(Tier::Locker, budget("DLOCK_SIM_LOCKER", 100_000));
}

#[test]
fn those_who_share_and_those_who_take_several_keep_theirs() {
    prove(Tier::Beside, budget("DLOCK_SIM_BESIDE", 10_000));
    let (mut most, mut alone, mut keys) = (BTreeMap::new(), 0, 0);
    for seed in 0..300 {
        let plan = Plan::of_seed(Tier::Beside, seed);
        let tenancy = plan.tenancy().expect("clients of this simulator want something");
        let met = together(&plan, tenancy, &run(&plan).history);
        let seen = most.entry(format!("{tenancy:?}")).or_insert(0);
        *seen = met.most.max(*seen);
        alone += u32::from(met.alone_after_shared);
        keys = keys.max(met.keys);
    }
    println!("proof: Beside: at most held together: {most:?}; alone after shared in {alone} schedules, up to {keys} keys at once");
    for (tenancy, reached) in [("Permits(1)", 1), ("Permits(2)", 2), ("Permits(3)", 3)] {
        assert_eq!(most[tenancy], reached, "{tenancy}");
    }
    assert!(most["ReadWrite"] >= 3 && alone > 0 && keys >= 3);
}

#[test]
fn consuls_client_keeps_its_promises() {
    prove(Tier::Wire, budget("DLOCK_SIM_WIRE", 2_000));
}

#[test]
fn consuls_client_in_fair_mode_keeps_its_promises() {
    prove(Tier::WireFair, budget("DLOCK_SIM_WIRE_FAIR", 2_000));
}

#[test]
fn etcds_client_keeps_its_promises() {
    prove(Tier::WireEtcd, budget("DLOCK_SIM_WIRE_ETCD", 2_000));
}

#[test]
fn five_hundred_seeds_give_the_same_histories_twice() {
    for tier in [Tier::Machines, Tier::Locker, Tier::Beside, Tier::Wire, Tier::WireFair, Tier::WireEtcd] {
        let differs = Campaign::new(tier, 0..500).undetermined(run);
        assert!(differs.is_none(), "{tier:?}: {differs:?}");
    }
    let seeds = seeds_or(0..500).count();
    println!("proof: determinism: {seeds} seeds of each simulator give the same history twice, and once more from what struck");
    assert!(seeds > 0, "nothing was run");
}
