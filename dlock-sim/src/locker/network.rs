//! What lies between one client and the store: latency, and the faults of a plan.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Claim, ErrorKind};
use dlock_testkit::memory::{Call, Control, Homeward, Network, Outward, Route};
use tokio::time::Instant;

use super::world::{Called, State, World};
use crate::history::Event;
use crate::plan::{Config, Fault, Site, Slot};

/// The network of one client.
pub(super) struct Link {
    pub(super) client: u8,
    pub(super) world: Arc<World>,
    pub(super) control: Control,
}

/// What draws are for, so that no two of them are the same.
const OUT: u64 = 1;
const HOME: u64 = 2;
const HOW: u64 = 3;

impl Network for Link {
    fn leaves(&self, call: Call, claims: &[&Claim]) -> Route {
        let site = site(call);
        let mut state = self.world.state();
        for claim in claims {
            state.learn(claim);
        }
        let (slot, fault) = state.visit(site, self.client);
        let number = state.calls.len() as u32;
        state.calls.push(Called { slot, fault });
        state.note(Some(self.client), Event::Sent { call: number, slot });
        let now = Instant::now();
        match fault {
            Some(Fault::Partition(millis)) => {
                let until = state.cut.entry(self.client).or_insert(now);
                *until = (*until).max(now + ms(millis));
            }
            Some(Fault::Outage(millis)) => state.down = state.down.max(Some(now + ms(millis))),
            _ => {}
        }
        let request = outward(&self.world.config, &state, slot, fault, now);
        drop(state);
        if let Some(Fault::Outage(millis)) = fault {
            self.control.spare_sessions(ms(millis));
        }
        Route { number, request }
    }

    fn arrived(&self, number: u32) {
        let mut state = self.world.state();
        state.note(Some(self.client), Event::Applied { call: number });
        state.ask_beliefs();
    }

    fn replies(&self, number: u32) -> Homeward {
        let state = self.world.state();
        let Called { slot, fault } = state.calls[number as usize];
        homeward(&self.world.config, &state, slot, fault, Instant::now())
    }

    fn answered(&self, number: u32) {
        self.world.note(Some(self.client), Event::Answered { call: number });
    }
}

/// How one of several ends that a lost message can have is chosen.
fn how(config: &Config, slot: Slot, of: u64) -> u64 {
    config.draw(&[HOW, slot.site as u64, slot.client.into(), slot.nth.into()]) % of
}

fn latency(config: &Config, way: u64, slot: Slot) -> Duration {
    config.latency(&[way, slot.site as u64, slot.client.into(), slot.nth.into()])
}

fn outward(config: &Config, state: &State, slot: Slot, fault: Option<Fault>, now: Instant) -> Outward {
    let latency = latency(config, OUT, slot);
    if let Some(until) = state.cut.get(&slot.client).filter(|until| now < **until) {
        return match how(config, slot, 3) {
            0 => Outward::Never,
            1 => Outward::Refused(latency, ErrorKind::Ambiguous),
            // Sent again by the transport once the way is free.
            _ => Outward::After(*until - now + latency),
        };
    }
    if state.down.is_some_and(|until| now < until) {
        return match how(config, slot, 3) {
            0 => Outward::Never,
            1 => Outward::Refused(latency, ErrorKind::Transient),
            _ => Outward::Refused(latency, ErrorKind::Ambiguous),
        };
    }
    match fault {
        Some(Fault::LoseRequest) if how(config, slot, 2) == 0 => Outward::Never,
        Some(Fault::LoseRequest) => Outward::Refused(latency, ErrorKind::Ambiguous),
        Some(Fault::DelayRequest(millis)) => Outward::After(latency + ms(millis)),
        Some(Fault::Repeat(millis)) => Outward::Twice(latency, ms(millis)),
        Some(Fault::Refuse) => {
            let kind = match how(config, slot, 4) {
                0 => ErrorKind::Denied,
                1 => ErrorKind::Overloaded,
                _ => ErrorKind::Transient,
            };
            Outward::Refused(latency, kind)
        }
        _ => Outward::After(latency),
    }
}

fn homeward(config: &Config, state: &State, slot: Slot, fault: Option<Fault>, now: Instant) -> Homeward {
    let latency = latency(config, HOME, slot);
    let cut = state.cut.get(&slot.client).copied();
    if let Some(until) = cut.max(state.down).filter(|until| now < *until) {
        return match how(config, slot, 3) {
            0 => Homeward::Never,
            1 => Homeward::Broken(latency),
            _ => Homeward::After(until - now + latency),
        };
    }
    match fault {
        Some(Fault::LoseReply) if how(config, slot, 2) == 0 => Homeward::Never,
        Some(Fault::LoseReply) => Homeward::Broken(latency),
        Some(Fault::DelayReply(millis)) => Homeward::After(latency + ms(millis)),
        _ => Homeward::After(latency),
    }
}

pub(super) fn ms(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

fn site(call: Call) -> Site {
    match call {
        Call::Open => Site::Open,
        Call::Renew => Site::Renew,
        Call::Audit => Site::Audit,
        Call::Close => Site::Close,
        Call::Claim => Site::Claim,
        Call::Wait => Site::Wait,
        Call::Confirm => Site::Confirm,
        Call::Release => Site::Release,
        Call::Disturbed => Site::Disturbed,
        Call::Inspect | Call::Amend | Call::List | Call::Changed | Call::Evict | Call::Probe => {
            unreachable!("calls for people and tools are none of a locker's")
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("client", &self.client).finish_non_exhaustive()
    }
}
