//! The `dlock` command: runs commands under a distributed lock, and shows who holds which.
//!
//! `main` chooses; each subcommand is a module. `run` is three processes: this one has the lock, the [guardian](guardian) has the command's life
//! in its hand, and the command.

mod acquire;
mod args;
mod contender;
mod doctor;
mod elect;
mod event;
mod evict;
mod exit;
mod guardian;
mod hold;
mod look;
mod output;
mod run;
mod session;
mod shells;
mod signals;
mod store;
mod terminal;
mod waiting;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use tracing_subscriber::EnvFilter;

use self::args::{Action, Cli, Inner};
use self::exit::{Exit, Failure};
use self::output::{Output, note};
use self::store::Store;

fn main() -> ExitCode {
    wait_for_children();
    let exit = chosen();
    output::flush(Duration::from_secs(1));
    exit
}

/// Sees to it that children are there to be waited for when they end: whoever started us may have had us ignore their ends.
#[allow(unsafe_code)]
fn wait_for_children() {
    // SAFETY: the default action runs none of our code, and there is no handler that it could replace: no other thread has been started yet.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

fn chosen() -> ExitCode {
    if Inner::is_asked_for() {
        return match Inner::parse() {
            Inner::Guardian(setting) => guardian::guard(&setting),
            Inner::Command(command) => guardian::become_command(command.guardian, command.terminal, &command.command),
        }
        .into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output; if nobody reads them, nothing is wrong.
            let _ = error.print();
            if error.kind() == ErrorKind::UnknownArgument && std::env::args_os().any(|word| word == "run") {
                note("the command to run comes behind --: dlock run KEY -- CMD...");
            }
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { Exit::OK } else { Exit::USAGE }.into();
        }
    };
    match on_a_runtime(&cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // That another was first is no error to who asked not to wait, nor to be told.
            let is_expected = cli.quiet && failure.exit == Exit::BUSY;
            if !failure.is_silent() && !is_expected {
                note(&failure);
            }
            failure.exit.into()
        }
    }
}

/// What asks a store, on a runtime.
fn on_a_runtime(cli: &Cli) -> Result<Exit, Failure> {
    output::start();
    // Whoever gives the terminal back is not in its foreground, and is not to be stopped for it.
    let _ = SigSet::from(Signal::SIGTTOU).thread_block();
    let filter = EnvFilter::try_from_env("DLOCK_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| output::Logged).init();
    // Whoever is slow to read our lines does not keep renewals waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
    let ended = runtime.block_on(answer(cli));
    // A call that hangs in the system does not keep us.
    runtime.shutdown_background();
    ended
}

async fn answer(cli: &Cli) -> Result<Exit, Failure> {
    // Not for who asks for completions: there may be no store yet.
    let store = || Store::choose(cli.backend.clone());
    let output = Output::new(cli.json, cli.quiet);
    match &cli.action {
        Action::Run(run) => self::run::run(&store()?, run, output).await,
        Action::Hold(hold) => hold::hold(&store()?, hold, output).await,
        Action::Who { key } => look::who(&store()?, key, output).await,
        Action::Ls { prefix } => look::list(&store()?, prefix, output).await,
        Action::Watch { what } => watch::watch(&store()?, what, output).await,
        Action::Break { key, yes } => evict::evict(&store()?, key, *yes, output).await,
        Action::Elect(elect) => elect::elect(&store()?, elect, output).await,
        Action::Doctor => doctor::examine(&store()?, output).await,
        Action::Completions { shell } => shells::completions(*shell),
        Action::Man => shells::manual(),
    }
}
