//! What goes wrong in a run, drawn from its seed: one lane strikes the servers, one the workers, their network
//! and their locks.
//!
//! Every kind strikes once before any strikes again. One server is struck, so that the others remain a majority, or all of them are.

mod servers;
mod workers;

use std::io;
use std::time::Duration;

use dlock_testkit::servers::StartError;

use super::Told;
use super::deck::Deck;
use super::store::Store;
use crate::history::{Event, Line};
use crate::plan::{self, Site, Slot};

pub(super) use servers::strike_servers;
pub(super) use workers::Misfortune;

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // each is what its name says
pub enum Kind {
    KillLeader,
    KillFollower,
    RestartLeader,
    RestartFollower,
    FreezeLeader,
    FreezeFollower,
    RestartAll,
    FreezeAll,
    EndSession,
    DeleteKey,
    DeleteWaiter,
    ReleaseByForce,
    Partition,
    SwallowRequests,
    SwallowReplies,
    HalfOpen,
    ResetConnections,
    Delay,
    Throttle,
    DropRequests,
    DropReplies,
    ResetRequests,
    Hang,
    Refuse,
    LateClaim,
    LateRelease,
    PauseWorker,
    KillWorker,
}

impl Kind {
    const OF_SERVERS: [Self; 8] = [
        Self::KillLeader,
        Self::KillFollower,
        Self::RestartLeader,
        Self::RestartFollower,
        Self::FreezeLeader,
        Self::FreezeFollower,
        Self::RestartAll,
        Self::FreezeAll,
    ];
    // A holder that stands still is the most telling fault of all: it comes twice as often.
    const OF_WORKERS: [Self; 17] = [
        Self::Partition,
        Self::SwallowRequests,
        Self::SwallowReplies,
        Self::HalfOpen,
        Self::ResetConnections,
        Self::Delay,
        Self::Throttle,
        Self::DropRequests,
        Self::DropReplies,
        Self::ResetRequests,
        Self::Hang,
        Self::Refuse,
        Self::LateClaim,
        Self::LateRelease,
        Self::PauseWorker,
        Self::PauseWorker,
        Self::KillWorker,
    ];

    /// All that strike at a store.
    pub fn all(store: Store) -> impl Iterator<Item = Self> {
        let mut all = [&Self::OF_SERVERS, store.acts(), &Self::OF_WORKERS].concat();
        all.dedup();
        all.into_iter()
    }

    /// Somebody does something to the lock itself.
    pub fn is_interference(self) -> bool {
        matches!(self, Self::EndSession | Self::DeleteKey | Self::DeleteWaiter | Self::ReleaseByForce)
    }
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// How.
    pub kind: Kind,
    /// From when, in microseconds of the run.
    pub from: u64,
    /// When it was surely over.
    pub until: u64,
    /// Which worker it concerned.
    pub client: Option<u8>,
    /// Which key it concerned.
    pub key: Option<String>,
}

impl Strike {
    /// It as lines of a history, in the words of a plan; `nth` in the run.
    pub fn told(&self, nth: u32) -> Vec<Told> {
        use plan::Fault as F;
        let millis = (self.until.saturating_sub(self.from) / 1_000).min(u64::from(u32::MAX)) as u32;
        let (site, fault) = match self.kind {
            Kind::KillLeader
            | Kind::KillFollower
            | Kind::RestartLeader
            | Kind::RestartFollower
            | Kind::FreezeLeader
            | Kind::FreezeFollower
            | Kind::RestartAll
            | Kind::FreezeAll => (Site::Renew, F::Outage(millis)),
            Kind::EndSession => (Site::Holding, F::EndSession),
            // The one who waits may be the holder by then.
            Kind::DeleteKey | Kind::DeleteWaiter => (Site::Holding, F::DeleteKey),
            Kind::ReleaseByForce => (Site::Holding, F::ReleaseByForce),
            Kind::Partition | Kind::SwallowRequests | Kind::SwallowReplies => (Site::Renew, F::Partition(millis)),
            Kind::HalfOpen | Kind::ResetConnections | Kind::DropRequests | Kind::ResetRequests => (Site::Renew, F::LoseRequest),
            Kind::DropReplies | Kind::Hang => (Site::Renew, F::LoseReply),
            Kind::Delay | Kind::Throttle => (Site::Renew, F::DelayRequest(millis)),
            Kind::Refuse => (Site::Renew, F::Refuse),
            Kind::LateClaim => (Site::Claim, F::DelayRequest(millis)),
            Kind::LateRelease => (Site::Release, F::DelayRequest(millis)),
            Kind::PauseWorker => (Site::Writing, F::Pause(millis)),
            Kind::KillWorker => (Site::Writing, F::Crash),
        };
        let slot = Slot { site, client: self.client.unwrap_or(u8::MAX), nth };
        let mut events = vec![Event::Struck { slot, fault }];
        if self.kind == Kind::PauseWorker {
            events.push(Event::Paused { until: self.until });
        }
        let line = |event| Told { key: self.key.clone(), line: Line { at: self.from, client: self.client, event } };
        events.into_iter().map(line).collect()
    }
}

/// How long a storm lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Until when anything strikes, in microseconds of the run.
    pub(super) until: u64,
    /// Until when those strike that have not yet: a fault that met nobody, or a slow machine, leaves some out.
    pub(super) latest: u64,
}

/// What strikes next in a lane.
struct Lane {
    kinds: Vec<Kind>,
    deck: Deck<Kind>,
    span: Span,
}

impl Lane {
    fn of(kinds: Vec<Kind>, span: Span) -> Self {
        Self { deck: Deck::of(kinds.clone()), kinds, span }
    }

    /// `None` once the storm is over.
    fn next(&mut self, now: u64, struck: &[Strike], draws: &mut fastrand::Rng) -> Option<Kind> {
        if now < self.span.until {
            return self.deck.deal(draws);
        }
        let missing = self.kinds.iter().filter(|kind| struck.iter().all(|strike| strike.kind != **kind));
        draws.choice(missing.filter(|_| now < self.span.latest).copied().collect::<Vec<_>>())
    }
}

/// Why a storm could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StormError {
    /// A server did not come up again.
    #[error("a server did not come up again")]
    Server(#[from] StartError),
    /// A process could not be handled.
    #[error("a process could not be started or signalled")]
    Process(#[from] io::Error),
    /// The cluster elected nobody.
    #[error("no leader within {0:?}")]
    NoLeader(Duration),
}

/// How long servers may take to elect a leader on a busy machine.
const ELECTION: Duration = Duration::from_secs(30);

/// Half of them are short.
fn measure(draws: &mut fastrand::Rng, longest: Duration) -> Duration {
    let longest = longest.as_millis() as u64;
    Duration::from_millis(if draws.bool() { draws.u64(30..longest / 8) } else { draws.u64(longest / 3..longest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_as_one_with_its_end() {
        let strike = Strike { kind: Kind::PauseWorker, from: 5_000, until: 9_000, client: Some(3), key: None };
        let events: Vec<Event> = strike.told(0).into_iter().map(|told| told.line.event).collect();
        assert!(matches!(events[0], Event::Struck { fault: plan::Fault::Pause(4), .. }));
        assert_eq!(events[1], Event::Paused { until: 9_000 });
    }

    #[test]
    fn a_storm_goes_on_until_everything_has_struck_but_not_for_ever() {
        let mut draws = fastrand::Rng::with_seed(1);
        let mut lane = Lane::of(vec![Kind::Delay, Kind::Hang], Span { until: 10, latest: 20 });
        let delay = Strike { kind: Kind::Delay, from: 0, until: 1, client: None, key: None };
        assert!(lane.next(9, &[], &mut draws).is_some());
        assert_eq!(lane.next(10, std::slice::from_ref(&delay), &mut draws), Some(Kind::Hang));
        assert_eq!(lane.next(20, std::slice::from_ref(&delay), &mut draws), None);
        assert_eq!(lane.next(10, &[delay.clone(), Strike { kind: Kind::Hang, ..delay }], &mut draws), None);
    }

    #[test]
    fn every_kind_is_in_one_lane() {
        for (store, kinds) in [(Store::Consul, 27), (Store::ConsulFair, 28), (Store::Etcd, 27)] {
            assert_eq!(Kind::all(store).count(), kinds);
            assert!(Kind::all(store).zip(Kind::all(store).skip(1)).all(|(one, next)| one < next));
        }
    }
}
