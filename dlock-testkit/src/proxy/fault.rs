//! What can be put in the way of requests, and of which.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::grpc_call::Call;
use super::message::Message;

/// A request that went through, or was meant to; of gRPC every message that a client sends is one.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// Its body; what is no text in it is replaced.
    pub body: String,
    /// Its body to the byte.
    pub bytes: Vec<u8>,
}

/// Which requests a fault concerns: all that fit every part that is given.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    method: Option<String>,
    path: Option<String>,
    body: Option<String>,
    message: Option<fn(&[u8]) -> bool>,
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

    /// Requests whose body, to the byte, is such; of gRPC that is one message.
    #[must_use]
    pub fn message(mut self, is_such: fn(&[u8]) -> bool) -> Self {
        self.message = Some(is_such);
        self
    }

    pub(super) fn fits(&self, seen: &Seen) -> bool {
        self.method.as_ref().is_none_or(|method| *method == seen.method)
            && self.path.as_ref().is_none_or(|prefix| seen.path.starts_with(prefix.as_str()))
            && self.body.as_ref().is_none_or(|part| seen.body.contains(part.as_str()))
            && self.message.is_none_or(|is_such| is_such(&seen.bytes))
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
    /// It never arrives; this status and body are the reply. Of gRPC it is the status of gRPC and its message, and ends the call.
    Answer(u16, String),
    /// It is under way until it is told to arrive, even if the client has given up.
    Hold(Held),
}

/// A request that is under way for as long as a test wants.
#[derive(Clone, Debug)]
pub struct Held {
    request: Arc<watch::Sender<Option<Letter>>>,
}

/// A request as it can be sent again.
#[derive(Clone, Debug)]
pub(super) enum Letter {
    Http1(Vec<u8>),
    Grpc(Box<Call>),
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

    /// Lets it arrive at the server now, once more each time it is called; the status and body that the client never sees. Of gRPC they are
    /// the status of gRPC and the first message of the reply, without what is no text in it.
    pub async fn deliver(&self, server: SocketAddr) -> io::Result<(u16, String)> {
        self.sent().await;
        let letter = self.request.borrow().clone();
        match letter.expect("it was sent") {
            Letter::Http1(request) => {
                let mut stream = TcpStream::connect(server).await?;
                stream.write_all(&request).await?;
                let reply = Message::read(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let status = reply.head().split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
                Ok((status, String::from_utf8_lossy(reply.body()).into_owned()))
            }
            Letter::Grpc(call) => call.deliver(server).await,
        }
    }

    pub(super) fn take_in(&self, letter: Letter) {
        self.request.send_replace(Some(letter));
    }
}

/// A fault that waits for its request.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) matching: Matching,
    pub(super) fault: Fault,
    /// Whether it strikes again and again.
    pub(super) standing: bool,
}
