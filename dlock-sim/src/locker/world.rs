//! What a true observer of a run knows: its history, and what must be known to write it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock::{Fence, FencingToken, Held, Key};
use dlock_core::{Claim, ClaimId, Loss};
use dlock_testkit::memory::{ChangedBy, Observer, Store};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::history::{End, Event, History, Op, Refusal};
use crate::plan::{Config, Fault, Plan, Site, Slot, Struck, Tenancy, Weather};

/// The observer of a run: keeps the history, decides what strikes, and holds the resources that the lock protects.
pub(super) struct World {
    pub(super) config: Config,
    pub(super) tenancy: Option<Tenancy>,
    /// The first is the one that is contended for where there is no other.
    pub(super) keys: Vec<Key>,
    began: Instant,
    state: Mutex<State>,
    /// Told when the last of the clients' workers is done.
    pub(super) idle: Notify,
}

/// What the mutex guards. Whoever holds it must not call the store, which may be calling us.
pub(super) struct State {
    began: Instant,
    pub(super) weather: Weather,
    history: History,
    /// The calls so far, by number.
    pub(super) calls: Vec<Called>,
    /// Until when each client is cut off.
    pub(super) cut: BTreeMap<u8, Instant>,
    /// Until when the store answers nobody.
    pub(super) down: Option<Instant>,
    /// Until when what has struck is felt.
    struck_until: Instant,
    workers: usize,
    /// The acquisitions under way, by the number that their metadata carries.
    asking: BTreeMap<Op, Asking>,
    /// Whose each claim is.
    claims: BTreeMap<ClaimId, (u8, Op)>,
    /// What the store grants now, in the order of the grants.
    granted: Vec<(ClaimId, FencingToken)>,
    /// How many grants of each key were seen.
    grants: Vec<usize>,
    interfered: BTreeSet<ClaimId>,
    /// The locks that clients hold as far as they know.
    beliefs: BTreeMap<Op, Belief>,
    fence: Fence,
    /// Who wrote to the resource without a fence, in order.
    unfenced: Vec<Op>,
    /// How many had written there when a token was granted.
    written_before: BTreeMap<u64, usize>,
    /// The next number for a term of an election that began by itself.
    next_term: Op,
}

/// A call that left a client.
#[derive(Clone, Copy)]
pub(super) struct Called {
    pub(super) slot: Slot,
    pub(super) fault: Option<Fault>,
}

/// An acquisition under way.
struct Asking {
    client: u8,
    /// Its number in the history: another one for each term of an election.
    op: Op,
    wants: bool,
}

struct Belief {
    client: u8,
    /// What it holds: one lock, or several that it holds together.
    locks: Vec<Held>,
    /// Noted once.
    false_noted: bool,
}

/// What tells apart the terms that elections begin by themselves from the rounds of clients.
const LATER_TERMS: Op = 0x1_0000;

impl World {
    pub(super) fn new(plan: &Plan, keys: Vec<Key>) -> Self {
        let began = Instant::now();
        let state = State {
            began,
            weather: Weather::of(plan),
            history: History::default(),
            calls: Vec::new(),
            cut: BTreeMap::new(),
            down: None,
            struck_until: began,
            workers: 0,
            asking: BTreeMap::new(),
            claims: BTreeMap::new(),
            granted: Vec::new(),
            grants: vec![0; keys.len()],
            interfered: BTreeSet::new(),
            beliefs: BTreeMap::new(),
            fence: Fence::new(),
            unfenced: Vec::new(),
            written_before: BTreeMap::new(),
            next_term: LATER_TERMS,
        };
        Self { config: plan.config.clone(), tenancy: plan.tenancy(), keys, began, state: Mutex::new(state), idle: Notify::new() }
    }

    /// The key that is contended for where there is no other.
    pub(super) fn key(&self) -> &Key {
        &self.keys[0]
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, client: Option<u8>, event: Event) {
        self.state().note(client, event);
    }

    /// True time since the beginning, in microseconds.
    pub(super) fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_micros() as u64
    }

    /// A client comes to a site that is no call: what strikes there.
    pub(super) fn visit(&self, site: Site, client: u8) -> Option<Fault> {
        self.state().visit(site, client).1
    }

    /// A client asks for the lock.
    pub(super) fn asks(&self, client: u8, number: Op, tries: bool) {
        let mut state = self.state();
        state.asking.insert(number, Asking { client, op: number, wants: true });
        state.note(Some(client), Event::Wants { op: number, tries });
    }

    /// It is told that it has no lock, if it still waits for one.
    pub(super) fn refused(&self, number: Op, why: Refusal) {
        let mut state = self.state();
        let Some(asking) = state.asking.get_mut(&number).filter(|asking| asking.wants) else { return };
        asking.wants = false;
        let (client, op) = (asking.client, asking.op);
        state.note(Some(client), Event::Refused { op, why });
    }

    /// It is told that it holds the lock; by what number this is to be known.
    pub(super) fn holds(&self, number: Op, locks: Vec<Held>) -> Op {
        let mut state = self.state();
        let Some(asking) = state.asking.get_mut(&number) else { unreachable!("only who asks comes to hold") };
        asking.wants = false;
        let (client, op) = (asking.client, asking.op);
        let token = token_of(&locks);
        state.note(Some(client), Event::Held { op, token });
        state.beliefs.insert(op, Belief { client, locks, false_noted: false });
        // The grant may be gone already.
        state.ask_beliefs();
        op
    }

    /// It does not think any more that it holds the lock: because it was told so, or because it gives it back.
    pub(super) fn holds_no_more(&self, op: Op, lost: Option<Loss>) {
        let mut state = self.state();
        let Some(Belief { client, .. }) = state.beliefs.remove(&op) else { return };
        state.note(Some(client), lost.map_or(Event::Releasing { op }, |loss| Event::Lost { op, reason: loss.into() }));
    }

    /// An election that lost its term campaigns again by itself.
    pub(super) fn campaigns_again(&self, number: Op) {
        let mut state = self.state();
        let op = state.next_term;
        state.next_term += 1;
        let Some(asking) = state.asking.get_mut(&number) else { return };
        (asking.op, asking.wants) = (op, true);
        let client = asking.client;
        state.note(Some(client), Event::Wants { op, tries: false });
    }

    /// The client is no more.
    pub(super) fn crashed(&self, client: u8) {
        let mut state = self.state();
        state.beliefs.retain(|_, belief| belief.client != client);
        state.note(Some(client), Event::Crashed);
    }

    /// A write arrives at both resources: the one that looks at tokens, and the one that does not.
    pub(super) fn written(&self, client: u8, op: Op, token: FencingToken) {
        let mut state = self.state();
        let accepted = state.fence.admit(token).is_ok();
        let token = token.get();
        state.note(Some(client), Event::Wrote { op, token, accepted });
        let before = state.written_before.get(&token).copied().unwrap_or(0);
        let late = state.unfenced[before..].iter().any(|other| *other != op);
        state.unfenced.push(op);
        state.note(Some(client), Event::WroteUnfenced { op, token, late });
    }

    /// The claims of a client, as far as they were sent.
    pub(super) fn whose(&self, claim: ClaimId) -> Option<(u8, Op)> {
        self.state().claims.get(&claim).copied()
    }

    /// Whether a session may have lived longer than its client could know: a store that is back from an outage gives it its whole ttl again,
    /// and so does a renewal that comes late.
    pub(super) fn sessions_lived_on(&self) -> bool {
        let state = self.state();
        let prolongs = |struck: &Struck| match struck.fault {
            Fault::Outage(_) | Fault::Partition(_) => true,
            Fault::DelayRequest(_) | Fault::Repeat(_) => struck.slot.site == Site::Renew,
            _ => false,
        };
        state.weather.struck().iter().any(prolongs)
    }

    /// Nothing strikes any more; when what has struck is not felt any more either.
    pub(super) fn calm_down(&self) -> Instant {
        let mut state = self.state();
        state.weather.calm_down();
        state.struck_until
    }

    pub(super) fn worker_begins(&self) {
        self.state().workers += 1;
    }

    pub(super) fn worker_ends(&self) {
        let mut state = self.state();
        state.workers -= 1;
        if state.workers == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Returns once no worker is left.
    pub(super) async fn all_done(&self) {
        let idle = self.idle.notified();
        tokio::pin!(idle);
        idle.as_mut().enable();
        if self.state().workers > 0 {
            idle.await;
        }
    }

    /// What the run brought. Whatever comes later is not written down.
    pub(super) fn end(&self) -> (Vec<Struck>, History) {
        let mut state = self.state();
        // Each keeps its session, which keeps the store, which keeps us.
        state.beliefs.clear();
        (state.weather.struck().to_vec(), std::mem::take(&mut state.history))
    }
}

impl State {
    pub(super) fn note(&mut self, client: Option<u8>, event: Event) {
        self.history.push(self.began.elapsed().as_micros() as u64, client, event);
    }

    pub(super) fn visit(&mut self, site: Site, client: u8) -> (Slot, Option<Fault>) {
        let (slot, fault) = self.weather.visit(site, client);
        if let Some(fault) = fault {
            let lasts = Duration::from_millis(fault.measure().unwrap_or(0).into());
            self.struck_until = self.struck_until.max(Instant::now() + lasts);
            self.note(Some(client), Event::Struck { slot, fault });
        }
        (slot, fault)
    }

    /// Learns whose a claim is when it is first sent.
    pub(super) fn learn(&mut self, claim: &Claim) {
        let number = claim.metadata.as_ref().and_then(|metadata| metadata.get(NUMBER)?.parse().ok());
        if let Some(asking) = number.and_then(|number: Op| self.asking.get(&number)) {
            self.claims.entry(claim.id).or_insert((asking.client, asking.op));
        }
    }

    /// Asks every client whether it would say that it holds the lock, and notes those who are wrong. Does not change their minds.
    pub(super) fn ask_beliefs(&mut self) {
        let now = Instant::now();
        let right = |claim: ClaimId| self.granted.iter().any(|(granted, _)| *granted == claim) || self.interfered.contains(&claim);
        let mut wrong = Vec::new();
        for (op, belief) in &mut self.beliefs {
            if belief.false_noted || belief.locks.iter().all(|held| right(held.claim())) {
                continue;
            }
            // Only before its deadline is a guard asked, since past it the question itself would tell the client.
            if belief.locks.iter().all(|held| now < held.valid_until() && held.check().is_ok()) {
                belief.false_noted = true;
                wrong.push((belief.client, *op, token_of(&belief.locks)));
            }
        }
        for (client, op, token) in wrong {
            self.note(Some(client), Event::StillBelieves { op, token });
        }
    }

    fn op_of(&self, claim: ClaimId) -> Op {
        self.claims.get(&claim).map_or(Op::MAX, |(_, op)| *op)
    }

    /// The grants that the store does not know any more have ended.
    fn ended(&mut self, by: ChangedBy, still: impl Fn(ClaimId) -> bool) {
        let (granted, ended): (Vec<_>, Vec<_>) = self.granted.drain(..).partition(|(claim, _)| still(*claim));
        self.granted = granted;
        for (claim, token) in ended {
            self.end(by, claim, token);
        }
    }

    fn end(&mut self, by: ChangedBy, claim: ClaimId, token: FencingToken) {
        let cause = match by {
            ChangedBy::Request => End::GivenBack,
            ChangedBy::Time => End::Lapsed,
            ChangedBy::Operator => {
                self.interfered.insert(claim);
                End::Interference
            }
        };
        let op = self.op_of(claim);
        self.note(None, Event::Ended { op, token: token.get(), cause });
    }
}

/// The token of the first, where there is one.
fn token_of(locks: &[Held]) -> u64 {
    locks.first().and_then(Held::token).map_or(0, FencingToken::get)
}

/// The metadata by which the store knows to which acquisition a claim belongs.
pub(super) const NUMBER: &str = "op";

impl Observer for World {
    fn changed(&self, store: &Store, by: ChangedBy) {
        let mut state = self.state();
        let holders: BTreeSet<ClaimId> = self.keys.iter().flat_map(|key| store.holders_of(key)).collect();
        for (nth, key) in self.keys.iter().enumerate() {
            let grants = store.grants(key);
            for grant in &grants[state.grants[nth]..] {
                state.ended(by, |claim| holders.contains(&claim));
                state.granted.push((grant.claim, grant.token));
                let written = state.unfenced.len();
                state.written_before.insert(grant.token.get(), written);
                let op = state.op_of(grant.claim);
                state.note(None, Event::Granted { op, token: grant.token.get() });
            }
            state.grants[nth] = grants.len();
        }
        state.ended(by, |claim| holders.contains(&claim));
        state.ask_beliefs();
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("config", &self.config).finish_non_exhaustive()
    }
}
