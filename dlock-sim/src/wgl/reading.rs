//! From a history to the operations in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Does, Operation};
use crate::history::{End, Event, History, Op, Outcome, Refusal};
use crate::plan::Fault;

/// The operations of a history.
///
/// Clients' answers are taken as they were given. Grants that no client was told of, and ends that none was answered, are operations of the store
/// where the history names them; in a history of clients alone they are operations without an answer.
pub fn operations(history: &History) -> Vec<Operation> {
    let mut reading = Reading {
        store_is_seen: history.lines().iter().any(|line| matches!(line.event, Event::Granted { .. })),
        ..Reading::default()
    };
    for (n, line) in history.lines().iter().enumerate() {
        reading.take(n, line.at, line.client.unwrap_or_default(), &line.event);
    }
    reading.finish()
}

#[derive(Default)]
struct Reading {
    store_is_seen: bool,
    operations: Vec<Operation>,
    acquisitions: BTreeMap<Op, Known>,
    grants: Vec<(Op, u64, usize, u64)>,
    /// Clients that may have something to undo in the background: until that is done, their own gate answers for the store.
    owing: BTreeMap<u8, bool>,
    /// Clients that a fault has struck: what they are answered may be what they know, not what the store said.
    struck: BTreeSet<u8>,
    outage: bool,
}

#[derive(Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)] // each is an independent yes or no
struct Known {
    client: u8,
    asked: Option<(usize, u64)>,
    held: Option<u64>,
    releasing: Option<(usize, u64)>,
    outcome: Option<Outcome>,
    lost: bool,
    /// An operator ended a grant of it.
    interfered: bool,
    /// Among the operations, the end of its grant while it was released.
    ended: Option<usize>,
    /// That end was no release.
    lapsed: bool,
    /// Nothing of it is under way any more.
    over: bool,
    /// Another of its client's was under way with it.
    crowded: bool,
    /// It left something for its client to undo.
    owes: bool,
}

impl Reading {
    fn take(&mut self, n: usize, at: u64, client: u8, event: &Event) {
        match *event {
            Event::Wants { op, .. } => {
                // A client lets one acquisition at a time through to the store, and answers the others itself.
                let mut crowded = false;
                for other in self.acquisitions.values_mut().filter(|other| other.client == client && !other.over) {
                    (other.crowded, crowded) = (true, true);
                }
                self.acquisitions.insert(op, Known { client, asked: Some((n, at)), crowded, ..Known::default() });
            }
            Event::Held { op, token } => {
                let known = self.acquisitions.entry(op).or_default();
                known.held = Some(token);
                let (asked, from) = known.asked.unwrap_or((n, at));
                self.push(Does::Acquire { op, token: Some(token) }, asked, from, Some((n, at)));
            }
            Event::Refused { op, why: Refusal::Busy } => {
                let known = self.acquisitions.entry(op).or_default();
                known.over = true;
                let (asked, from) = known.asked.unwrap_or((n, at));
                let alone = !known.crowded;
                if alone && self.speaks_for_the_store(client) && !self.owing.get(&client).copied().unwrap_or_default() {
                    self.push(Does::FindBusy { op }, asked, from, Some((n, at)));
                }
            }
            Event::Refused { op, .. } => self.owes(op),
            Event::Lost { op, .. } => {
                self.acquisitions.entry(op).or_default().lost = true;
                self.owes(op);
            }
            Event::Struck { slot, fault } => {
                self.struck.insert(slot.client);
                self.outage |= matches!(fault, Fault::Outage(_));
            }
            Event::Releasing { op } => {
                self.acquisitions.entry(op).or_default().releasing = Some((n, at));
                self.owes(op);
            }
            Event::Released { op, outcome } => {
                let known = self.acquisitions.entry(op).or_default();
                known.outcome = Some(outcome);
                // An operator ended the grant, and a late copy of the claim got a place in the queue: that was given back.
                let only_place = known.interfered && known.ended.is_none();
                let (lost, lapsed) = (known.lost, known.lapsed);
                let (asked, from) = known.releasing.unwrap_or((n, at));
                match outcome {
                    Outcome::Released if only_place => {}
                    Outcome::Released => self.push(Does::Release { op, lapsed }, asked, from, Some((n, at))),
                    Outcome::NotHeld if self.speaks_for_the_store(client) && !lost => {
                        self.push(Does::FindNotHeld { op }, asked, from, Some((n, at)));
                    }
                    Outcome::NotHeld => {}
                    Outcome::Unknown => return,
                }
                let known = self.acquisitions.entry(op).or_default();
                (known.owes, known.over) = (false, true);
                let client = known.client;
                let owing = self.acquisitions.values().any(|known| known.client == client && known.owes);
                self.owing.insert(client, owing);
            }
            Event::Granted { op, token } => self.grants.push((op, token, n, at)),
            Event::Ended { op, token, cause } => {
                let known = self.acquisitions.get(&op).copied().unwrap_or_default();
                // What ends while it is released, however, is that release, if it is answered so: it was held when that was asked for. A second
                // end is not.
                let by_release = known.releasing.is_some() && known.outcome.is_none();
                if by_release && known.ended.is_none() {
                    let known = self.acquisitions.entry(op).or_default();
                    (known.ended, known.lapsed) = (Some(self.operations.len()), cause != End::GivenBack);
                }
                self.acquisitions.entry(op).or_default().interfered |= cause == End::Interference;
                self.push(Does::End { op, token: Some(token) }, n, at, Some((n, at)));
            }
            _ => {}
        }
    }

    fn speaks_for_the_store(&self, client: u8) -> bool {
        !self.outage && !self.struck.contains(&client)
    }

    fn owes(&mut self, op: Op) {
        let known = self.acquisitions.entry(op).or_default();
        known.owes = true;
        self.owing.insert(known.client, true);
    }

    fn finish(mut self) -> Vec<Operation> {
        if self.store_is_seen {
            self.of_the_store();
        } else {
            self.unheard();
        }
        self.operations
    }

    /// Grants nobody was told of happened when the store says; an end that a release was told of is that release.
    fn of_the_store(&mut self) {
        for (op, token, n, at) in std::mem::take(&mut self.grants) {
            if self.acquisitions.get(&op).is_none_or(|known| known.held != Some(token)) {
                self.push(Does::Acquire { op, token: Some(token) }, n, at, Some((n, at)));
            }
        }
        let released = |known: &Known| known.ended.filter(|_| known.outcome == Some(Outcome::Released));
        let explained: BTreeSet<_> = self.acquisitions.values().filter_map(released).collect();
        let operations = std::mem::take(&mut self.operations).into_iter().enumerate();
        self.operations = operations.filter(|(n, _)| !explained.contains(n)).map(|(_, operation)| operation).collect();
    }

    /// Without a word of the store: whatever was not answered may have happened, and whatever was held may have ended.
    fn unheard(&mut self) {
        for (op, known) in std::mem::take(&mut self.acquisitions) {
            let Some((asked, from)) = known.asked else { continue };
            if known.held.is_none() {
                self.push(Does::Acquire { op, token: None }, asked, from, None);
            }
            if known.outcome != Some(Outcome::Released) {
                self.push(Does::End { op, token: None }, asked, from, None);
            }
        }
    }

    fn push(&mut self, does: Does, asked: usize, from: u64, answered: Option<(usize, u64)>) {
        let (answered, by) = (answered.map(|(n, _)| n), answered.map(|(_, at)| at));
        self.operations.push(Operation { does, from, by, asked, answered });
    }
}
