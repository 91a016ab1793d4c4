//! How a request travels to Consul: the seam behind which tests put a simulated network.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

/// Carries requests to Consul and brings the answers.
///
/// Production has one implementation, over HTTP. Another is for tests against a simulated Consul, see
/// [`Consul::with_transport`](crate::Consul::with_transport).
///
/// # Contract
/// One call is one attempt; nothing is sent twice, and no redirect is followed. A status that means failure is an answer. The future may be
/// dropped at any point; what was sent by then may still be applied.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends a request and waits for its answer, for [`Request::limit`] at most.
    async fn send(&self, request: Request) -> Result<Answer, TransportError>;
}

/// What is asked of Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// How.
    pub method: Method,
    /// Path and query, percent-encoded, such as `/v1/kv/a%20b?consistent`.
    pub target: String,
    /// The body, empty where there is none. It must travel with its length: Consul ignores the body of a `session/create` in chunks.
    pub body: Vec<u8>,
    /// On which connection.
    pub lane: Lane,
    /// How long the answer may take, body included.
    pub limit: Duration,
}

/// The methods that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // as in HTTP
pub enum Method {
    Get,
    Put,
}

/// Which connections a request may share. No lane's requests queue behind another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lane {
    /// Answered at once.
    Short,
    /// Answered when something changed.
    Waiting,
    /// About a session.
    Session {
        /// On a new connection: the last request was not answered, and what hangs stays hung.
        fresh: bool,
    },
}

/// What Consul answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status, whichever it is.
    pub status: u16,
    /// The header `X-Consul-Index`, where there is one.
    pub index: Option<u64>,
    /// The body.
    pub body: String,
}

/// A request that brought no answer.
#[derive(Debug, Error)]
#[error("{kind}")]
pub struct TransportError {
    /// What that says about the request.
    pub kind: TransportErrorKind,
    /// Why, for people.
    pub source: Box<dyn Error + Send + Sync>,
}

/// What the lack of an answer says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransportErrorKind {
    /// It was surely not sent.
    #[error("no connection to Consul")]
    NotConnected,
    /// It was perhaps applied, or will be.
    #[error("Consul did not answer in time")]
    TimedOut,
    /// It was perhaps applied, or will be.
    #[error("the connection to Consul broke")]
    Broken,
    /// It cannot be sent at all.
    #[error("the request cannot be made")]
    Unusable,
}

impl Request {
    /// A request without a body, as a test of a transport sends it.
    pub fn new(method: Method, target: impl Into<String>, lane: Lane, limit: Duration) -> Self {
        Self { method, target: target.into(), body: Vec::new(), lane, limit }
    }

    /// The same request with a body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl TransportError {
    /// An error of this kind.
    pub fn new(kind: TransportErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: source.into() }
    }
}
