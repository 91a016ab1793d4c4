//! What goes wrong in a run, drawn from its seed: one lane strikes the servers, one the workers, their network and their locks.
//!
//! Every kind strikes once before any strikes again. One server at a time is struck, so that the others remain a majority.

use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use dlock_testkit::proxy::{Direction, Fault, FaultProxy, Matching};
use dlock_testkit::servers::{ConsulCluster, StartError};

use super::deck::Deck;
use super::fleet::Fleet;
use super::operator::{Done, Operator};
use super::{Clock, Told};
use crate::history::{Event, Line};
use crate::plan::{self, Site, Slot, hash};

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
    EndSession,
    DeleteKey,
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
    const OF_SERVERS: [Self; 6] = [
        Self::KillLeader,
        Self::KillFollower,
        Self::RestartLeader,
        Self::RestartFollower,
        Self::FreezeLeader,
        Self::FreezeFollower,
    ];
    // A holder that stands still is the most telling fault of all: it comes twice as often.
    const OF_WORKERS: [Self; 20] = [
        Self::EndSession,
        Self::DeleteKey,
        Self::ReleaseByForce,
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

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let mut all: Vec<_> = Self::OF_SERVERS.into_iter().chain(Self::OF_WORKERS).collect();
        all.dedup();
        all.into_iter()
    }

    fn is_of_leader(self) -> bool {
        matches!(self, Self::KillLeader | Self::RestartLeader | Self::FreezeLeader)
    }

    /// Somebody does something to the lock itself.
    pub fn is_interference(self) -> bool {
        matches!(self, Self::EndSession | Self::DeleteKey | Self::ReleaseByForce)
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
            | Kind::FreezeFollower => (Site::Renew, F::Outage(millis)),
            Kind::EndSession => (Site::Holding, F::EndSession),
            Kind::DeleteKey => (Site::Holding, F::DeleteKey),
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

/// Strikes servers until the time has come; all of them are up again then.
pub async fn strike_servers(
    cluster: &mut ConsulCluster,
    clock: Clock,
    ttl: Duration,
    seed: u64,
    until: u64,
) -> Result<Vec<Strike>, StormError> {
    let mut draws = fastrand::Rng::with_seed(hash(&[seed, 1]));
    let mut deck = Deck::of(&Kind::OF_SERVERS);
    let mut strikes = Vec::new();
    while clock.now() < until
        && let Some(kind) = deck.deal(&mut draws)
    {
        // A cluster without a leader does nothing: most of the time there is one.
        tokio::time::sleep(Duration::from_millis(draws.u64(2_000..4_000))).await;
        let leader = leader(cluster).await?;
        let others = cluster.agents().len() - 1;
        let server = if kind.is_of_leader() { leader } else { (leader + 1 + draws.usize(..others)) % (others + 1) };
        let agent = &mut cluster.agents()[server];
        let from = clock.now();
        match kind {
            Kind::KillLeader | Kind::KillFollower => {
                agent.kill()?;
                tokio::time::sleep(Duration::from_millis(draws.u64(300..4_000))).await;
                agent.restart().await?;
            }
            Kind::RestartLeader | Kind::RestartFollower => agent.restart().await?,
            _ => {
                agent.pause()?;
                tokio::time::sleep(measure(&mut draws, ttl * 3)).await;
                agent.resume()?;
            }
        }
        strikes.push(Strike { kind, from, until: clock.now(), client: None, key: None });
    }
    leader(cluster).await?;
    Ok(strikes)
}

async fn leader(cluster: &ConsulCluster) -> Result<usize, StormError> {
    let elected = async {
        loop {
            if let Some(leader) = cluster.leader().await {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(ELECTION, elected).await.map_err(|_| StormError::NoLeader(ELECTION))
}

/// Half of them are short.
fn measure(draws: &mut fastrand::Rng, longest: Duration) -> Duration {
    let longest = longest.as_millis() as u64;
    Duration::from_millis(if draws.bool() { draws.u64(30..longest / 8) } else { draws.u64(longest / 3..longest) })
}

/// Strikes workers, their network and their locks.
#[derive(Debug)]
pub struct Misfortune<'a> {
    /// Whom.
    pub fleet: &'a mut Fleet,
    /// Who does it where it takes somebody.
    pub operator: &'a Operator,
    /// Under which name all keys stand.
    pub prefix: &'a str,
    /// What the time is told by.
    pub clock: Clock,
    /// Of the workers' sessions.
    pub ttl: Duration,
}

impl Misfortune<'_> {
    /// Strikes until the time has come; everybody is well again then.
    pub async fn strike(mut self, seed: u64, until: u64) -> Result<Vec<Strike>, StormError> {
        let mut draws = fastrand::Rng::with_seed(hash(&[seed, 2]));
        let mut deck = Deck::of(&Kind::OF_WORKERS);
        let mut strikes = Vec::new();
        while self.clock.now() < until
            && let Some(kind) = deck.deal(&mut draws)
        {
            tokio::time::sleep(Duration::from_millis(draws.u64(50..500))).await;
            let place = self.victim(&mut draws).await;
            let strike = match kind {
                Kind::EndSession | Kind::DeleteKey | Kind::ReleaseByForce => self.interfere(kind, &mut draws).await,
                Kind::PauseWorker | Kind::KillWorker => Some(self.fell(kind, place, &mut draws).await?),
                _ => Some(self.spoil(kind, place, &mut draws).await),
            };
            strikes.extend(strike);
            for place in self.fleet.places() {
                // A long run must not remember every request.
                place.proxy.reset();
            }
        }
        Ok(strikes)
    }

    /// Anybody, and every other time somebody who holds a lock.
    async fn victim(&self, draws: &mut fastrand::Rng) -> usize {
        let places = self.fleet.places();
        let anybody = draws.usize(..places.len());
        if draws.bool() {
            return anybody;
        }
        let (Ok(sessions), Ok(held)) = tokio::join!(self.operator.sessions(), self.operator.held(self.prefix)) else {
            return anybody;
        };
        let holder = draws.choice(held).and_then(|held| sessions.iter().find(|session| session.holds(&held))?.client());
        places.iter().position(|place| Some(place.client) == holder).unwrap_or(anybody)
    }

    /// `None` when there was nothing to interfere with, or nobody to ask.
    async fn interfere(&self, kind: Kind, draws: &mut fastrand::Rng) -> Option<Strike> {
        let (client, key, from, done);
        if kind == Kind::EndSession {
            let session = draws.choice(self.operator.sessions().await.ok()?)?;
            (client, key, from) = (session.client(), None, self.clock.now());
            done = self.operator.end(&session).await;
        } else {
            let held = draws.choice(self.operator.held(self.prefix).await.ok()?)?;
            (client, key, from) = (None, Some(held.key.clone()), self.clock.now());
            done = if kind == Kind::DeleteKey { self.operator.delete(&held.key).await } else { self.operator.release(&held).await };
        }
        // What nobody answered may still be done by a server that is frozen now, once it goes on.
        let later = if done == Done::Surely { Duration::ZERO } else { ELECTION };
        let until = self.clock.now() + later.as_micros() as u64;
        Some(Strike { kind, from, until, client, key })
    }

    async fn fell(&mut self, kind: Kind, place: usize, draws: &mut fastrand::Rng) -> Result<Strike, StormError> {
        let (client, from) = (self.fleet.places()[place].client, self.clock.now());
        if kind == Kind::KillWorker && self.fleet.can_hire() {
            self.fleet.kill(place)?;
            tokio::time::sleep(Duration::from_millis(draws.u64(..1_500))).await;
            self.fleet.replace(place)?;
            return Ok(Strike { kind, from, until: self.clock.now(), client: Some(client), key: None });
        }
        self.fleet.pause(place)?;
        tokio::time::sleep(measure(draws, self.ttl * 4)).await;
        self.fleet.resume(place)?;
        Ok(Strike { kind: Kind::PauseWorker, from, until: self.clock.now(), client: Some(client), key: None })
    }

    async fn spoil(&self, kind: Kind, place: usize, draws: &mut fastrand::Rng) -> Strike {
        let place = &self.fleet.places()[place];
        let (proxy, from) = (&place.proxy, self.clock.now());
        let lasting = measure(draws, self.ttl * 2);
        match kind {
            Kind::Partition => proxy.swallow(true),
            Kind::SwallowRequests => proxy.black_hole(Direction::Requests, true),
            Kind::SwallowReplies => proxy.black_hole(Direction::Replies, true),
            Kind::HalfOpen => proxy.half_open(),
            Kind::ResetConnections => proxy.reset_connections(),
            Kind::Delay => proxy.all(Matching::any(), Fault::Delay(Duration::from_millis(draws.u64(20..600)))),
            Kind::Throttle => proxy.throttle(NonZeroU32::new(draws.u32(500..8_000))),
            Kind::DropRequests => proxy.all(Matching::any(), Fault::DropRequest),
            Kind::DropReplies => proxy.all(Matching::any(), Fault::DropResponse),
            Kind::ResetRequests => proxy.all(Matching::any(), Fault::Reset),
            Kind::Hang => proxy.all(Matching::any(), Fault::Hang),
            Kind::Refuse => proxy.all(Matching::any(), Fault::Answer(500, "No cluster leader".to_owned())),
            Kind::LateClaim => self.belate(proxy, place.server, "\"lock\"", lasting).await,
            Kind::LateRelease => self.belate(proxy, place.server, "\"unlock\"", lasting).await,
            other => unreachable!("{other:?} is nothing that a network does"),
        }
        if !matches!(kind, Kind::HalfOpen | Kind::ResetConnections | Kind::LateClaim | Kind::LateRelease) {
            tokio::time::sleep(lasting).await;
        }
        proxy.clear();
        proxy.swallow(false);
        proxy.throttle(None);
        Strike { kind, from, until: self.clock.now(), client: Some(place.client), key: None }
    }

    /// Keeps a transaction on its way for so long, and lets it arrive twice then.
    async fn belate(&self, proxy: &FaultProxy, server: std::net::SocketAddr, body: &str, lasting: Duration) {
        let held = proxy.hold_next(Matching::any().path("/v1/txn").body(body));
        let arrives = async {
            held.sent().await;
            tokio::time::sleep(lasting).await;
            for _ in 0..2 {
                // Whatever the server says of it, nobody hears it.
                _ = held.deliver(server).await;
            }
        };
        // The worker may have nothing to send just now, and the server may be frozen.
        _ = tokio::time::timeout(lasting + self.ttl, arrives).await;
    }
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
    fn every_kind_is_in_one_lane() {
        assert_eq!(Kind::all().count(), 25);
        assert!(Kind::all().zip(Kind::all().skip(1)).all(|(one, next)| one < next));
    }
}
