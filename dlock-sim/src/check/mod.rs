//! What must be true of every history.
//!
//! Everything is judged from the history alone, line by line, as an observer with a true clock would: no rule asks a simulator what it meant.
//!
//! | | a history breaks it when |
//! |---|---|
//! | S1 | the resource accepts a write whose token is below one that it has accepted before |
//! | S2 | the store grants a token that is not above all it granted before |
//! | S3 | a client believes at an instant at which the store grants it nothing, or two clients believe at once |
//! | S4 | the store lets a grant lapse whose client was not told of the loss before |
//! | S5 | a grant ends twice, or is given back although its client still holds it, by another client's call, or by the next claim of its own |
//! | S6 | a client is told that it holds the lock with a token that is not the live one, and not that it lost it |
//! | S7 | a client believes or writes in the name of an acquisition that was told of its loss or gave the lock back |
//! | S8 | no order of the operations explains what clients were answered ([`crate::wgl`]); looked at up to [`LARGEST`] operations |
//! | L1 | an acquisition is not answered after faults are over, or only after more turns than there can be |
//! | L2 | the key is free and somebody waits for it, for longer than any pause or poll takes |
//! | L3 | a client calls the store more often than its acquisitions, their faults and the handovers around them explain |
//! | L4 | a store with a queue grants in another order than claims came in, though nobody left the queue |
//! | H1 | something of a client is left at the end |
//! | H2 | a task is left at the end |
//! | H3 | a grant outlives its acquisition, which was refused, lost, given back or crashed, for longer than it takes to lapse |
//! | H4 | a secret is told; simulated clients have none, so that it is looked for in the logs of the live runs |
//!
//! Where keys are shared, or several are taken at once, `beside` judges by S3, L1, H1 and H2 alone.
//!
//! **Excuses.** A paused client cannot be told anything: S3, S4 and S6 wait for its first step. A client whose grant an operator ended hears of
//! it by its next audit: S3 waits for that, and longer while faults keep it from asking. A crashed client believes nothing.

use std::fmt;

use dlock_testkit::memory::Profile;
use serde::{Deserialize, Serialize};

use crate::history::{Event, History};
use crate::plan::Plan;
use crate::wgl::{self, Unheld};

pub(crate) mod beside;
mod bounds;
mod hygiene;
pub(crate) mod ledger;
mod liveness;
mod safety;
#[cfg(test)]
pub(crate) mod sketch;

pub use beside::{Together, together};
use bounds::Bounds;
use ledger::Ledger;
use liveness::Liveness;
use safety::Safety;

/// A promise that every history keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // `says` tells what each is
pub enum Invariant {
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    L1,
    L2,
    L3,
    L4,
    H1,
    H2,
    H3,
    H4,
}

impl Invariant {
    /// The promise in words.
    pub fn says(self) -> &'static str {
        match self {
            Self::S1 => "the resource accepts no token below its highest",
            Self::S2 => "tokens grow with every grant",
            Self::S3 => "nobody believes to hold what the store grants to nobody or to another",
            Self::S4 => "a loss is told before the store lets the grant lapse",
            Self::S5 => "one release for one grant, and only by whom it was granted to",
            Self::S6 => "a lock is handed out only while its grant is live",
            Self::S7 => "ended belief never returns",
            Self::S8 => "what clients were answered has one order that explains it",
            Self::L1 => "every acquisition is answered once faults are over",
            Self::L2 => "a free lock does not stay free while somebody waits",
            Self::L3 => "the store is not stormed",
            Self::L4 => "a queue grants in the order of arrival",
            Self::H1 => "nothing is left at the store",
            Self::H2 => "no task is left",
            Self::H3 => "no grant outlives its acquisition",
            Self::H4 => "no secret is told",
        }
    }

    fn broken(self, line: usize, other: impl Into<Option<usize>>, says: String) -> Violation {
        Violation { invariant: self, line, other: other.into(), says }
    }
}

/// A broken promise, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub invariant: Invariant,
    /// The line of the history that breaks it.
    pub line: usize,
    /// The other line that it contradicts, where there is one.
    pub other: Option<usize>,
    /// What happened, in a sentence.
    pub says: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.says)
    }
}

/// How many operations of a history are put in order for S8; more of them are not looked at.
pub const LARGEST: usize = 1_000;
/// How many steps the search for that order takes before it is given up undecided.
const SEARCH: usize = 200_000;

/// The first broken promise of a history, if there is one.
pub fn check(plan: &Plan, history: &History) -> Option<Violation> {
    if let Some(tenancy) = plan.tenancy() {
        return beside::check(plan, tenancy, history);
    }
    let bounds = Bounds::of(&plan.config);
    let mut ledger = Ledger::default();
    let (mut safety, mut liveness) = (Safety::default(), Liveness::of(plan));
    for (n, line) in history.lines().iter().enumerate() {
        let broken = safety
            .see(&bounds, &ledger, history, n)
            .or_else(|| liveness.see(&bounds, &ledger, n, line))
            .or_else(|| hygiene::see(&bounds, &ledger, n, line));
        if broken.is_some() {
            return broken;
        }
        ledger.take(n, line);
    }
    liveness::unanswered(&ledger, history).or_else(|| ordered(plan, history, &liveness)).or_else(|| explained(plan, history))
}

/// L4, where it is promised: nothing made anybody leave the queue or enter it again.
fn ordered(plan: &Plan, history: &History, liveness: &Liveness) -> Option<Violation> {
    if plan.config.profile != Profile::Slot && plan.config.lock_delay_ms == 0 { liveness.order(history) } else { None }
}

/// S8.
fn explained(plan: &Plan, history: &History) -> Option<Violation> {
    let operations = wgl::operations(history);
    if operations.len() > LARGEST {
        return None;
    }
    let unheld = match plan.config.profile {
        Profile::Line => Unheld::InLine,
        _ if plan.config.lock_delay_ms > 0 => Unheld::Delayed,
        _ => Unheld::Never,
    };
    let stuck = match wgl::order(&operations, unheld, SEARCH) {
        wgl::Verdict::Linearizable | wgl::Verdict::Undecided => return None,
        wgl::Verdict::Illegal { stuck } => &operations[stuck],
    };
    let says = format!("nothing that the others were answered leaves room for {stuck}");
    Some(Invariant::S8.broken(stuck.answered.unwrap_or(stuck.asked), stuck.answered.map(|_| stuck.asked), says))
}

/// True time in a sentence.
fn ms(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1_000.0)
}

/// Whether a line says that somebody's place in the queue may have changed otherwise than by a grant or release.
fn leaves_the_queue(event: &Event) -> bool {
    use crate::history::{End, Refusal};
    use crate::plan::Fault;
    match event {
        Event::Struck { fault, .. } => fault.is_interference() || matches!(fault, Fault::Cancel(_) | Fault::Crash),
        Event::Ended { cause, .. } => *cause != End::GivenBack,
        Event::Refused { why, .. } => !matches!(why, Refusal::Busy),
        Event::Lost { .. } | Event::Crashed => true,
        _ => false,
    }
}
