//! The fake Consul as it lives through a run: sessions lapse, elections silence it, operators interfere, and the history is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_consul::{Answer, Request, TransportErrorKind};
use dlock_core::Metadata;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::http::{FakeConsul, refuse};
use super::store::{Entry, Rules, Store};
use crate::history::{End, Event, Op};
use crate::plan::Fault;
use crate::wire::life::{KEY, OP};
use crate::wire::scene::{FOR_EVER, Scene};

/// What the names of all tickets for the key begin with, in fair mode.
const LINE: &str = "locks/one/.dlock/";
/// And those of everything else beside it.
const BESIDE: &str = "locks/one/.dlock";

/// The servers.
#[derive(Debug)]
pub(super) struct Cluster {
    scene: Arc<Scene>,
    state: Mutex<State>,
    /// Told when the store changed, and when it falls silent.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    consul: FakeConsul,
    grant: Option<Grant>,
    /// The tickets for the key, by their names.
    line: BTreeSet<String>,
    sessions: BTreeMap<String, Opened>,
    /// Until when nobody is answered.
    outage: Duration,
    /// How many outages there were; one cuts every request that waits.
    outages: u32,
}

/// The claim that holds the key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    session: String,
    claim: Option<String>,
    op: Option<Op>,
    token: u64,
}

/// Whose session it is, since when, and whether they know.
#[derive(Clone, Copy, Debug)]
struct Opened {
    client: u8,
    at: Duration,
    known: bool,
}

/// A request as it reaches the servers.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) client: u8,
    pub(super) call: u32,
    pub(super) request: Request,
    /// For choices that are no faults.
    pub(super) bits: u64,
}

/// What the servers say, or what the lack of an answer looks like.
pub(super) type Heard = Result<Answer, TransportErrorKind>;

impl Cluster {
    pub(super) fn new(scene: Arc<Scene>) -> Arc<Self> {
        let config = &scene.config;
        // Clients' clocks may run slower than true time: to them, sessions lapse so much earlier.
        let lapses_after_ppm = u64::from(config.lapses_after_percent) * u64::from(1_000_000 - config.drift_ppm) / 100;
        let least_delay = Duration::from_millis(config.lock_delay_ms.into());
        let rules = Rules { lapses_after_ppm, least_delay, ..Rules::default() };
        let state = State {
            consul: FakeConsul::new(Store::new(rules), config.seed),
            grant: None,
            line: BTreeSet::new(),
            sessions: BTreeMap::new(),
            outage: Duration::ZERO,
            outages: 0,
        };
        Arc::new(Self { scene, state: Mutex::new(state), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends sessions when their time has come, for ever.
    pub(super) async fn lapse(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.state();
                self.lapse_due(&mut state);
                state.consul.store.next_lapse().map_or(FOR_EVER, |(at, _)| at.max(state.outage))
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(self.scene.instant(next)) => {}
            }
        }
    }

    fn lapse_due(&self, state: &mut State) {
        let now = self.scene.now();
        while now >= state.outage
            && let Some((at, id)) = state.consul.store.next_lapse()
            && at <= now
        {
            state.consul.store.end(now, &id);
            self.observe(state, End::Lapsed);
            self.changed.notify_waiters();
        }
    }

    /// Nobody is answered for so long. Whoever leads afterwards gives every session its whole time again.
    pub(super) fn fall_silent(&self, so_long: Duration) {
        let mut state = self.state();
        state.outage = state.outage.max(self.scene.now() + so_long);
        state.outages += 1;
        let until = state.outage;
        state.consul.store.elect(until);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Everybody is answered again.
    pub(super) fn heal(&self) {
        let now = self.scene.now();
        let mut state = self.state();
        if now < state.outage {
            state.outage = now;
            state.consul.store.elect(now);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// An operator does something to the lock.
    pub(super) fn interfere(&self, fault: Fault) {
        let now = self.scene.now();
        let mut state = self.state();
        let Some(Grant { session, .. }) = state.grant.clone() else { return };
        let store = &mut state.consul.store;
        match fault {
            Fault::EndSession => _ = store.end(now, &session),
            Fault::DeleteKey => {
                // With everything that stands in line for it, or alone.
                let whole = self.scene.config.draw(&[8, store.last_index()]).is_multiple_of(2);
                let below: Vec<String> = store.list(LINE).0.iter().map(|(ticket, _)| (*ticket).to_owned()).collect();
                let index = store.log();
                store.delete(KEY, index);
                below.iter().filter(|_| whole).for_each(|ticket| store.delete(ticket, index));
            }
            _ => {
                let Some(entry) = store.entry(KEY).cloned() else { return };
                let index = store.log();
                _ = store.unlock(KEY, index, &session, entry.flags, entry.value);
            }
        }
        self.observe(&mut state, End::Interference);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether a client holds the key.
    pub(super) fn holds(&self, client: u8) -> bool {
        let state = self.state();
        let opened = state.grant.as_ref().and_then(|grant| state.sessions.get(&grant.session));
        opened.is_some_and(|opened| opened.client == client)
    }

    /// The sessions that a client knows of and that are still there. One that lived through an outage may live longer than the client can know.
    pub(super) fn known_sessions(&self, client: u8) -> Vec<String> {
        let state = self.state();
        let sessions = state.sessions.iter().filter(|(_, opened)| opened.client == client && opened.at >= state.outage);
        let known = sessions.filter(|(_, opened)| opened.known);
        known.filter(|(id, _)| state.consul.store.session(id).is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// What is still at the store, with whose it is.
    pub(super) fn left(&self) -> Vec<(Option<u8>, String)> {
        let state = self.state();
        let owner = |id: &str| state.sessions.get(id).map(|opened| opened.client);
        let store = &state.consul.store;
        let sessions = store.sessions().map(|id| (owner(id), format!("session {id}")));
        let held = store.entry(KEY).and_then(|entry| entry.session.as_deref());
        let held = held.map(|id| (owner(id), format!("the key, held by session {id}")));
        // Tickets and tombstones.
        let (beside, _) = store.list(BESIDE);
        let beside = beside.into_iter().map(|(key, entry)| (entry.session.as_deref().and_then(owner), format!("the key {key}")));
        sessions.chain(held).chain(beside).collect()
    }

    /// A client heard the answer to its `session/create`.
    pub(super) fn is_known(&self, created: &Answer) {
        if let Some(opened) = self.state().sessions.get_mut(id_in(created)) {
            opened.known = true;
        }
    }

    /// Takes a request up and answers it; `None` when there is only silence.
    pub(super) async fn serve(&self, arrived: &Arrived) -> Option<Heard> {
        let waits = FakeConsul::waits(&arrived.request);
        let (began, outages) = (self.scene.now(), self.state().outages);
        let jitter = |most: Duration| most.mul_f64((arrived.bits >> 8 & 0xFFFF) as f64 / 65_536.0);
        let ends = waits.as_ref().map(|waits| began + waits.wait + jitter(waits.wait / 16));
        // Some are answered as soon as anything at all has changed.
        let hasty = (arrived.bits >> 24).is_multiple_of(16);
        let mut looks = true;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the store is looked at, so that no change falls in between.
            changed.as_mut().enable();
            {
                let mut state = self.state();
                let now = self.scene.now();
                if now < state.outage || (waits.is_some() && state.outages != outages) {
                    return silence(arrived, waits.is_some());
                }
                self.lapse_due(&mut state);
                let due = ends.is_none_or(|ends| now >= ends) || (hasty && !looks);
                if due || waits.as_ref().is_some_and(|waits| state.consul.has_news(waits, looks)) {
                    let answer = self.apply(&mut state, arrived);
                    self.scene.push(None, Event::Applied { call: arrived.call });
                    return Some(Ok(answer));
                }
                looks = false;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(self.scene.instant(ends.unwrap_or(FOR_EVER))) => {}
            }
        }
    }

    /// Answers that it cannot; whether it did all the same, the client cannot know from most of these.
    pub(super) async fn refuse(&self, arrived: &Arrived) -> Option<Heard> {
        let answer = match arrived.bits % 7 {
            0 => return Some(Err(TransportErrorKind::NotConnected)),
            1 => refuse(429, "rate limit exceeded, try again later or against a different server"),
            2 => refuse(503, "rate limit exceeded for operation that can only be performed by the leader, try again later"),
            3 => refuse(500, "No cluster leader"),
            4 => refuse(500, "rpc error making call: EOF"),
            _ => {
                self.serve(arrived).await?.ok()?;
                refuse(500, "rpc error making call: EOF")
            }
        };
        Some(Ok(answer))
    }

    fn apply(&self, state: &mut State, arrived: &Arrived) -> Answer {
        let (at, before) = (self.scene.now(), state.consul.store.last_index());
        let answer = state.consul.answer(at, &arrived.request);
        if arrived.request.target.ends_with("/session/create") && answer.status == 200 {
            let opened = Opened { client: arrived.client, at, known: false };
            state.sessions.insert(id_in(&answer).to_owned(), opened);
        }
        if state.consul.store.last_index() != before {
            self.observe(state, End::GivenBack);
            self.changed.notify_waiters();
        }
        answer
    }

    /// Tells the history when the key has another holder than before.
    fn observe(&self, state: &mut State, cause: End) {
        let (tickets, _) = state.consul.store.list(LINE);
        for (_, entry) in tickets.iter().filter(|(ticket, _)| !state.line.contains(*ticket)) {
            if let (_, Some(op)) = published(entry) {
                self.scene.push(None, Event::Queued { op });
            }
        }
        state.line = tickets.into_iter().map(|(ticket, _)| ticket.to_owned()).collect();
        let entry = state.consul.store.entry(KEY);
        let now = entry.and_then(|entry| {
            let (claim, op) = published(entry);
            Some(Grant { session: entry.session.clone()?, claim, op, token: entry.modified })
        });
        let same = match (&state.grant, &now) {
            (Some(before), Some(now)) => before.session == now.session && (now.claim.is_none() || before.claim == now.claim),
            (before, now) => before == now,
        };
        if !same {
            self.scene.granted(cause, now.as_ref().and_then(|grant| Some((grant.op?, grant.token))));
            state.grant = now;
        }
    }
}

/// The claim and the acquisition that a value tells of.
fn published(entry: &Entry) -> (Option<String>, Option<Op>) {
    let published: Option<Metadata> = serde_json::from_slice(&entry.value).ok();
    let read = |name| published.as_ref().and_then(|published| published.get(name));
    (read(Metadata::CLAIM).map(str::to_owned), read(OP).and_then(|op| op.parse().ok()))
}

/// What servers that answer nobody look like.
fn silence(arrived: &Arrived, waits: bool) -> Option<Heard> {
    match arrived.bits % 5 {
        // A request that was taken up and waits has its connection.
        0 if !waits => Some(Err(TransportErrorKind::NotConnected)),
        1 => Some(Err(TransportErrorKind::Broken)),
        2 => Some(Ok(refuse(500, "No cluster leader"))),
        _ => None,
    }
}

/// The id in the answer to a `session/create`.
fn id_in(created: &Answer) -> &str {
    created.body.split('"').nth(3).unwrap_or_default()
}
