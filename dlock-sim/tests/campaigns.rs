//! Many schedules of every simulator: each keeps what is promised, each is the same every time, and together they meet what matters.
//!
//! `DLOCK_SIM_SEEDS=a..b` chooses other seeds, for all of them.
#![allow(missing_docs)]

use std::ops::Range;
use std::time::Instant;

use dlock_sim::campaign::{Campaign, Report};
use dlock_sim::plan::Tier;
use dlock_sim::run::run;

/// Runs a campaign on both cores and tells what it was.
fn prove(tier: Tier, seeds: Range<u64>) -> Report {
    let began = Instant::now();
    let report = Campaign::new(tier, seeds).on(2).prove();
    let rate = report.schedules as f64 / began.elapsed().as_secs_f64();
    let hours = report.simulated as f64 / 3.6e9;
    println!(
        "{tier:?}: {} schedules, {} lines, {hours:.0} hours simulated, {rate:.0}/s, 0 violations",
        report.schedules, report.lines
    );
    report
}

#[test]
fn the_machines_keep_their_promises() {
    let report = prove(Tier::Machines, 0..1_000_000);
    println!("{}", report.seen);
    assert_eq!(report.seen.never(), [], "the simulation is idle there");
}

#[test]
fn the_locker_keeps_its_promises() {
    prove(Tier::Locker, 0..100_000);
}

#[test]
fn consuls_client_keeps_its_promises() {
    prove(Tier::Wire, 0..2_000);
}

#[test]
fn five_hundred_seeds_give_the_same_histories_twice() {
    for tier in [Tier::Machines, Tier::Locker, Tier::Wire] {
        let differs = Campaign::new(tier, 0..500).undetermined(run);
        assert!(differs.is_none(), "{tier:?}: {differs:?}");
    }
}
