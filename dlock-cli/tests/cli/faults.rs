//! `dlock run` on Consul and etcd while things go wrong: the command, and all that came from it, is dead before another holder starts.

use std::path::Path;

use dlock_testkit::proxy::FaultProxy;
use dlock_testkit::servers::{ConsulAgent, EtcdServer};

use crate::support::{Folder, Running, kill, ticking};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The store stands still until the first holder has given up.
    StoreStopped,
    /// The first `dlock` stands still until another has the lock.
    DlockFrozen,
    DlockKilled,
    GuardianKilled,
    /// Nothing passes between the first `dlock` and the store.
    NetworkCut,
}

const FAULTS: [Fault; 5] = [Fault::StoreStopped, Fault::DlockFrozen, Fault::DlockKilled, Fault::GuardianKilled, Fault::NetworkCut];

enum Server {
    Consul(ConsulAgent),
    Etcd(EtcdServer),
}

impl Server {
    fn stop(&self, on: bool) {
        match (self, on) {
            (Self::Consul(server), true) => server.pause(),
            (Self::Consul(server), false) => server.resume(),
            (Self::Etcd(server), true) => server.pause(),
            (Self::Etcd(server), false) => server.resume(),
        }
        .unwrap();
    }

    fn url(&self) -> String {
        match self {
            Self::Consul(server) => server.url(),
            Self::Etcd(server) => server.url(),
        }
    }

    async fn proxy(&self) -> (FaultProxy, String) {
        match self {
            Self::Consul(server) => {
                let proxy = FaultProxy::start(server.address()).await.unwrap();
                let url = format!("consul://{}", proxy.address());
                (proxy, url)
            }
            Self::Etcd(server) => {
                let proxy = FaultProxy::start_grpc(server.address()).await.unwrap();
                let url = format!("etcd://{}", proxy.address());
                (proxy, url)
            }
        }
    }
}

fn run(folder: &Folder, name: &str, url: &str, ttl: &str, log: &Path) -> Running {
    let script = ticking(name, log);
    folder.start(name, &["--backend", url, "run", "--ttl", ttl, "--grace", "500ms", "k", "--", "sh", "-c", &script])
}

/// One fault: the first runs, the second waits, the fault, the second runs.
async fn comes_apart(server: Server, ttl: &str, fault: Fault) {
    let folder = Folder::new();
    let log = folder.log();
    let (proxy, url) = server.proxy().await;
    let mut first = run(&folder, "first", &url, ttl, &log.0);
    let (server, mut second, first) = tokio::task::spawn_blocking(move || {
        log.has(&["first-leader", "first-group", "first-stray"]);
        let mut second = run(&folder, "second", &server.url(), ttl_of(&server), &log.0);
        second.says("waiting for k");
        match fault {
            Fault::StoreStopped => {
                server.stop(true);
                assert_eq!(first.code(), Some(70), "{fault:?}: {}", first.err());
                server.stop(false);
            }
            Fault::DlockFrozen => first.signal("STOP"),
            Fault::DlockKilled => first.signal("KILL"),
            Fault::GuardianKilled => kill("KILL", first.guardian()),
            Fault::NetworkCut => proxy.swallow(true),
        }
        log.has(&["second-leader"]);
        if fault == Fault::DlockFrozen {
            first.signal("CONT");
        }
        log.goes_on("second-leader", 50);
        match fault {
            Fault::DlockKilled => assert_eq!(first.signal_of_end(), Some(9)),
            _ => assert_eq!(first.code(), Some(70), "{fault:?}: {}", first.err()),
        }
        log.goes_on("second-leader", 50);
        log.apart("first", "second");
        // It does not hear TERM itself; all of it ends with its dlock.
        second.signal("KILL");
        second.ended();
        (server, second, first)
    })
    .await
    .unwrap();
    drop((server, &mut second, first));
}

/// Short, so that a test need not wait long, and long enough for a machine that is busy with all of them.
fn ttl_of(server: &Server) -> &'static str {
    match server {
        Server::Consul(_) => "10s",
        Server::Etcd(_) => "6s",
    }
}

/// All at once, each with a store of its own: each waits for a store most of the time.
async fn all_come_apart(start: impl AsyncFn() -> Server) {
    let mut running = Vec::new();
    for fault in FAULTS {
        let server = start().await;
        let ttl = ttl_of(&server);
        running.push(tokio::spawn(comes_apart(server, ttl, fault)));
    }
    for one in running {
        one.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_consul_a_command_is_dead_before_another_starts_whatever_fails() {
    all_come_apart(async || Server::Consul(ConsulAgent::start().await.unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_etcd_a_command_is_dead_before_another_starts_whatever_fails() {
    all_come_apart(async || Server::Etcd(EtcdServer::start().await.unwrap())).await;
}
