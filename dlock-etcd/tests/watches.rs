//! How held locks are watched on a real etcd: on one stream, however many they are and whoever drives it.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dlock_core::{
    BackendError, Claim, ClaimId, Cursor, Granted, Key, LockBackend, Mode, Place, SessionId, SessionRequest, Standing, TtlRange,
};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_testkit::proxy::FaultProxy;
use dlock_testkit::servers::EtcdServer;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(60);

/// A session that holds locks, and their watches.
struct Client {
    etcd: Etcd,
    session: SessionId,
    held: Vec<Granted>,
    watches: JoinSet<(usize, Result<Cursor, BackendError>)>,
}

impl Client {
    async fn holding(address: SocketAddr, locks: usize) -> Self {
        let range = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };
        let options = EtcdOptions::new().endpoints([address.to_string()]).unwrap().ttl_range(range);
        let etcd = Etcd::new(options).unwrap();
        let request = SessionRequest { id: SessionId::new("5eed"), ttl: TTL, owner: "host/1/test".into() };
        let session = etcd.open(&request).await.unwrap().id;
        let mut held = Vec::new();
        for place in 0..locks {
            let claim = Claim {
                id: ClaimId::from_bits(place as u128 + 1),
                key: key(place),
                mode: Mode::Exclusive,
                owner: "host/1/test".into(),
                acquired_at: "2026-01-01T00:00:00Z".into(),
                metadata: None,
            };
            let Standing::Held { token } = etcd.claim(&session, &claim, Place::Queue).await.unwrap() else {
                panic!("nobody else wants {}", claim.key);
            };
            held.push(Granted { claim: Arc::new(claim), token });
        }
        Self { etcd, session, held, watches: JoinSet::new() }
    }

    fn watch(&mut self, place: usize) -> AbortHandle {
        let (etcd, session, granted) = (self.etcd.clone(), self.session.clone(), self.held[place].clone());
        self.watches.spawn(async move { (place, etcd.disturbed(&session, Some(&granted), None).await) })
    }

    /// Watches all that are held.
    fn watch_all(&mut self) -> Vec<AbortHandle> {
        (0..self.held.len()).map(|place| self.watch(place)).collect()
    }

    /// The next watch that is over.
    async fn over(&mut self) -> (usize, Result<Cursor, BackendError>) {
        loop {
            match timeout(SOON, self.watches.join_next()).await.expect("a watch is over").unwrap() {
                Ok(over) => return over,
                Err(ended) => assert!(ended.is_cancelled(), "{ended}"),
            }
        }
    }
}

fn key(place: usize) -> Key {
    Key::new(format!("locks/{place:03}")).unwrap()
}

async fn delete(server: &EtcdServer, place: usize) {
    let gateway = server.gateway();
    for entry in gateway.entries(format!("{}/", key(place))).await.unwrap() {
        gateway.delete(&entry.key).await.unwrap();
    }
}

/// Waits until etcd has so many watches, on so many streams.
async fn watched(server: &EtcdServer, watches: usize, streams: usize) {
    let began = Instant::now();
    loop {
        let metrics = server.metrics().await.unwrap();
        let of = |what: &str| metrics.get(&format!("etcd_debugging_mvcc_{what}_total")).map(|count| *count as usize);
        let now = (of("watcher").unwrap(), of("watch_stream").unwrap());
        if now == (watches, streams) {
            return;
        }
        assert!(began.elapsed() < SOON, "{now:?} watches and streams");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many streams of watches the server has taken in.
async fn streams_opened(server: &EtcdServer) -> usize {
    let metrics = server.metrics().await.unwrap();
    let labels = "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
    metrics[&format!("grpc_server_started_total{{{labels}}}")] as usize
}

#[tokio::test]
async fn a_hundred_held_locks_are_watched_on_one_stream_and_each_hears_its_own() {
    let server = EtcdServer::start().await.unwrap();
    let mut client = Client::holding(server.address(), 100).await;
    client.watch_all();
    let (etcd, session) = (client.etcd.clone(), client.session.clone());
    client.watches.spawn(async move { (100, etcd.disturbed(&session, None, None).await) });
    watched(&server, 101, 1).await;
    for place in [37, 99] {
        delete(&server, place).await;
        let (told, heard) = client.over().await;
        assert_eq!(told, place);
        heard.unwrap();
    }
    watched(&server, 99, 1).await;
    // All of them hang on the session.
    let lease = server.gateway().entries("locks/").await.unwrap()[0].lease;
    server.gateway().revoke(lease).await.unwrap();
    for _ in 0..99 {
        client.over().await.1.unwrap();
    }
    watched(&server, 0, 0).await;
    assert_eq!(streams_opened(&server).await, 1);
}

#[tokio::test]
async fn the_turn_passes_when_whoever_drives_is_dropped() {
    let server = EtcdServer::start().await.unwrap();
    let mut client = Client::holding(server.address(), 5).await;
    let handles = client.watch_all();
    watched(&server, 5, 1).await;
    for (place, handle) in handles.into_iter().enumerate().take(4) {
        handle.abort();
        // Whoever drives next says that it is not wanted any more.
        watched(&server, 4 - place, 1).await;
    }
    let again = client.watch(0);
    watched(&server, 2, 1).await;
    delete(&server, 4).await;
    let (told, heard) = client.over().await;
    assert_eq!(told, 4);
    heard.unwrap();
    again.abort();
    watched(&server, 0, 0).await;
    assert_eq!(streams_opened(&server).await, 1);
}

#[tokio::test]
async fn a_watch_that_another_runtime_left_alone_keeps_nobody_from_hearing() {
    let server = EtcdServer::start().await.unwrap();
    let mut client = Client::holding(server.address(), 2).await;
    let elsewhere = std::thread::spawn({
        let (etcd, session, granted) = (client.etcd.clone(), client.session.clone(), client.held[0].clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.spawn(async move { etcd.disturbed(&session, Some(&granted), None).await });
            // It begins, and is never driven again.
            runtime.block_on(tokio::task::yield_now());
            runtime
        }
    });
    let elsewhere = elsewhere.join().unwrap();
    client.watch(1);
    delete(&server, 1).await;
    let (told, heard) = client.over().await;
    assert_eq!(told, 1);
    heard.unwrap();
    elsewhere.shutdown_background();
}

#[tokio::test]
async fn what_happens_while_the_connection_is_lost_is_heard_by_each() {
    let server = EtcdServer::start().await.unwrap();
    let proxy = FaultProxy::start_grpc(server.address()).await.unwrap();
    let mut client = Client::holding(proxy.address(), 20).await;
    client.watch_all();
    watched(&server, 20, 1).await;
    proxy.swallow(true);
    delete(&server, 7).await;
    proxy.reset_connections();
    proxy.swallow(false);
    // Whoever drives is told of the loss, and nobody else; it may be the one whose key is gone.
    let (mut lost, mut heard) = (0, false);
    while !heard {
        let (place, over) = client.over().await;
        if over.is_ok() {
            assert_eq!(place, 7);
            heard = true;
        } else {
            lost += 1;
            client.watch(place);
        }
    }
    watched(&server, 19, 1).await;
    assert!((1..20).contains(&lost), "{lost} were told of the loss");
    delete(&server, 8).await;
    let (told, heard) = client.over().await;
    assert_eq!(told, 8);
    heard.unwrap();
}

#[tokio::test]
async fn a_compaction_ends_no_watch() {
    let server = EtcdServer::start().await.unwrap();
    let proxy = FaultProxy::start_grpc(server.address()).await.unwrap();
    let mut client = Client::holding(proxy.address(), 3).await;
    client.watch_all();
    let (etcd, session) = (client.etcd.clone(), client.session.clone());
    client.watches.spawn(async move { (3, etcd.disturbed(&session, None, None).await) });
    watched(&server, 4, 1).await;
    let mut revision = 0;
    while revision <= client.held[2].token.get() + 10 {
        server.gateway().put("elsewhere", "x", 0).await.unwrap();
        let told = server.run(&["get", "nothing", "--write-out=json"]).unwrap();
        let (_, rest) = told.split_once("\"revision\":").unwrap();
        revision = rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
    }
    server.run(&["compact", &revision.to_string()]).unwrap();
    proxy.reset_connections();
    // Whoever drives is told of the lost connection, and asks again from where it was: before what was compacted.
    let (place, lost) = client.over().await;
    lost.unwrap_err();
    if place < 3 {
        client.watch(place);
    }
    watched(&server, 3 + usize::from(place < 3), 1).await;
    delete(&server, 1).await;
    let (told, heard) = client.over().await;
    assert_eq!(told, 1);
    heard.unwrap();
}

#[tokio::test]
async fn what_waits_for_the_news_of_a_held_lock_is_small() {
    let server = EtcdServer::start().await.unwrap();
    let client = Client::holding(server.address(), 1).await;
    let watch = client.etcd.disturbed(&client.session, Some(&client.held[0]), None);
    let bytes = size_of_val(&*watch);
    println!("the future of a watch takes {bytes} bytes");
    assert!(bytes <= 512, "{bytes}");
}
