//! What all parts of a run share: the weather, the true clock, the history, and who believes what.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock::Held;
use tokio::time::Instant;

use crate::history::{End, Event, History, Op};
use crate::plan::{Config, Fault, Plan, Site, Slot, Weather};
use crate::run::Ran;

/// Longer than any run.
pub(super) const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// The stage of one run.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) config: Config,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    history: History,
    calls: u32,
    /// The grant that the store stands by.
    granted: Option<(Op, u64)>,
    /// The guards that live, each with its client and token.
    guards: BTreeMap<Op, Belief>,
    /// The highest token of a write.
    written: u64,
}

#[derive(Debug)]
struct Belief {
    client: u8,
    token: u64,
    held: Held,
}

impl Scene {
    pub(super) fn new(plan: &Plan) -> Self {
        let state = State {
            weather: Weather::of(plan),
            history: History::default(),
            calls: 0,
            granted: None,
            guards: BTreeMap::new(),
            written: 0,
        };
        Self { config: plan.config.clone(), began: Instant::now(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True time since the beginning.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn instant(&self, at: Duration) -> Instant {
        self.began + at
    }

    pub(super) fn push(&self, client: Option<u8>, event: Event) {
        let at = self.now();
        self.state().push(at, client, event);
    }

    /// A client comes to a site.
    pub(super) fn visit(&self, site: Site, client: u8) -> (Slot, Option<Fault>) {
        let at = self.now();
        let mut state = self.state();
        let (slot, fault) = state.weather.visit(site, client);
        if let Some(fault) = fault {
            state.push(at, Some(client), Event::Struck { slot, fault });
        }
        (slot, fault)
    }

    /// A call leaves a client; its number.
    pub(super) fn sent(&self, slot: Slot) -> u32 {
        let at = self.now();
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        state.push(at, Some(slot.client), Event::Sent { call, slot });
        call
    }

    /// Faults are over.
    pub(super) fn calm_down(&self) {
        self.state().weather.calm_down();
        self.push(None, Event::Healed);
    }

    /// A client has a guard.
    pub(super) fn believes(&self, client: u8, op: Op, token: u64, held: Held) {
        let at = self.now();
        let mut state = self.state();
        state.push(at, Some(client), Event::Held { op, token });
        state.guards.insert(op, Belief { client, token, held });
        state.ask(at);
    }

    /// A client begins to let its guard go.
    pub(super) fn lets_go(&self, client: u8, op: Op) {
        let at = self.now();
        let mut state = self.state();
        state.guards.remove(&op);
        state.push(at, Some(client), Event::Releasing { op });
    }

    /// A client ends; it believes nothing any more.
    pub(super) fn crashed(&self, client: u8) {
        let at = self.now();
        let mut state = self.state();
        state.guards.retain(|_, belief| belief.client != client);
        state.push(at, Some(client), Event::Crashed);
    }

    /// The store stands by another grant than before, or by none; the one before ended for this cause.
    pub(super) fn granted(&self, cause: End, now: Option<(Op, u64)>) {
        let at = self.now();
        let mut state = self.state();
        if let Some((op, token)) = std::mem::replace(&mut state.granted, now) {
            state.push(at, None, Event::Ended { op, token, cause });
        }
        if let Some((op, token)) = now {
            state.push(at, None, Event::Granted { op, token });
        }
        state.ask(at);
    }

    /// A write reaches both resources.
    pub(super) fn write(&self, client: u8, op: Op, token: u64) {
        let at = self.now();
        let mut state = self.state();
        let late = token < state.written;
        state.written = state.written.max(token);
        state.push(at, Some(client), Event::Wrote { op, token, accepted: !late });
        state.push(at, Some(client), Event::WroteUnfenced { op, token, late });
    }

    /// What the run brought.
    pub(super) fn ran(&self) -> Ran {
        let state = self.state();
        Ran { struck: state.weather.struck().to_vec(), history: state.history.clone() }
    }
}

impl State {
    fn push(&mut self, at: Duration, client: Option<u8>, event: Event) {
        self.history.push(at.as_micros() as u64, client, event);
    }

    /// Asks every guard that the store does not stand by whether it still believes.
    fn ask(&mut self, at: Duration) {
        let granted = self.granted;
        let others =
            self.guards.iter().filter(|(op, belief)| granted.is_none_or(|granted| granted.0 != **op || granted.1 > belief.token));
        let believing = others.filter(|(_, belief)| belief.held.check().is_ok());
        let found: Vec<_> = believing.map(|(op, belief)| (*op, belief.client, belief.token)).collect();
        for (op, client, token) in found {
            self.push(at, Some(client), Event::StillBelieves { op, token });
        }
    }
}
