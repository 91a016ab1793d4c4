//! Counts what dlock itself costs, and holds it against what was recorded: `./scripts/counts.sh`.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use baseline::{Baseline, Counted};
use clap::{Parser, Subcommand};
use dlock_counts::{Heap, Subject, heap_of, instructions};

mod baseline;

/// Counts what dlock itself costs, and fails if that is not what was recorded.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// Writes down what is counted, as what must be counted from now on.
    #[arg(long)]
    record: bool,
    /// Says what is counted, and compares it with nothing.
    #[arg(long, conflicts_with = "record")]
    print: bool,
    /// What was recorded.
    #[arg(long, value_name = "FILE", default_value = "bench/counts/baseline.json")]
    baseline: PathBuf,
    #[command(subcommand)]
    work: Option<Work>,
}

/// What this program does under valgrind.
#[derive(Debug, Subcommand)]
enum Work {
    /// Does so many operations.
    #[command(hide = true)]
    Operate {
        /// Of what.
        subject: Subject,
        /// How many.
        times: u32,
    },
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(Work::Operate { subject, times }) = arguments.work {
        subject.start()(times);
        return Ok(ExitCode::SUCCESS);
    }
    let toolchain = toolchain()?;
    println!("with {toolchain}, one operation takes\n");
    println!("{:>12} {:>11} {:>7} {:>6} {:>7}", "instructions", "allocations", "grown", "bytes", "ns here");
    let mut counted = Counted::default();
    for subject in Subject::ALL {
        let (heap, instructions) = (heap_of(subject), instructions(subject)?.round() as u64);
        let Heap { allocations, reallocations, bytes } = heap;
        println!(
            "{instructions:>12} {allocations:>11} {reallocations:>7} {bytes:>6} {:>7.0}  {}",
            nanoseconds(subject),
            subject.name()
        );
        counted.heap.insert(subject.name().to_owned(), heap);
        counted.instructions.insert(subject.name().to_owned(), instructions);
    }
    println!();
    if arguments.print {
        return Ok(ExitCode::SUCCESS);
    }
    let mut baseline = Baseline::read(&arguments.baseline)?;
    let file = arguments.baseline.display();
    if arguments.record {
        baseline.record(&toolchain, counted);
        baseline.write(&arguments.baseline)?;
        println!("recorded in {file}");
        return Ok(ExitCode::SUCCESS);
    }
    let known = baseline.knows(&toolchain);
    if !known {
        println!("{file} has no instructions of this toolchain, so they are not compared; ./scripts/counts.sh --record adds them");
    }
    let differences = baseline.differences(&toolchain, &counted);
    if differences.is_empty() {
        let what = if known { "allocations and instructions" } else { "allocations alone" };
        println!("proof: counts: {what} of {} subjects are as recorded", Subject::ALL.len());
        return Ok(ExitCode::SUCCESS);
    }
    for difference in differences {
        eprintln!("{difference}");
    }
    eprintln!("if that is as it should be, and for the better if it is less, record it: ./scripts/counts.sh --record");
    Ok(ExitCode::FAILURE)
}

/// How long an operation takes on this machine, the median; it is compared with nothing.
fn nanoseconds(subject: Subject) -> f64 {
    const ROUNDS: usize = 201;
    const OPERATIONS: u32 = 100;
    let mut operate = subject.start();
    let mut rounds = [0.0; ROUNDS].map(|_: f64| {
        let began = Instant::now();
        operate(OPERATIONS);
        began.elapsed().as_secs_f64() * 1e9 / f64::from(OPERATIONS)
    });
    rounds.sort_unstable_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Which compiler, and for which machine.
fn toolchain() -> Result<String, Box<dyn Error>> {
    let told = Command::new("rustc").arg("-vV").output()?;
    let told = String::from_utf8(told.stdout)?;
    let version = told.lines().next().unwrap_or_default();
    let host = told.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc does not say for which machine")?;
    Ok(format!("{version}, {host}"))
}
