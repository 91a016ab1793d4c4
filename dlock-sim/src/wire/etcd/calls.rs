//! How the members answer calls, and what goes wrong with them: each is addressed by its site, its client and its number there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prost::Message;
use tokio::time::{sleep, sleep_until};

use super::api::{Asked, Watching};
use super::cluster::{Cluster, Silence};
use super::message::{WatchRequest, WatchResponse};
use super::network::{Link, Network, Passage};
use super::rpc::{Call, Handler, Replies, Requests};
use super::sites::{of_watch, site};
use super::store::Status;
use crate::history::Event;
use crate::plan::{Fault, Site, Slot};
use crate::wire::scene::Scene;

/// The members at their end of one connection.
#[derive(Clone)]
pub(super) struct Members {
    pub(super) scene: Arc<Scene>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) network: Arc<Network>,
    pub(super) link: Arc<Link>,
}

/// One request on its way.
#[derive(Clone, Copy, Debug)]
struct Trip {
    slot: Slot,
    call: u32,
    fault: Option<Fault>,
    /// For choices that are no faults.
    bits: u64,
}

/// What becomes of a call.
enum Fate {
    Answered(Result<Vec<u8>, Status>),
    /// Nobody ever says anything.
    Silence,
    /// Its connection breaks.
    Broken,
}

#[async_trait]
impl Handler for Members {
    async fn answer(self: Arc<Self>, call: Call) {
        let Call { method, mut requests, mut replies } = call;
        if method == "/etcdserverpb.Watch/Watch" {
            return self.watch(requests, replies).await;
        }
        let streams = method == "/etcdserverpb.Lease/LeaseKeepAlive";
        while let Some(message) = requests.next().await {
            let asked = match Asked::read(&method, &message) {
                Ok(asked) => asked,
                Err(refusal) => return replies.refuse(&refusal),
            };
            let trip = self.depart(site(&asked, self.cluster.holds(self.link.client)));
            match self.travel(&trip, &asked).await {
                Fate::Answered(Ok(answer)) => {
                    replies.send(&answer);
                    if !streams {
                        replies.finish();
                    }
                    self.answered(&trip, &mut replies);
                }
                Fate::Answered(Err(refusal)) => {
                    replies.refuse(&refusal);
                    return self.answered(&trip, &mut replies);
                }
                Fate::Silence => return replies.given_up().await,
                Fate::Broken => return self.link.cut(),
            }
            if !streams {
                return;
            }
        }
        if streams {
            replies.finish();
        }
    }
}

fn millis(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

impl Members {
    /// A call has left its client.
    fn depart(&self, site: Site) -> Trip {
        let client = self.link.client;
        let (slot, fault) = self.scene.visit(site, client);
        let bits = self.scene.config.draw(&[1, slot.site as u64, client.into(), slot.nth.into()]);
        let call = self.scene.sent(slot);
        match fault {
            Some(Fault::Partition(so_long)) => self.network.part(client, millis(so_long), bits & 1 == 0),
            Some(Fault::Outage(so_long)) => {
                let kind = Silence::drawn(bits);
                self.cluster.fall_silent(millis(so_long), kind);
                if kind == Silence::Down {
                    self.network.cut_all();
                }
            }
            _ => {}
        }
        Trip { slot, call, fault, bits }
    }

    fn latency(&self, trip: &Trip, way: u64) -> Duration {
        let Slot { site, client, nth } = trip.slot;
        self.scene.config.latency(&[2, way, site as u64, client.into(), nth.into()])
    }

    /// The way to the members and back, and what is applied in between, whether or not the client still waits.
    async fn travel(&self, trip: &Trip, asked: &Asked) -> Fate {
        let Some(lost) = self.arrive(trip).await else { return Fate::Silence };
        if lost {
            return lost_somehow(trip);
        }
        if trip.fault == Some(Fault::Refuse) {
            return self.refuse(trip, asked).await;
        }
        let answer = match self.serve(trip, asked).await {
            Fate::Answered(answer) => answer,
            fate => return fate,
        };
        let answer = match trip.fault {
            // As a proxy does that hears nothing of its first request, and asks again.
            Some(Fault::Repeat(so_long)) => {
                sleep(millis(so_long)).await;
                match self.serve(trip, asked).await {
                    Fate::Answered(answer) => answer,
                    fate => return fate,
                }
            }
            Some(Fault::DelayReply(so_long)) => {
                sleep(millis(so_long)).await;
                answer
            }
            _ => answer,
        };
        sleep(self.latency(trip, 1)).await;
        if trip.fault == Some(Fault::LoseReply) { lost_somehow(trip) } else { Fate::Answered(answer) }
    }

    /// The way there; whether the request was lost on it, `None` where that is for ever and unheard.
    async fn arrive(&self, trip: &Trip) -> Option<bool> {
        sleep(self.latency(trip, 0)).await;
        if let Some(Fault::DelayRequest(so_long)) = trip.fault {
            sleep(millis(so_long)).await;
        }
        if trip.fault == Some(Fault::LoseRequest) {
            return Some(true);
        }
        self.link.passes().await.then_some(false)
    }

    /// The members take a request up and answer it, if they can.
    async fn serve(&self, trip: &Trip, asked: &Asked) -> Fate {
        while let Some(outage) = self.cluster.outage() {
            match outage.kind {
                Silence::Down => return Fate::Broken,
                Silence::Stopped => self.until(outage.until).await,
                // What was proposed when the leader went may still be agreed on by the next.
                Silence::Leaderless if trip.bits.is_multiple_of(5) => {
                    self.until(outage.until).await;
                    _ = self.apply(trip, asked);
                    return Fate::Answered(Err(Status::TIMED_OUT));
                }
                Silence::Leaderless => return Fate::Answered(Err(Status::NO_LEADER)),
            }
        }
        Fate::Answered(self.apply(trip, asked))
    }

    fn apply(&self, trip: &Trip, asked: &Asked) -> Result<Vec<u8>, Status> {
        let answer = self.cluster.apply(trip.slot.client, asked);
        self.scene.push(None, Event::Applied { call: trip.call });
        answer
    }

    /// Waits until then, or until the outage is over before.
    async fn until(&self, until: Duration) {
        let changed = self.cluster.changed().notified();
        tokio::select! {
            biased;
            () = changed => {}
            () = sleep_until(self.scene.instant(until)) => {}
        }
    }

    /// The members answer that they cannot; whether they did all the same, the client cannot know from some of these.
    async fn refuse(&self, trip: &Trip, asked: &Asked) -> Fate {
        let refusal = match trip.bits % 8 {
            0 => Status::TOO_MANY,
            1 => Status::LEADER_CHANGED,
            2 => Status::TIMED_OUT,
            3 => Status::STOPPED,
            4 => {
                _ = self.serve(trip, asked).await;
                Status::TIMED_OUT
            }
            5 => {
                _ = self.serve(trip, asked).await;
                Status::LEADER_CHANGED
            }
            _ => Status::NO_LEADER,
        };
        sleep(self.latency(trip, 1)).await;
        Fate::Answered(Err(refusal))
    }

    /// The answer was sent: the client has it if it still waits for it, and something passes.
    fn answered(&self, trip: &Trip, replies: &mut Replies) {
        if self.link.passage() == Passage::Free && !replies.is_given_up() {
            self.scene.push(Some(trip.slot.client), Event::Answered { call: trip.call });
        }
    }

    async fn watch(&self, mut requests: Requests, mut replies: Replies) {
        let Some(first) = requests.next().await else { return };
        let Ok(WatchRequest { request: Some(first) }) = WatchRequest::decode(first) else {
            return replies.refuse(&Status::MALFORMED);
        };
        let super::message::Watch::Create(first) = first else { return replies.finish() };
        let client = self.link.client;
        let trip = self.depart(of_watch(&first.key, |lease| self.cluster.is_of(lease, client)));
        match self.arrive(&trip).await {
            Some(false) => {}
            Some(true) if broken(&trip) => return self.link.cut(),
            _ => return replies.given_up().await,
        }
        let mut watching = Watching::default();
        let mut batch = self.cluster.read(|store| watching.create(store, first));
        self.scene.push(None, Event::Applied { call: trip.call });
        let (outages, mut told) = (self.cluster.outages(), false);
        loop {
            let changed = self.cluster.changed().notified();
            tokio::pin!(changed);
            // Registered before the store is looked at, so that no change falls in between.
            changed.as_mut().enable();
            match self.cluster.outage() {
                Some(outage) if outage.kind == Silence::Stopped => {
                    self.until(outage.until).await;
                    continue;
                }
                Some(outage) if outage.kind == Silence::Leaderless => return replies.refuse(&Status::NO_LEADER),
                Some(_) => return self.link.cut(),
                // Whoever comes up again knows of no watch.
                None if self.cluster.outages() != outages && self.link.passage() == Passage::Cut => return,
                None => {}
            }
            batch.extend(self.cluster.read(|store| watching.news(store)));
            if !batch.is_empty() {
                match self.tell(&trip, &mut batch, &mut replies, told).await {
                    Told::On => told = true,
                    Told::Over => return,
                    Told::Silence => return replies.given_up().await,
                }
                continue;
            }
            tokio::select! {
                biased;
                () = replies.given_up() => return,
                request = requests.next() => match request.map(WatchRequest::decode) {
                    Some(Ok(WatchRequest { request: Some(super::message::Watch::Create(asked)) })) => {
                        batch.extend(self.cluster.read(|store| watching.create(store, asked)));
                    }
                    Some(Ok(WatchRequest { request: Some(super::message::Watch::Cancel(asked)) })) => {
                        batch.push(self.cluster.read(|store| watching.cancel(store, asked.watch_id, "")));
                    }
                    Some(_) => return replies.refuse(&Status::MALFORMED),
                    None => return replies.finish(),
                },
                () = changed => {}
            }
        }
    }

    /// Tells what happened to the watches of a stream; what strikes does so on the first occasion.
    async fn tell(&self, trip: &Trip, batch: &mut Vec<WatchResponse>, replies: &mut Replies, told: bool) -> Told {
        sleep(self.latency(trip, 1)).await;
        let strikes = if told { None } else { trip.fault };
        match strikes {
            Some(Fault::LoseReply) if broken(trip) => {
                self.link.cut();
                return Told::Over;
            }
            Some(Fault::LoseReply) => return Told::Silence,
            Some(Fault::DelayReply(so_long)) => sleep(millis(so_long)).await,
            Some(Fault::Refuse) if trip.bits & 2 == 0 => {
                replies.refuse(if trip.bits & 4 == 0 { &Status::NO_LEADER } else { &Status::STOPPED });
                return Told::Over;
            }
            // A watch is made and ended again, for a reason that is none of its own.
            Some(Fault::Refuse) => {
                let first = batch.first().map_or(0, |answer| answer.watch_id);
                let canceled = WatchResponse { watch_id: first, canceled: true, ..WatchResponse::default() };
                batch.push(WatchResponse { cancel_reason: Status::NO_LEADER.message.to_owned(), ..canceled });
            }
            _ => {}
        }
        let happened = batch.iter().any(|answer| !answer.events.is_empty());
        for answer in batch.drain(..) {
            replies.send(&answer.encode_to_vec());
        }
        if happened {
            self.answered(trip, replies);
        }
        Told::On
    }
}

/// Whether there is more to tell.
enum Told {
    On,
    Over,
    Silence,
}

/// Whether something lost on the way breaks the connection too. On which of the two ways it was lost, the client cannot tell.
fn broken(trip: &Trip) -> bool {
    trip.bits & 1 == 0
}

fn lost_somehow(trip: &Trip) -> Fate {
    if broken(trip) { Fate::Broken } else { Fate::Silence }
}
