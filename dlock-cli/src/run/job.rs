//! A command under a lock, as `dlock` sees it: through its guardian.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use dlock::Held;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::args::Inner;
use crate::guardian::wire::{BootTime, Gone, Incoming, Order, Report, hand_over, line};
use crate::guardian::{myself, tree};
use crate::terminal::Terminal;

/// How a command is to be run.
#[derive(Clone, Debug)]
pub struct Task {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// What it finds in its environment besides ours, and what it does not.
    pub environment: Vec<(&'static str, Option<String>)>,
    /// What it has between `TERM` and `KILL`.
    pub grace: Duration,
    /// How long before the deadline `KILL` is sent.
    pub margin: Duration,
}

/// A command that runs under a lock, with all that comes from it.
///
/// While this lives, the guardian is told of each later deadline. When it is dropped, or its process ends in whatever way, the command is ended.
#[derive(Debug)]
pub struct Job {
    guardian: Child,
    reports: Reports,
    orders: mpsc::UnboundedSender<Order>,
    /// The command's process group, once it was started.
    group: Option<Pid>,
    /// It was killed, and may have been waited for.
    killed: bool,
    /// It was told that some cannot be killed.
    told_of_lingering: bool,
    /// Children that this process had before.
    others: Vec<Pid>,
    terminal: Option<Terminal>,
    over: Option<Outcome>,
}

/// What is heard of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It was suspended, and whether it goes on by itself.
    Suspended {
        /// Whether the guardian had it go on.
        continued: bool,
    },
    /// It has ended, and these processes of it cannot be killed.
    Lingering(Vec<i32>),
    /// It is over.
    Over(Outcome),
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone, with all that came from it.
    Gone(Gone),
    /// There was no time left for it.
    TooLate,
    /// It could not be started, and why.
    NotStarted(String),
    /// The guardian is gone, and the command with it.
    Unguarded,
}

impl Job {
    /// Starts the guardian, and with it the command.
    pub fn start(task: &Task, held: Held) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        hand_over(&ours, rustix::stdio::stdin())?;
        let ours = {
            ours.set_nonblocking(true)?;
            UnixStream::from_std(ours)?
        };
        // What comes from the command is ours to end, should the guardian be gone; what was started before us is not.
        tree::adopt_orphans();
        let others = tree::children();
        let terminal = Terminal::ours();
        let ahead = task.grace + task.margin;
        let until = deadline(&held, ahead);
        let mut command = Command::new(myself());
        command.arg0("dlock").args([Inner::GUARDIAN, "--until", &until.to_string()]);
        command.args(["--grace", &task.grace.as_millis().to_string(), "--margin", &task.margin.as_millis().to_string()]);
        if let Some(terminal) = &terminal {
            command.args(["--terminal", &terminal.owner().as_raw_nonzero().to_string()]);
        }
        command.arg("--").args(&task.command);
        for (name, value) in &task.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
        let guardian = command.spawn()?;
        let (reports, sink) = ours.into_split();
        let (orders, queue) = mpsc::unbounded_channel();
        // Both end with this value: when the sender of orders is dropped.
        let deadlines = follow(held, ahead, until, orders.clone().downgrade());
        tokio::spawn(write(sink, queue, deadlines));
        let reports = Reports { source: reports, incoming: Incoming::default() };
        Ok(Self { guardian, reports, orders, group: None, killed: false, told_of_lingering: false, others, terminal, over: None })
    }

    /// Passes a signal on to the command.
    pub fn signal(&self, number: i32) {
        let _ = self.orders.send(Order::Signal(number));
    }

    /// Has the command ended: `TERM` now, and `KILL` after the grace.
    pub fn end(&self) {
        let _ = self.orders.send(Order::End);
    }

    /// The next that is heard of it. Free to drop: nothing is missed, and what is over is told again.
    pub async fn news(&mut self) -> News {
        while self.over.is_none() {
            match self.reports.next().await {
                Some(Report::Started(group)) => self.group = Pid::from_raw(group),
                Some(Report::Suspended { continued }) => return News::Suspended { continued },
                Some(Report::Lingering(pids)) => return News::Lingering(pids),
                Some(Report::Gone(gone)) => self.over = Some(Outcome::Gone(gone)),
                Some(Report::TooLate) => self.over = Some(Outcome::TooLate),
                Some(Report::NotStarted(why)) => self.over = Some(Outcome::NotStarted(why)),
                None => self.over = Some(Outcome::Unguarded),
            }
        }
        let over = self.over.clone().unwrap_or(Outcome::Unguarded);
        if over != Outcome::Unguarded {
            let _ = self.guardian.wait().await;
            return News::Over(over);
        }
        loop {
            let left = self.kill().await;
            if left.is_empty() {
                return News::Over(over);
            }
            if !std::mem::replace(&mut self.told_of_lingering, true) {
                return News::Lingering(left);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether the command had the terminal.
    pub fn had_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Kills guardian, command and all that came from it, when the guardian cannot be relied on any more; which of them live on. Free to drop, to be called again.
    pub async fn kill(&mut self) -> Vec<i32> {
        // With the guardian the system kills the command; all others become ours.
        let _ = self.guardian.start_kill();
        let _ = self.guardian.wait().await;
        if !std::mem::replace(&mut self.killed, true) {
            // Nobody has waited for the group's leader yet, so its number is its own.
            tree::signal_all(self.group, Signal::KILL, &self.others);
        }
        let mut left = Vec::new();
        for _ in 0..KILL_ROUNDS {
            tree::signal_all(None, Signal::KILL, &self.others);
            tree::chase(&self.others);
            tree::reap_adopted(&self.others);
            left = tree::descendants(&self.others);
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if let (Some(terminal), Some(command)) = (&self.terminal, self.group) {
            terminal.give_back(command, true);
        }
        left.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect()
    }
}

/// So often, ten milliseconds apart, is killed what lives on.
const KILL_ROUNDS: u32 = 200;

#[derive(Debug)]
struct Reports {
    source: OwnedReadHalf,
    incoming: Incoming,
}

impl Reports {
    /// The next report; nothing once the guardian is gone. Free to drop.
    async fn next(&mut self) -> Option<Report> {
        loop {
            if let Some(report) = self.incoming.next() {
                return Some(report);
            }
            let mut buffer = [0; 1024];
            match self.source.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(bytes) => self.incoming.take_in(&buffer[..bytes]),
            }
        }
    }
}

/// When the command must be gone, as far as is known now: `ahead` of it the loss is told.
fn deadline(held: &Held, ahead: Duration) -> BootTime {
    // The clock first, so that time that passes between the two is on the safe side.
    let now = BootTime::now();
    let left = held.remaining();
    if left.is_zero() { now } else { now.plus(left).plus(ahead) }
}

/// Looks for later deadlines for as long as the job lives.
fn follow(held: Held, ahead: Duration, first: BootTime, job: mpsc::WeakUnboundedSender<Order>) -> watch::Receiver<BootTime> {
    /// A renewal is told at the latest so much later.
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    /// What two looks at one deadline differ by at most.
    const NEWS: Duration = Duration::from_millis(20);
    let (tell, told) = watch::channel(first);
    tokio::spawn(async move {
        let mut known = first;
        while job.upgrade().is_some() && held.check().is_ok() {
            let until = deadline(&held, ahead);
            if until.since(known) > NEWS {
                known = until;
                let _ = tell.send(until);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    });
    told
}

/// Writes orders and the latest deadline; a guardian that does not read holds up nobody else.
async fn write(mut sink: OwnedWriteHalf, mut orders: mpsc::UnboundedReceiver<Order>, mut deadlines: watch::Receiver<BootTime>) {
    let mut told = true;
    loop {
        let order = tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(order) => order,
                None => return,
            },
            changed = deadlines.changed(), if told => {
                told = changed.is_ok();
                if !told {
                    continue;
                }
                Order::Until(*deadlines.borrow_and_update())
            }
        };
        if sink.write_all(&line(&order)).await.is_err() {
            return;
        }
    }
}
