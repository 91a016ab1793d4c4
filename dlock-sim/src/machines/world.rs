//! Everything around the clients: the event queue, the store, the network to it, the resource, and the record of it all.

use std::time::Duration;

use dlock_core::{ClaimId, Moment};
use dlock_testkit::memory::{Rules, Store};

use super::client::op_of;
use super::clock::Clock;
use super::queue::{Happening, Message, Queue};
use super::resource::Resource;
use super::surroundings::{CallId, News, Terms};
use crate::history::{End, Event, History, Op};
use crate::plan::{Config, Fault, Plan, Site, Struck, Weather};

/// A time that does not come.
pub(super) const NEVER: u64 = u64::MAX;

/// All but the clients. Times are true nanoseconds since the beginning.
pub(super) struct World<'p> {
    pub(super) config: &'p Config,
    pub(super) terms: Terms,
    pub(super) now: u64,
    pub(super) store: Store,
    pub(super) resource: Resource,
    pub(super) weather: Weather,
    pub(super) history: History,
    /// The clock of each client.
    pub(super) clocks: Vec<Clock>,
    /// What the clients told since it was last looked at.
    pub(super) news: Vec<(u8, News)>,
    /// When the store changes by itself.
    pub(super) next_change: u64,
    /// The key passed from one claim to another since that was last looked at.
    pub(super) passed_on: bool,
    /// Tries that were answered "busy".
    pub(super) busy_tries: Vec<ClaimId>,
    /// An operator has deleted the key.
    pub(super) deleted: bool,
    /// Messages between clients and store.
    pub(super) under_way: u32,
    pub(super) queue: Queue,
    pub(super) calls: CallId,
    /// How often each client drew.
    pub(super) draws: Vec<u64>,
    /// Until when nothing passes between each client and the store.
    pub(super) partitioned: Vec<u64>,
    pub(super) outage: Option<Outage>,
    /// Waiting requests at the store.
    pub(super) parked: Vec<Message>,
    holder: Option<(Op, u64)>,
    grants: Vec<(Op, u64)>,
    /// The claim that each client's caller gives back and wants to hear of.
    pub(super) releasing: Vec<Option<ClaimId>>,
}

pub(super) struct Outage {
    pub(super) until: u64,
    /// Requests wait for it to end; otherwise they are lost, and waiting ones break.
    pub(super) frozen: bool,
}

impl<'p> World<'p> {
    pub(super) fn new(plan: &'p Plan, terms: Terms) -> Self {
        let config = &plan.config;
        let clients = usize::from(config.clients);
        let rules = Rules {
            profile: config.profile,
            lapses_after_percent: config.lapses_after_percent,
            lock_delay: Duration::from_millis(config.lock_delay_ms.into()),
        };
        let clock = |client| {
            // Half of the clocks are as slow as they may be.
            let slower = match config.draw(&[0xC10C, client]) {
                draw if draw & 1 == 0 => u64::from(config.drift_ppm),
                draw => (draw >> 1) % (u64::from(config.drift_ppm) + 1),
            };
            Clock::new(config.draw(&[0x0819, client]) % 1_000_000_000, slower)
        };
        Self {
            config,
            terms,
            now: 0,
            store: Store::new(rules),
            resource: Resource::default(),
            weather: Weather::of(plan),
            history: History::default(),
            clocks: (0..clients as u64).map(clock).collect(),
            news: Vec::new(),
            next_change: NEVER,
            passed_on: false,
            busy_tries: Vec::new(),
            deleted: false,
            under_way: 0,
            queue: Queue::default(),
            calls: 0,
            draws: vec![0; clients],
            partitioned: vec![0; clients],
            outage: None,
            parked: Vec::new(),
            holder: None,
            grants: Vec::new(),
            releasing: vec![None; clients],
        }
    }

    pub(super) fn tell(&mut self, client: Option<u8>, event: Event) {
        self.history.push(self.now / 1_000, client, event);
    }

    pub(super) fn schedule(&mut self, at: u64, happening: Happening) {
        self.queue.push(at.max(self.now), happening);
    }

    /// When the next thing that is scheduled happens.
    pub(super) fn next(&self) -> u64 {
        self.queue.next().unwrap_or(NEVER)
    }

    pub(super) fn pop(&mut self) -> Option<Happening> {
        self.queue.pop()
    }

    /// A client comes to a place where something may strike.
    pub(super) fn visit(&mut self, site: Site, client: u8) -> Option<Fault> {
        let (slot, fault) = self.weather.visit(site, client);
        if let Some(fault) = fault {
            self.tell(Some(client), Event::Struck { slot, fault });
        }
        fault
    }

    /// Lets the store do what its time has come for.
    pub(super) fn pass(&mut self) {
        if self.next_change <= self.now && self.outage.is_none() {
            self.store.pass(self.moment());
            self.changed(End::Lapsed);
        }
    }

    /// Does something to the store that is no request.
    pub(super) fn interfere(&mut self, interfere: impl FnOnce(&mut Store, Moment)) {
        let now = self.moment();
        interfere(&mut self.store, now);
        self.changed(End::Interference);
    }

    pub(super) fn moment(&self) -> Moment {
        Moment::from_origin(Duration::from_nanos(self.now))
    }

    /// When the store changes by itself next.
    pub(super) fn look_ahead(&mut self) {
        self.next_change = match self.store.next_change() {
            Some(next) if self.outage.is_none() => next.since_origin().as_nanos() as u64,
            _ => NEVER,
        };
    }

    /// The store changed: records who holds the key now, and answers those who waited for it.
    pub(super) fn changed(&mut self, cause: End) {
        self.look_ahead();
        let grants = self.store.grants(&self.terms.key);
        let fresh: Vec<_> = grants[self.grants.len()..].iter().map(|grant| (op_of(grant.claim), grant.token.get())).collect();
        let holder = self.store.holder_of(&self.terms.key).map(|(_, claim, token)| (op_of(claim), token.get()));
        for (op, token) in fresh {
            self.end_grant(cause);
            self.grants.push((op, self.now));
            self.tell(None, Event::Granted { op, token });
            self.holder = Some((op, token));
            self.passed_on = true;
        }
        if self.holder != holder {
            self.end_grant(cause);
        }
        let mut n = 0;
        while n < self.parked.len() {
            match self.look(&self.parked[n].question) {
                Some(answer) => {
                    let Message { client, call, back, .. } = self.parked.swap_remove(n);
                    self.answer(client, call, back, answer);
                }
                None => n += 1,
            }
        }
    }

    fn end_grant(&mut self, cause: End) {
        if let Some((op, token)) = self.holder.take() {
            self.tell(None, Event::Ended { op, token, cause });
            self.passed_on = true;
        }
    }

    /// When the store first granted the key to an acquisition.
    pub(super) fn granted_at(&self, op: Op) -> u64 {
        self.grants.iter().find(|(granted, _)| *granted == op).map_or(0, |(_, at)| *at)
    }

    /// Whatever goes wrong between clients and store is over.
    pub(super) fn heal(&mut self) {
        self.weather.calm_down();
        self.tell(None, Event::Healed);
        self.partitioned.fill(0);
        if let Some(outage) = &mut self.outage {
            outage.until = self.now;
        }
        self.end_outage();
    }

    /// Forgets the waiting requests of a client that is no more.
    pub(super) fn forget(&mut self, client: u8) {
        self.parked.retain(|parked| parked.client != client);
    }

    /// What struck, and the record.
    pub(super) fn into_record(self) -> (Vec<Struck>, History) {
        (self.weather.struck().to_vec(), self.history)
    }
}

/// A number of milliseconds in nanoseconds.
pub(super) fn millis(millis: u32) -> u64 {
    u64::from(millis) * 1_000_000
}
