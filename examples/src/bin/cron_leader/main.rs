//! How do I run a job on several machines so that only one of them works at a time?
//!
//! With `--backend consul://127.0.0.1:8500` this is one candidate: start it in two terminals and stop either. Without, three
//! candidates compete in this process, and each leader is killed in turn.

mod demonstration;

use std::convert::Infallible;
use std::error::Error;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dlock::{Held, Locker};
use tokio::runtime::Runtime;

#[derive(Clone, Parser)]
#[command(about = "A job that only the leader runs; stop the leader and another takes over")]
struct Options {
    /// The store, for example consul://127.0.0.1:8500; without it, three candidates on a store in this process.
    #[arg(long, value_name = "URL")]
    backend: Option<String>,
    /// The key that the leader holds.
    #[arg(long, default_value = "dlock/examples/cron_leader")]
    key: String,
    /// How long a dead leader blocks the others, at least: 15s on a server, 1s without.
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How often the job runs.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "3s")]
    every: Duration,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,dlock=info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
    let options = Options::parse();
    let outcome = match &options.backend {
        Some(url) => Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(candidate("candidate", url, &options))),
        None => demonstration::run(&options),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    let causes = std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source());
    causes.for_each(|cause| eprintln!("  because: {cause}"));
    ExitCode::FAILURE
}

/// Campaigns, works, campaigns again; gives the lock back at once on SIGTERM or Ctrl-C.
async fn candidate(name: &str, url: &str, options: &Options) -> Result<(), Box<dyn Error>> {
    let ttl = options.ttl.unwrap_or(Duration::from_secs(if options.backend.is_some() { 15 } else { 1 }));
    let locker: Locker = dlock::builder(url)?.ttl(ttl).name(name).connect().await?;
    println!("{name}: campaigning for {} as {}", options.key, locker.owner());
    tokio::select! {
        outcome = locker.election(&options.key).metadata("job", "cron_leader").lead(|term| job(name, term, options.every)) => {
            outcome?;
        }
        () = stopped() => println!("{name}: stopping"),
    }
    let report = locker.shutdown(Duration::from_secs(3)).await;
    println!("{name}: gone, everything given back: {}", report.is_clean());
    Ok(())
}

async fn job(name: &str, term: Held, every: Duration) -> ControlFlow<Infallible> {
    println!("{name}: leading with token {}", term.token().map_or(0, dlock::FencingToken::get));
    loop {
        println!("{name}: working, sure of the lock for {:.1?}", term.remaining());
        tokio::time::sleep(every).await;
    }
}

async fn stopped() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signals can be handled");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
