//! The fake etcd as it lives through a run: leases lapse, members fall silent, operators interfere, and the history is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::Metadata;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::api::Asked;
use super::sites::lease_in;
use super::store::{Rules, Status, Store};
use crate::history::{End, Op};
use crate::plan::Fault;
use crate::wire::life::{KEY, OP};
use crate::wire::scene::{FOR_EVER, Scene};

/// The members.
#[derive(Debug)]
pub(super) struct Cluster {
    scene: Arc<Scene>,
    state: Mutex<State>,
    /// Told when the store changed, and when the members fall silent or speak again.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    store: Store,
    grant: Option<Grant>,
    sessions: BTreeMap<i64, Opened>,
    outage: Outage,
    /// After so many revisions, what was before is forgotten.
    compacts_after: Option<i64>,
    compacted: i64,
}

/// The entry that is first in line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    key: Vec<u8>,
    lease: i64,
    op: Option<Op>,
    token: u64,
}

/// Whose lease it is, since when, and whether they know.
#[derive(Clone, Copy, Debug)]
struct Opened {
    client: u8,
    at: Duration,
    known: bool,
}

/// A time in which nobody is answered as usual.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) until: Duration,
    pub(super) kind: Silence,
    /// How many there were; whoever sleeps through one finds out.
    pub(super) nth: u32,
}

/// What it looks like when the members do not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// They are stopped, and go on later with what was sent to them meanwhile.
    Stopped,
    /// They are gone, and come up again.
    Down,
    /// They live, and none of them leads.
    Leaderless,
}

impl Silence {
    pub(super) fn drawn(bits: u64) -> Self {
        match bits % 3 {
            0 => Self::Stopped,
            1 => Self::Down,
            _ => Self::Leaderless,
        }
    }
}

impl Cluster {
    /// Members of a cluster as a run draws it.
    pub(super) fn drawn(scene: Arc<Scene>) -> Arc<Self> {
        let config = &scene.config;
        // Clients' clocks may run slower than true time: to them, leases lapse so much earlier.
        let lapses_after_ppm = u64::from(config.lapses_after_percent) * u64::from(1_000_000 - config.drift_ppm) / 100;
        let rules = Rules { least_ttl: 1, lapses_after_ppm, ..Rules::default() };
        // Some forget so soon that who waits is behind.
        let compacts = config.draw(&[8]);
        let compacts_after = compacts.is_multiple_of(3).then_some((1 + (compacts >> 8) % 6).cast_signed());
        Self::new(scene, rules, compacts_after)
    }

    /// Members with these rules, which forget what was before so many revisions.
    pub(super) fn new(scene: Arc<Scene>, rules: Rules, compacts_after: Option<i64>) -> Arc<Self> {
        let state = State {
            store: Store::new(rules),
            grant: None,
            sessions: BTreeMap::new(),
            outage: Outage { until: Duration::ZERO, kind: Silence::Down, nth: 0 },
            compacts_after,
            compacted: 0,
        };
        Arc::new(Self { scene, state: Mutex::new(state), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told when something changes; to be enabled before what it is about is looked at.
    pub(super) fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Ends leases when their time has come, for ever.
    pub(super) async fn lapse(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.state();
                self.lapse_due(&mut state);
                state.store.next_lapse().map_or(FOR_EVER, |(at, _)| at.max(state.outage.until))
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
        while now >= state.outage.until
            && let Some((at, lease)) = state.store.next_lapse()
            && at <= now
        {
            _ = state.store.revoke(lease);
            self.observe(state, End::Lapsed);
            self.changed.notify_waiters();
        }
    }

    /// The outage that there is now.
    pub(super) fn outage(&self) -> Option<Outage> {
        let outage = self.state().outage;
        (self.scene.now() < outage.until).then_some(outage)
    }

    /// How many outages there were so far.
    pub(super) fn outages(&self) -> u32 {
        self.state().outage.nth
    }

    /// Nobody is answered for so long. Whoever leads afterwards gives every lease its whole time again.
    pub(super) fn fall_silent(&self, so_long: Duration, kind: Silence) {
        let mut state = self.state();
        let until = state.outage.until.max(self.scene.now() + so_long);
        state.outage = Outage { until, kind, nth: state.outage.nth + 1 };
        state.store.elect(until);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Everybody is answered again.
    pub(super) fn heal(&self) {
        let now = self.scene.now();
        let mut state = self.state();
        if now < state.outage.until {
            state.outage.until = now;
            state.store.elect(now);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// An operator does something to the lock.
    pub(super) fn interfere(&self, fault: Fault) {
        let mut state = self.state();
        let Some(Grant { lease, key, token, .. }) = state.grant.clone() else { return };
        let store = &mut state.store;
        if fault == Fault::EndSession {
            _ = store.revoke(lease);
        } else {
            store.revision += 1;
            store.delete(&key);
            // Who deletes all under a name deletes those who wait, too.
            if fault == Fault::ReleaseByForce && token.is_multiple_of(2) {
                for key in line(store).map(|(key, ..)| key.to_vec()).collect::<Vec<_>>() {
                    store.delete(&key);
                }
            }
        }
        self.observe(&mut state, End::Interference);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether a client holds the key.
    pub(super) fn holds(&self, client: u8) -> bool {
        let state = self.state();
        state.grant.as_ref().is_some_and(|grant| state.owner(grant.lease) == Some(client))
    }

    /// Whether a lease is one of a client's.
    pub(super) fn is_of(&self, lease: i64, client: u8) -> bool {
        self.state().owner(lease) == Some(client)
    }

    /// The leases that a client knows of and that are still there. One that lived through an outage may live longer than the client can know.
    pub(super) fn known_sessions(&self, client: u8) -> Vec<String> {
        let state = self.state();
        let sessions = state.sessions.iter().filter(|(_, opened)| opened.client == client && opened.at >= state.outage.until);
        let known = sessions.filter(|(lease, opened)| opened.known && state.store.knows(**lease));
        known.map(|(lease, _)| format!("{lease:x}")).collect()
    }

    /// What is still at the store, with whose it is.
    pub(super) fn left(&self) -> Vec<(Option<u8>, String)> {
        let state = self.state();
        let leases = state.store.leases().map(|lease| (state.owner(lease), format!("lease {lease:x}")));
        let entries = state.store.entries().map(|(key, lease)| {
            let key = String::from_utf8_lossy(key);
            (state.owner(lease), format!("the key {key:?} under lease {lease:x}"))
        });
        leases.chain(entries).collect()
    }

    /// Looks at the store.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        let mut state = self.state();
        self.lapse_due(&mut state);
        look(&state.store)
    }

    /// Applies what a client asks for.
    pub(super) fn apply(&self, client: u8, asked: &Asked) -> Result<Vec<u8>, Status> {
        let mut state = self.state();
        self.lapse_due(&mut state);
        let (at, before) = (self.scene.now(), state.store.revision());
        let answer = asked.apply(&mut state.store, at);
        match asked {
            Asked::Grant(grant) if answer.is_ok() => {
                state.sessions.insert(grant.id, Opened { client, at, known: false });
            }
            asked => {
                if let Some(opened) = asked.uses().and_then(|lease| state.sessions.get_mut(&lease)) {
                    opened.known = true;
                }
            }
        }
        let changed = state.store.revision() != before;
        if changed {
            self.observe(&mut state, End::GivenBack);
            state.compact();
        }
        drop(state);
        if changed || matches!(asked, Asked::Grant(_)) {
            self.changed.notify_waiters();
        }
        answer
    }

    /// Tells the history when another entry is first in line than before.
    fn observe(&self, state: &mut State, cause: End) {
        let now = line(&state.store).min_by_key(|(_, created, ..)| *created).map(|(key, created, lease, value)| {
            let published: Option<Metadata> = serde_json::from_slice(value).ok();
            let op = published.as_ref().and_then(|published| published.get(OP)).and_then(|op| op.parse().ok());
            Grant { key: key.to_vec(), lease, op, token: created.unsigned_abs() }
        });
        if state.grant.as_ref().map(|grant| grant.token) != now.as_ref().map(|grant| grant.token) {
            self.scene.granted(cause, now.as_ref().and_then(|grant| Some((grant.op?, grant.token))));
        }
        state.grant = now;
    }
}

impl State {
    fn compact(&mut self) {
        let now = self.store.revision();
        if self.compacts_after.is_some_and(|after| now >= self.compacted + after) {
            self.compacted = now;
            _ = self.store.compact(now);
        }
    }

    fn owner(&self, lease: i64) -> Option<u8> {
        self.sessions.get(&lease).map(|opened| opened.client)
    }
}

/// The entries in the line of the one key: each with its revision, its lease and its value.
fn line(store: &Store) -> impl Iterator<Item = (&[u8], i64, i64, &[u8])> {
    store.keys.values().filter_map(|kv| {
        let place = kv.key.strip_prefix(KEY.as_bytes())?.strip_prefix(b"/")?;
        lease_in(place).map(|_| (kv.key.as_slice(), kv.create_revision, kv.lease, kv.value.as_slice()))
    })
}
