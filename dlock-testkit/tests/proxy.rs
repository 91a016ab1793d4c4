//! The fault proxy, before a small server that says what has arrived.
#![cfg(feature = "proxy")]
#![allow(missing_docs)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use dlock_testkit::proxy::{Direction, Fault, FaultProxy, Matching};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A server that answers every request with its own path, and tells of each that arrived and of each connection that ended.
struct Echo {
    address: SocketAddr,
    arrivals: mpsc::UnboundedReceiver<String>,
}

/// What [`Echo`] tells when a connection to it has ended.
const CLOSED: &str = "closed";

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, arrivals) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let arrived = arrived.clone();
                tokio::spawn(async move {
                    while let Ok(Some(head)) = read_head(&mut stream).await {
                        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        arrived.send(path.clone()).unwrap();
                        let length = path.len();
                        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}");
                        if stream.write_all(reply.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                    _ = arrived.send(CLOSED.to_owned());
                });
            }
        });
        Self { address, arrivals }
    }

    async fn arrival(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.arrivals.recv()).await.expect("nothing arrived").unwrap()
    }
}

/// A connection of a client to the proxy.
struct Client {
    stream: TcpStream,
}

impl Client {
    async fn connect(proxy: &FaultProxy) -> Self {
        Self { stream: TcpStream::connect(proxy.address()).await.unwrap() }
    }

    async fn send(&mut self, path: &str) {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: echo\r\n\r\n").as_bytes()).await.unwrap();
    }

    /// The body of the next reply; `None` when the connection was closed instead.
    async fn reply(&mut self) -> io::Result<Option<String>> {
        let Some(head) = tokio::time::timeout(PATIENCE, read_head(&mut self.stream)).await.expect("no reply")? else {
            return Ok(None);
        };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(Some(String::from_utf8(body).unwrap()))
    }

    async fn ask(&mut self, path: &str) -> io::Result<Option<String>> {
        self.send(path).await;
        self.reply().await
    }

    /// Whether nothing comes for a while, no reply and no end.
    async fn is_left_waiting(&mut self) -> bool {
        tokio::time::timeout(A_WHILE, self.stream.read_u8()).await.is_err()
    }
}

async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(String::from_utf8(head).unwrap()))
}

async fn bench() -> (Echo, FaultProxy, Client) {
    let echo = Echo::start().await;
    let proxy = FaultProxy::start(echo.address).await.unwrap();
    let client = Client::connect(&proxy).await;
    (echo, proxy, client)
}

const PATIENCE: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn an_undisturbed_request_is_answered_and_counted() {
    let (mut echo, proxy, mut client) = bench().await;
    for path in ["/one", "/two"] {
        assert_eq!(client.ask(path).await.unwrap().as_deref(), Some(path));
        assert_eq!(echo.arrival().await, path);
    }
    assert_eq!(proxy.count(&Matching::any().path("/t")), 1);
}

#[tokio::test]
async fn only_the_next_request_that_matches_is_spoilt() {
    let (mut echo, proxy, mut client) = bench().await;
    proxy.next(Matching::any().path("/refused"), Fault::Answer(500, "no".to_owned()));
    assert_eq!(client.ask("/other").await.unwrap().as_deref(), Some("/other"));
    assert_eq!(client.ask("/refused").await.unwrap().as_deref(), Some("no"));
    assert_eq!(client.ask("/refused").await.unwrap().as_deref(), Some("/refused"));
    assert_eq!((echo.arrival().await, echo.arrival().await), ("/other".to_owned(), "/refused".to_owned()));
}

#[tokio::test]
async fn a_dropped_request_never_arrives_and_a_dropped_reply_follows_one_that_did() {
    let (mut echo, proxy, mut client) = bench().await;
    proxy.next(Matching::any(), Fault::DropRequest);
    assert_eq!(client.ask("/lost").await.unwrap(), None);
    let mut client = Client::connect(&proxy).await;
    proxy.next(Matching::any(), Fault::DropResponse);
    assert_eq!(client.ask("/applied").await.unwrap(), None);
    assert_eq!(echo.arrival().await, "/applied");
}

#[tokio::test]
async fn a_reset_is_told_as_one() {
    let (_echo, proxy, mut client) = bench().await;
    proxy.next(Matching::any(), Fault::Reset);
    assert_eq!(client.ask("/lost").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_hung_request_has_arrived_and_is_never_answered() {
    let (mut echo, proxy, mut client) = bench().await;
    proxy.next(Matching::any(), Fault::Hang);
    client.send("/applied").await;
    assert_eq!(echo.arrival().await, "/applied");
    assert!(client.is_left_waiting().await);
}

#[tokio::test]
async fn a_held_request_arrives_as_often_as_it_is_delivered() {
    let (mut echo, proxy, mut client) = bench().await;
    let held = proxy.hold_next(Matching::any());
    client.send("/held").await;
    drop(client);
    for _ in 0..2 {
        assert_eq!(held.deliver(echo.address).await.unwrap(), (200, "/held".to_owned()));
        assert_eq!(echo.arrival().await, "/held");
        assert_eq!(echo.arrival().await, CLOSED);
    }
}

#[tokio::test]
async fn a_throttled_line_takes_as_long_as_its_bytes() {
    let (_echo, proxy, mut client) = bench().await;
    proxy.throttle(NonZeroU32::new(5_000));
    let path = format!("/{}", "x".repeat(1_000));
    let began = Instant::now();
    // The path goes there and comes back.
    assert_eq!(client.ask(&path).await.unwrap(), Some(path));
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    proxy.throttle(None);
    assert!(client.ask("/fast").await.unwrap().is_some());
}

#[tokio::test]
async fn a_half_open_connection_is_closed_for_the_server_only() {
    let (mut echo, proxy, mut client) = bench().await;
    client.ask("/before").await.unwrap();
    assert_eq!(echo.arrival().await, "/before");
    proxy.half_open();
    assert_eq!(echo.arrival().await, CLOSED);
    client.send("/lost").await;
    assert!(client.is_left_waiting().await);
    let mut fresh = Client::connect(&proxy).await;
    assert_eq!(fresh.ask("/after").await.unwrap().as_deref(), Some("/after"));
    assert_eq!(echo.arrival().await, "/after", "what was sent on the half-open one is lost");
}

#[tokio::test]
async fn connections_are_reset_while_they_wait_and_new_ones_are_served() {
    let (mut echo, proxy, mut client) = bench().await;
    client.ask("/before").await.unwrap();
    assert_eq!(echo.arrival().await, "/before");
    proxy.reset_connections();
    assert_eq!(client.reply().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(echo.arrival().await, CLOSED);
    let mut fresh = Client::connect(&proxy).await;
    assert_eq!(fresh.ask("/after").await.unwrap().as_deref(), Some("/after"));
}

#[tokio::test]
async fn a_black_hole_for_replies_lets_requests_arrive() {
    let (mut echo, proxy, mut client) = bench().await;
    proxy.black_hole(Direction::Replies, true);
    client.send("/applied").await;
    assert_eq!(echo.arrival().await, "/applied");
    assert!(client.is_left_waiting().await);
    proxy.black_hole(Direction::Replies, false);
    assert_eq!(client.reply().await.unwrap().as_deref(), Some("/applied"));
}

#[tokio::test]
async fn a_request_in_a_black_hole_arrives_late_although_its_client_has_given_up() {
    let (mut echo, proxy, mut client) = bench().await;
    proxy.black_hole(Direction::Requests, true);
    client.send("/late").await;
    assert!(client.is_left_waiting().await);
    assert!(echo.arrivals.try_recv().is_err());
    drop(client);
    proxy.black_hole(Direction::Requests, false);
    assert_eq!(echo.arrival().await, "/late");
}
