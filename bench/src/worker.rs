//! Processes of this program's own, started as a hidden subcommand: those who contend, and those who hold.
//!
//! They say `ready`, are told to go on by a line, and die with the process that started them.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::process::{ExitCode, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use dlock_counts::{Subject, heap_in_use};
use dlock_testkit::servers::mortal;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{self, Child, ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep, timeout_at};

use crate::Outcome;
use crate::arm::Arm;
use crate::client::Client;
use crate::peer::command::Command;
use crate::scenario::idle::held_under;
use crate::told;

/// What a worker is started for.
#[derive(Debug, Subcommand)]
pub enum Work {
    /// Takes one key over and over.
    #[command(hide = true)]
    Contend {
        /// By which arm.
        arm: Arm,
        /// Where its store is.
        place: String,
        /// Which key.
        key: String,
        /// With how many clients.
        clients: usize,
        /// With how many tasks of each.
        tasks: usize,
        /// For how many milliseconds.
        millis: u64,
        /// For how many milliseconds at a time.
        hold: u64,
    },
    /// Says when it began, waits, and says when it ended: what a command runs that holds a lock.
    #[command(hide = true)]
    Tenure {
        /// For how many milliseconds.
        hold: u64,
    },
    /// Holds many keys.
    #[command(hide = true)]
    Hold {
        /// By which arm.
        arm: Arm,
        /// Where its store is.
        place: String,
        /// How many keys.
        locks: usize,
    },
    /// Does what is counted, without any store but the one in memory.
    #[command(hide = true)]
    Operate {
        /// What.
        subject: Subject,
        /// How often.
        times: u32,
    },
}

impl Work {
    /// Whether the heap is counted: that of [`Hold`](Self::Hold) is reported, and the instructions of [`Operate`](Self::Operate) are recorded with those of
    /// counting.
    pub fn is_counted(&self) -> bool {
        matches!(self, Self::Hold { .. } | Self::Operate { .. })
    }
}

/// What all crews are to do.
#[derive(Debug)]
pub struct Contend {
    /// By which arm.
    pub arm: Arm,
    /// Where its store is.
    pub place: String,
    /// The key.
    pub key: String,
    /// For how long.
    pub length: Duration,
    /// For how long at a time.
    pub hold: Duration,
}

/// Nanoseconds on the clock of all processes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// When the call that took the lock returned.
    pub granted: u64,
    /// When the call that gives it back was made.
    pub released: u64,
}

/// What held locks cost their process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Bytes of heap for each lock beyond the first; `None` for a single one.
    pub heap: Option<f64>,
    /// Tasks on the runtime, those of the clients of the stores included.
    pub tasks: usize,
}

/// A process of contenders.
pub struct Crew(Worker);

/// A process that holds locks.
pub struct Holder(Worker);

struct Worker {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// How long a contender stays away after a tenure.
const PAUSE: Duration = Duration::from_millis(2);
/// So many locks are taken at once by those who hold many.
const AT_ONCE: usize = 8;
const READY: &str = "ready";
/// Stands for the heap of each further lock where there is none.
const ALONE: &str = "-";
/// Begins the line of a worker that cannot go on.
const FAILED: &str = "failed: ";

impl Crew {
    /// Starts a process with so many clients and so many tasks of each.
    pub fn start(order: &Contend, clients: usize, tasks: usize) -> Outcome<Self> {
        let Contend { arm, place, key, length, hold } = order;
        let numbers = [clients.to_string(), tasks.to_string(), length.as_millis().to_string(), hold.as_millis().to_string()];
        let [clients, tasks, millis, hold] = &numbers;
        Ok(Self(Worker::start(&["contend", &arm_argument(*arm), place, key, clients, tasks, millis, hold])?))
    }

    /// Returns when all its clients are connected.
    pub async fn ready(&mut self) -> Outcome<()> {
        self.0.ready().await
    }

    /// Lets it begin.
    pub async fn go(&mut self) -> Outcome<()> {
        self.0.go().await
    }

    /// Waits for its end; what it had.
    pub async fn tenures(mut self) -> Outcome<Vec<Tenure>> {
        let mut tenures = Vec::new();
        while let Some(line) = self.0.line().await? {
            tenures.push(line.parse()?);
        }
        self.0.ended().await?;
        Ok(tenures)
    }
}

impl FromStr for Tenure {
    type Err = Box<dyn Error + Send + Sync>;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let (granted, released) = line.split_once(' ').ok_or("a worker spoke otherwise than agreed")?;
        Ok(Self { granted: granted.parse()?, released: released.parse()? })
    }
}

impl Display for Tenure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.granted, self.released)
    }
}

impl Holder {
    /// Starts a process that takes so many locks.
    pub fn start(arm: Arm, place: &str, locks: usize) -> Outcome<Self> {
        Ok(Self(Worker::start(&["hold", &arm_argument(arm), place, &locks.to_string()])?))
    }

    /// Returns when all are held.
    pub async fn ready(&mut self) -> Outcome<()> {
        self.0.ready().await
    }

    /// Lets it end; what its locks cost it.
    pub async fn kept(mut self) -> Outcome<Kept> {
        self.0.go().await?;
        let told = self.0.line().await?.ok_or("a worker ended early")?;
        self.0.ended().await?;
        told.parse()
    }
}

impl FromStr for Kept {
    type Err = Box<dyn Error + Send + Sync>;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let (tasks, heap) = line.split_once(' ').ok_or("a worker spoke otherwise than agreed")?;
        let heap = if heap == ALONE { None } else { Some(heap.parse()?) };
        Ok(Self { heap, tasks: tasks.parse()? })
    }
}

impl Display for Kept {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { heap, tasks } = self;
        match heap {
            Some(heap) => write!(f, "{tasks} {heap}"),
            None => write!(f, "{tasks} {ALONE}"),
        }
    }
}

impl Worker {
    fn start(arguments: &[&str]) -> Outcome<Self> {
        let mut command = mortal(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process::Command::from(command).kill_on_drop(true).spawn()?;
        let (input, output) = (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    async fn ready(&mut self) -> Outcome<()> {
        match self.line().await? {
            Some(line) if line == READY => Ok(()),
            _ => Err("a worker did not come up".into()),
        }
    }

    /// What it says next; why it cannot go on is an error.
    async fn line(&mut self) -> Outcome<Option<String>> {
        let line = self.output.next_line().await?;
        match line.as_deref().and_then(|line| line.strip_prefix(FAILED)) {
            Some(why) => Err(why.into()),
            None => Ok(line),
        }
    }

    async fn go(&mut self) -> Outcome<()> {
        Ok(self.input.write_all(b"go\n").await?)
    }

    async fn ended(&mut self) -> Outcome<()> {
        let status = self.child.wait().await?;
        if status.success() { Ok(()) } else { Err(format!("a worker failed: {status}").into()) }
    }
}

fn arm_argument(arm: Arm) -> String {
    use clap::ValueEnum;
    arm.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Does what this process was started for, and tells the one that started it what went wrong.
pub async fn work(work: Work) -> ExitCode {
    match done(work).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{FAILED}{}", told(&*error).replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Says when it began, waits for so many milliseconds, and says when it ended.
pub fn tenure(hold: u64) {
    let granted = now();
    std::thread::sleep(Duration::from_millis(hold));
    println!("{}", Tenure { granted, released: now() });
}

async fn done(work: Work) -> Outcome<()> {
    match work {
        Work::Tenure { hold } => {
            tenure(hold);
            Ok(())
        }
        Work::Contend { arm, place, key, clients, tasks, millis, hold } => {
            let (length, hold) = (Duration::from_millis(millis), Duration::from_millis(hold));
            let tenures = if arm.is_command() {
                told_to_go_on().await?;
                let (command, until) = (Command::at(arm, &place)?, Instant::now() + length);
                try_join_all((0..clients).map(|_| command.contend(&key, hold, until))).await?
            } else {
                let connecting = (0..clients).map(|_| Client::connect(arm, &place));
                let clients: Vec<_> = try_join_all(connecting).await?.into_iter().map(Arc::new).collect();
                told_to_go_on().await?;
                let until = Instant::now() + length;
                // The lock service wakes nobody any more once a hundred waiters went away (etcd 3.5.16).
                let patient = arm == Arm::LockService;
                let contending = clients.iter().flat_map(|client| std::iter::repeat_n(client, tasks));
                // They end at that time; this waits for them.
                let contending: Vec<_> =
                    contending.map(|client| tokio::spawn(contend(Arc::clone(client), key.clone(), hold, until, patient))).collect();
                let tenures = try_join_all(contending).await?.into_iter().collect::<Outcome<_>>()?;
                join_all(clients.iter().map(|client| client.end())).await.into_iter().collect::<Outcome<()>>()?;
                tenures
            };
            for tenure in tenures.concat() {
                println!("{tenure}");
            }
            Ok(())
        }
        Work::Hold { arm, place, locks } => {
            let client = Client::connect_to_hold(arm, &place).await?;
            let key = |n: usize| format!("{}{n}", held_under(arm, locks));
            let first = client.lock(&key(0)).await?;
            // Where the guards are kept is the program's own.
            let mut holds = Vec::with_capacity(locks);
            let before = heap_in_use();
            let mut more = stream::iter(1..locks)
                .map(|n| {
                    let (client, key) = (&client, key(n));
                    async move { client.lock(&key).await }
                })
                .buffer_unordered(AT_ONCE);
            while let Some(hold) = more.try_next().await? {
                holds.push(hold);
            }
            told_to_go_on().await?;
            let grown = (heap_in_use() - before) as f64;
            let heap = (locks > 1).then(|| grown / (locks - 1) as f64);
            println!("{}", Kept { heap, tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() });
            holds.push(first);
            let releases = stream::iter(holds).map(|hold| client.release(hold)).buffer_unordered(AT_ONCE);
            releases.try_collect::<()>().await?;
            client.end().await?;
            Ok(())
        }
        Work::Operate { subject, times } => Ok(tokio::task::spawn_blocking(move || subject.start()(times)).await?),
    }
}

/// Takes and gives back the key until then. Whoever waits at the end goes away, or, if it is patient, is handed the lock and gives it back at once.
async fn contend(client: Arc<Client>, key: String, for_so_long: Duration, until: Instant, patient: bool) -> Outcome<Vec<Tenure>> {
    let mut tenures = Vec::new();
    while Instant::now() < until {
        let hold = if patient {
            client.lock(&key).await?
        } else {
            let Ok(hold) = timeout_at(until, client.lock(&key)).await else { break };
            hold?
        };
        if Instant::now() >= until {
            client.release(hold).await?;
            break;
        }
        let granted = now();
        sleep(for_so_long).await;
        let released = now();
        client.release(hold).await?;
        tenures.push(Tenure { granted, released });
        sleep(PAUSE).await;
    }
    Ok(tenures)
}

/// Nanoseconds on the clock of all processes of the machine.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Says that all is prepared, and waits for the word.
async fn told_to_go_on() -> Outcome<()> {
    println!("{READY}");
    let mut line = String::new();
    match BufReader::new(tokio::io::stdin()).read_line(&mut line).await? {
        0 => Err("nobody wants this any more".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holders_cost_is_read_as_it_was_told() {
        for kept in [Kept { heap: None, tasks: 3 }, Kept { heap: Some(800.5), tasks: 4 }] {
            assert_eq!(kept.to_string().parse::<Kept>().unwrap(), kept);
        }
        assert!("7".parse::<Kept>().is_err());
    }
}
