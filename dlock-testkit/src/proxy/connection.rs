//! One connection of a client, from its first request to its end.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::fault::{Fault, Letter};
use super::grpc;
use super::line::{Direction, Severance};
use super::message::Message;
use super::{Protocol, Shared};

/// Takes connections in, of clients that speak this, until it is aborted.
pub(super) async fn accept(listener: TcpListener, protocol: Protocol, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        // Ends with its client, its server or the proxy.
        tokio::spawn(async move { connection(client, protocol, &shared).await });
    }
}

async fn connection(mut client: TcpStream, protocol: Protocol, shared: &Arc<Shared>) -> io::Result<()> {
    let _open = Open::connection(shared);
    let (mut closed, mut severance) = (shared.closed.subscribe(), shared.line.severance());
    let serve = async {
        match protocol {
            Protocol::Http1 => serve(&mut client, shared).await,
            Protocol::Grpc => grpc::serve(&mut client, shared).await,
        }
    };
    tokio::select! {
        biased;
        _ = closed.wait_for(|closed| *closed) => return Ok(()),
        _ = severance.changed() => {}
        end = serve => return end,
    }
    let how = *severance.borrow();
    if how == Some(Severance::Reset) {
        return client.set_zero_linger();
    }
    tokio::select! {
        biased;
        _ = closed.wait_for(|closed| *closed) => Ok(()),
        gone = gone(&mut client) => gone,
    }
}

/// Serves one connection of a client until either side closes it or a fault does.
async fn serve(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let mut server: Option<TcpStream> = None;
    while let Some(request) = Message::read(client).await? {
        let _open = Open::request(shared);
        shared.line.passable(Direction::Requests).await;
        let seen = request.seen();
        let fault = shared.plan(&seen);
        match &fault {
            None | Some(Fault::DropResponse | Fault::Hang) => {}
            Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::DropRequest) => return Ok(()),
            Some(Fault::Reset) => return client.set_zero_linger(),
            Some(Fault::Answer(status, body)) => {
                let length = body.len();
                let reply = format!("HTTP/1.1 {status} Fault\r\nContent-Length: {length}\r\n\r\n{body}");
                shared.line.carry(Direction::Replies, reply.as_bytes(), client).await?;
                continue;
            }
            Some(Fault::Hold(held)) => {
                held.take_in(Letter::Http1(request.bytes));
                return gone(client).await;
            }
        }
        if server.is_none() {
            server = Some(TcpStream::connect(shared.target).await?);
        }
        let server = server.as_mut().expect("it was connected above");
        // What has left its client arrives, whether or not the client still waits.
        shared.line.carry(Direction::Requests, &request.bytes, server).await?;
        let reply = tokio::select! {
            biased;
            reply = Message::read(server) => reply?.ok_or(io::ErrorKind::UnexpectedEof)?,
            // The client gave up: so does the connection to the server.
            gone = gone(client) => return gone,
        };
        match fault {
            Some(Fault::DropResponse) => return Ok(()),
            Some(Fault::Hang) => return gone(client).await,
            _ => shared.line.carry(Direction::Replies, &reply.bytes, client).await?,
        }
    }
    Ok(())
}

/// Returns when the peer has closed its side.
async fn gone(client: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while client.read(&mut byte).await? > 0 {}
    Ok(())
}

/// Counts something open until it is dropped.
pub(super) struct Open<'a> {
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

    pub(super) fn request(shared: &'a Shared) -> Self {
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
