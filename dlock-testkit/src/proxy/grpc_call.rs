//! One call of gRPC, from its first message to its status.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use super::Shared;
use super::connection::Open;
use super::fault::{Fault, Letter, Seen};
use super::grpc::Ending;

/// A call with one message, as it can be made again.
#[derive(Clone, Debug)]
pub(super) struct Call {
    head: Request<()>,
    message: Bytes,
}

/// What becomes of the replies to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Replies {
    Pass,
    /// The next closes the connection instead.
    LoseNext,
    /// All of them come to the proxy and no further.
    Swallow,
    /// There are none: nothing was sent.
    None,
    /// This ends the call.
    Answer(u16, String),
}

/// Forwards a call, message by message, and its replies.
pub(super) async fn forward(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    server: SendRequest<Bytes>,
    ending: watch::Sender<Option<Ending>>,
    shared: Arc<Shared>,
) {
    let _open = Open::request(&shared);
    let fate = watch::Sender::new(Replies::Pass);
    let told = fate.subscribe();
    let (called, call) = oneshot::channel();
    let requests = async {
        _ = requests(request, server, called, &fate, &ending, &shared).await;
        // What comes of it is told by the replies.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        _ = replies(respond, call, told, &ending) => {}
        () = requests => {}
    }
}

async fn requests(
    request: Request<RecvStream>,
    server: SendRequest<Bytes>,
    called: oneshot::Sender<ResponseFuture>,
    fate: &watch::Sender<Replies>,
    ending: &watch::Sender<Option<Ending>>,
    shared: &Shared,
) -> Result<(), h2::Error> {
    let (head, body) = request.into_parts();
    let head = Request::from_parts(head, ());
    let (mut messages, mut called) = (Messages::of(body), Some(called));
    let mut server = server.ready().await?;
    let mut stream: Option<SendStream<Bytes>> = None;
    loop {
        let message = messages.next().await?;
        if let Some(message) = &message {
            match shared.plan(&seen(&head, message)) {
                None => {}
                Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
                Some(Fault::DropResponse) => _ = fate.send_replace(Replies::LoseNext),
                Some(Fault::Hang) => _ = fate.send_replace(Replies::Swallow),
                Some(Fault::DropRequest) => {
                    ending.send_replace(Some(Ending::Closed));
                    return Ok(());
                }
                Some(Fault::Reset) => {
                    ending.send_replace(Some(Ending::Reset));
                    return Ok(());
                }
                Some(Fault::Answer(status, text)) => {
                    fate.send_replace(Replies::Answer(status, text));
                    return Ok(());
                }
                Some(Fault::Hold(holder)) => {
                    fate.send_replace(Replies::None);
                    holder.take_in(Letter::Grpc(Box::new(Call { head: head.clone(), message: message.clone() })));
                    return Ok(());
                }
            }
        }
        // As late as this, for of a call whose first message is lost nothing arrives.
        let stream = if let Some(stream) = &mut stream {
            stream
        } else {
            let (reply, fresh) = server.send_request(head.clone(), false)?;
            if let Some(called) = called.take() {
                _ = called.send(reply);
            }
            stream.insert(fresh)
        };
        let last = message.is_none();
        stream.send_data(message.unwrap_or_default(), last)?;
        if last {
            return Ok(());
        }
    }
}

async fn replies(
    mut respond: SendResponse<Bytes>,
    call: oneshot::Receiver<ResponseFuture>,
    mut fate: watch::Receiver<Replies>,
    ending: &watch::Sender<Option<Ending>>,
) -> Result<(), h2::Error> {
    let now = fate.clone();
    let response = async {
        match call.await {
            Ok(reply) => reply.await,
            // Only a fault sends nothing and says nothing here.
            Err(_) => std::future::pending().await,
        }
    };
    let response = tokio::select! {
        biased;
        answer = answer(&mut fate) => return refuse(respond, &answer),
        () = given_up(&mut respond, &now) => return Ok(()),
        response = response => response,
    };
    let response = match response {
        Ok(response) => response,
        Err(error) => {
            respond.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
            return Ok(());
        }
    };
    if !passes(&now, ending, poll_fn(|cx| respond.poll_reset(cx))).await {
        return Ok(());
    }
    let (head, mut body) = response.into_parts();
    let mut stream = respond.send_response(Response::from_parts(head, ()), body.is_end_stream())?;
    loop {
        let data = tokio::select! {
            biased;
            answer = answer(&mut fate) => return stream.send_trailers(status(&answer)),
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return Ok(()),
            data = body.data() => data,
        };
        let Some(data) = data else { break };
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                stream.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
                return Ok(());
            }
        };
        body.flow_control().release_capacity(data.len())?;
        if !passes(&now, ending, poll_fn(|cx| stream.poll_reset(cx))).await {
            return Ok(());
        }
        stream.send_data(data, false)?;
    }
    match body.trailers().await? {
        Some(trailers) => stream.send_trailers(trailers),
        None => stream.send_data(Bytes::new(), true),
    }
}

/// Whether a reply that is here goes on to the client; where not, returns when the call is over for the client.
async fn passes(fate: &watch::Receiver<Replies>, ending: &watch::Sender<Option<Ending>>, reset: impl Future) -> bool {
    match fate_of(fate) {
        Replies::Pass => return true,
        Replies::LoseNext => _ = ending.send_replace(Some(Ending::Closed)),
        Replies::Swallow | Replies::None | Replies::Answer(..) => _ = reset.await,
    }
    false
}

/// Returns when the client has given the call up, unless that is to be applied all the same.
async fn given_up(respond: &mut SendResponse<Bytes>, fate: &watch::Receiver<Replies>) {
    _ = poll_fn(|cx| respond.poll_reset(cx)).await;
    if matches!(fate_of(fate), Replies::LoseNext | Replies::Swallow) {
        std::future::pending::<()>().await;
    }
}

fn fate_of(fate: &watch::Receiver<Replies>) -> Replies {
    fate.borrow().clone()
}

/// What a fault answers, when one does.
async fn answer(fate: &mut watch::Receiver<Replies>) -> Replies {
    let answer = fate.wait_for(|fate| matches!(fate, Replies::Answer(..))).await.map(|answer| answer.clone());
    match answer {
        Ok(answer) => answer,
        Err(_) => std::future::pending().await,
    }
}

fn refuse(mut respond: SendResponse<Bytes>, answer: &Replies) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.headers_mut() = status(answer);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    respond.send_response(response, true).map(drop)
}

fn status(answer: &Replies) -> HeaderMap {
    let mut status = HeaderMap::new();
    if let Replies::Answer(code, text) = answer {
        status.insert("grpc-status", HeaderValue::from(*code));
        if let Ok(text) = HeaderValue::from_str(text) {
            status.insert("grpc-message", text);
        }
    }
    status
}

fn seen(head: &Request<()>, message: &Bytes) -> Seen {
    let bytes = message.slice(PREFIX..).to_vec();
    let body = String::from_utf8_lossy(&bytes).into_owned();
    Seen { method: head.method().to_string(), path: head.uri().path().to_owned(), body, bytes }
}

/// Whether it is compressed, and its length, come before each message.
const PREFIX: usize = 5;

/// The messages of a body, each with what comes before it.
struct Messages {
    body: RecvStream,
    read: BytesMut,
}

impl Messages {
    fn of(body: RecvStream) -> Self {
        Self { body, read: BytesMut::new() }
    }

    /// The next; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, h2::Error> {
        loop {
            if let Some(mut prefix) = self.read.get(1..PREFIX) {
                let whole = PREFIX + prefix.get_u32() as usize;
                if self.read.len() >= whole {
                    return Ok(Some(self.read.split_to(whole).freeze()));
                }
            }
            let Some(data) = self.body.data().await.transpose()? else { return Ok(None) };
            self.body.flow_control().release_capacity(data.len())?;
            self.read.extend_from_slice(&data);
        }
    }
}

impl Call {
    /// Makes the call on a connection of its own; its status, and the first message of the reply.
    pub(super) async fn deliver(&self, server: SocketAddr) -> io::Result<(u16, String)> {
        let stream = TcpStream::connect(server).await?;
        let (client, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        let made = async {
            let (response, mut stream) = client.ready().await?.send_request(self.head.clone(), false)?;
            stream.send_data(self.message.clone(), true)?;
            let (head, body) = response.await?.into_parts();
            let mut messages = Messages::of(body);
            let first = messages.next().await?.unwrap_or_default();
            while messages.next().await?.is_some() {}
            let trailers = messages.body.trailers().await?.unwrap_or(head.headers);
            let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok()).unwrap_or(0);
            Ok::<_, h2::Error>((status, String::from_utf8_lossy(first.get(PREFIX..).unwrap_or_default()).into_owned()))
        };
        tokio::select! {
            biased;
            made = made => made.map_err(io::Error::other),
            ended = connection => Err(ended.err().map_or_else(|| io::ErrorKind::UnexpectedEof.into(), io::Error::other)),
        }
    }
}
