//! A worker: a process with one `Locker`, that contends for keys, works under them, and tells what happens to it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock::{Held, LockError, LockGuard, Locker, ReleaseOutcome};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::register::{Answer, Ask, RegisterClient};
use super::{Clock, Told, store};
use crate::history::{Event, Line, Op, Outcome, Refusal};
use crate::plan::hash;

/// What a worker is to do, and as whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Its number; another one for every process.
    pub client: u8,
    /// The way to the store.
    pub url: String,
    /// What all workers do.
    pub job: Job,
}

/// What all workers of a run do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The way to the registers.
    pub registers: SocketAddr,
    /// What the time is told by.
    pub clock: Clock,
    /// Of their sessions.
    pub ttl: Duration,
    /// What most tasks contend for, and hold for a few milliseconds.
    pub brisk: Vec<String>,
    /// What one task of each worker contends for and holds for so long that most faults find a holder.
    pub slow: Vec<String>,
    /// How many tasks of each worker are brisk.
    pub tasks: u32,
    /// Draws what tasks do.
    pub seed: u64,
}

/// Why a worker could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The backend refused its URL or what the environment says.
    #[error("no backend")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The locker refused its options.
    #[error("no locker")]
    Locker(#[from] dlock::InvalidOptions),
    /// The registers are gone, or nobody listens any more.
    #[error("the run is over")]
    Over(#[from] io::Error),
}

/// How long a worker waits for a lock at most.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How long it may take to give everything back at the end.
const FAREWELL: Duration = Duration::from_secs(10);
/// How often a worker looks whether it goes on.
const TICK: Duration = Duration::from_millis(5);
/// A process that makes no step for longer stands still.
const LONGEST_STEP: Duration = Duration::from_millis(30);
/// How many operations a client can number.
const OPS: Op = 10_000_000;

/// Works until the input ends, then shuts the locker down. Tells every event on the output, as one line of JSON.
pub async fn work(orders: Orders) -> Result<(), WorkerError> {
    let backend = store::backend(&orders.url).map_err(WorkerError::Backend)?;
    let locker = Locker::builder_from_arc(backend).ttl(orders.job.ttl).name(name(orders.client)).build()?;
    let stop = CancellationToken::new();
    let worker = std::sync::Arc::new(Worker { orders, locker, stop: stop.clone(), ops: AtomicU32::new(0) });
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..=worker.orders.job.tasks {
        let worker = std::sync::Arc::clone(&worker);
        tasks.spawn(async move { worker.contend(task).await });
    }
    let watching = std::sync::Arc::clone(&worker);
    // Until this process has nothing to do any more.
    let _watching = AbortOnDropHandle::new(tokio::spawn(async move { watching.tell_of_pauses().await }));
    // Ends with the input, which the parent closes, or its death.
    std::thread::spawn(move || {
        _ = io::stdin().read_to_end(&mut Vec::new());
        stop.cancel();
    });
    worker.stop.cancelled().await;
    let report = worker.locker.shutdown(FAREWELL).await;
    if !report.is_clean() {
        worker.tell(None, Event::Left { what: format!("{report:?}") })?;
    }
    while let Some(task) = tasks.join_next().await {
        task.map_err(io::Error::other)??;
    }
    Ok(())
}

/// By what name others know a worker's sessions.
pub fn name(client: u8) -> String {
    format!("worker-{client}")
}

struct Worker {
    orders: Orders,
    locker: Locker,
    stop: CancellationToken,
    ops: AtomicU32,
}

impl Worker {
    fn tell(&self, key: Option<&str>, event: Event) -> io::Result<()> {
        self.tell_of(self.orders.job.clock.now(), key, event)
    }

    fn tell_of(&self, at: u64, key: Option<&str>, event: Event) -> io::Result<()> {
        let line = Line { at, client: Some(self.orders.client), event };
        let told = serde_json::to_string(&Told { key: key.map(str::to_owned), line })?;
        writeln!(io::stdout().lock(), "{told}")
    }

    /// Tells of every time in which this process, or its runtime, made no step for longer than a busy machine explains.
    async fn tell_of_pauses(&self) -> io::Result<()> {
        let mut last = self.orders.job.clock.now();
        loop {
            tokio::time::sleep(TICK).await;
            let now = self.orders.job.clock.now();
            if Duration::from_micros(now - last) > LONGEST_STEP {
                self.tell_of(last, None, Event::Paused { until: now })?;
            }
            last = now;
        }
    }

    /// The last task is the slow one.
    async fn contend(&self, task: u32) -> io::Result<()> {
        let slow = task == self.orders.job.tasks;
        let keys = if slow { &self.orders.job.slow } else { &self.orders.job.brisk };
        let mut draws = fastrand::Rng::with_seed(hash(&[self.orders.job.seed, self.orders.client.into(), task.into()]));
        let mut register = RegisterClient::connect(self.orders.job.registers)?;
        while !self.stop.is_cancelled() {
            let key = &keys[draws.usize(..keys.len())];
            let op = Op::from(self.orders.client) * OPS + self.ops.fetch_add(1, Ordering::Relaxed);
            match self.acquire(key, op, &mut draws).await? {
                Ok(guard) => {
                    let duty = if slow { Duty::slow(&mut draws, self.orders.job.ttl) } else { Duty::brisk(&mut draws) };
                    self.hold(key, op, guard, &duty, &mut register).await?;
                }
                Err(refusal) => {
                    self.tell(Some(key), Event::Refused { op, why: refusal })?;
                    tokio::time::sleep(Duration::from_millis(draws.u64(5..50))).await;
                }
            }
        }
        Ok(())
    }

    /// Waits, tries, or gives up half-way.
    async fn acquire(&self, key: &str, op: Op, draws: &mut fastrand::Rng) -> io::Result<Result<LockGuard, Refusal>> {
        let tries = draws.u32(..100) < 20;
        let patience = (draws.u32(..100) < 5).then(|| Duration::from_millis(draws.u64(..30)));
        self.tell(Some(key), Event::Wants { op, tries })?;
        let guard = async {
            if tries {
                return self.locker.try_lock(key).await.map_err(|error| refusal(&error))?.ok_or(Refusal::Busy);
            }
            self.locker.lock(key).wait_at_most(LONGEST_WAIT).await.map_err(|error| refusal(&error))
        };
        let outcome = match patience {
            None => guard.await,
            // Whatever was begun is dropped then.
            Some(patience) => tokio::time::timeout(patience, guard).await.unwrap_or(Err(Refusal::Cancelled)),
        };
        if let Ok(guard) = &outcome {
            self.tell(Some(key), Event::Held { op, token: token(guard) })?;
        }
        Ok(outcome)
    }

    async fn hold(&self, key: &str, op: Op, guard: LockGuard, duty: &Duty, register: &mut RegisterClient) -> io::Result<()> {
        // In a task of its own, for the work blocks its task, which hears of a loss only then.
        let (held, clock) = (guard.held(), self.orders.job.clock);
        let told = AbortOnDropHandle::new(tokio::spawn(async move {
            held.lost().await;
            clock.now()
        }));
        match guard.guarded(duty.fulfil(key, op, self.orders.client, &guard, register)).await {
            Err(lost) => return self.tell_of(told.await?, Some(key), Event::Lost { op, reason: lost.reason.into() }),
            Ok(done) => done?,
        }
        self.tell(Some(key), Event::Releasing { op })?;
        if duty.forgets {
            drop(guard);
            return Ok(());
        }
        let outcome = match guard.release().await {
            Ok(ReleaseOutcome::Released) => Outcome::Released,
            Ok(ReleaseOutcome::NotHeld) => Outcome::NotHeld,
            _ => Outcome::Unknown,
        };
        self.tell(Some(key), Event::Released { op, outcome })
    }
}

fn token(held: &Held) -> u64 {
    held.token().map_or(0, dlock::FencingToken::get)
}

/// What is to be done under a lock.
struct Duty {
    updates: u32,
    /// Between reading and computing; here a loss still stops the work.
    thinking: Duration,
    /// Between the last look at the lock and the write; here nothing does.
    computing: Duration,
    /// Lets the guard go instead of giving it back.
    forgets: bool,
}

impl Duty {
    fn brisk(draws: &mut fastrand::Rng) -> Self {
        let (thinking, computing) = (draws.u64(..6_000), draws.u64(..4_000));
        Self::drawn(draws, 1, Duration::from_micros(thinking), Duration::from_micros(computing))
    }

    /// From a quarter of a ttl to some ttl.
    fn slow(draws: &mut fastrand::Rng, ttl: Duration) -> Self {
        let (thinking, computing) = (Duration::from_millis(30), Duration::from_millis(20));
        let in_a_ttl = (ttl.as_millis() / (thinking + computing).as_millis()) as u32;
        let updates = draws.u32(in_a_ttl / 4..in_a_ttl * 5 / 2);
        Self::drawn(draws, updates, thinking, computing)
    }

    fn drawn(draws: &mut fastrand::Rng, updates: u32, thinking: Duration, computing: Duration) -> Self {
        Self { updates, thinking, computing, forgets: draws.u32(..100) < 15 }
    }

    async fn fulfil(&self, key: &str, op: Op, client: u8, held: &Held, register: &mut RegisterClient) -> io::Result<()> {
        let token = token(held);
        for _ in 0..self.updates {
            let read = Ask::Read { key: key.to_owned(), token };
            let Answer::Read { fenced, unfenced } = tokio::task::block_in_place(|| register.ask(&read))? else {
                return Err(io::Error::other("the registers do not know the key"));
            };
            tokio::time::sleep(self.thinking).await;
            tokio::task::block_in_place(|| {
                std::thread::sleep(self.computing);
                register.ask(&Ask::Write { key: key.to_owned(), client, op, token, fenced, unfenced })
            })?;
        }
        Ok(())
    }
}

fn refusal(error: &LockError) -> Refusal {
    match error {
        LockError::TimedOut { .. } => Refusal::TimedOut,
        LockError::Cancelled { .. } => Refusal::Cancelled,
        LockError::ShutDown => Refusal::ShutDown,
        _ => Refusal::Failed,
    }
}
