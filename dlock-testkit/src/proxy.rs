//! A proxy between a client and an HTTP server, that counts requests and spoils them.
//!
//! It speaks just enough HTTP/1.1 to tell one request from the next: heads, `Content-Length`, chunks. Faults are put in the way of
//! the next request that matches, or of all until they are cleared.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running proxy; its tasks and connections end when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    /// Nothing passes while this is true.
    swallowing: watch::Sender<bool>,
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

#[derive(Debug)]
struct Planned {
    matching: Matching,
    fault: Fault,
    standing: bool,
}

/// A request that went through, or was meant to.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// Its body.
    pub body: String,
}

/// Which requests a fault concerns: all that fit every part that is given.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    method: Option<String>,
    path: Option<String>,
    body: Option<String>,
}

impl Matching {
    /// Any request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Requests whose path starts so.
    #[must_use]
    pub fn path(mut self, prefix: &str) -> Self {
        self.path = Some(prefix.to_owned());
        self
    }

    /// Requests whose body contains this.
    #[must_use]
    pub fn body(mut self, part: &str) -> Self {
        self.body = Some(part.to_owned());
        self
    }

    fn fits(&self, seen: &Seen) -> bool {
        self.method.as_ref().is_none_or(|method| *method == seen.method)
            && self.path.as_ref().is_none_or(|prefix| seen.path.starts_with(prefix.as_str()))
            && self.body.as_ref().is_none_or(|part| seen.body.contains(part.as_str()))
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It arrives so much later.
    Delay(Duration),
    /// It never arrives; the connection is closed.
    DropRequest,
    /// It arrives; the connection is closed instead of a reply.
    DropResponse,
    /// It never arrives; the connection is reset.
    Reset,
    /// It arrives, and the reply is never delivered; the connection stays open.
    Hang,
    /// It never arrives; this status and body are the reply.
    Answer(u16, String),
    /// It is under way until it is told to arrive, even if the client has given up.
    Hold(Held),
}

/// A request that is under way for as long as a test wants.
#[derive(Clone, Debug)]
pub struct Held {
    request: Arc<watch::Sender<Option<Vec<u8>>>>,
}

impl Default for Held {
    fn default() -> Self {
        Self { request: Arc::new(watch::Sender::new(None)) }
    }
}

impl Held {
    /// Waits until the request was sent.
    pub async fn sent(&self) {
        _ = self.request.subscribe().wait_for(Option::is_some).await;
    }

    /// Lets it arrive at the server now, once more each time it is called; the status and body that the client never sees.
    pub async fn deliver(&self, server: SocketAddr) -> io::Result<(u16, String)> {
        self.sent().await;
        let request = self.request.borrow().clone().unwrap_or_default();
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&request).await?;
        let reply = Message::read(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = reply.head().split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, String::from_utf8_lossy(reply.body()).into_owned()))
    }
}

impl FaultProxy {
    /// Listens on a free port and forwards to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            state: Mutex::default(),
            swallowing: watch::Sender::new(false),
            closed: watch::Sender::new(false),
        });
        // Ends with the proxy, which aborts it; the connections it starts end when they hear of it.
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
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

    /// Swallows every byte in both directions, on open connections too, or stops doing so.
    pub fn swallow(&self, on: bool) {
        self.shared.swallowing.send_replace(on);
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

    /// How many requests are under way now.
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

    async fn passable(&self) {
        _ = self.swallowing.subscribe().wait_for(|swallowing| !swallowing).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        // Ends with its client, its server or the proxy.
        tokio::spawn(async move {
            let mut closed = shared.closed.subscribe();
            let _open = Open::connection(&shared);
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => {}
                _ = serve(client, &shared) => {}
            }
        });
    }
}

/// Serves one connection of a client until either side closes it or a fault does.
async fn serve(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut server: Option<TcpStream> = None;
    while let Some(request) = Message::read(&mut client).await? {
        let _open = Open::request(shared);
        shared.passable().await;
        let seen = request.seen();
        match shared.plan(&seen) {
            None => {}
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::DropRequest) => return Ok(()),
            Some(Fault::Reset) => {
                client.set_zero_linger()?;
                return Ok(());
            }
            Some(Fault::Answer(status, body)) => {
                let length = body.len();
                client.write_all(format!("HTTP/1.1 {status} Fault\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes()).await?;
                continue;
            }
            Some(Fault::Hold(held)) => {
                held.request.send_replace(Some(request.bytes));
                return gone(&mut client).await;
            }
            Some(Fault::DropResponse) => {
                forward(&mut server, shared.target, &request).await?;
                return Ok(());
            }
            Some(Fault::Hang) => {
                forward(&mut server, shared.target, &request).await?;
                return gone(&mut client).await;
            }
        }
        let reply = tokio::select! {
            biased;
            reply = forward(&mut server, shared.target, &request) => reply?,
            // The client gave up: so does the connection to the server.
            gone = gone(&mut client) => return gone,
        };
        shared.passable().await;
        client.write_all(&reply.bytes).await?;
    }
    Ok(())
}

/// Returns when the peer has closed its side.
async fn gone(client: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while client.read(&mut byte).await? > 0 {}
    Ok(())
}

async fn forward(server: &mut Option<TcpStream>, target: SocketAddr, request: &Message) -> io::Result<Message> {
    let stream = match server {
        Some(stream) => stream,
        None => server.insert(TcpStream::connect(target).await?),
    };
    stream.write_all(&request.bytes).await?;
    Message::read(stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// One request or reply, to the byte.
struct Message {
    bytes: Vec<u8>,
    /// Where the body begins.
    head: usize,
}

impl Message {
    /// Reads one; `None` when the peer closed the connection between two.
    async fn read(stream: &mut TcpStream) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(end) = find(&bytes, b"\r\n\r\n", 0) {
                break end + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return if bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        let mut message = Self { bytes, head };
        while !message.is_whole() {
            if stream.read_buf(&mut message.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some(message))
    }

    fn head(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.head]).into_owned()
    }

    fn body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    fn is_whole(&self) -> bool {
        let head = self.head().to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        if header("transfer-encoding:").is_some_and(|coding| coding.contains("chunked")) {
            return self.has_last_chunk();
        }
        let length = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
        self.body().len() >= length
    }

    fn has_last_chunk(&self) -> bool {
        let body = self.body();
        let mut at = 0;
        while let Some(end) = find(body, b"\r\n", at) {
            let line = String::from_utf8_lossy(&body[at..end]).into_owned();
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16) else { return true };
            if size == 0 {
                return body.len() >= end + 4;
            }
            at = end + 2 + size + 2;
        }
        false
    }

    fn seen(&self) -> Seen {
        let head = self.head();
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Seen { method, path, body: String::from_utf8_lossy(self.body()).into_owned() }
    }
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.windows(what.len()).position(|window| window == what).map(|at| at + from)
}

/// Counts something open until it is dropped.
struct Open<'a> {
    shared: &'a Shared,
    request: bool,
}

impl<'a> Open<'a> {
    fn connection(shared: &'a Shared) -> Self {
        let mut state = shared.state();
        state.connections += 1;
        state.most_connections = state.most_connections.max(state.connections);
        Self { shared, request: false }
    }

    fn request(shared: &'a Shared) -> Self {
        shared.state().open_requests += 1;
        Self { shared, request: true }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if self.request {
            state.open_requests -= 1;
        } else {
            state.connections -= 1;
        }
    }
}
