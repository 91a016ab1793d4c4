//! Bugs that lock libraries have had, planted one after the other: each is found, soon, and told with few faults.
//!
//! In builds with `--cfg dlock_planted` only: `scripts/planted.sh`. `DLOCK_PLANTED=name` shows one of them as its developer would see it.
#![cfg(dlock_planted)]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use dlock_core::planted::{Bug, plant};
use dlock_sim::campaign::{Campaign, Report};
use dlock_sim::plan::Tier;
use dlock_sim::run::run;

/// In how many schedules of a simulator each must be found: fewer where a schedule takes long, and nowhere more than CI runs of it.
fn schedules(tier: Tier) -> u64 {
    match tier {
        Tier::WireFair | Tier::WireEtcd => 2_000,
        // An answer that comes after the deadline is rare.
        Tier::Locker => 40_000,
        _ => 10_000,
    }
}
/// How many faults the smallest schedule that finds it may have.
const FAULTS: usize = 3;

/// The simulators that a bug is looked for in, the fastest first.
const TIERS: [Tier; 5] = [Tier::Machines, Tier::Locker, Tier::Beside, Tier::WireFair, Tier::WireEtcd];

/// Runs schedules until some fail; how many that takes is the same on every machine.
fn caught(tier: Tier) -> Option<(u64, Report)> {
    let mut seeds = 0..64;
    while seeds.start < schedules(tier) {
        let report = Campaign::new(tier, seeds.clone()).on(2).run();
        if let Some(first) = report.failures.first() {
            return Some((first.seed + 1, report));
        }
        seeds = seeds.end..(seeds.end * 2).min(schedules(tier));
    }
    None
}

#[test]
fn every_planted_bug_is_caught() {
    if let Some(bug) = Bug::on() {
        return show(bug);
    }
    let (mut escaped, mut taken) = (Vec::new(), BTreeMap::new());
    println!("{:<28} {:<9} {:<6} {:>9} {:>6}", "planted bug", "simulator", "breaks", "schedules", "faults");
    for bug in Bug::ALL.iter().copied() {
        plant(Some(bug));
        let found = TIERS.into_iter().find_map(|tier| {
            let (schedules, report) = caught(tier)?;
            let (_, shrunk) = report.smallest(run)?;
            let faults = shrunk.plan.listed().len();
            let most = taken.entry(tier).or_insert(schedules);
            *most = schedules.max(*most);
            (faults <= FAULTS).then(|| (format!("{tier:?}").to_lowercase(), shrunk.violation.invariant, schedules, faults))
        });
        plant(None);
        if let Some((simulator, invariant, schedules, faults)) = found {
            println!("{:<28} {simulator:<9} {invariant:<6?} {schedules:>9} {faults:>6}  {}", bug.name(), bug.does());
        } else {
            println!("{:<28} escaped", bug.name());
            escaped.push(bug.name());
        }
        _ = stdout().flush();
    }
    for (tier, schedules) in taken {
        let report = Campaign::new(tier, 0..schedules).on(2).run();
        assert_eq!(report.schedules, schedules, "a part of them would prove nothing");
        assert!(report.failures.is_empty(), "with nothing planted, {tier:?} fails too: {:?}", report.failures[0]);
    }
    let all = Bug::ALL.len();
    println!("proof: planted bugs: {} of {all} caught", all - escaped.len());
    assert_eq!(escaped, [""; 0], "not caught in any simulator by at most {FAULTS} faults");
}

/// Fails as a campaign fails for whoever has made this mistake.
fn show(bug: Bug) {
    println!("{} is planted: {}", bug.name(), bug.does());
    for tier in TIERS {
        Campaign::new(tier, 0..schedules(tier)).on(2).prove();
    }
}
