//! What dlock costs, beside the fewest requests that can do the work, on real servers and on this machine.
//!
//! `cargo run --release -p dlock-bench` measures everything and writes `bench/results/report.md` with pictures; `-- --quick` does so in less than two minutes.
//! Everything that is compared is measured in turns in one run, so that ratios hold on a machine that is busy with something else, too.

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;

use machine::Machine;
use report::Findings;
use scenario::{Plan, Scenario, handover, idle, overhead, scale, throughput, uncontended};
use stores::Stores;
use worker::Work;

mod arm;
mod client;
mod machine;
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

/// Measures what dlock costs beside the fewest requests that can do the work.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, disable_help_subcommand = true)]
struct Arguments {
    /// Takes less than two minutes: fewer rounds, 10 waiters and 100 keys at most.
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

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    if let Some(work) = arguments.work {
        return worker::work(work).await;
    }
    tokio::select! {
        biased;
        // What is dropped then are the servers and workers, and their folders.
        interrupted = tokio::signal::ctrl_c() => { interrupted?; Err("interrupted".into()) }
        measured = measure(&arguments) => measured,
    }
}

async fn measure(arguments: &Arguments) -> Outcome<()> {
    let plan = if arguments.quick { Plan::quick() } else { Plan::whole() };
    let wanted = |scenario| arguments.only.is_empty() || arguments.only.contains(&scenario);
    let began = std::time::Instant::now();
    let mut machine = Machine::look()?;
    progress::say("starting the servers");
    let stores = Stores::start().await?;
    machine.versions = stores.versions().await?.into();
    let mut findings = Findings::default();
    if wanted(Scenario::Uncontended) {
        findings.uncontended = uncontended::measure(&stores, &plan).await?;
    }
    if wanted(Scenario::Handover) {
        findings.handover = handover::measure(&stores, &plan).await?;
    }
    if wanted(Scenario::Idle) {
        findings.idle = idle::measure(&stores, &plan).await?;
    }
    if wanted(Scenario::Throughput) {
        findings.throughput = throughput::measure(&stores, &plan).await?;
    }
    if wanted(Scenario::Overhead) {
        findings.overhead = overhead::measure(&plan).await?;
    }
    if wanted(Scenario::Scale) {
        // Last, for a clock that was once stopped is read more slowly ever after.
        (findings.fleets, findings.crowds) = scale::measure(&plan).await?;
    }
    machine.took = began.elapsed();
    report::write(&arguments.out, &machine, &findings)?;
    progress::say(&format!("wrote {} after {:.0?}", arguments.out.join("report.md").display(), machine.took));
    Ok(())
}
