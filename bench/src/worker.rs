//! Processes of this program's own, started as a hidden subcommand: those who contend, and those who hold.
//!
//! They say `ready`, are told to go on by a line, and die with the process that started them.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use dlock_counts::{Subject, heap_in_use};
use dlock_testkit::servers::mortal;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout_at};

use crate::Outcome;
use crate::arm::Arm;
use crate::client::Client;

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
}

/// Nanoseconds on the clock of all processes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// When the call that took the lock returned.
    pub granted: u64,
    /// When the call that gives it back was made.
    pub released: u64,
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

/// How long a contender holds the lock, and how long it stays away then: long enough for it to wait again before the lock is given back.
const HOLD: Duration = Duration::from_millis(8);
/// The lock service of etcd hears of a release up to 100 ms late if it has not waited for so long: it is not to be blamed for short tenures.
const HOLD_OF_SERVICE: Duration = Duration::from_millis(150);
const PAUSE: Duration = Duration::from_millis(2);
/// So many locks are taken at once by those who hold many.
const AT_ONCE: usize = 8;
const READY: &str = "ready";

impl Crew {
    /// Starts a process with so many clients and so many tasks of each.
    pub fn start(order: &Contend, clients: usize, tasks: usize) -> Outcome<Self> {
        let Contend { arm, place, key, length } = order;
        let numbers = [clients.to_string(), tasks.to_string(), length.as_millis().to_string()];
        let [clients, tasks, millis] = &numbers;
        Ok(Self(Worker::start(&["contend", &arm_argument(*arm), place, key, clients, tasks, millis])?))
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
        while let Some(line) = self.0.output.next_line().await? {
            let (granted, released) = line.split_once(' ').ok_or("a worker spoke otherwise than agreed")?;
            tenures.push(Tenure { granted: granted.parse()?, released: released.parse()? });
        }
        self.0.ended().await?;
        Ok(tenures)
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

    /// Lets it end; bytes of heap for each lock beyond the first.
    pub async fn heap(mut self) -> Outcome<Option<f64>> {
        self.0.go().await?;
        let told = self.0.output.next_line().await?.ok_or("a worker ended early")?;
        self.0.ended().await?;
        Ok(told.parse().ok())
    }
}

impl Worker {
    fn start(arguments: &[&str]) -> Outcome<Self> {
        let mut command = mortal(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Command::from(command).kill_on_drop(true).spawn()?;
        let (input, output) = (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    async fn ready(&mut self) -> Outcome<()> {
        match self.output.next_line().await? {
            Some(line) if line == READY => Ok(()),
            _ => Err("a worker did not come up; it said why above".into()),
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

/// Does what this process was started for.
pub async fn work(work: Work) -> Outcome<()> {
    match work {
        Work::Contend { arm, place, key, clients, tasks, millis } => {
            let connecting = (0..clients).map(|_| Client::connect(arm, &place));
            let clients: Vec<_> = try_join_all(connecting).await?.into_iter().map(Arc::new).collect();
            told_to_go_on().await?;
            let until = Instant::now() + Duration::from_millis(millis);
            let hold = if arm == Arm::LockService { HOLD_OF_SERVICE } else { HOLD };
            // They end at that time; this waits for them.
            let contending = clients.iter().flat_map(|client| std::iter::repeat_n(client, tasks));
            let contending: Vec<_> =
                contending.map(|client| tokio::spawn(contend(Arc::clone(client), key.clone(), hold, until))).collect();
            let mut lines = String::new();
            for tenures in try_join_all(contending).await? {
                for Tenure { granted, released } in tenures? {
                    lines += &format!("{granted} {released}\n");
                }
            }
            join_all(clients.iter().map(|client| client.end())).await;
            print!("{lines}");
            Ok(())
        }
        Work::Hold { arm, place, locks } => {
            let client = Client::connect(arm, &place).await?;
            // Others hold at the same time.
            let key = |n: usize| format!("bench/held/{arm:?}/{locks}/{n}");
            let first = client.lock(&key(0)).await?;
            let before = heap_in_use();
            let more = stream::iter(1..locks)
                .map(|n| {
                    let (client, key) = (&client, key(n));
                    async move { client.lock(&key).await }
                })
                .buffer_unordered(AT_ONCE);
            let mut holds: Vec<_> = more.try_collect().await?;
            told_to_go_on().await?;
            let grown = heap_in_use().saturating_sub(before) as f64;
            match locks - 1 {
                0 => println!("-"),
                more => println!("{}", grown / more as f64),
            }
            holds.push(first);
            let releases = stream::iter(holds).map(|hold| client.release(hold)).buffer_unordered(AT_ONCE);
            releases.try_collect::<()>().await?;
            client.end().await;
            Ok(())
        }
        Work::Operate { subject, times } => Ok(tokio::task::spawn_blocking(move || subject.start()(times)).await?),
    }
}

async fn contend(client: Arc<Client>, key: String, for_so_long: Duration, until: Instant) -> Outcome<Vec<Tenure>> {
    let mut tenures = Vec::new();
    while let Ok(hold) = timeout_at(until, client.lock(&key)).await {
        let hold = hold?;
        let granted = now();
        sleep(for_so_long).await;
        let released = now();
        client.release(hold).await?;
        tenures.push(Tenure { granted, released });
        sleep(PAUSE).await;
    }
    Ok(tenures)
}

fn now() -> u64 {
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
