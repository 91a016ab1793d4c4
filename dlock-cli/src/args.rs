//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::guardian::Setting;

/// Runs commands under a distributed lock: on exactly one machine at a time, and told when the lock is lost.
#[derive(Clone, Debug, Parser)]
#[command(name = "dlock", version, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where the locks are: consul://host:port, etcd://host:port, sqlite:///path/to/file.db.
    ///
    /// Without it a file of yours on this machine, $XDG_STATE_HOME/dlock/locks.db or ~/.local/state/dlock/locks.db, which excludes your processes on this machine
    /// alone.
    #[arg(long, env = "DLOCK_URL", value_name = "URL", global = true, hide_env_values = true)]
    pub backend: Option<String>,
    /// Print results as JSON, one object a line.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but errors on standard error.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// The exit codes, below the help texts.
pub const EXIT_CODES: &str = "Exit codes: the command's own, or 128 and the number of the signal that ended it; 64 usage; 69 store unreachable; \
                              70 lock lost and command stopped; 75 busy or timed out, nothing to break; 77 denied; 78 configuration; 126 and 127 the command cannot be run or found.";

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Wait for a lock, and run a command while it is held.
    ///
    /// The command gets DLOCK_KEY, DLOCK_TOKEN (of an exclusive lock) and DLOCK_BACKEND, and a process group of its own. Signals are passed on
    /// to it. When the lock is lost it is sent TERM, and KILL after the grace: before another can hold the lock, unless somebody takes it away by force. When the command has
    /// ended, what it left running is ended too, and then the lock is given back.
    #[command(after_help = EXIT_CODES)]
    Run(Run),
    /// Hold a lock until Ctrl-C, which gives it back and ends with 0.
    Hold(Hold),
    /// Show who holds a lock, and who waits for it.
    Who {
        /// The lock.
        key: String,
    },
    /// List the locks that are held.
    Ls {
        /// Only those whose keys start with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show every change of a lock, or of all locks whose keys start with PREFIX, which ends in a slash.
    Watch {
        /// A lock, or a prefix that ends in a slash; without it, all locks.
        #[arg(value_name = "KEY|PREFIX", default_value = "")]
        what: String,
    },
    /// Take a lock away from whoever holds it now.
    ///
    /// Its holder is told, and ends its command by TERM, and by KILL after the grace. Another may hold the lock meanwhile.
    Break {
        /// The lock.
        key: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Be a candidate in an election, and lead until Ctrl-C once elected; or observe who leads.
    Elect(Elect),
    /// Find out whether the store is fit for locks, and what to do if not.
    Doctor,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, for `man -l -` or a file in a man1 folder.
    Man,
}

/// What `dlock` starts itself as; nothing to be started by hand, so nothing that help or completions name.
#[derive(Clone, Debug, Parser)]
#[command(name = "dlock")]
pub enum Inner {
    /// The second process of `run`.
    #[command(name = Inner::GUARDIAN)]
    Guardian(Setting),
    /// The last step to the command of `run`.
    #[command(name = Inner::COMMAND)]
    Command(Become),
}

impl Inner {
    /// The first argument of a guardian.
    pub const GUARDIAN: &str = "__guardian";
    /// The first argument of what becomes the command.
    pub const COMMAND: &str = "__command";

    /// Whether this process was started as one of them.
    pub fn is_asked_for() -> bool {
        std::env::args_os().nth(1).is_some_and(|first| first == Self::GUARDIAN || first == Self::COMMAND)
    }
}

/// What `__command` takes.
#[derive(Clone, Debug, Args)]
pub struct Become {
    /// The guardian's process.
    #[arg(long)]
    pub guardian: i32,
    /// Take the terminal on standard input.
    #[arg(long)]
    pub terminal: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Which lock, and how.
#[derive(Clone, Debug, Args)]
pub struct Lock {
    /// The lock, on the store word for word: PREFIX/.lock is `consul lock PREFIX`, NAME on etcd is `etcdctl lock NAME`.
    pub key: String,
    /// Do not wait if another holds it: end with 75.
    #[arg(long = "try", conflicts_with = "wait")]
    pub try_once: bool,
    /// Wait for so long at most, then end with 75; for example 30s or 5m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait: Option<Duration>,
    /// How long the lock outlives a machine that has fallen silent [default: 15s, moved into what the store takes].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// What others read of the holder; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = entry)]
    pub metadata: Vec<(String, String)>,
    /// Keep the lock for so long even if all is done earlier, for jobs that start on machines whose clocks differ.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub hold_at_least: Option<Duration>,
    /// Give the lock up after so long; a command is ended by then.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub hold_at_most: Option<Duration>,
    /// Share the lock with all others who ask for it shared; etcd, SQLite, and Consul with ?fair=true.
    #[arg(long, conflicts_with = "permits")]
    pub shared: bool,
    /// Let N hold it at a time; all must name the same number. etcd, SQLite, and Consul with ?fair=true.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub permits: Option<u32>,
}

/// What `run` takes.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Which lock, and how.
    #[command(flatten)]
    pub lock: Lock,
    /// What the command has between TERM and KILL when the lock is lost; a third of the ttl at most [default: 5s, or less with a short ttl].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub grace: Option<Duration>,
    /// Wait for the lock again when the command has ended or the lock was lost, until told to end: a supervised singleton.
    #[arg(long, conflicts_with_all = ["try_once", "wait"])]
    pub forever: bool,
    /// Serve measurements for Prometheus on http://ADDR/metrics, for example 127.0.0.1:9187.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// What `hold` takes.
#[derive(Clone, Debug, Args)]
pub struct Hold {
    /// Which lock, and how.
    #[command(flatten)]
    pub lock: Lock,
}

/// What `elect` takes.
#[derive(Clone, Debug, Args)]
pub struct Elect {
    /// The election.
    pub name: String,
    /// What others read of the leader.
    #[arg(long)]
    pub value: Option<String>,
    /// Be no candidate; show who leads, and every change.
    #[arg(long, conflicts_with_all = ["value", "ttl", "wait", "metadata"])]
    pub observe: bool,
    /// Give up after so long, and end with 75; for example 30s or 5m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait: Option<Duration>,
    /// What others read of the leader besides; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = entry)]
    pub metadata: Vec<(String, String)>,
    /// How long a leader that has fallen silent is still thought to lead [default: 15s, moved into what the store takes].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
}

/// A duration that can be reckoned with.
fn duration(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(10 * 365 * 86_400);
    let parsed = humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 30s, 5m or 1h"))?;
    if parsed > MOST { Err("it must not be longer than ten years".to_owned()) } else { Ok(parsed) }
}

fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must be NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
