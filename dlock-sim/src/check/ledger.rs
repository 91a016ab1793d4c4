//! What the lines so far say about acquisitions, clients, grants and calls.

use std::collections::BTreeMap;

use crate::history::{End, Event, Line, Op};
use crate::plan::{Fault, Site, Slot};

/// Everything known before the next line.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub acquisitions: Table<Acquisition>,
    pub clients: Table<Client>,
    pub calls: Table<Call>,
    /// In the order of their tokens.
    pub grants: Vec<Grant>,
    /// The grants that have not ended, by their place in `grants`; one, on a store that is right.
    pub live: Vec<usize>,
    /// The acquisitions that wait for an answer.
    pub wanting: Vec<Op>,
    /// The acquisitions whose clients were told that they hold the lock, and nothing since.
    pub believing: Vec<Op>,
    /// Since when the key is granted to nobody, while it is.
    pub free_since: u64,
    /// When faults were over.
    pub healed: Option<u64>,
    /// When the last fault that concerned everybody was over, or will be.
    pub calm_from: u64,
    /// How often the key was granted or came free.
    pub changes: u32,
}

/// What is known of an acquisition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acquisition {
    pub client: u8,
    pub stage: Stage,
    pub tries: bool,
    /// The line that asked for it, and when.
    pub asked: usize,
    pub asked_at: u64,
    /// The line that said that it is held.
    pub held: Option<usize>,
    pub token: u64,
    /// The line that changed its stage last, and when.
    pub turned: usize,
    pub turned_at: u64,
    /// What the counts of handovers and of the client's faults were when it began.
    pub changes_before: u32,
    pub faults_before: u32,
}

/// Where an acquisition stands, as its client was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Unknown,
    Wanting,
    Held,
    Lost,
    Releasing,
    Released,
    Refused,
    Crashed,
}

impl Stage {
    /// Nothing of it should be granted any more, or not for long.
    pub(crate) fn is_over(self) -> bool {
        !matches!(self, Self::Wanting | Self::Held)
    }
}

/// What is known of a client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Client {
    /// It makes no step until then.
    pub paused_until: u64,
    /// When its last fault was over, or will be.
    pub calm_from: u64,
    pub crashed: bool,
    pub faults: u32,
    pub opens: u32,
    pub acquisitions: u32,
}

/// A call that was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Call {
    pub slot: Option<Slot>,
    /// The acquisition that its client contended for then.
    pub op: Option<Op>,
    pub applied: bool,
    pub answered: bool,
}

/// A grant of the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub op: Op,
    pub token: u64,
    pub line: usize,
    pub at: u64,
    pub ended: Option<(usize, u64, End)>,
}

impl Ledger {
    /// The grant with this token.
    pub(crate) fn grant(&self, token: u64) -> Option<&Grant> {
        self.grants.binary_search_by_key(&token, |grant| grant.token).ok().map(|n| &self.grants[n])
    }

    /// Whether the store grants the key to an acquisition, under whatever token: a late copy of its claim brings another.
    pub(crate) fn is_granted(&self, op: Op) -> bool {
        self.live.iter().any(|live| self.grants[*live].op == op)
    }

    /// When the faults that concern a client were over, or will be.
    pub(crate) fn calm_from(&self, client: u8) -> u64 {
        self.clients.get(client.into()).calm_from.max(self.calm_from)
    }

    /// Whether an acquisition, or one of its client's that it may have to wait for, saw a fault of its client's, or one that concerned all.
    pub(crate) fn is_disturbed(&self, acquisition: &Acquisition) -> bool {
        let first = self.wanting_of(acquisition.client).map_or(acquisition.asked_at, |op| self.acquisitions.get(op).asked_at);
        self.calm_from(acquisition.client) >= first.min(acquisition.asked_at)
    }

    /// From when on no fault kept any client from going on.
    pub(crate) fn all_calm_from(&self) -> u64 {
        self.clients.values().map(|client| client.calm_from).max().unwrap_or_default().max(self.calm_from)
    }

    /// The acquisition that a client contends for: it sends one at a time to the store, first come, first served.
    pub(crate) fn wanting_of(&self, client: u8) -> Option<Op> {
        self.wanting.iter().copied().find(|op| self.acquisitions.get(*op).client == client)
    }

    /// Takes the next line in.
    pub(crate) fn take(&mut self, n: usize, line: &Line) {
        let client = line.client.unwrap_or_default();
        match &line.event {
            Event::Wants { op, tries } => {
                let owner = self.clients.entry(client.into());
                owner.acquisitions += 1;
                *self.acquisitions.entry(*op) = Acquisition {
                    client,
                    stage: Stage::Wanting,
                    tries: *tries,
                    asked: n,
                    asked_at: line.at,
                    turned: n,
                    turned_at: line.at,
                    changes_before: self.changes,
                    faults_before: owner.faults,
                    ..Acquisition::default()
                };
                self.wanting.push(*op);
            }
            Event::Held { op, token } => {
                let acquisition = self.acquisitions.entry(*op);
                // A guard that came lost stays lost.
                if acquisition.stage == Stage::Wanting {
                    self.believing.push(*op);
                    (acquisition.token, acquisition.held) = (*token, Some(n));
                    self.turn(*op, Stage::Held, n, line.at);
                }
            }
            Event::Refused { op, .. } => self.turn(*op, Stage::Refused, n, line.at),
            Event::Lost { op, .. } => self.turn(*op, Stage::Lost, n, line.at),
            Event::Releasing { op } => self.turn(*op, Stage::Releasing, n, line.at),
            Event::Released { op, .. } => self.turn(*op, Stage::Released, n, line.at),
            Event::Crashed => {
                self.clients.entry(client.into()).crashed = true;
                let ends = |op: &&Op| self.acquisitions.get(**op).client == client;
                let ended: Vec<_> = self.wanting.iter().chain(&self.believing).filter(ends).copied().collect();
                for op in ended {
                    self.turn(op, Stage::Crashed, n, line.at);
                }
            }
            Event::Paused { until } => {
                let client = self.clients.entry(client.into());
                client.paused_until = client.paused_until.max(*until);
                client.calm_from = client.calm_from.max(*until);
            }
            Event::Granted { op, token } => {
                self.live.push(self.grants.len());
                self.grants.push(Grant { op: *op, token: *token, line: n, at: line.at, ended: None });
                self.changes += 1;
            }
            Event::Ended { token, cause, .. } => {
                if let Ok(place) = self.grants.binary_search_by_key(token, |grant| grant.token) {
                    self.grants[place].ended = Some((n, line.at, *cause));
                    self.live.retain(|live| *live != place);
                    self.free_since = line.at;
                    self.changes += 1;
                }
            }
            Event::Struck { slot, fault } => self.strike(*slot, *fault, line.at),
            Event::Sent { call, slot } => {
                let op = self.wanting_of(slot.client);
                *self.calls.entry(*call) = Call { slot: Some(*slot), op, applied: false, answered: false };
                self.clients.entry(slot.client.into()).opens += u32::from(slot.site == Site::Open);
            }
            Event::Applied { call } => self.calls.entry(*call).applied = true,
            Event::Answered { call } => self.calls.entry(*call).answered = true,
            Event::Healed => self.healed = Some(line.at),
            Event::Queued { .. }
            | Event::StillBelieves { .. }
            | Event::Wrote { .. }
            | Event::WroteUnfenced { .. }
            | Event::Left { .. } => {}
        }
    }

    fn turn(&mut self, op: Op, stage: Stage, n: usize, at: u64) {
        let acquisition = self.acquisitions.entry(op);
        (acquisition.stage, acquisition.turned, acquisition.turned_at) = (stage, n, at);
        if stage != Stage::Wanting {
            self.wanting.retain(|wanting| *wanting != op);
        }
        if stage != Stage::Held {
            self.believing.retain(|believing| *believing != op);
        }
    }

    fn strike(&mut self, slot: Slot, fault: Fault, at: u64) {
        let over = at + u64::from(fault.measure().unwrap_or_default()) * 1_000;
        let client = self.clients.entry(slot.client.into());
        client.faults += 1;
        client.calm_from = client.calm_from.max(over);
        match fault {
            Fault::Pause(_) => client.paused_until = client.paused_until.max(over),
            Fault::Outage(_) => self.calm_from = self.calm_from.max(over),
            _ => {}
        }
    }
}

/// Values by number. Numbers are dense in simulated histories, and need not be in others.
#[derive(Debug, Default)]
pub(crate) struct Table<T> {
    dense: Vec<T>,
    sparse: BTreeMap<u32, T>,
    absent: T,
}

impl<T: Clone + Default> Table<T> {
    const DENSE: u32 = 1 << 14;

    pub(crate) fn get(&self, number: u32) -> &T {
        let known = if number < Self::DENSE { self.dense.get(number as usize) } else { self.sparse.get(&number) };
        known.unwrap_or(&self.absent)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.dense.iter().chain(self.sparse.values())
    }

    pub(crate) fn entry(&mut self, number: u32) -> &mut T {
        if number >= Self::DENSE {
            return self.sparse.entry(number).or_default();
        }
        let number = number as usize;
        if number >= self.dense.len() {
            self.dense.resize(number + 1, T::default());
        }
        &mut self.dense[number]
    }
}
