//! One connection of a client that speaks gRPC: bytes over the line, calls over HTTP/2.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;
use super::grpc_call;
use super::line::{Direction, Line};

/// How a fault ends the connection that its call is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Closed,
    Reset,
}

/// What flows before anybody must make room for more; of no concern to tests.
const WINDOW: u32 = 8 << 20;

/// Serves one connection of a client until either side closes it or a fault does.
pub(super) async fn serve(client: &mut TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    // Calls are told apart behind the line, so that what it swallows is bytes: pings and acknowledgements as well as calls.
    let (line_end, call_end) = tokio::io::duplex(1 << 16);
    let ending = watch::Sender::new(None);
    let mut told = ending.subscribe();
    let end = tokio::select! {
        biased;
        end = told.wait_for(Option::is_some) => end.ok().and_then(|end| *end),
        () = carry(client, line_end, &shared.line) => None,
        _ = calls(call_end, &ending, shared) => None,
    };
    if end == Some(Ending::Reset) { client.set_zero_linger() } else { Ok(()) }
}

/// Carries bytes in both directions; returns when the proxy is done with the connection, or the client is and all has arrived.
async fn carry(client: &mut TcpStream, line_end: DuplexStream, line: &Line) {
    let (from_client, to_client) = client.split();
    let (from_proxy, to_proxy) = tokio::io::split(line_end);
    let requests = carry_one_way(from_client, to_proxy, Direction::Requests, line);
    let replies = carry_one_way(from_proxy, to_client, Direction::Replies, line);
    let requests = async {
        _ = requests.await;
        // The proxy hears of the end of its input, and ends the replies.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        _ = replies => {}
        () = requests => {}
    }
}

async fn carry_one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    line: &Line,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(1 << 14);
    while from.read_buf(&mut bytes).await? > 0 {
        line.carry(direction, &bytes, &mut to).await?;
        bytes.clear();
    }
    line.passable(direction).await;
    to.shutdown().await
}

/// Forwards every call, until the client or the server closes the connection.
async fn calls(client: DuplexStream, ending: &watch::Sender<Option<Ending>>, shared: &Arc<Shared>) -> io::Result<()> {
    let mut client = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(client)
        .await
        .map_err(io::Error::other)?;
    let server = TcpStream::connect(shared.target).await?;
    let (server, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(server)
        .await
        .map_err(io::Error::other)?;
    // All of these end with the connection of the client, whose future owns the set.
    let mut tasks = JoinSet::new();
    let lost = ending.clone();
    tasks.spawn(async move {
        _ = connection.await;
        lost.send_replace(Some(Ending::Closed));
    });
    while let Some(accepted) = client.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        tasks.spawn(grpc_call::forward(request, respond, server.clone(), ending.clone(), Arc::clone(shared)));
    }
    Ok(())
}
