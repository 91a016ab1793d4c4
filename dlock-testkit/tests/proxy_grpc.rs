//! The fault proxy between clients of gRPC and a real etcd.
#![cfg(all(feature = "proxy", feature = "servers"))]
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use dlock_testkit::proxy::{Direction, Fault, FaultProxy, Matching};
use dlock_testkit::servers::EtcdServer;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;

const PUT: &str = "/etcdserverpb.KV/Put";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A client that puts keys and keeps leases, over one connection.
struct Client {
    calls: SendRequest<Bytes>,
    authority: SocketAddr,
}

/// A call as it stands: what was sent may be followed by more.
struct Call {
    send: h2::SendStream<Bytes>,
    reply: h2::client::ResponseFuture,
}

impl Client {
    async fn connect(proxy: &FaultProxy) -> Self {
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        let (calls, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { calls, authority: proxy.address() }
    }

    async fn call(&self, path: &str, message: &[u8], end: bool) -> Result<Call, h2::Error> {
        let uri = format!("http://{}{path}", self.authority);
        let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
        let (reply, mut send) = self.calls.clone().ready().await?.send_request(request, false)?;
        send.send_data(framed(message), end)?;
        Ok(Call { send, reply })
    }

    /// Puts a value; the status of the call.
    async fn put(&self, key: &str) -> Result<u16, h2::Error> {
        let message = [&[10, key.len() as u8], key.as_bytes(), &[18, 1], b"v"].concat();
        self.call(PUT, &message, true).await?.status().await
    }
}

impl Call {
    async fn status(self) -> Result<u16, h2::Error> {
        let (head, mut body) = self.reply.await?.into_parts();
        while let Some(data) = body.data().await {
            data?;
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        Ok(trailers["grpc-status"].to_str().unwrap().parse().unwrap())
    }
}

fn framed(message: &[u8]) -> Bytes {
    [&[0, 0, 0, 0, message.len() as u8], message].concat().into()
}

/// `LeaseKeepAliveRequest` of this lease.
fn keep_alive(lease: i64) -> Vec<u8> {
    let (mut message, mut rest) = (vec![8], lease as u64);
    while rest >= 0x80 {
        message.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    message.push(rest as u8);
    message
}

async fn bench() -> (EtcdServer, FaultProxy, Client) {
    let server = EtcdServer::start().await.unwrap();
    let proxy = FaultProxy::start_grpc(server.address()).await.unwrap();
    let client = Client::connect(&proxy).await;
    (server, proxy, client)
}

async fn has(server: &EtcdServer, key: &str) -> bool {
    !server.gateway().entries(key).await.unwrap().is_empty()
}

/// Waits until a key is there.
async fn arrives(server: &EtcdServer, key: &str) {
    let arrival = async {
        while !has(server, key).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, arrival).await.expect("it did not arrive");
}

async fn is_left_waiting<T>(call: impl Future<Output = T>) -> bool {
    tokio::time::timeout(A_WHILE, call).await.is_err()
}

const PATIENCE: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn an_undisturbed_call_is_answered_and_counted() {
    let (server, proxy, client) = bench().await;
    for key in ["one", "two"] {
        assert_eq!(client.put(key).await.unwrap(), 0);
        assert!(has(&server, key).await);
    }
    assert_eq!(proxy.count(&Matching::any().path(PUT)), 2);
    assert_eq!(proxy.count(&Matching::any().message(|message| message.windows(3).any(|window| window == b"two"))), 1);
}

#[tokio::test]
async fn etcds_own_tool_works_through_it() {
    let (server, proxy, _client) = bench().await;
    let mut etcdctl = std::process::Command::new(server.command().get_program());
    etcdctl.arg(format!("--endpoints={}", proxy.address())).args(["lock", "name", "--", "echo", "held"]);
    let told = tokio::task::spawn_blocking(move || etcdctl.output()).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), "held\n");
    assert_eq!(proxy.count(&Matching::any().path("/etcdserverpb.KV/Txn")), 1);
}

#[tokio::test]
async fn only_the_next_call_that_matches_is_refused() {
    let (server, proxy, client) = bench().await;
    proxy.next(Matching::any().path(PUT).body("refused"), Fault::Answer(14, "no leader".to_owned()));
    assert_eq!(client.put("other").await.unwrap(), 0);
    assert_eq!(client.put("refused").await.unwrap(), 14);
    assert!(!has(&server, "refused").await);
    assert_eq!(client.put("refused").await.unwrap(), 0);
}

#[tokio::test]
async fn a_dropped_call_never_arrives_and_a_dropped_reply_follows_one_that_did() {
    let (server, proxy, client) = bench().await;
    proxy.next(Matching::any(), Fault::DropRequest);
    client.put("lost").await.unwrap_err();
    let client = Client::connect(&proxy).await;
    proxy.next(Matching::any(), Fault::DropResponse);
    client.put("applied").await.unwrap_err();
    assert!(has(&server, "applied").await && !has(&server, "lost").await);
}

#[tokio::test]
async fn a_reset_call_never_arrives() {
    let (server, proxy, client) = bench().await;
    proxy.next(Matching::any(), Fault::Reset);
    client.put("lost").await.unwrap_err();
    assert!(!has(&server, "lost").await);
}

#[tokio::test]
async fn a_hung_call_has_arrived_and_is_never_answered_and_others_are() {
    let (server, proxy, client) = bench().await;
    proxy.next(Matching::any(), Fault::Hang);
    let mut hung = pin!(client.put("applied"));
    assert!(is_left_waiting(&mut hung).await);
    arrives(&server, "applied").await;
    assert_eq!(client.put("other").await.unwrap(), 0);
}

#[tokio::test]
async fn a_held_call_arrives_as_often_as_it_is_delivered() {
    let (server, proxy, client) = bench().await;
    let held = proxy.hold_next(Matching::any());
    tokio::select! {
        put = client.put("held") => panic!("{put:?}"),
        () = held.sent() => {}
    }
    drop(client);
    assert!(!has(&server, "held").await);
    for _ in 0..2 {
        assert_eq!(held.deliver(server.address()).await.unwrap().0, 0);
        assert!(has(&server, "held").await);
        server.gateway().delete("held").await.unwrap();
    }
}

#[tokio::test]
async fn every_message_of_an_open_stream_is_answered_and_can_be_spoilt() {
    let (server, proxy, client) = bench().await;
    let (lease, _) = server.gateway().grant(600).await.unwrap();
    let mut call = client.call(KEEP_ALIVE, &keep_alive(lease), false).await.unwrap();
    let mut replies = call.reply.await.unwrap().into_body();
    assert!(replies.data().await.unwrap().is_ok());
    call.send.send_data(framed(&keep_alive(lease)), false).unwrap();
    assert!(replies.data().await.unwrap().is_ok());
    proxy.next(Matching::any().path(KEEP_ALIVE), Fault::DropResponse);
    call.send.send_data(framed(&keep_alive(lease)), false).unwrap();
    assert!(replies.data().await.is_none_or(|reply| reply.is_err()));
    assert_eq!(proxy.count(&Matching::any().path(KEEP_ALIVE)), 3);
}

#[tokio::test]
async fn what_a_black_hole_swallows_arrives_when_it_closes() {
    let (server, proxy, client) = bench().await;
    assert_eq!(client.put("before").await.unwrap(), 0);
    proxy.black_hole(Direction::Replies, true);
    let mut unanswered = pin!(client.put("applied"));
    assert!(is_left_waiting(&mut unanswered).await);
    arrives(&server, "applied").await;
    proxy.swallow(true);
    let swallowed = client.call(PUT, &[10, 1, b'k', 18, 1, b'v'], true).await.unwrap();
    assert!(!has(&server, "k").await);
    proxy.swallow(false);
    assert_eq!(tokio::time::timeout(PATIENCE, swallowed.status()).await.unwrap().unwrap(), 0);
    assert!(has(&server, "k").await);
}

#[tokio::test]
async fn connections_are_reset_and_new_ones_are_served() {
    let (_server, proxy, client) = bench().await;
    assert_eq!(client.put("before").await.unwrap(), 0);
    proxy.reset_connections();
    client.put("lost").await.unwrap_err();
    assert_eq!(Client::connect(&proxy).await.put("after").await.unwrap(), 0);
}

#[tokio::test]
async fn a_half_open_connection_answers_nothing_and_new_ones_are_served() {
    let (server, proxy, client) = bench().await;
    assert_eq!(client.put("before").await.unwrap(), 0);
    proxy.half_open();
    assert!(is_left_waiting(client.put("lost")).await);
    assert_eq!(Client::connect(&proxy).await.put("after").await.unwrap(), 0);
    assert!(!has(&server, "lost").await);
}

#[tokio::test]
async fn a_call_whose_client_gives_up_is_under_way_no_more() {
    let (_server, proxy, client) = bench().await;
    proxy.all(Matching::any(), Fault::Hang);
    assert!(is_left_waiting(client.put("given up")).await);
    let over = async {
        while proxy.open_requests() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("it is still under way");
}
