//! What dlock costs, beside the fewest requests that can do the work and beside other clients, on real servers and on this machine.
//!
//! `cargo run --release -p dlock-bench` measures everything and writes `bench/results/report.md` with pictures; `-- --quick` does so in less than two minutes.
//! Everything that is compared is measured in turns in one run, so that ratios hold on a machine that is busy with something else, too.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use ending::Signals;
use machine::Machine;
use report::Findings;
use scenario::{Plan, Scenario, handover, idle, overhead, scale, throughput, uncontended};
use stores::Stores;
use worker::Work;

mod arm;
mod client;
mod ending;
mod machine;
mod peer;
mod progress;
mod raw;
mod report;
mod scenario;
mod stats;
mod stores;
mod svg;
mod target;
mod worker;

/// What this program's calls bring: whatever goes wrong ends it, and is told.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// An error with all its causes.
fn told(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Measures what dlock costs, beside bare clients that send the fewest requests that can do the work, and beside other lock clients.
///
/// Starts a Consul and an etcd of its own and uses files in a temporary folder; all are gone when it ends. Measures what lock and release of a
/// free key cost, how soon the next of 1, 10 or 100 who wait holds a lock, what 1, 100 and 1000 locks cost that are just held, and how many
/// locks one client takes and gives back at once; what dlock itself costs, without a server; and, in virtual time, what up to 100 000 clients ask of a
/// store.
///
/// Takes about 15 minutes, with --quick less than two. Prints the report, and writes it with its pictures into a folder: report.md, pair.svg,
/// handover-etcd.svg, handover-consul.svg, idle.svg, crowd.svg and loss.svg. Files of these names are overwritten, others stay.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, disable_help_subcommand = true)]
struct Arguments {
    /// Takes less than two minutes: fewer and shorter rounds, 10 waiters and 100 keys at most.
    #[arg(long)]
    quick: bool,
    /// Measures this alone; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<Scenario>,
    /// Where report and pictures go.
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    out: PathBuf,
    #[command(subcommand)]
    work: Option<Work>,
}

impl Arguments {
    /// What of them says how it was measured.
    fn told(&self) -> String {
        let only = self.only.iter().filter_map(ValueEnum::to_possible_value).map(|only| format!("--only {}", only.get_name()));
        self.quick.then(|| "--quick".to_owned()).into_iter().chain(only).collect::<Vec<_>>().join(" ")
    }
}

/// Whoever signals a whole process group ends the servers, too, of which may be heard sooner than of the signal.
const SIGNAL_LATE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Of a process that is timed nothing is counted but what is asked for.
    dlock_counts::count(arguments.work.as_ref().is_some_and(Work::is_counted));
    if let Some(Work::Tenure { hold }) = arguments.work {
        // Its start is a part of what is measured.
        worker::tenure(hold);
        return ExitCode::SUCCESS;
    }
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    if let Some(work) = arguments.work {
        return runtime.block_on(worker::work(work));
    }
    let code = runtime.block_on(run(&arguments));
    ending::wait_for_children();
    code
}

fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("error: {}", told(error));
    ExitCode::FAILURE
}

/// Measures until that is done, or a signal comes.
async fn run(arguments: &Arguments) -> ExitCode {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return failed(&error),
    };
    let ended = tokio::select! {
        biased;
        // What is dropped then are the servers and workers, which kills them, and their folders, which removes them.
        signal = signals.next() => Err(signal),
        measured = measure(arguments) => Ok(measured),
    };
    let error = match ended {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => match timeout(SIGNAL_LATE, signals.next()).await {
            Ok(signal) => Err(signal),
            Err(_) => Ok(error),
        },
        Err(signal) => Err(signal),
    };
    match error {
        Ok(error) => failed(&*error),
        Err(signal) => {
            eprintln!("ended by a signal; nothing was written");
            ExitCode::from(ending::code(signal))
        }
    }
}

async fn measure(arguments: &Arguments) -> Outcome<()> {
    report::prepare(&arguments.out)?;
    let plan = if arguments.quick { Plan::quick() } else { Plan::whole() };
    let wanted = |scenario: &&Scenario| arguments.only.is_empty() || arguments.only.contains(scenario);
    let scenarios: Vec<Scenario> = Scenario::value_variants().iter().filter(wanted).copied().collect();
    progress::expect(scenarios.iter().map(|scenario| scenario.expected(&plan)).sum());
    let began = std::time::Instant::now();
    let mut machine = Machine::look(&arguments.told())?;
    let mut stores = None;
    if scenarios.iter().any(|scenario| scenario.asks_servers()) {
        progress::say("starting the servers");
        let started = stores.insert(Stores::start().await?);
        machine.versions = started.versions().await?.into();
    }
    let mut findings = Findings::default();
    for scenario in scenarios {
        progress::begin(scenario.expected(&plan));
        match (scenario, &stores) {
            (Scenario::Uncontended, Some(stores)) => findings.uncontended = uncontended::measure(stores, &plan).await?,
            (Scenario::Handover, Some(stores)) => findings.handover = handover::measure(stores, &plan).await?,
            (Scenario::Idle, Some(stores)) => findings.idle = idle::measure(stores, &plan).await?,
            (Scenario::Throughput, Some(stores)) => findings.throughput = throughput::measure(stores, &plan).await?,
            (Scenario::Overhead, _) => findings.overhead = overhead::measure(&plan).await?,
            // Last, for a clock that was once stopped is read more slowly ever after.
            (Scenario::Scale, _) => (findings.fleets, findings.crowds) = scale::measure(&plan).await?,
            (asking, None) => unreachable!("the servers were not started for {asking:?}"),
        }
    }
    machine.took = began.elapsed();
    machine.watched();
    println!("{}", report::write(&arguments.out, &machine, &findings)?);
    progress::say(&format!("wrote {} after {:.0?}", arguments.out.join("report.md").display(), machine.took));
    Ok(())
}
