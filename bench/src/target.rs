//! What must hold, judged by what was measured.

use dlock_counts::Subject;
use dlock_testkit::memory::{Call, Profile};

use crate::arm::Arm;
use crate::report::Findings;
use crate::scenario::handover::{JUDGED, JUDGED_IN_LINE, Placement};
use crate::scenario::scale::profile_name;
use crate::stats::Samples;

/// One demand and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What must hold.
    pub demand: String,
    /// What was measured.
    pub measured: String,
    /// Whether it holds.
    pub held: bool,
}

/// How many times the bare pair lock and release may take.
const PAIR: f64 = 1.1;
/// The same in a file, where there is no network to hide behind.
const PAIR_IN_FILE: f64 = 3.0;
/// How many times the bare handover ours may take.
const HANDOVER: f64 = 1.2;
/// How many times the handover to one of a pair that to one of many may take, where there is a line.
const FLAT: f64 = 1.5;
/// So many locks are looked after by one request.
const AUDITED_AT_ONCE: usize = 64;
/// Bytes of heap for a held lock.
const HEAP: f64 = 1_024.0;
/// What share of the bare throughput ours must reach.
const THROUGHPUT: f64 = 0.8;
/// Allocations and instructions of the commit that first told them, with rustc 1.95 on x86-64: `./scripts/counts.sh --of 7c5e9c3`.
const FIRST: [(Subject, usize, u64); 2] = [(Subject::LockerQueue, 40, 32_843), (Subject::LockerSlot, 40, 30_797)];
/// What of that there may still be.
const OF_FIRST: f64 = 0.5;

/// All demands about which something was measured.
pub fn verdicts(findings: &Findings) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (arm, most) in [(Arm::Etcd, PAIR), (Arm::Consul, PAIR), (Arm::Sqlite, PAIR_IN_FILE)] {
        let samples = |arm| findings.uncontended.iter().find(|one| one.arm == arm).map(|one| &one.samples);
        let demand = format!("lock and release, {}: at most {most} times the same requests sent bare", arm.name());
        verdicts.extend(at_most(demand, samples(arm), arm.same_sent_bare().and_then(samples), most));
    }
    handovers(findings, &mut verdicts);
    for arm in [Arm::Etcd, Arm::Consul] {
        idle(findings, arm, &mut verdicts);
    }
    let keys = findings.throughput.iter().map(|one| one.keys).max().unwrap_or_default();
    for arm in [Arm::Etcd, Arm::Consul] {
        let find = |arm| findings.throughput.iter().find(|one| one.arm == arm && one.keys == keys);
        let Some((own, floor)) = find(arm).zip(arm.same_sent_bare().and_then(find)) else { continue };
        let ratio = own.samples.ratio_to(&floor.samples).filter(|_| own.failure.is_none());
        verdicts.push(Verdict {
            demand: format!("throughput with {keys} keys, {}: at least {THROUGHPUT} times the same requests sent bare", arm.name()),
            measured: ratio.map_or("did not get through".to_owned(), |ratio| format!("{:.2}", ratio.p50)),
            held: ratio.is_some_and(|ratio| ratio.p50 >= THROUGHPUT),
        });
    }
    overhead(findings, &mut verdicts);
    crowds(findings, &mut verdicts);
    verdicts
}

fn at_most(demand: String, own: Option<&Samples>, other: Option<&Samples>, most: f64) -> Option<Verdict> {
    let ratio = own?.ratio_to(other?)?;
    Some(Verdict { demand, measured: format!("{:.2}", ratio.p50), held: ratio.p50 <= most })
}

fn handovers(findings: &Findings, verdicts: &mut Vec<Verdict>) {
    let samples = |arm, waiters| {
        let spread = findings.handover.iter().filter(|one| one.placement == Placement::Spread);
        spread.filter(|one| one.arm == arm).find(|one| one.waiters == waiters).map(|one| &one.samples)
    };
    for arm in JUDGED {
        let demand =
            format!("handover to the other of two processes, {}: at most {HANDOVER} times the same requests sent bare", arm.name());
        verdicts.extend(at_most(demand, samples(arm, 1), samples(arm.handover_floor(), 1), HANDOVER));
    }
    let most = findings.handover.iter().map(|one| one.waiters).max().unwrap_or_default();
    for arm in JUDGED_IN_LINE {
        let demand = format!("handover with {most} waiting, {}: at most {FLAT} times that with one", arm.name());
        verdicts.extend(at_most(demand, samples(arm, most), samples(arm, 1), FLAT));
    }
}

fn idle(findings: &Findings, arm: Arm, verdicts: &mut Vec<Verdict>) {
    let of_arm = || findings.idle.iter().filter(|one| one.arm == arm);
    let (Some(few), Some(many)) = (of_arm().min_by_key(|one| one.locks), of_arm().max_by_key(|one| one.locks)) else { return };
    let name = arm.name();
    verdicts.push(Verdict {
        demand: format!("idle, {name}: no more renewals for {} locks than for {}, within one", many.locks, few.locks),
        measured: format!("{} and {}", many.renewals, few.renewals),
        held: many.renewals <= few.renewals + 1,
    });
    verdicts.push(Verdict {
        demand: format!("idle, {name}: no more connections for {} locks than for {}", many.locks, few.locks),
        measured: format!("{} and {}", many.connections, few.connections),
        held: many.connections <= few.connections,
    });
    let most = (many.renewals + 1) * many.locks.div_ceil(AUDITED_AT_ONCE);
    verdicts.push(Verdict {
        demand: format!(
            "idle, {name}: at most an audit for each {AUDITED_AT_ONCE} of {} locks with each renewal, and no other request",
            many.locks
        ),
        measured: format!("{} of {most}", many.others),
        held: many.others <= most,
    });
    if let Some(heap) = many.kept.heap {
        verdicts.push(Verdict {
            demand: format!("idle, {name}: at most {HEAP:.0} bytes of heap for each of {} locks", many.locks),
            measured: format!("{heap:.0}"),
            held: heap <= HEAP,
        });
    }
}

fn overhead(findings: &Findings, verdicts: &mut Vec<Verdict>) {
    for (subject, allocations, instructions) in FIRST {
        let Some(one) = findings.overhead.iter().find(|one| one.subject == subject) else { continue };
        let mut judge = |what: &str, first: u64, now: u64| {
            verdicts.push(Verdict {
                demand: format!("{what}, {}: at most {OF_FIRST} times the {first} first recorded", subject.told()),
                measured: format!("{now}"),
                held: now as f64 <= first as f64 * OF_FIRST,
            });
        };
        judge("allocations", allocations as u64, one.heap.allocations as u64);
        if let Some(now) = one.instructions {
            judge("instructions", instructions, now);
        }
    }
}

fn crowds(findings: &Findings, verdicts: &mut Vec<Verdict>) {
    let most = findings.crowds.iter().map(|crowd| crowd.waiters).max().unwrap_or_default();
    let ordered = findings.crowds.iter().filter(|crowd| crowd.waiters == most && crowd.profile != Profile::Slot);
    verdicts.extend(ordered.map(|crowd| {
        let (wakes, asked) = (crowd.of_each(Call::Wait), crowd.of_each(Call::Confirm));
        Verdict {
            demand: format!("handover with {most} waiting, simulated {}: one wake-up and one request", profile_name(crowd.profile)),
            measured: format!("{wakes:.2} and {asked:.2}"),
            held: wakes <= 1.0 && asked <= 1.0,
        }
    }));
}

#[cfg(test)]
mod tests {
    use dlock_counts::Heap;

    use super::*;
    use crate::scenario::overhead::Overhead;
    use crate::scenario::uncontended::Uncontended;

    fn with_pair(ours: f64) -> Findings {
        let arm = |arm, micros: f64| {
            let mut samples = Samples::default();
            samples.add(vec![micros]);
            Uncontended { arm, requests: None, samples }
        };
        Findings {
            uncontended: vec![arm(Arm::RawEtcd, 50.0), arm(Arm::RawEtcdLine, 100.0), arm(Arm::Etcd, ours)],
            ..Findings::default()
        }
    }

    #[test]
    fn a_demand_is_held_or_missed_by_what_was_measured() {
        let judged = |ours| verdicts(&with_pair(ours)).into_iter().map(|one| (one.measured, one.held)).collect::<Vec<_>>();
        assert_eq!(judged(105.0), [("1.05".to_owned(), true)]);
        assert_eq!(judged(120.0), [("1.20".to_owned(), false)]);
    }

    #[test]
    fn what_could_not_be_counted_is_not_judged_and_all_else_is() {
        let judged = |instructions| {
            let heap = Heap { allocations: 20, reallocations: 0, bytes: 0 };
            let overhead = vec![Overhead { subject: Subject::LockerSlot, samples: Samples::default(), heap, instructions }];
            verdicts(&Findings { overhead, ..Findings::default() })
                .into_iter()
                .map(|one| (one.measured, one.held))
                .collect::<Vec<_>>()
        };
        assert_eq!(judged(None), [("20".to_owned(), true)]);
        assert_eq!(judged(Some(20_000)), [("20".to_owned(), true), ("20000".to_owned(), false)]);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        assert_eq!(verdicts(&Findings::default()), []);
    }
}
