//! gRPC as a server speaks it, over any connection: methods, messages, statuses. What is answered is up to a [`Handler`].

use std::future::poll_fn;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::store::Status;

/// Answers calls.
#[async_trait]
pub(super) trait Handler: Send + Sync + 'static {
    /// Answers one, in a task of its own: that the client gives it up, or its connection ends, does not end this.
    async fn answer(self: Arc<Self>, call: Call);
}

/// A call.
pub(super) struct Call {
    pub(super) method: String,
    pub(super) requests: Requests,
    pub(super) replies: Replies,
}

/// What a client sends in one call.
pub(super) struct Requests {
    body: RecvStream,
    bytes: BytesMut,
}

/// Where the replies to one call go.
pub(super) struct Replies {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

/// Serves a connection until either side ends it.
pub(super) async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, handler: Arc<dyn Handler>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(io).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        let method = request.uri().path().to_owned();
        let requests = Requests { body: request.into_body(), bytes: BytesMut::new() };
        let call = Call { method, requests, replies: Replies { respond, stream: None } };
        // Ends by itself: with its answer, or when the client is gone.
        tokio::spawn(Arc::clone(&handler).answer(call));
    }
    Ok(())
}

/// A message begins with whether it is compressed, and its length.
const PREFIX: usize = 5;

impl Requests {
    /// The next message; `None` once there are no more, or the client is gone. Free to drop.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(mut prefix) = self.bytes.get(1..PREFIX) {
                let whole = PREFIX + prefix.get_u32() as usize;
                if self.bytes.len() >= whole {
                    return Some(self.bytes.split_to(whole).freeze().slice(PREFIX..));
                }
            }
            let data = self.body.data().await?.ok()?;
            self.body.flow_control().release_capacity(data.len()).ok()?;
            self.bytes.put(data);
        }
    }
}

impl Replies {
    /// Sends a message. A client that is gone is told nothing.
    pub(super) fn send(&mut self, message: &[u8]) {
        let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
        bytes.put_u8(0);
        bytes.put_u32(message.len() as u32);
        bytes.put(message);
        if let Some(stream) = self.stream() {
            _ = stream.send_data(bytes.freeze(), false);
        }
    }

    /// Ends the call well.
    pub(super) fn finish(&mut self) {
        let trailers = status(0, "");
        if let Some(stream) = self.stream() {
            _ = stream.send_trailers(trailers);
        }
    }

    /// Ends the call with a refusal.
    pub(super) fn refuse(&mut self, refusal: &Status) {
        let status = status(refusal.code, refusal.message);
        if let Some(stream) = &mut self.stream {
            _ = stream.send_trailers(status);
            return;
        }
        let mut response = head();
        response.headers_mut().extend(status);
        _ = self.respond.send_response(response, true);
    }

    /// Whether the client has given the call up, or is gone.
    pub(super) fn is_given_up(&mut self) -> bool {
        self.given_up().now_or_never().is_some()
    }

    /// Returns when the client has given the call up, or is gone. Free to drop.
    pub(super) async fn given_up(&mut self) {
        match &mut self.stream {
            Some(stream) => _ = poll_fn(|cx| stream.poll_reset(cx)).await,
            None => _ = poll_fn(|cx| self.respond.poll_reset(cx)).await,
        }
    }

    /// Where messages go, once the head is sent; `None` when the client is gone.
    fn stream(&mut self) -> Option<&mut SendStream<Bytes>> {
        if self.stream.is_none() {
            self.stream = self.respond.send_response(head(), false).ok();
        }
        self.stream.as_mut()
    }
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn status(code: u16, message: &'static str) -> HeaderMap {
    let mut status = HeaderMap::new();
    status.insert(HeaderName::from_static("grpc-status"), code.into());
    if !message.is_empty() {
        status.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(message));
    }
    status
}
