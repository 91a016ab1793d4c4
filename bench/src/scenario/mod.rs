//! What is measured, one file for each question.

use std::time::Duration;

use clap::ValueEnum;

pub mod handover;
pub mod idle;
pub mod overhead;
pub mod scale;
pub mod throughput;
pub mod uncontended;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// What lock and release of a free key cost.
    Uncontended,
    /// How soon the next one holds a lock after it is given back.
    Handover,
    /// What locks cost that are just held.
    Idle,
    /// How many locks one client takes and gives back at once.
    Throughput,
    /// What dlock itself costs, apart from any store.
    Overhead,
    /// What a store is asked by ever more clients, in virtual time.
    Scale,
}

impl Scenario {
    /// Whether it is measured on servers.
    pub fn asks_servers(self) -> bool {
        !matches!(self, Self::Overhead | Self::Scale)
    }

    /// How long it takes, about, on a machine that is idle otherwise.
    pub fn expected(self, plan: &Plan) -> Duration {
        match self {
            Self::Uncontended => uncontended::expected(plan),
            Self::Handover => handover::expected(plan),
            Self::Idle => idle::expected(plan),
            Self::Throughput => throughput::expected(plan),
            Self::Overhead => overhead::EXPECTED,
            Self::Scale => scale::expected(plan),
        }
    }
}

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds of lock and release, and how many in each.
    pub pairs: (usize, usize),
    /// How often a command is run.
    pub commands: usize,
    /// Rounds of handovers, and how long one lasts.
    pub handovers: (usize, Duration),
    /// The same of those that are judged: [one waits, in another process](handover::JUDGED), or [the most that wait](handover::JUDGED_IN_LINE), whose
    /// rounds last as long as those of all others, so that everybody has a turn.
    pub handovers_judged: (usize, Duration),
    /// How many wait.
    pub waiters: &'static [usize],
    /// How many wait where all are in one process.
    pub waiters_within: &'static [usize],
    /// How long locks are just held.
    pub idle: Duration,
    /// How many locks are held.
    pub held: &'static [usize],
    /// Rounds of throughput, and how many locks are taken in one at least.
    pub throughput: (usize, usize),
    /// How many keys at once.
    pub keys: &'static [usize],
    /// Rounds in memory, and how many operations in each.
    pub overhead: (usize, u32),
    /// How many clients in virtual time.
    pub clients: &'static [usize],
}

impl Plan {
    /// How many wait at most.
    pub fn most_waiters(&self) -> usize {
        self.waiters.iter().copied().max().unwrap_or_default()
    }

    /// All of it.
    pub fn whole() -> Self {
        Self {
            pairs: (120, 50),
            commands: 20,
            handovers: (4, Duration::from_millis(1_500)),
            handovers_judged: (15, Duration::from_secs(1)),
            waiters: &[1, 10, 100],
            waiters_within: &[1, 10, 100],
            idle: Duration::from_secs(60),
            held: &[1, 100, 1_000],
            throughput: (8, 2_000),
            keys: &[1, 10, 100, 10_000],
            overhead: (60, 1_000),
            clients: &[1_000, 10_000, 100_000],
        }
    }

    /// What fits into two minutes.
    pub fn quick() -> Self {
        Self {
            pairs: (30, 25),
            commands: 5,
            handovers: (2, Duration::from_millis(600)),
            handovers_judged: (2, Duration::from_millis(600)),
            waiters: &[1, 10],
            waiters_within: &[10],
            idle: Duration::from_secs(15),
            held: &[1, 100, 1_000],
            throughput: (3, 400),
            keys: &[1, 10, 100],
            overhead: (30, 500),
            clients: &[100, 1_000],
        }
    }
}
