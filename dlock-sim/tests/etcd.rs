//! The locker on a real etcd: what it costs, in which order it grants, and who else stands in the line.
#![allow(missing_docs)]

mod etcd_support;

use std::future::IntoFuture;
use std::process::Stdio;
use std::time::Duration;

use dlock::{Leader, LockError, LockGuard, Loss, Metadata, Published, ReleaseOutcome};
use dlock_testkit::servers::EtcdServer;
use etcd_support::{Calls, LONG, at, build, counted, line_of, locker, options, revision, within};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, timeout};

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(10);

async fn ready(server: &EtcdServer, ttl: Duration) -> dlock::Locker {
    let locker = locker(server, ttl);
    locker.ready(SOON).await.unwrap();
    locker
}

#[tokio::test]
async fn a_free_lock_and_its_release_cost_two_calls() {
    let server = EtcdServer::start().await.unwrap();
    let locker = ready(&server, LONG).await;
    for key in ["new", "new", "other"] {
        let before = Calls::of(&server).await;
        locker.lock(key).await.unwrap().release().await.unwrap();
        assert_eq!(before.since(&server).await, counted(&[("Txn", 2)]), "{key}");
    }
    let before = Calls::of(&server).await;
    locker.try_lock("tried").await.unwrap().unwrap().release().await.unwrap();
    assert_eq!(before.since(&server).await, counted(&[("Txn", 2)]));
    assert_eq!(server.run(&["get", "--prefix", "--keys-only", ""]).unwrap(), "", "nothing is left behind");
}

#[tokio::test]
async fn what_goes_to_and_fro_for_a_free_lock_is_a_few_names_and_one_value() {
    const KEY: &str = "billing/invoices/2026/00012345";
    /// The names of an entry and a tombstone, `KEY/LEASE.1` and `KEY`, NUL, `LEASE.CLAIM`.
    const NAMES: u64 = 2 * KEY.len() as u64 + 20 + 50;
    const PAIRS: u64 = 20;
    let server = EtcdServer::start().await.unwrap();
    let locker = ready(&server, LONG).await;
    let held = locker.lock(KEY).await.unwrap();
    let value = server.gateway().entries(format!("{KEY}/")).await.unwrap()[0].value.len() as u64;
    held.release().await.unwrap();
    let before = bytes(&server).await;
    for _ in 0..PAIRS {
        locker.lock(KEY).await.unwrap().release().await.unwrap();
    }
    let after = bytes(&server).await;
    let (asked, answered) = ((after.0 - before.0) / PAIRS, (after.1 - before.1) / PAIRS);
    // The claim names its entry twice, its tombstone and the bounds of the line once each; the release its entry twice.
    assert!(asked <= 3 * NAMES + value + 128, "{asked} bytes to etcd, of which the value has {value}");
    // Two heads, and that something was found, written and deleted: nothing of the line.
    assert!(answered <= 160, "{answered} bytes from etcd");
}

/// The bytes of all calls that the server has taken in and sent so far.
async fn bytes(server: &EtcdServer) -> (u64, u64) {
    let metrics = server.metrics().await.unwrap();
    let of = |way: &str| metrics[&format!("etcd_network_client_grpc_{way}_bytes_total")] as u64;
    (of("received"), of("sent"))
}

#[tokio::test]
async fn waiting_costs_a_claim_a_watch_and_a_look_however_many_wait() {
    for ahead in [0, 1, 20] {
        let server = EtcdServer::start().await.unwrap();
        let holder = ready(&server, LONG).await;
        let mut lockers = Vec::new();
        for _ in 0..=ahead {
            lockers.push(ready(&server, LONG).await);
        }
        let held = holder.lock("k").await.unwrap();
        let mut line = Vec::new();
        for (place, waiter) in lockers[..ahead].iter().enumerate() {
            line.push(tokio::spawn(waiter.lock("k").into_future()));
            line_of(&server, "k", place + 2).await;
        }
        // The holder watches its own key and its session after a while on one stream, each waiter its place.
        watched(&server, 1 + ahead as u64).await;
        let before = Calls::of(&server).await;
        let last = tokio::spawn(lockers[ahead].lock("k").into_future());
        watched(&server, 2 + ahead as u64).await;
        // Who holds the key is asked for apart where more are ahead than a look shows.
        let looks: &[_] = if ahead < 8 { &[] } else { &[("Range", 1)] };
        let asked = [looks, &[("Txn", 1), ("Watch", 1)]].concat();
        assert_eq!(before.since(&server).await, counted(&asked), "behind {ahead} others");

        // The release, and the look of the first in line: nobody else hears of it.
        let before = Calls::of(&server).await;
        held.release().await.unwrap();
        let next = if line.is_empty() { last } else { line.remove(0) };
        let next: LockGuard = next.await.unwrap().unwrap();
        assert_eq!(before.since(&server).await, counted(&[("Txn", 2)]), "with {ahead} others in line");
        drop(next);
    }
}

/// Waits until so many streams are open at the server.
async fn watched(server: &EtcdServer, streams: u64) {
    within(SOON, "watched", async || {
        let metrics = server.metrics().await.unwrap();
        let of = |what: &str| metrics.get(what).copied().unwrap_or(0.0) as u64;
        of("grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}")
            >= streams
    })
    .await;
}

#[tokio::test]
async fn a_try_at_a_taken_key_writes_nothing() {
    let server = EtcdServer::start().await.unwrap();
    let (holder, other) = (ready(&server, LONG).await, ready(&server, LONG).await);
    let _held = holder.lock("k").await.unwrap();
    let (before, calls) = (revision(&server), Calls::of(&server).await);
    for _ in 0..5 {
        assert!(other.try_lock("k").await.unwrap().is_none());
    }
    let tries = calls.since(&server).await;
    assert_eq!(tries.iter().find(|(method, _)| method == "Txn").map(|(_, count)| *count), Some(5), "{tries:?}");
    assert_eq!(revision(&server), before);
}

#[tokio::test]
async fn fifty_processes_are_granted_in_the_order_they_came() {
    let server = EtcdServer::start().await.unwrap();
    let first = ready(&server, LONG).await.lock("k").await.unwrap();
    let (granted, mut told) = tokio::sync::mpsc::unbounded_channel();
    for place in 0..50 {
        let (locker, granted) = (ready(&server, LONG).await, granted.clone());
        tokio::spawn(async move {
            let guard = locker.lock("k").await.unwrap();
            granted.send((place, guard.token())).unwrap();
            guard.release().await.unwrap();
        });
        line_of(&server, "k", place + 2).await;
    }
    let mut last = first.token();
    first.release().await.unwrap();
    for place in 0..50 {
        let (who, token) = timeout(SOON, told.recv()).await.unwrap().unwrap();
        assert_eq!(who, place);
        assert!(token > last, "{token:?} after {last:?}");
        last = token;
    }
}

#[tokio::test]
async fn whoever_deletes_the_holders_entry_is_told_of_at_once() {
    let server = EtcdServer::start().await.unwrap();
    let (holder, next) = (ready(&server, LONG).await, ready(&server, LONG).await);
    let held = holder.lock("k").await.unwrap();
    let waiting = tokio::spawn(next.lock("k").into_future());
    line_of(&server, "k", 2).await;
    // The holder's stream, and the waiter's.
    watched(&server, 2).await;
    let entry = server.gateway().entries("k/").await.unwrap().remove(0);
    server.run(&["del", std::str::from_utf8(&entry.key).unwrap()]).unwrap();
    let lost = timeout(SOON, held.lost()).await.unwrap();
    assert_eq!(lost, Loss::KeyDeleted);
    let theirs = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert!(theirs.token() > held.token());
}

#[tokio::test]
async fn a_waiter_whose_entry_is_deleted_goes_to_the_end_of_the_line() {
    let server = EtcdServer::start().await.unwrap();
    let lockers = [ready(&server, LONG).await, ready(&server, LONG).await, ready(&server, LONG).await];
    let held = lockers[0].lock("k").await.unwrap();
    let second = tokio::spawn(lockers[1].lock("k").into_future());
    line_of(&server, "k", 2).await;
    let third = tokio::spawn(lockers[2].lock("k").into_future());
    line_of(&server, "k", 3).await;
    let entry = server.gateway().entries("k/").await.unwrap().remove(1);
    server.gateway().delete(&entry.key).await.unwrap();
    within(SOON, "in line again", async || {
        let line = server.gateway().entries("k/").await.unwrap();
        line.len() == 3 && line[2].lease == entry.lease
    })
    .await;
    held.release().await.unwrap();
    let third = timeout(SOON, third).await.unwrap().unwrap().unwrap();
    assert!(!second.is_finished());
    third.release().await.unwrap();
    timeout(SOON, second).await.unwrap().unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn an_ended_session_is_the_reason_that_is_told() {
    let server = EtcdServer::start().await.unwrap();
    let locker = ready(&server, LONG).await;
    let held = locker.lock("k").await.unwrap();
    watched(&server, 1).await;
    let lease = server.gateway().entries("k/").await.unwrap()[0].lease;
    server.gateway().revoke(lease).await.unwrap();
    assert_eq!(timeout(SOON, held.lost()).await.unwrap(), Loss::SessionGone);
}

#[tokio::test]
async fn a_waiter_outlives_the_compaction_of_all_that_it_waits_for() {
    let server = EtcdServer::start().await.unwrap();
    let (holder, other) = (ready(&server, LONG).await, ready(&server, LONG).await);
    let held = holder.lock("k").await.unwrap();
    let waiting = tokio::spawn(other.lock("k").into_future());
    line_of(&server, "k", 2).await;
    for _ in 0..10 {
        server.gateway().put("elsewhere", "x", 0).await.unwrap();
    }
    server.run(&["compact", &revision(&server).to_string()]).unwrap();
    held.release().await.unwrap();
    timeout(SOON, waiting).await.unwrap().unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_dead_first_endpoint_costs_one_connect_limit_once() {
    let server = EtcdServer::start().await.unwrap();
    // One of them is silent, for nothing is routed there; the other refuses.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = dead.local_addr().unwrap().to_string();
    drop(dead);
    // Far from the limit of an attempt.
    let options = options(&["192.0.2.1:2379", &refused, &server.address().to_string()]);
    let locker = build(options.attempt_limit(Duration::from_secs(60)).unwrap(), LONG);
    let began = Instant::now();
    locker.lock("k").await.unwrap().release().await.unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // One limit each would be twenty seconds.
    let began = Instant::now();
    for _ in 0..20 {
        locker.lock("k").await.unwrap().release().await.unwrap();
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_told_apart() {
    let (one, other) = (EtcdServer::start().await.unwrap(), EtcdServer::start().await.unwrap());
    let mut one = one;
    let locker = at(&[&one.address().to_string(), &other.address().to_string()], LONG);
    locker.lock("k").await.unwrap().release().await.unwrap();
    one.kill().unwrap();
    let error = locker.lock("k").wait_at_most(Duration::from_secs(5)).await.unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    assert!(text.contains("different clusters"), "{text}");
}

#[tokio::test]
async fn tls_and_client_certificates_are_spoken() {
    let server = EtcdServer::builder().client_certificates().start().await.unwrap();
    let (certificate, key) = server.client_identity().unwrap();
    let endpoint = format!("https://localhost:{}", server.tls_address().port());
    let secured = options(&[&endpoint]).ca_certificate(server.ca_certificate().unwrap()).client_certificate(certificate, key);
    build(secured, LONG).lock("k").await.unwrap().release().await.unwrap();
    let without = options(&[&endpoint]).ca_certificate(server.ca_certificate().unwrap());
    let refused = build(without, LONG).lock("k").wait_at_most(Duration::from_secs(1)).await;
    assert!(refused.is_err(), "a client without a certificate is let in");
}

#[tokio::test]
async fn a_token_that_expires_is_replaced_while_waiting_and_holding() {
    let server = EtcdServer::builder().auth().auth_token_ttl(Duration::from_secs(1)).start().await.unwrap();
    server.add_user("locks", "pass", "locks/").unwrap();
    let user = || build(options(&[&server.address().to_string()]).user("locks", "pass"), Duration::from_secs(6));
    let (holder, waiter) = (user(), user());
    let held = holder.lock("locks/k").await.unwrap();
    let waiting = tokio::spawn(waiter.lock("locks/k").into_future());
    // Some renewals later every token has expired.
    tokio::time::sleep(Duration::from_secs(7)).await;
    held.check().unwrap();
    held.release().await.unwrap();
    timeout(SOON, waiting).await.unwrap().unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_missing_permission_and_a_wrong_password_are_told() {
    let server = EtcdServer::builder().auth().start().await.unwrap();
    server.add_user("locks", "pass", "locks/").unwrap();
    let user = |password: &str| build(options(&[&server.address().to_string()]).user("locks", password), LONG);
    let told = |error: LockError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    };
    let denied = told(user("pass").lock("other/k").await.unwrap_err());
    assert!(denied.contains("readwrite --prefix=true \"other/k\""), "{denied}");
    let wrong = told(user("secret").lock("locks/k").await.unwrap_err());
    assert!(wrong.contains("does not accept this user and password") && !wrong.contains("secret"), "{wrong}");
    let nobody = told(at(&[&server.address().to_string()], LONG).lock("locks/k").await.unwrap_err());
    assert!(nobody.contains("ETCDCTL_USER"), "{nobody}");
}

#[tokio::test]
async fn a_full_database_lets_holders_go_on_and_release() {
    let server = EtcdServer::builder().quota(256 * 1024).start().await.unwrap();
    let (holder, other) = (ready(&server, Duration::from_secs(6)).await, ready(&server, LONG).await);
    let held = holder.lock("k").await.unwrap();
    while server.gateway().put("filler", vec![b'x'; 64 * 1024], 0).await.is_ok() {}
    // Several renewals.
    tokio::time::sleep(Duration::from_secs(8)).await;
    held.check().unwrap();
    let error = other.lock("other").wait_at_most(Duration::from_secs(3)).await.unwrap_err();
    assert!(format!("{error:?}").contains("NOSPACE"), "{error:?}");
    assert!(matches!(held.release().await, Ok(ReleaseOutcome::Released)));
}

/// `etcdctl lock` or `etcdctl elect`; killed when dropped.
struct Theirs {
    child: Child,
    /// Open for as long as it lives: what cannot say what it has to say dies of it.
    said: Lines<BufReader<ChildStdout>>,
}

impl Theirs {
    /// Starts it, and returns when it is first in line.
    async fn lead(server: &EtcdServer, arguments: &[&str]) -> Self {
        let mut command = Command::from(server.command());
        let mut child = command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let entry = timeout(SOON, said.next_line()).await.unwrap().unwrap().unwrap();
        assert!(entry.starts_with("k/"), "{entry}");
        Self { child, said }
    }

    /// The next line that it says.
    async fn says(&mut self) -> String {
        timeout(SOON, self.said.next_line()).await.unwrap().unwrap().unwrap()
    }

    /// Ends it as Ctrl-C does: it deletes its entry.
    async fn interrupt(mut self) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        while let Some(_more) = self.said.next_line().await.unwrap() {}
        self.child.wait().await.unwrap();
    }
}

#[tokio::test]
async fn etcdctl_and_ours_stand_in_one_line() {
    for arguments in [&["lock", "--ttl=5", "k"][..], &["elect", "k", "value"][..]] {
        let server = EtcdServer::start().await.unwrap();
        let locker = ready(&server, LONG).await;
        // Theirs first: ours waits until it is gone.
        let theirs = Theirs::lead(&server, arguments).await;
        let holder = locker.inspect("k").await.unwrap().holders.remove(0);
        let theirs_token = holder.token.unwrap();
        let waiting = tokio::spawn(locker.lock("k").into_future());
        line_of(&server, "k", 2).await;
        assert!(locker.try_lock("k").await.unwrap().is_none());
        assert!(!waiting.is_finished());
        theirs.interrupt().await;
        let ours = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
        assert!(ours.token().unwrap() > theirs_token);
        // Ours first: theirs waits until it is given back.
        let next = Theirs::lead(&server, arguments);
        tokio::pin!(next);
        tokio::select! {
            _ = &mut next => panic!("theirs must wait"),
            () = line_of(&server, "k", 2) => {}
        }
        ours.release().await.unwrap();
        let _theirs = next.await;
    }
}

#[tokio::test]
async fn etcdctl_and_ours_observe_one_another() {
    let server = EtcdServer::start().await.unwrap();
    let locker = ready(&server, LONG).await;
    let mut leaders = locker.election("k").observe().unwrap();
    assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
    // What etcdctl leads with is no JSON object.
    let theirs = Theirs::lead(&server, &["elect", "k", "by hand"]).await;
    let told = timeout(SOON, leaders.next()).await.unwrap().unwrap();
    let holder = told.elected().unwrap();
    assert_eq!(holder.published, Published::Raw(b"by hand".to_vec()));
    let theirs_token = holder.token.unwrap();
    theirs.interrupt().await;
    assert!(matches!(timeout(SOON, leaders.next()).await.unwrap(), Some(Leader::Vacant)));
    // And theirs reads what ours proclaims.
    let term = locker.election("k").metadata("phase", "one").campaign().await.unwrap();
    let mut theirs = Theirs::lead(&server, &["elect", "--listen", "k"]).await;
    assert!(theirs.says().await.contains("\"phase\":\"one\""));
    let mut metadata = Metadata::new();
    metadata.insert("phase", "two").unwrap();
    term.proclaim(metadata).await.unwrap();
    assert!(theirs.says().await.starts_with("k/"));
    assert!(theirs.says().await.contains("\"phase\":\"two\""));
    // It did not look meanwhile: of both changes it is told at once.
    let told = timeout(SOON, leaders.next()).await.unwrap().unwrap();
    let read = told.elected().and_then(|holder| holder.published.metadata()?.get("phase"));
    assert_eq!(read, Some("two"));
    assert_eq!(told.token(), term.token());
    assert!(told.token().unwrap() > theirs_token);
}

#[tokio::test]
async fn nested_names_do_not_block_one_another() {
    let server = EtcdServer::start().await.unwrap();
    let locker = ready(&server, LONG).await;
    let _below = locker.lock("a/b").await.unwrap();
    // What a released claim of a longer name leaves behind.
    server.gateway().put("a/c\x007f.1", "", 0).await.unwrap();
    assert!(locker.inspect("a").await.unwrap().holders.is_empty());
    // More of them than are shown at once.
    let mut others = Vec::new();
    for n in 0..20 {
        others.push(locker.lock(format!("a/{n}")).await.unwrap());
    }
    let above = timeout(SOON, locker.lock("a").into_future()).await.unwrap().unwrap();
    let other = ready(&server, LONG).await;
    assert!(other.try_lock("a").await.unwrap().is_none());
    above.release().await.unwrap();
    let tried = other.try_lock("a").await.unwrap().expect("nobody holds it");
    let waiting = tokio::spawn(locker.lock("a").into_future());
    // With what was left behind.
    line_of(&server, "a", 24).await;
    assert!(!waiting.is_finished());
    tried.release().await.unwrap();
    timeout(SOON, waiting).await.unwrap().unwrap().unwrap().release().await.unwrap();
}
