//! The lane of the workers, their network and their locks.

use std::num::NonZeroU32;
use std::time::Duration;

use dlock_testkit::proxy::{Direction, Fault, FaultProxy, Matching};

use super::{ELECTION, Kind, Lane, Span, StormError, Strike, measure};
use crate::live::Clock;
use crate::live::fleet::{Fleet, Way};
use crate::live::store::{Done, Operator, Store};
use crate::plan::hash;

/// Strikes workers, their network and their locks.
pub(in crate::live) struct Misfortune<'a> {
    /// Where they contend.
    pub(in crate::live) store: Store,
    /// Whom.
    pub(in crate::live) fleet: &'a mut Fleet,
    /// Who does it where it takes somebody.
    pub(in crate::live) operator: &'a dyn Operator,
    /// The keys that are held for long.
    pub(in crate::live) slow: &'a [String],
    /// What the time is told by.
    pub(in crate::live) clock: Clock,
    /// Of the workers' sessions.
    pub(in crate::live) ttl: Duration,
}

/// How long somebody who may do something to a lock looks for one.
const ZEAL: Duration = Duration::from_secs(4);

impl Misfortune<'_> {
    /// Strikes until the time has come; everybody is well again then.
    pub(in crate::live) async fn strike(mut self, seed: u64, span: Span) -> Result<Vec<Strike>, StormError> {
        let mut draws = fastrand::Rng::with_seed(hash(&[seed, 2]));
        let mut lane = Lane::of([self.store.acts(), &Kind::OF_WORKERS].concat(), span);
        let mut strikes = Vec::new();
        while let Some(kind) = lane.next(self.clock.now(), &strikes, &mut draws) {
            tokio::time::sleep(Duration::from_millis(draws.u64(50..500))).await;
            let place = self.victim(&mut draws).await;
            let strike = match kind {
                Kind::PauseWorker | Kind::KillWorker => Some(self.fell(kind, place, &mut draws).await?),
                act if act.is_interference() => self.interfere(act, &mut draws).await,
                _ => Some(self.spoil(kind, place, &mut draws).await),
            };
            strikes.extend(strike);
            // A long run must not remember every request.
            self.fleet.places().iter().flat_map(|place| &place.ways).for_each(|way| way.proxy.reset());
        }
        Ok(strikes)
    }

    /// Anybody, and two times in three somebody who holds a slow lock: a brisk one would be given back before anything strikes.
    async fn victim(&self, draws: &mut fastrand::Rng) -> usize {
        let places = self.fleet.places();
        let anybody = draws.usize(..places.len());
        if draws.u8(..3) == 0 {
            return anybody;
        }
        let Ok(mut held) = self.operator.targets(Kind::DeleteKey).await else { return anybody };
        held.retain(|held| held.key.as_ref().is_some_and(|key| self.slow.contains(key)));
        let holder = draws.choice(held).and_then(|held| held.client);
        places.iter().position(|place| Some(place.client) == holder).unwrap_or(anybody)
    }

    /// `None` when there was nothing to interfere with, or nobody to ask.
    async fn interfere(&self, act: Kind, draws: &mut fastrand::Rng) -> Option<Strike> {
        let looks = tokio::time::Instant::now() + ZEAL;
        while tokio::time::Instant::now() < looks {
            let targets = self.operator.targets(act).await.unwrap_or_default();
            let from = self.clock.now();
            if let Some(target) = draws.choice(&targets) {
                // What nobody answered may still be done by a server that is frozen now, once it goes on.
                let later = match self.operator.act(act, target).await {
                    Done::Missed => continue,
                    Done::Surely => Duration::ZERO,
                    Done::Perhaps => ELECTION,
                };
                let until = self.clock.now() + later.as_micros() as u64;
                let (client, key) = if act == Kind::EndSession { (target.client, None) } else { (None, target.key.clone()) };
                return Some(Strike { kind: act, from, until, client, key });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
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
        tokio::time::sleep(measure(draws, self.ttl * 2 + Duration::from_secs(4))).await;
        self.fleet.resume(place)?;
        Ok(Strike { kind: Kind::PauseWorker, from, until: self.clock.now(), client: Some(client), key: None })
    }

    /// Either all ways of a worker, or the one that it takes just now.
    async fn spoil(&self, kind: Kind, place: usize, draws: &mut fastrand::Rng) -> Strike {
        let (place, access) = (&self.fleet.places()[place], self.fleet.access());
        let (taken, from) = (place.taken(), self.clock.now());
        let lasting = measure(draws, self.ttl + Duration::from_secs(2));
        let ways: Vec<&FaultProxy> =
            if draws.bool() { place.ways.iter().map(|way| &way.proxy).collect() } else { vec![&taken.proxy] };
        let all = |fault: Fault| ways.iter().for_each(|proxy| proxy.all(Matching::any(), fault.clone()));
        match kind {
            Kind::Partition => ways.iter().for_each(|proxy| proxy.swallow(true)),
            Kind::SwallowRequests => ways.iter().for_each(|proxy| proxy.black_hole(Direction::Requests, true)),
            Kind::SwallowReplies => ways.iter().for_each(|proxy| proxy.black_hole(Direction::Replies, true)),
            Kind::HalfOpen => ways.iter().for_each(|proxy| proxy.half_open()),
            Kind::ResetConnections => ways.iter().for_each(|proxy| proxy.reset_connections()),
            Kind::Delay => all(Fault::Delay(Duration::from_millis(draws.u64(20..600)))),
            Kind::Throttle => {
                let bytes_per_second = NonZeroU32::new(draws.u32(500..8_000));
                for proxy in &ways {
                    proxy.throttle(bytes_per_second);
                }
            }
            Kind::DropRequests => all(Fault::DropRequest),
            Kind::DropReplies => all(Fault::DropResponse),
            Kind::ResetRequests => all(Fault::Reset),
            Kind::Hang => all(Fault::Hang),
            Kind::Refuse => all(access.refusal.clone()),
            Kind::LateClaim => self.belate(taken, access.claim.clone(), lasting).await,
            Kind::LateRelease => self.belate(taken, access.release.clone(), lasting).await,
            other => unreachable!("{other:?} is nothing that a network does"),
        }
        if !matches!(kind, Kind::HalfOpen | Kind::ResetConnections | Kind::LateClaim | Kind::LateRelease) {
            tokio::time::sleep(lasting).await;
        }
        for Way { proxy, .. } in &place.ways {
            proxy.clear();
            proxy.swallow(false);
            proxy.throttle(None);
        }
        Strike { kind, from, until: self.clock.now(), client: Some(place.client), key: None }
    }

    /// Keeps a request on its way for so long, and lets it arrive twice then.
    async fn belate(&self, Way { proxy, server }: &Way, request: Matching, lasting: Duration) {
        let held = proxy.hold_next(request);
        let arrives = async {
            held.sent().await;
            tokio::time::sleep(lasting).await;
            for _ in 0..2 {
                // Whatever the server says of it, nobody hears it.
                _ = held.deliver(*server).await;
            }
        };
        // The worker may have nothing to send just now, and the server may be frozen.
        _ = tokio::time::timeout(lasting + self.ttl, arrives).await;
    }
}
