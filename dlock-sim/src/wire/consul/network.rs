//! The way between the clients and the servers, and what goes wrong on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Answer, Lane, Method, Request, Transport, TransportError, TransportErrorKind};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, sleep_until};

use super::cluster::{Arrived, Cluster, Heard};
use super::sites::{asks_for_ticket, site};
use crate::history::Event;
use crate::plan::{Fault, Slot};
use crate::wire::scene::{FOR_EVER, Scene};

/// Every client's way to the servers.
#[derive(Debug)]
pub(super) struct Network {
    scene: Arc<Scene>,
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    /// Told when a client goes on.
    thawed: Notify,
    /// Whether clients stand in line. A ticket that was given back is made anew by a copy of its request: nobody promises anything against a
    /// transport that repeats what it has answered, so that there it repeats before it answers.
    fair: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Until when nothing passes between a client and the servers.
    partitions: BTreeMap<u8, Duration>,
    /// Until when a client makes no step.
    frozen: BTreeMap<u8, Duration>,
    /// The requests about sessions that will never be answered, on the connection of those that ask for no fresh one.
    hung: BTreeMap<u8, Vec<Reply>>,
}

/// Where an answer is awaited; while it is kept unused, there is silence.
type Reply = oneshot::Sender<Heard>;

/// One request on its way.
#[derive(Debug)]
struct Trip {
    arrived: Arrived,
    slot: Slot,
    fault: Option<Fault>,
    departed: Duration,
    /// It goes out on a connection on which nothing passes any more.
    hangs: bool,
}

/// A client's end of the network.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) network: Arc<Network>,
    pub(super) client: u8,
}

/// What is waited for a connection.
const CONNECTING: Duration = Duration::from_secs(1);

#[async_trait]
impl Transport for Line {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        let (network, client) = (&self.network, self.client);
        network.thaw(client).await;
        let (limit, opens) = (request.limit, request.target.ends_with("/session/create"));
        let trip = network.depart(client, request);
        let call = trip.arrived.call;
        let (reply, heard) = oneshot::channel();
        // Ends by itself; a request goes on whether or not its sender still waits.
        tokio::spawn(Arc::clone(network).travel(trip, reply));
        let answer = async {
            match heard.await {
                Ok(heard) => heard,
                // Nothing will ever come.
                Err(_) => std::future::pending().await,
            }
        };
        let heard = tokio::select! {
            biased;
            heard = answer => heard,
            () = sleep(limit) => Err(TransportErrorKind::TimedOut),
        };
        network.thaw(client).await;
        if let Ok(answer) = &heard {
            network.scene.push(Some(client), Event::Answered { call });
            if opens {
                network.cluster.is_known(answer);
            }
        }
        heard.map_err(|kind| TransportError::new(kind, "simulated"))
    }
}

impl Network {
    pub(super) fn new(scene: Arc<Scene>, cluster: Arc<Cluster>, fair: bool) -> Arc<Self> {
        Arc::new(Self { scene, cluster, state: Mutex::default(), thawed: Notify::new(), fair })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a client makes no step.
    pub(super) async fn thaw(&self, client: u8) {
        loop {
            let thawed = self.thawed.notified();
            let until = self.state().frozen.get(&client).copied().unwrap_or_default();
            if until <= self.scene.now() {
                return;
            }
            tokio::select! {
                biased;
                () = thawed => {}
                () = sleep_until(self.scene.instant(until)) => {}
            }
        }
    }

    /// A client makes no step for so long.
    pub(super) fn freeze(&self, client: u8, so_long: Duration) {
        let until = self.scene.now() + so_long;
        self.state().frozen.insert(client, until);
        self.scene.push(Some(client), Event::Paused { until: until.as_micros() as u64 });
    }

    /// A client makes no step any more, ever.
    pub(super) fn crash(&self, client: u8) {
        self.state().frozen.insert(client, FOR_EVER);
        self.scene.crashed(client);
    }

    /// Everything passes again.
    pub(super) fn heal(&self) {
        self.state().partitions.clear();
        self.cluster.heal();
    }

    fn depart(&self, client: u8, request: Request) -> Trip {
        let now = self.scene.now();
        let (slot, fault) = self.scene.visit(site(&request, self.cluster.holds(client)), client);
        let millis = |millis: u32| Duration::from_millis(millis.into());
        let mut state = self.state();
        match fault {
            Some(Fault::Partition(so_long)) => {
                let until = state.partitions.entry(client).or_default();
                *until = (*until).max(now + millis(so_long));
            }
            Some(Fault::Outage(so_long)) => self.cluster.fall_silent(millis(so_long)),
            _ => {}
        }
        let hung = state.hung.entry(client).or_default();
        // What was given up leaves its connection as it is; only a fresh one helps.
        let hangs = match request.lane {
            Lane::Session { fresh: false } => hung.iter().any(Reply::is_closed),
            Lane::Session { fresh: true } => {
                hung.clear();
                false
            }
            _ => false,
        };
        drop(state);
        let bits = self.scene.config.draw(&[1, slot.site as u64, client.into(), slot.nth.into()]);
        let arrived = Arrived { client, call: self.scene.sent(slot), request, bits };
        Trip { arrived, slot, fault, departed: now, hangs }
    }

    async fn travel(self: Arc<Self>, trip: Trip, mut reply: Reply) {
        let latency = |way: u64| {
            let Slot { site, client, nth } = trip.slot;
            self.scene.config.latency(&[2, way, site as u64, client.into(), nth.into()])
        };
        let longer = |millis: u32| Duration::from_millis(millis.into());
        let there = match trip.fault {
            Some(Fault::DelayRequest(millis)) => latency(0) + longer(millis),
            _ => latency(0),
        };
        let back = match trip.fault {
            Some(Fault::DelayReply(millis)) => latency(1) + longer(millis),
            _ => latency(1),
        };
        if trip.hangs {
            return self.stay_silent(&trip, reply);
        }
        sleep(there).await;
        if trip.fault == Some(Fault::LoseRequest) {
            return self.lose(&trip, reply).await;
        }
        if self.is_cut_off(&trip) {
            return self.find_no_way(&trip, reply).await;
        }
        if let Some(Fault::Repeat(millis)) = trip.fault
            && self.fair
            && asks_for_ticket(&trip.arrived.request)
        {
            self.cluster.serve(&trip.arrived).await;
            sleep(longer(millis)).await;
        } else if let Some(Fault::Repeat(millis)) = trip.fault {
            let (cluster, arrived) = (Arc::clone(&self.cluster), trip.arrived.clone());
            // Ends by itself; nobody waits for a second answer.
            tokio::spawn(async move {
                sleep(longer(millis)).await;
                cluster.serve(&arrived).await
            });
        }
        let heard = if trip.fault == Some(Fault::Refuse) {
            self.cluster.refuse(&trip.arrived).await
        } else if trip.arrived.request.method == Method::Get {
            // A read changes nothing, so it need not go on for nobody.
            tokio::select! {
                biased;
                heard = self.cluster.serve(&trip.arrived) => heard,
                () = reply.closed() => return,
            }
        } else {
            self.cluster.serve(&trip.arrived).await
        };
        let Some(heard) = heard else { return self.stay_silent(&trip, reply) };
        sleep(back).await;
        if trip.fault == Some(Fault::LoseReply) || self.is_cut_off(&trip) {
            return self.lose(&trip, reply).await;
        }
        _ = reply.send(heard);
    }

    /// Whether there is no way between the client and the servers now.
    fn is_cut_off(&self, trip: &Trip) -> bool {
        self.state().partitions.get(&trip.slot.client).is_some_and(|until| *until > self.scene.now())
    }

    /// Something was lost: the client sees a broken connection, or silence. On which of the two ways, it cannot tell.
    async fn lose(&self, trip: &Trip, reply: Reply) {
        if trip.arrived.bits & 1 == 1 {
            return self.stay_silent(trip, reply);
        }
        sleep(self.scene.config.latency(&[3, trip.arrived.bits])).await;
        _ = reply.send(Err(TransportErrorKind::Broken));
    }

    /// Nothing passes: a new connection is not made, on an old one there is silence.
    async fn find_no_way(&self, trip: &Trip, reply: Reply) {
        let fresh = matches!(trip.arrived.request.lane, Lane::Session { fresh: true });
        if !fresh && trip.arrived.bits & 3 != 0 {
            return self.stay_silent(trip, reply);
        }
        sleep_until(self.scene.instant(trip.departed + CONNECTING)).await;
        _ = reply.send(Err(TransportErrorKind::NotConnected));
    }

    fn stay_silent(&self, trip: &Trip, reply: Reply) {
        if matches!(trip.arrived.request.lane, Lane::Session { .. }) {
            self.state().hung.entry(trip.slot.client).or_default().push(reply);
        }
    }
}
