//! A proxy between a client and an HTTP or gRPC server, that counts requests and spoils them.
//!
//! It speaks just enough HTTP/1.1 to tell one request from the next: heads, `Content-Length`, chunks. Of gRPC, every message that a client
//! sends is a request, also on a stream that stays open. A [`Fault`] is put in the way of
//! the next request that matches, or of all until they are cleared. The line itself can be throttled, swallow what goes in one
//! [`Direction`] or both, and lose the connections that it has.

mod connection;
mod fault;
mod grpc;
mod grpc_call;
mod line;
mod message;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use connection::accept;
use fault::Planned;
pub use fault::{Fault, Held, Matching, Seen};
pub use line::Direction;
use line::{Line, Severance};

/// A running proxy; its tasks and connections end when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What the clients of a proxy speak.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Grpc,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    line: Line,
    /// Told when the proxy is dropped.
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Seen>,
    faults: VecDeque<Planned>,
    open_requests: usize,
    connections: usize,
    most_connections: usize,
}

impl FaultProxy {
    /// Listens on a free port for HTTP/1.1 and forwards to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::speaking(Protocol::Http1, target).await
    }

    /// Listens on a free port for gRPC without TLS and forwards to `target`, over one connection for each of a client's.
    pub async fn start_grpc(target: SocketAddr) -> io::Result<Self> {
        Self::speaking(Protocol::Grpc, target).await
    }

    async fn speaking(protocol: Protocol, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, state: Mutex::default(), line: Line::default(), closed: watch::Sender::new(false) });
        // Ends with the proxy, which aborts it; the connections it starts end when they hear of it.
        let accepting = tokio::spawn(accept(listener, protocol, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Spoils the next request that matches.
    pub fn next(&self, matching: Matching, fault: Fault) {
        self.shared.state().faults.push_back(Planned { matching, fault, standing: false });
    }

    /// Spoils every request that matches, until [`clear`](Self::clear).
    pub fn all(&self, matching: Matching, fault: Fault) {
        self.shared.state().faults.push_back(Planned { matching, fault, standing: true });
    }

    /// Holds the next request that matches.
    pub fn hold_next(&self, matching: Matching) -> Held {
        let held = Held::default();
        self.next(matching, Fault::Hold(held.clone()));
        held
    }

    /// Puts no fault in the way any more.
    pub fn clear(&self) {
        self.shared.state().faults.clear();
    }

    /// Swallows everything in both directions, on open connections too, or stops doing so. See [`black_hole`](Self::black_hole).
    pub fn swallow(&self, on: bool) {
        self.black_hole(Direction::Requests, on);
        self.black_hole(Direction::Replies, on);
    }

    /// Swallows everything in one direction, on open connections too, or stops doing so.
    ///
    /// What was swallowed then arrives, as TCP sends it again: a request also when its client has given up in the meantime.
    pub fn black_hole(&self, direction: Direction, on: bool) {
        self.shared.line.black_hole(direction, on);
    }

    /// Carries no more than so many bytes a second on each connection and in each direction, or as many as there are.
    pub fn throttle(&self, bytes_per_second: Option<NonZeroU32>) {
        self.shared.line.throttle(bytes_per_second);
    }

    /// Makes every connection that is open now a half-open one: the server sees it closed, its client sees nothing and waits for ever.
    /// New connections are served.
    pub fn half_open(&self) {
        self.shared.line.sever(Severance::HalfOpen);
    }

    /// Resets every connection that is open now. New connections are served.
    pub fn reset_connections(&self) {
        self.shared.line.sever(Severance::Reset);
    }

    /// Every request since the start or the last [`reset`](Self::reset), in order.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.state().requests.clone()
    }

    /// How many requests matched.
    pub fn count(&self, matching: &Matching) -> usize {
        self.shared.state().requests.iter().filter(|seen| matching.fits(seen)).count()
    }

    /// Forgets the requests so far.
    pub fn reset(&self) {
        self.shared.state().requests.clear();
    }

    /// How many requests are under way now; of gRPC, how many calls.
    pub fn open_requests(&self) -> usize {
        self.shared.state().open_requests
    }

    /// How many connections were open at once at most.
    pub fn most_connections(&self) -> usize {
        self.shared.state().most_connections
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.closed.send_replace(true);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self, seen: &Seen) -> Option<Fault> {
        let mut state = self.state();
        state.requests.push(seen.clone());
        let place = state.faults.iter().position(|planned| planned.matching.fits(seen))?;
        if state.faults[place].standing { Some(state.faults[place].fault.clone()) } else { Some(state.faults.remove(place)?.fault) }
    }
}
