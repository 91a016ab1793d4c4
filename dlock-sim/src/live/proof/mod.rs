//! What must be true of a run's histories, which know what workers were told and when, but not what the store did unheard.
//!
//! - Tokens are unique, and grow from one holder to the next.
//! - Nobody believes to hold a lock when a later holder is told that it has it. Who stood still then is excused until it goes on, whether it was
//!   stopped, or the machine or its own runtime did not run it, by what it told itself; and whose lock an operator touched for two ttl: it hears of
//!   that by the audit that follows its next renewal, if not before. So is whose session a server may have ended early after what befell it, or
//!   soon after that, where the store has such servers.
//! - A fenced register accepts no token below one that it has accepted.
//! - Some order of the operations explains everything that workers were answered ([`crate::wgl`]).
//! - Once faults are over, every key is granted again; nothing is told to be left over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dlock_core::Lease;

use super::store::Store;
use super::storm::{Kind, Strike};
use crate::history::{Event, History, Op, Outcome, Reason, Refusal};
use crate::wgl::{self, Operation, Verdict};

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// What should not be, each in a sentence.
    pub violations: Vec<String>,
    /// Acquisitions and releases that were answered before faults were over.
    pub in_storm: usize,
    /// Acquisitions that brought the lock.
    pub held: usize,
    /// Acquisitions that did not, by reason.
    pub refused: BTreeMap<String, usize>,
    /// Releases that were answered, by answer.
    pub released: BTreeMap<String, usize>,
    /// Locks that were lost, by reason.
    pub lost: BTreeMap<String, usize>,
    /// Of those whose loss nobody caused: the shortest time by which it was told before the next holder was.
    pub closest: Option<Duration>,
    /// Holders that believed on after an operator's act while the next one held the lock.
    pub after_interference: usize,
    /// Holders that did so after a server may have ended their session early.
    pub after_early_end: usize,
    /// The longest that two did, for one reason or the other.
    pub longest_after_interference: Duration,
    /// Operations for which an order was found that explains them, those of which nobody knows whether they took effect included.
    pub explained: usize,
    /// Holders that stood still while the next one held the lock.
    pub stood_still: usize,
    /// The longest that a worker stood still without being stopped: so good was the machine.
    pub longest_hiccup: Duration,
    /// Acquisitions that were told later than one with a higher token. Where tokens are places in a line, the others are first come, first
    /// served.
    pub overtaken: usize,
}

/// A time in which a worker made no step.
#[derive(Clone, Copy, Debug)]
struct Pause {
    client: u8,
    from: u64,
    until: u64,
}

/// A lock that a worker was told it holds.
#[derive(Clone, Copy, Debug)]
struct Holding {
    op: Op,
    client: u8,
    token: u64,
    wanted_at: u64,
    from: u64,
    /// When it began to give it back, was told of its loss, or was killed.
    until: u64,
    lost: Option<Reason>,
}

/// So long after a pause a worker may need until it has told of all that happened meanwhile.
const RESUME: u64 = 50_000;
/// With no more than this in between, two pauses are one.
const HARDLY_A_STEP: u64 = 15_000;
/// So long after a server could go on it may still do what it made up its mind to do before: it hears of a successor within an election, and
/// what it proposes is kept until there is a leader.
const AFTERMATH: u64 = 2_000_000;

/// How many steps the search for an order may take; some ten thousand are needed for an hour of a key.
const SEARCH: usize = 3_000_000;

/// Looks at the histories of all keys.
pub fn prove(store: Store, histories: &BTreeMap<String, History>, strikes: &[Strike], ttl: Duration) -> Proof {
    let mut proof = Proof::default();
    for (key, history) in histories {
        let pauses = pauses(history);
        let stopped = |pause: &Pause| {
            let mut stops = strikes.iter().filter(|strike| strike.kind == Kind::PauseWorker && strike.client == Some(pause.client));
            stops.any(|stop| stop.from <= pause.until && stop.until >= pause.from)
        };
        let hiccups = pauses.iter().filter(|pause| !stopped(pause)).map(|pause| Duration::from_micros(pause.until - pause.from));
        proof.longest_hiccup = hiccups.fold(proof.longest_hiccup, Duration::max);
        let (hears_within, answers_within) = (ttl * 2, Lease::attempt(ttl).as_micros() as u64);
        let mut looking = Looking { store, key, strikes, pauses, hears_within, answers_within, proof: &mut proof };
        let holdings = looking.read(history);
        looking.tokens_grow(&holdings);
        looking.nobody_believes_for_long(holdings);
        looking.an_order_explains_it(history);
    }
    proof
}

/// In the order in which they began.
fn pauses(history: &History) -> Vec<Pause> {
    let paused = history.lines().iter().filter_map(|line| match line.event {
        Event::Paused { until } => Some(Pause { client: line.client?, from: line.at, until }),
        _ => None,
    });
    paused.collect()
}

struct Looking<'a> {
    store: Store,
    key: &'a str,
    strikes: &'a [Strike],
    pauses: Vec<Pause>,
    hears_within: Duration,
    /// So long before it is told a holder may have been granted its lock.
    answers_within: u64,
    proof: &'a mut Proof,
}

impl Looking<'_> {
    fn object(&mut self, what: fmt::Arguments<'_>) {
        self.proof.violations.push(format!("{}: {what}", self.key));
    }

    /// The holdings, with their ends; counts what is told, and looks at what a line says by itself.
    fn read(&mut self, history: &History) -> Vec<Holding> {
        let mut wanted: BTreeMap<Op, u64> = BTreeMap::new();
        let mut open: BTreeMap<Op, Holding> = BTreeMap::new();
        let mut closed = Vec::new();
        let (mut highest, mut healed, mut granted_since) = (0, None, false);
        for line in history.lines() {
            let (at, client) = (line.at, line.client.unwrap_or(u8::MAX));
            let answers = matches!(line.event, Event::Held { .. } | Event::Refused { .. } | Event::Released { .. });
            self.proof.in_storm += usize::from(answers && healed.is_none());
            let mut close = |op: Op, lost| closed.extend(open.remove(&op).map(|holding| Holding { until: at, lost, ..holding }));
            match &line.event {
                Event::Wants { op, .. } => _ = wanted.insert(*op, at),
                Event::Held { op, token } => {
                    let wanted_at = wanted.get(op).copied().unwrap_or(at);
                    open.insert(*op, Holding { op: *op, client, token: *token, wanted_at, from: at, until: at, lost: None });
                    self.proof.held += 1;
                    granted_since |= healed.is_some();
                }
                Event::Refused { why, .. } => *self.proof.refused.entry(named::<Refusal>(why)).or_default() += 1,
                Event::Released { outcome, .. } => *self.proof.released.entry(named::<Outcome>(outcome)).or_default() += 1,
                Event::Lost { op, reason } => {
                    close(*op, Some(*reason));
                    *self.proof.lost.entry(named::<Reason>(reason)).or_default() += 1;
                }
                Event::Releasing { op } => close(*op, None),
                Event::Crashed => {
                    let of_client: Vec<Op> = open.values().filter(|one| one.client == client).map(|one| one.op).collect();
                    closed.extend(of_client.iter().filter_map(|op| open.remove(op)).map(|one| Holding { until: at, ..one }));
                }
                Event::Wrote { op, token, accepted: true } if *token < highest => {
                    self.object(format_args!("the fence accepted token {token} of acquisition {op} after token {highest}"));
                }
                Event::Wrote { token, accepted: true, .. } => highest = *token,
                Event::Healed => healed = Some(at),
                Event::Left { what } => {
                    // Told to the history of every key.
                    let left = format!("worker {client} left {what}");
                    if !self.proof.violations.contains(&left) {
                        self.proof.violations.push(left);
                    }
                }
                _ => {}
            }
        }
        if healed.is_some() && !granted_since {
            self.object(format_args!("nobody got the lock any more once faults were over"));
        }
        for Holding { op, client, token, .. } in open.values() {
            self.object(format_args!("acquisition {op} of worker {client}, token {token}, never ended"));
        }
        closed
    }

    fn tokens_grow(&mut self, holdings: &[Holding]) {
        let mut wanted: Vec<&Holding> = holdings.iter().collect();
        let mut told: Vec<&Holding> = wanted.clone();
        wanted.sort_by_key(|holding| holding.wanted_at);
        told.sort_by_key(|holding| holding.from);
        let mut told = told.into_iter().peekable();
        // The highest token that was surely granted before.
        let mut highest = 0;
        for holding in wanted {
            while let Some(earlier) = told.next_if(|earlier| earlier.from < holding.wanted_at) {
                highest = highest.max(earlier.token);
            }
            if holding.token <= highest {
                let Holding { op, token, .. } = holding;
                self.object(format_args!("acquisition {op} was granted token {token} after token {highest}"));
            }
        }
    }

    fn nobody_believes_for_long(&mut self, mut holdings: Vec<Holding>) {
        // By token is the order in which the store granted.
        holdings.sort_by_key(|holding| holding.token);
        for pair in holdings.windows(2) {
            if pair[0].token == pair[1].token {
                let (one, other) = (pair[0].op, pair[1].op);
                self.object(format_args!("acquisitions {one} and {other} have the same token {}", pair[0].token));
            }
        }
        let mut next: Option<Holding> = None;
        for holding in holdings.iter().rev() {
            if let Some(next) = next {
                self.proof.overtaken += usize::from(next.from < holding.from);
                self.judge(holding, &next);
            }
            next = next.filter(|next| next.from < holding.from).or(Some(*holding));
        }
    }

    /// `next` is the earliest told of those that were granted later.
    fn judge(&mut self, holding: &Holding, next: &Holding) {
        if holding.until <= next.from {
            if matches!(holding.lost, Some(Reason::Expired | Reason::SessionGone)) && !self.is_interfered_with(holding, next) {
                let by = Duration::from_micros(next.from - holding.until);
                self.proof.closest = Some(self.proof.closest.map_or(by, |closest| closest.min(by)));
            }
            return;
        }
        if self.stood_still(holding, next) {
            self.proof.stood_still += 1;
            return;
        }
        let (client, key) = (Some(holding.client), Some(self.key));
        let granted = self.granted_from(holding);
        let concerns = |strike: &Strike, aftermath| strike.from <= next.from && strike.until + aftermath >= granted;
        let may_end = |strike: &&Strike| self.store.early_ends().contains(&strike.kind);
        let ended_early = self.strikes.iter().filter(may_end).any(|strike| concerns(strike, AFTERMATH));
        let acted = self.strikes.iter().filter(|strike| concerns(strike, 0)).any(|strike| {
            let this = if strike.kind == Kind::EndSession { strike.client == client } else { strike.key.as_deref() == key };
            strike.kind.is_interference() && this
        });
        if acted || ended_early {
            let beside = Duration::from_micros(holding.until - next.from);
            let count = if acted { &mut self.proof.after_interference } else { &mut self.proof.after_early_end };
            *count += 1;
            self.proof.longest_after_interference = self.proof.longest_after_interference.max(beside);
            if beside <= self.hears_within {
                return;
            }
        }
        let Holding { op, token, from, until, .. } = holding;
        let how = holding.lost.map_or_else(|| "it gave it back".to_owned(), |reason| format!("it was told: {}", named(&reason)));
        let lately = self.strikes.iter().filter(|strike| concerns(strike, AFTERMATH));
        let lately: Vec<String> =
            lately.map(|Strike { kind, from, until, client, .. }| format!("{kind:?} {from} to {until} {client:?}")).collect();
        self.object(format_args!(
            "worker {} believed in token {token} (acquisition {op}) from {from} until {until}, when {how}, {} us after worker {} was \
             told that it holds token {} (acquisition {}, at {}); what struck lately: {}",
            holding.client,
            until - next.from,
            next.client,
            next.token,
            next.op,
            next.from,
            lately.join(", ")
        ));
    }

    /// From when on the store may have granted a lock: what was granted may end before its holder is told that it has it.
    fn granted_from(&self, holding: &Holding) -> u64 {
        holding.wanted_at.max(holding.from.saturating_sub(self.answers_within))
    }

    /// Whether the holder made no step when the next one was told of its grant, and none from then until its own end.
    fn stood_still(&self, holding: &Holding, next: &Holding) -> bool {
        let mut went_on: Option<u64> = None;
        for pause in self.pauses.iter().filter(|pause| pause.client == holding.client && pause.until >= next.from) {
            if pause.from <= went_on.unwrap_or(next.from) + HARDLY_A_STEP {
                went_on = went_on.max(Some(pause.until));
            }
        }
        went_on.is_some_and(|went_on| holding.until <= went_on + RESUME)
    }

    fn an_order_explains_it(&mut self, history: &History) {
        let operations = wgl::operations(history);
        match wgl::order(&operations, self.store.unheld(), SEARCH) {
            Verdict::Linearizable => self.proof.explained += operations.len(),
            Verdict::Illegal { stuck } => {
                let Operation { from, by, .. } = operations[stuck];
                self.object(format_args!("no order of the operations allows {} between {from} and {by:?}", operations[stuck]));
            }
            Verdict::Undecided => self.object(format_args!("no order of {} operations in {SEARCH} steps", operations.len())),
        }
    }

    fn is_interfered_with(&self, holding: &Holding, next: &Holding) -> bool {
        let acts = self.strikes.iter().filter(|strike| strike.kind.is_interference());
        acts.filter(|act| act.client == Some(holding.client) || act.key.as_deref() == Some(self.key))
            .any(|act| act.from <= next.from && act.until >= self.granted_from(holding))
    }
}

/// The name under which it stands in a history.
fn named<T: serde::Serialize>(word: &T) -> String {
    serde_json::to_value(word).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
