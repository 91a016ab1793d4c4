//! Many seeds, run within a budget; the smallest failure, told so that a developer can go on from it.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use crate::check::{Invariant, Violation};
use crate::history::History;
use crate::plan::{Plan, Tier};
use crate::run::{Run, run};
use crate::shrink::{Shrunk, shrink};
use crate::sometimes::{Seen, met};
use crate::timeline;

/// Seeds of one tier, each a schedule.
///
/// Every seed is run by itself, so that a campaign finds the same on any number of threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    tier: Tier,
    seeds: Range<u64>,
    threads: usize,
}

/// What a campaign found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many schedules were run.
    pub schedules: u64,
    /// How many lines their histories have together.
    pub lines: u64,
    /// How long the histories are together, in microseconds of true time.
    pub simulated: u64,
    /// What happened in them.
    pub seen: Seen,
    /// The schedules that broke a promise, by their seeds; a thread ends after [`FAILURES`] of them.
    pub failures: Vec<Failing>,
}

/// A schedule that broke a promise.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Its seed.
    pub seed: u64,
    /// Its plan, with the faults that struck.
    pub plan: Plan,
    /// What it broke.
    pub violation: Violation,
}

/// How many failing schedules are collected before a campaign gives up; the smallest of them is told.
pub const FAILURES: usize = 20;
/// Names the seeds to run instead of a campaign's own, as `from..to`.
pub const SEEDS: &str = "DLOCK_SIM_SEEDS";
/// Names the plan to replay.
pub const REPLAY: &str = "DLOCK_SIM_REPLAY";

impl Campaign {
    /// These seeds of a tier, on one thread, or the seeds that `DLOCK_SIM_SEEDS` names.
    pub fn new(tier: Tier, seeds: Range<u64>) -> Self {
        Self { tier, seeds: seeds_or(seeds), threads: 1 }
    }

    /// On so many threads, each with all that its schedules need.
    #[must_use]
    pub fn on(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Runs it, and panics with the smallest failure if there is one.
    pub fn prove(&self) -> Report {
        let report = self.run();
        if let Some(told) = report.tell(run, &folder()) {
            panic!("{told}");
        }
        report
    }

    /// Runs it.
    pub fn run(&self) -> Report {
        self.run_with(run)
    }

    /// Runs it with this instead of a simulator.
    pub fn run_with(&self, simulate: impl Fn(&Plan) -> Run + Sync) -> Report {
        let reports: Vec<_> = thread::scope(|scope| {
            let simulate = &simulate;
            let threads: Vec<_> = (0..self.threads).map(|nth| scope.spawn(move || self.part(nth, simulate))).collect::<Vec<_>>();
            threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut all = Report::default();
        for report in reports {
            // A simulator that panicked has said at which seed.
            all.take(report.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all.failures.sort_by_key(|failing| failing.seed);
        all
    }

    /// Every n-th seed.
    fn part(&self, nth: usize, simulate: impl Fn(&Plan) -> Run) -> Report {
        let mut report = Report::default();
        for seed in self.seeds.clone().skip(nth).step_by(self.threads) {
            let plan = Plan::of_seed(self.tier, seed);
            let watch = Watch(&plan);
            let Run { plan: ran, history, violation } = simulate(&plan);
            drop(watch);
            report.count(&plan, &history);
            if let Some(violation) = violation {
                report.failures.push(Failing { seed, plan: ran, violation });
                if report.failures.len() >= FAILURES {
                    break;
                }
            }
        }
        report
    }

    /// Runs every seed twice, and once more from the faults that struck; the first that does not give the same history each time.
    pub fn undetermined(&self, simulate: impl Fn(&Plan) -> Run) -> Option<Undetermined> {
        self.seeds.clone().find_map(|seed| {
            let plan = Plan::of_seed(self.tier, seed);
            let first = simulate(&plan);
            let differs = |again: &Run| first.history.fingerprint() != again.history.fingerprint();
            let again = simulate(&plan);
            if differs(&again) {
                return Some(Undetermined { seed, replayed: false, line: parting(&first.history, &again.history) });
            }
            let replayed = simulate(&first.plan);
            differs(&replayed).then(|| Undetermined { seed, replayed: true, line: parting(&first.history, &replayed.history) })
        })
    }
}

/// These seeds, or those that `DLOCK_SIM_SEEDS` names.
pub fn seeds_or(seeds: Range<u64>) -> Range<u64> {
    env::var(SEEDS).ok().map_or(seeds, |named| {
        let seeds = named.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
        seeds.unwrap_or_else(|| panic!("{SEEDS} must be like 0..1000, not {named:?}"))
    })
}

/// A seed that does not decide its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undetermined {
    /// The seed.
    pub seed: u64,
    /// Whether only the replay of what struck went another way.
    pub replayed: bool,
    /// The first line that differs.
    pub line: usize,
}

fn parting(one: &History, other: &History) -> usize {
    one.lines().iter().zip(other.lines()).take_while(|(one, other)| one == other).count()
}

/// Says which seed it was if its simulator panics.
struct Watch<'a>(&'a Plan);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let Plan { tier, config, .. } = self.0;
            eprintln!(
                "the simulator panicked at seed {} of tier {tier:?}; {SEEDS}={0}..{1} runs it alone",
                config.seed,
                config.seed + 1
            );
        }
    }
}

impl Report {
    fn count(&mut self, plan: &Plan, history: &History) {
        self.schedules += 1;
        self.lines += history.lines().len() as u64;
        self.simulated += history.lines().last().map_or(0, |line| line.at);
        self.seen.add(met(plan, history));
    }

    fn take(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.lines += other.lines;
        self.simulated += other.simulated;
        self.seen.merge(&other.seen);
        self.failures.extend(other.failures);
    }

    /// The smallest failure, shrunk: with its seed.
    pub fn smallest(&self, simulate: impl Fn(&Plan) -> Run) -> Option<(u64, Shrunk)> {
        let mut failures: Vec<_> = self.failures.iter().collect();
        failures.sort_by_key(|failing| (failing.plan.listed().len(), failing.plan.config.clients, failing.seed));
        let mut runs = budget(failures.first()?.plan.tier);
        let mut smallest: Option<(u64, Shrunk)> = None;
        for failing in failures.into_iter().take(FAILURES) {
            let Some(shrunk) = shrink(&failing.plan, runs / 4, |plan| simulate(plan).violation) else { continue };
            runs -= shrunk.runs.min(runs);
            if smallest.as_ref().is_none_or(|(_, smallest)| shrunk.size() < smallest.size()) {
                smallest = Some((failing.seed, shrunk));
            }
        }
        smallest
    }

    /// What a developer needs to go on from the smallest failure, with its files in a folder; `None` if there is no failure.
    pub fn tell(&self, simulate: impl Fn(&Plan) -> Run, folder: &Path) -> Option<String> {
        let first = self.failures.first()?;
        let Some((seed, shrunk)) = self.smallest(&simulate) else {
            let Failing { seed, violation, .. } = first;
            return Some(format!("seed {seed} broke {violation}; it does not fail again: the simulator is not determined"));
        };
        let Run { history, .. } = simulate(&shrunk.plan);
        let mut text = format!("\n{} of {} schedules broke a promise:", self.failures.len(), self.schedules);
        let mut invariants: Vec<Invariant> = self.failures.iter().map(|failing| failing.violation.invariant).collect();
        invariants.sort_unstable();
        for same in invariants.chunk_by(|one, other| one == other) {
            let _ = write!(text, " {:?} {} times,", same[0], same.len());
        }
        text.pop();
        let _ = writeln!(text, ". The smallest, of seed {seed}, shrunk in {} runs:\n", shrunk.runs);
        text += &told(&shrunk.plan, &history, &shrunk.violation);
        let name = format!("{:?}-{seed}", shrunk.plan.tier).to_lowercase();
        match Files::write(folder, &name, &shrunk.plan, &history, Some(&shrunk.violation)) {
            Ok(files) => {
                let Files { plan, history, picture } = files;
                let _ =
                    writeln!(text, "\nplan     {}\nhistory  {}\npicture  {}", plan.display(), history.display(), picture.display());
                let _ = writeln!(text, "\nreplay   {REPLAY}={} {}", plan.display(), replays());
            }
            Err(error) => {
                let _ = writeln!(text, "\n{} could not be written: {error}", folder.display());
            }
        }
        Some(text)
    }
}

/// A violation with both of its lines and its plan as a table.
pub fn told(plan: &Plan, history: &History, violation: &Violation) -> String {
    let mut text = format!("{:?} is broken: {}\n  {}\n", violation.invariant, violation.invariant.says(), violation.says);
    for line in [violation.other, Some(violation.line)].into_iter().flatten() {
        if let Some(event) = history.lines().get(line) {
            let event = serde_json::to_string(event).unwrap_or_else(|error| unreachable!("a line is always JSON: {error}"));
            let _ = writeln!(text, "  line {line:>5}  {event}");
        }
    }
    text.push('\n');
    for line in timeline::of_plan(plan).iter().take(1) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "  {:<10} {:<6} {:>4}  fault", "site", "client", "nth");
    for struck in plan.listed() {
        let site = timeline::of_site(struck.slot.site);
        let client = crate::plan::name(struck.slot.client);
        let _ = writeln!(text, "  {site:<10} {client:<6} {:>4}  {}", struck.slot.nth, timeline::of_fault(struck.fault));
    }
    if plan.listed().is_empty() {
        let _ = writeln!(text, "  no fault");
    }
    text
}

/// What is written of a run.
#[derive(Clone, Debug)]
pub struct Files {
    /// The plan, as JSON.
    pub plan: PathBuf,
    /// The history, as JSON lines.
    pub history: PathBuf,
    /// The picture, as SVG.
    pub picture: PathBuf,
}

impl Files {
    /// Writes a run into a folder.
    pub fn write(folder: &Path, name: &str, plan: &Plan, history: &History, violation: Option<&Violation>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = |ending: &str| folder.join(format!("{name}.{ending}"));
        let files = Self { plan: file("plan.json"), history: file("history.jsonl"), picture: file("svg") };
        fs::write(&files.plan, serde_json::to_string_pretty(plan)? + "\n")?;
        fs::write(&files.history, history.to_json_lines())?;
        fs::write(&files.picture, timeline::svg(plan, history, violation))?;
        Ok(files)
    }
}

/// Where runs are written: `dlock-sim` in cargo's target folder.
pub fn folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target")).join("dlock-sim")
}

/// What replays a plan on this code.
fn replays() -> String {
    #[cfg(dlock_planted)]
    if let Some(bug) = dlock_core::planted::Bug::on() {
        return format!("scripts/planted.sh {}", bug.name());
    }
    "cargo test -p dlock-sim --test replay -- --nocapture".to_owned()
}

/// How many runs all shrinking together may take: about half a minute.
fn budget(tier: Tier) -> usize {
    match tier {
        Tier::Machines => 40_000,
        Tier::Locker | Tier::Beside => 8_000,
        Tier::Wire | Tier::WireFair | Tier::WireEtcd => 400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{check, sketch};
    use crate::plan::Site;
    use crate::plan::{Fault, Struck, Weather};

    /// A client that holds too long when its third renewal is lost.
    fn simulate(plan: &Plan) -> Run {
        let mut weather = Weather::of(plan);
        let mut fails = false;
        for client in 0..plan.config.clients {
            for nth in 0..6 {
                let (_, fault) = weather.visit(Site::Renew, client);
                fails |= nth == 2 && matches!(fault, Some(Fault::LoseReply | Fault::LoseRequest));
            }
        }
        let told = if fails { "1000 - lapses 1 1\n1100 a loses 1" } else { "900 a loses 1\n1000 - lapses 1 1" };
        let history = sketch::history(&format!("0 a wants 1\n5 - grants 1 1\n9 a holds 1 1\n{told}"));
        Run { plan: plan.with_faults(weather.struck().to_vec()), violation: check(plan, &history), history }
    }

    fn campaign(seeds: Range<u64>) -> Campaign {
        Campaign { tier: Tier::Machines, seeds, threads: 1 }
    }

    #[test]
    fn every_seed_is_run_once_on_any_number_of_threads() {
        let one = campaign(0..300).run_with(simulate);
        let two = campaign(0..300).on(2).run_with(simulate);
        assert_eq!((one.schedules, one.lines, one.simulated), (300, 1_500, two.simulated));
        assert_eq!((two.schedules, &two.seen), (300, &one.seen));
        let seeds = |report: &Report| report.failures.iter().map(|failing| failing.seed).collect::<Vec<_>>();
        assert_eq!(seeds(&one), seeds(&two));
        assert!((1..FAILURES).contains(&one.failures.len()), "{:?}", seeds(&one));
    }

    #[test]
    fn a_campaign_that_only_fails_ends_early() {
        let broken = |plan: &Plan| {
            let violation = simulate(&plan.with_faults(vec![late(plan)])).violation;
            Run { violation, ..simulate(plan) }
        };
        assert_eq!(campaign(0..1_000).run_with(broken).schedules, FAILURES as u64);
    }

    fn late(_: &Plan) -> Struck {
        let slot = crate::plan::Slot { site: Site::Renew, client: 0, nth: 2 };
        Struck { slot, fault: Fault::LoseReply }
    }

    #[test]
    fn the_smallest_failure_is_told_with_everything_to_go_on() {
        let folder = folder().join("campaign-test");
        let told = campaign(0..300).run_with(simulate).tell(simulate, &folder).unwrap();
        for expected in [
            "S4 is broken: a loss is told before the store lets the grant lapse",
            "line     2  {\"at\":9000,\"client\":0,\"event\":\"held\",\"op\":1,\"token\":1}",
            "line     3  {\"at\":1000000,\"event\":\"ended\",\"op\":1,\"token\":1,\"cause\":\"lapsed\"}",
            "tier machines",
            "DLOCK_SIM_REPLAY=",
            "cargo test -p dlock-sim --test replay -- --nocapture",
        ] {
            assert!(told.contains(expected), "{expected} is missing in {told}");
        }
        let path = told.lines().find_map(|line| line.strip_prefix("plan     ")).unwrap();
        let plan: Plan = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(plan.listed().len(), 1);
        assert_eq!((plan.listed()[0].slot.nth, plan.config.jitter), (2, false));
        let history = fs::read_to_string(path.replace("plan.json", "history.jsonl")).unwrap();
        assert_eq!(History::from_json_lines(&history).unwrap(), simulate(&plan).history);
        assert!(fs::read_to_string(path.replace("plan.json", "svg")).unwrap().contains("S4 broken here"));
    }

    #[test]
    fn nothing_is_told_of_a_campaign_without_failure() {
        let calm = |plan: &Plan| simulate(&plan.with_faults(Vec::new()));
        assert_eq!(campaign(0..50).run_with(calm).tell(calm, Path::new("/nowhere")), None);
    }

    #[test]
    fn a_seed_that_does_not_decide_its_history_is_found() {
        assert_eq!(campaign(0..100).undetermined(simulate), None);
        let runs = std::cell::Cell::new(0);
        let drifting = |plan: &Plan| {
            runs.set(runs.get() + 1);
            let mut run = simulate(plan);
            if plan.config.seed == 7 && runs.get() % 2 == 0 {
                run.history.push(2_000_000, None, crate::history::Event::Healed);
            }
            run
        };
        let found = campaign(0..100).undetermined(drifting).unwrap();
        assert_eq!((found.seed, found.line), (7, 5));
        let forgetful = |plan: &Plan| {
            let mut run = simulate(plan);
            run.plan = run.plan.with_faults(Vec::new());
            run
        };
        assert!(campaign(0..300).undetermined(forgetful).unwrap().replayed);
    }
}
