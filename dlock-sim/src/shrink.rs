//! From a plan that fails to the smallest that still fails in the same way.
//!
//! Fewer clients, fewer rounds, a plainer configuration, fewer faults, no jitter, shorter faults; then all of it again, until nothing more can
//! go. A candidate counts only if the same invariant is violated.

use crate::check::Violation;
use crate::plan::{Config, Plan, Struck};

/// The smallest plan that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// The plan.
    pub plan: Plan,
    /// How it fails.
    pub violation: Violation,
    /// How many plans were run to find it.
    pub runs: usize,
}

impl Shrunk {
    /// The smaller of two is easier to understand: fewer faults first, then fewer acquisitions.
    pub fn size(&self) -> (usize, usize, bool) {
        let config = &self.plan.config;
        (self.plan.listed().len(), usize::from(config.clients) * usize::from(config.rounds), config.jitter)
    }
}

/// How many plans are run at most to shrink one.
pub const RUNS: usize = 2_000;

/// Shrinks a plan with listed faults, as long as `fails` says that a smaller one violates the same invariant; at most `runs` are asked for.
/// `None` if the plan itself does not fail.
pub fn shrink(plan: &Plan, runs: usize, mut fails: impl FnMut(&Plan) -> Option<Violation>) -> Option<Shrunk> {
    let violation = fails(plan)?;
    let mut best = Shrunk { plan: plan.clone(), violation, runs: 1 };
    let mut search = Search { best: &mut best, runs, fails };
    while search.once() {}
    Some(best)
}

struct Search<'a, F> {
    best: &'a mut Shrunk,
    runs: usize,
    fails: F,
}

impl<F: FnMut(&Plan) -> Option<Violation>> Search<'_, F> {
    /// Every kind of step once; whether any made the plan smaller.
    fn once(&mut self) -> bool {
        let before = self.best.plan.clone();
        self.clients();
        self.lower(|config| u32::from(config.rounds), 1, |config, rounds| config.rounds = rounds as u8);
        self.faults();
        self.lower(|config| config.tries_percent, 0, |config, percent| config.tries_percent = percent);
        self.lower(|config| config.lock_delay_ms, 0, |config, millis| config.lock_delay_ms = millis);
        self.lower(|config| config.drift_ppm, 0, |config, ppm| config.drift_ppm = ppm);
        self.lower(|config| config.lapses_after_percent, 100, |config, percent| config.lapses_after_percent = percent);
        self.lower(|config| config.calls_in_flight.into(), 0, |config, calls| config.calls_in_flight = calls as u8);
        if self.best.plan.config.jitter {
            self.keeps(&self.with(|config| config.jitter = false));
        }
        self.lower(|config| config.hold_ms, 1, |config, millis| config.hold_ms = millis);
        self.measures();
        self.best.plan != before && self.best.runs < self.runs
    }

    /// Whether the plan fails in the same way; then it is the best from now on.
    fn keeps(&mut self, plan: &Plan) -> bool {
        if self.best.runs >= self.runs {
            return false;
        }
        self.best.runs += 1;
        match (self.fails)(plan) {
            Some(violation) if violation.invariant == self.best.violation.invariant => {
                (self.best.plan, self.best.violation) = (plan.clone(), violation);
                true
            }
            _ => false,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Config)) -> Plan {
        let mut plan = self.best.plan.clone();
        change(&mut plan.config);
        plan
    }

    /// Leaves clients out, with their faults; those behind them move up.
    fn clients(&mut self) {
        let mut client = self.best.plan.config.clients;
        while client > 0 && self.best.plan.config.clients > 1 {
            client -= 1;
            let mut plan = self.with(|config| config.clients -= 1);
            let faults = self.best.plan.listed().iter().filter(|struck| struck.slot.client != client).copied();
            let moved = faults.map(|mut struck| {
                struck.slot.client -= u8::from(struck.slot.client > client);
                struck
            });
            plan = plan.with_faults(moved.collect());
            self.keeps(&plan);
        }
    }

    /// Lowers one number of the configuration: to its least if that will do, else by halving the way there.
    fn lower(&mut self, of: impl Fn(&Config) -> u32, least: u32, set: impl Fn(&mut Config, u32)) {
        let now = of(&self.best.plan.config);
        self.bisect(now, least, |search, number| search.with(|config| set(config, number)));
    }

    /// The faults, by delta debugging: ever smaller parts are left out.
    fn faults(&mut self) {
        let mut parts = 1;
        loop {
            let faults = self.best.plan.listed().to_vec();
            if faults.is_empty() {
                return;
            }
            let size = faults.len().div_ceil(parts);
            let smaller = (0..faults.len()).step_by(size).any(|from| {
                let rest: Vec<Struck> = [&faults[..from], &faults[(from + size).min(faults.len())..]].concat();
                let plan = self.best.plan.with_faults(rest);
                self.keeps(&plan)
            });
            if smaller {
                parts = parts.saturating_sub(1).max(1);
            } else if size == 1 {
                return;
            } else {
                parts = (parts * 2).min(faults.len());
            }
        }
    }

    /// The measures of the faults, each as short as will do.
    fn measures(&mut self) {
        for n in 0..self.best.plan.listed().len() {
            let Some(measure) = self.best.plan.listed()[n].fault.measure() else { continue };
            self.bisect(measure, 1, |search, millis| {
                let mut faults = search.best.plan.listed().to_vec();
                faults[n].fault = faults[n].fault.measured(millis).unwrap_or(faults[n].fault);
                search.best.plan.with_faults(faults)
            });
        }
    }

    /// Lowers a number as far as a binary search finds that it still fails: at best to `least`.
    fn bisect(&mut self, now: u32, least: u32, plan: impl Fn(&Self, u32) -> Plan) {
        if now <= least || self.keeps(&plan(self, least)) {
            return;
        }
        let (mut passes, mut fails) = (least, now);
        while fails - passes > 1 {
            let middle = passes + (fails - passes) / 2;
            if self.keeps(&plan(self, middle)) {
                fails = middle;
            } else {
                passes = middle;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Invariant;
    use crate::plan::{Fault, Site, Slot, Tier};

    fn violation(invariant: Invariant) -> Violation {
        Violation { invariant, line: 0, other: None, says: "it broke".to_owned() }
    }

    fn struck(client: u8, nth: u32, fault: Fault) -> Struck {
        Struck { slot: Slot { site: Site::Renew, client, nth }, fault }
    }

    /// Five clients, six rounds, sixty faults.
    fn storm() -> Plan {
        let mut plan = Plan::of_seed(Tier::Machines, 1);
        (plan.config.clients, plan.config.rounds, plan.config.jitter) = (5, 6, true);
        plan.with_faults((0..60).map(|n| struck((n % 5) as u8, n / 5, Fault::Partition(500 + n))).collect())
    }

    fn has_partition(plan: &Plan, millis: u32) -> bool {
        plan.listed().iter().any(|struck| struck.fault.measure().is_some_and(|measure| measure >= millis))
    }

    #[test]
    fn one_fault_of_sixty_is_found_with_its_least_measure() {
        let fails = |plan: &Plan| has_partition(plan, 321).then(|| violation(Invariant::S3));
        let shrunk = shrink(&storm(), RUNS, fails).unwrap();
        assert_eq!(shrunk.plan.listed().len(), 1);
        assert_eq!(shrunk.plan.listed()[0].fault, Fault::Partition(321));
        assert_eq!((shrunk.plan.config.clients, shrunk.plan.config.rounds, shrunk.plan.config.jitter), (1, 1, false));
        assert!(shrunk.runs < 200, "{}", shrunk.runs);
    }

    #[test]
    fn two_faults_that_only_fail_together_stay_together() {
        let has = |plan: &Plan, nth: u32| plan.listed().iter().any(|struck| struck.slot.nth == nth);
        let fails = |plan: &Plan| (has(plan, 3) && has(plan, 9)).then(|| violation(Invariant::L1));
        let shrunk = shrink(&storm(), RUNS, fails).unwrap();
        assert_eq!(shrunk.plan.listed().len(), 2, "{:?}", shrunk.plan.listed());
    }

    #[test]
    fn a_client_in_the_middle_can_go_too() {
        let fails = |plan: &Plan| (plan.config.clients >= 2 && has_partition(plan, 559)).then(|| violation(Invariant::S3));
        let shrunk = shrink(&storm(), RUNS, fails).unwrap();
        assert_eq!((shrunk.plan.config.clients, shrunk.plan.listed().len()), (2, 1));
        assert!(shrunk.plan.listed()[0].slot.client < 2);
    }

    #[test]
    fn another_failure_is_not_taken_for_this_one() {
        let fails = |plan: &Plan| {
            let invariant = if plan.listed().len() > 10 { Invariant::S3 } else { Invariant::H1 };
            Some(violation(invariant))
        };
        let shrunk = shrink(&storm(), RUNS, fails).unwrap();
        assert_eq!(shrunk.violation.invariant, Invariant::S3);
        assert_eq!(shrunk.plan.listed().len(), 11);
    }

    #[test]
    fn what_passes_is_not_shrunk_and_runs_are_bounded() {
        assert_eq!(shrink(&storm(), RUNS, |_| None), None);
        let mut runs = 0;
        let fails = |plan: &Plan| {
            runs += 1;
            has_partition(plan, 321).then(|| violation(Invariant::S3))
        };
        assert_eq!(shrink(&storm(), 17, fails).unwrap().runs, 17);
        assert_eq!(runs, 17);
    }
}
