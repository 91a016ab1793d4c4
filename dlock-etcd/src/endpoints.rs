//! The endpoints, a connection to each at most, and which of them calls go to: always the same one, until it fails.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use hyper_util::rt::TokioIo;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel as Wire, Endpoint as Dialled};
use tower::service_fn;

use crate::config::{ConfigError, EtcdOptions};
use crate::dialer::Dialer;

/// All endpoints of one cluster.
pub(crate) struct Endpoints {
    all: Vec<Endpoint>,
    /// Where calls go to.
    current: AtomicUsize,
    options: ConnectOptions,
    limit: Duration,
    dialer: Option<Arc<dyn Dialer>>,
}

struct Endpoint {
    name: String,
    dialled: Dialled,
    connection: Mutex<Option<Arc<Connected>>>,
    /// Whoever has the turn connects for all.
    turn: tokio::sync::Mutex<()>,
}

/// A connection to one endpoint; given up with its last user.
pub(crate) struct Connected {
    place: usize,
    client: Client,
    /// The runtime that drives it.
    runtime: Id,
    /// Whether an answer over it told that it leads to our cluster.
    ours: AtomicBool,
}

/// No connection could be made: whatever was to be sent was not.
#[derive(Debug)]
pub(crate) enum NotConnected {
    /// It was refused, or took too long.
    Unreachable { endpoint: String, source: Option<etcd_client::Error> },
    /// The endpoint answered, and will not speak to this user.
    Refused(etcd_client::Error),
}

/// How often an idle connection is pinged. Servers close connections that are pinged more often than every five seconds.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long a ping may take to be answered.
const PING_LIMIT: Duration = Duration::from_secs(3);
/// An attempt that was given up after so long says something of its endpoint; one that was given up sooner, of its caller.
const SLOW: Duration = Duration::from_millis(250);
/// The largest answer that is taken in: a page of waiters with all they published.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

impl Endpoints {
    pub(crate) fn new(options: &EtcdOptions, dialer: Option<Arc<dyn Dialer>>) -> Result<Self, ConfigError> {
        let dialled = options.dialled()?.into_iter().map(|(name, dialled)| Endpoint {
            name,
            dialled: dialled
                .connect_timeout(options.connect)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_LIMIT)
                .keep_alive_while_idle(true),
            connection: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        let mut asking = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        if let Some((user, password)) = &options.user {
            asking = asking.with_user(user, password);
        }
        Ok(Self { all: dialled.collect(), current: AtomicUsize::new(0), options: asking, limit: options.connect, dialer })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Where a connection goes to.
    pub(crate) fn name(&self, connected: &Connected) -> &str {
        &self.all[connected.place].name
    }

    /// The connection that calls go over now, if there is one.
    pub(crate) fn present(&self) -> Option<Arc<Connected>> {
        self.all[self.current.load(Ordering::Relaxed)].connected()
    }

    /// The same, made if there is none, which takes kilobytes. An endpoint that cannot be reached is left for the next, so that it costs one connect limit
    /// once. Free to drop.
    pub(crate) async fn connect(&self) -> Result<Arc<Connected>, NotConnected> {
        loop {
            let place = self.current.load(Ordering::Relaxed);
            let endpoint = &self.all[place];
            if let Some(connected) = endpoint.connected() {
                return Ok(connected);
            }
            let _turn = endpoint.turn.lock().await;
            // Whoever had the turn before may have found out that it cannot be reached, or have connected.
            if self.current.load(Ordering::Relaxed) != place {
                continue;
            }
            if let Some(connected) = endpoint.connected() {
                return Ok(connected);
            }
            let patience = Patience { endpoints: self, place, since: Instant::now() };
            let connecting = timeout(self.limit, self.dial(endpoint)).await;
            std::mem::forget(patience);
            let unreachable = |source| {
                self.leave(place);
                NotConnected::Unreachable { endpoint: endpoint.name.clone(), source }
            };
            let client = match connecting {
                Ok(Ok(client)) => client,
                Ok(Err(error @ etcd_client::Error::GRpcStatus(_))) if !is_unavailable(&error) => {
                    return Err(NotConnected::Refused(error));
                }
                Ok(Err(error)) => return Err(unreachable(Some(error))),
                Err(_) => return Err(unreachable(None)),
            };
            let connected = Arc::new(Connected { place, client, runtime: Handle::current().id(), ours: AtomicBool::new(false) });
            *endpoint.slot() = Some(Arc::clone(&connected));
            return Ok(connected);
        }
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<Client, etcd_client::Error> {
        let wire = self.wire(endpoint).await?;
        let client = Client::from_channel(Channel::Tonic(wire.clone()), Some(self.options.clone())).await;
        match client {
            // As Go's client does: users are of no account where everything is allowed.
            Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                let nobody = ConnectOptions::new().with_require_leader(true);
                Client::from_channel(Channel::Tonic(wire), Some(nobody)).await
            }
            client => client,
        }
    }

    async fn wire(&self, endpoint: &Endpoint) -> Result<Wire, tonic::transport::Error> {
        let Some(dialer) = &self.dialer else { return endpoint.dialled.connect().await };
        let (dialer, name) = (Arc::clone(dialer), endpoint.name.clone());
        let dial = service_fn(move |_| {
            let (dialer, name) = (Arc::clone(&dialer), name.clone());
            async move { dialer.dial(&name).await.map(TokioIo::new) }
        });
        endpoint.dialled.connect_with_connector(dial).await
    }

    /// Whether calls go over this connection now.
    pub(crate) fn is_current(&self, connected: &Arc<Connected>) -> bool {
        let current = &self.all[self.current.load(Ordering::Relaxed)];
        current.connected().is_some_and(|present| Arc::ptr_eq(&present, connected))
    }

    /// A connection did not bring what it should: the next call goes over another, to the next endpoint if there is one.
    pub(crate) fn suspect(&self, connected: &Arc<Connected>) {
        // One that was replaced tells nothing of its endpoint any more.
        if self.all[connected.place].slot().take_if(|present| Arc::ptr_eq(present, connected)).is_some() {
            self.leave(connected.place);
        }
    }

    /// Suspects the connection if this is dropped late and before it is told that an answer came.
    pub(crate) fn watch_over<'a>(&'a self, connected: &'a Arc<Connected>) -> Attempt<'a> {
        Attempt { endpoints: self, connected, since: Instant::now(), answered: false }
    }

    fn leave(&self, place: usize) {
        let next = (place + 1) % self.all.len();
        _ = self.current.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|endpoint| &endpoint.name)).finish()
    }
}

impl Endpoint {
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Connected>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present connection. One that lives on another runtime may not be driven any more, and is not used.
    fn connected(&self) -> Option<Arc<Connected>> {
        let here = Handle::current().id();
        self.slot().as_ref().filter(|connected| connected.runtime == here).cloned()
    }
}

impl Connected {
    /// Whether an answer over it told that it leads to our cluster.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Relaxed)
    }

    pub(crate) fn is_found_ours(&self) {
        self.ours.store(true, Ordering::Relaxed);
    }

    pub(crate) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn lease(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient {
        self.client.maintenance_client()
    }

    pub(crate) fn watch(&self) -> WatchClient {
        self.client.watch_client()
    }

    /// Asks for a new token, where there are users.
    pub(crate) async fn authenticate(&self) -> Result<(), etcd_client::Error> {
        self.client.clone().refresh_token().await
    }
}

/// A call under way.
pub(crate) struct Attempt<'a> {
    endpoints: &'a Endpoints,
    connected: &'a Arc<Connected>,
    since: Instant,
    answered: bool,
}

impl Attempt<'_> {
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() >= SLOW {
            self.endpoints.suspect(self.connected);
        }
    }
}

/// A connection that is being made; leaves its endpoint when it is dropped late.
struct Patience<'a> {
    endpoints: &'a Endpoints,
    place: usize,
    since: Instant,
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= SLOW {
            self.endpoints.leave(self.place);
        }
    }
}

fn is_unavailable(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if !matches!(
        status.code(),
        tonic::Code::InvalidArgument | tonic::Code::PermissionDenied | tonic::Code::Unauthenticated | tonic::Code::FailedPrecondition
    ))
}
