//! Fair mode on a real Consul: what a handover costs, who is next, and who else may lock the key.
#![allow(missing_docs)]

mod fair_support;

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock_consul::{Behavior, ConfigError, Consul};
use dlock_core::{Claim, ErrorKind, Granted, Hint, Key, LockBackend, Mode, Place, Standing};
use dlock_testkit::proxy::{FaultProxy, Matching, Seen};
use dlock_testkit::servers::{ConsulAgent, http};
use fair_support::{LONG, claim, options, permit, process, process_with, raw, shared, within};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// Longer than a machine stands still, and far shorter than the waits and sessions that would end what nobody is told of.
const PATIENCE: Duration = Duration::from_secs(20);
/// Go's flags for a lock.
const GO_FLAGS: &str = "3304740253564472344";
/// A session as Go's client opens one.
async fn go_session(agent: &ConsulAgent) -> String {
    let began = Instant::now();
    loop {
        let opened = raw(agent, "PUT", "/v1/session/create", r#"{"Name":"Consul API Lock","TTL":"600s"}"#).await;
        if let Some(id) = opened.split('"').nth(3) {
            return id.to_owned();
        }
        // It hangs on the health of its node, which a young agent has yet to tell.
        assert!(began.elapsed() < PATIENCE, "{opened}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What handing the key on costs through a line of so many waiting processes: all requests that are made, but for coming into line, and the most of them
/// that are made for one handover from the release on, but for waiting.
async fn requests_of_handovers(waiting: usize) -> (usize, usize) {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let holder = process(&proxy.address()).await;
    let first = claim("k", 1);
    holder.held(&first).await;
    proxy.reset();
    let (tell, mut told) = mpsc::unbounded_channel();
    let (mut tasks, mut tickets) = (tokio::task::JoinSet::new(), Vec::new());
    for n in 0..waiting {
        let (process, claim) = (process(&proxy.address()).await, claim("k", n as u128 + 2));
        let (tell, since) = (tell.clone(), process.waiting(&claim).await);
        tickets.push(process.ticket(&claim));
        tasks.spawn(async move {
            process.granted(&claim, since).await;
            let (go_on, gone_on) = oneshot::channel();
            tell.send((n, go_on)).unwrap();
            // Whoever is told to hands the key on.
            if gone_on.await.is_ok() {
                process.released(&claim).await;
            }
        });
        // Everybody waits for a predecessor, and for the end of his own ticket.
        within(PATIENCE, "it waits", async || proxy.open_requests() == 2 * (n + 1)).await;
    }
    let asked = || proxy.count(&Matching::any().method("PUT"));
    let mut before = asked();
    let mut most = 0;
    holder.released(&first).await;
    for expected in 0..waiting {
        let (n, go_on) = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        assert_eq!(n, expected, "first come, first served");
        most = most.max(asked() - before);
        if expected + 1 < waiting {
            // Its own wait for the ticket, that of the next, and that of the next once it heard that it is.
            let of_ticket = format!("/v1/kv/{}", tickets[n]);
            let waits = || waits(&proxy.requests()).filter(|wait| wait.starts_with(&of_ticket)).collect::<HashSet<_>>().len();
            within(PATIENCE, "the next waits anew", async || waits() == 3).await;
            before = asked();
            go_on.send(()).unwrap();
        }
    }
    let requests = proxy.requests();
    tasks.join_all().await;
    let comes = |seen: &Seen| seen.path.starts_with("/v1/session/create") || seen.body.contains("/.dlock-undone/");
    let others = requests.iter().filter(|seen| !comes(seen) && !seen.path.contains("&wait=")).count();
    (others + waits(&requests).collect::<HashSet<_>>().len(), most)
}

/// What is waited for, and since when. Whoever hears no news for a while asks for the same again, which counts as one.
fn waits(requests: &[Seen]) -> impl Iterator<Item = String> {
    requests.iter().filter_map(|seen| seen.path.split_once("&wait=")).map(|(wait, _)| wait.to_owned())
}

#[tokio::test]
async fn a_handover_costs_the_release_and_a_lock_however_many_wait_and_two_or_three_waits() {
    assert_eq!(requests_of_handovers(1).await, (4, 2));
    assert_eq!(requests_of_handovers(100).await, (4 + 5 * 99, 2));
}

#[tokio::test]
async fn a_handover_to_one_that_shares_costs_five_requests() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let [holder, next] = [process(&proxy.address()).await, process(&proxy.address()).await];
    for waiting in [shared("k", 2), permit("k", 3, 2)] {
        holder.held(&claim("k", 1)).await;
        let since = next.waiting(&waiting).await;
        proxy.reset();
        tokio::join!(next.granted(&waiting, since), async {
            within(PATIENCE, "it waits", async || proxy.open_requests() == 2).await;
            holder.released(&claim("k", 1)).await;
        });
        assert_eq!(proxy.requests().len(), 5, "{:?}", proxy.requests());
        next.released(&waiting).await;
    }
}

#[tokio::test]
async fn whoever_is_alone_takes_two_requests_to_come_and_one_to_go() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let process = process(&proxy.address()).await;
    for (n, beyond) in [(1, 1), (2, 0), (3, 0)] {
        proxy.reset();
        assert!(matches!(process.claim(&claim("k", n), Place::Queue).await, Standing::Held { .. }));
        process.released(&claim("k", n)).await;
        // The first time it turns out that the key is not there yet.
        assert_eq!(proxy.requests().len(), 3 + beyond, "{:?}", proxy.requests());
    }
}

#[tokio::test]
async fn fifty_claims_are_granted_in_the_order_they_arrived() {
    let agent = ConsulAgent::start().await.unwrap();
    let holder = process(&agent.address()).await;
    holder.held(&claim("k", 1)).await;
    let processes = [process(&agent.address()).await, process(&agent.address()).await, process(&agent.address()).await];
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (process, claim, tell) = (processes[n % 3].clone(), claim("k", n as u128 + 2), tell.clone());
        let since = process.waiting(&claim).await;
        tasks.spawn(async move {
            let token = process.granted(&claim, since).await;
            tell.send((n, token)).unwrap();
            process.released(&claim).await;
        });
    }
    holder.released(&claim("k", 1)).await;
    timeout(Duration::from_secs(60), tasks.join_all()).await.unwrap();
    drop(tell);
    let mut grants = Vec::new();
    while let Some(grant) = told.recv().await {
        grants.push(grant);
    }
    assert_eq!(grants.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert!(grants.is_sorted_by_key(|(_, token)| *token), "{grants:?}");
}

#[tokio::test]
async fn a_killed_holder_frees_the_line_within_two_ttls() {
    let agent = ConsulAgent::start().await.unwrap();
    let (ttl, fair) = (Duration::from_secs(2), options(&agent.address().to_string()).fair(true));
    let waiter = process(&agent.address()).await;
    for mode in [Mode::Exclusive, Mode::Shared] {
        let began = Instant::now();
        let silent = process_with(fair.clone(), ttl).await;
        silent.held(&Claim { mode, ..claim("k", 1) }).await;
        let waiting = claim("k", 2);
        let since = waiter.waiting(&waiting).await;
        timeout(ttl * 2 + PATIENCE, waiter.granted(&waiting, since)).await.expect("the line must move");
        assert!(began.elapsed() >= ttl, "the session lives for its ttl");
        let left = raw(&agent, "GET", "/v1/kv/k/?keys", "").await;
        assert_eq!(left.matches("/.dlock/").count(), 1, "nothing is left of the dead: {left}");
        waiter.released(&waiting).await;
    }
}

#[tokio::test]
async fn a_killed_waiter_is_in_nobodys_way() {
    let agent = ConsulAgent::start().await.unwrap();
    let ttl = Duration::from_secs(3);
    let [holder, last] = [process(&agent.address()).await, process(&agent.address()).await];
    holder.held(&claim("k", 1)).await;
    let silent = process_with(options(&agent.address().to_string()).fair(true), ttl).await;
    silent.waiting(&claim("k", 2)).await;
    let since = last.waiting(&claim("k", 3)).await;
    let woken = timeout(ttl * 2 + PATIENCE, last.consul.wait(&last.session, &claim("k", 3), since)).await;
    assert_eq!(woken.expect("its ticket must go").unwrap().hint, Hint::MaybeFree);
    let standing = last.consul.confirm(&last.session, &claim("k", 3), since).await.unwrap();
    let Standing::Waiting { cursor, ahead: Some(1), .. } = standing else { panic!("{standing:?}") };
    holder.released(&claim("k", 1)).await;
    timeout(PATIENCE, last.granted(&claim("k", 3), cursor)).await.expect("it is next");
}

/// What Go's `api.Lock` does, over and over: it waits for the key by a blocking query, asks for it with all others, and counts its turns.
async fn locks_as_go_does(agent: &ConsulAgent, key: &str, inside: &AtomicU32, turns: &AtomicU32) {
    let session = go_session(agent).await;
    loop {
        let seen = http(agent.address(), "GET", &format!("/v1/kv/{key}"), &[], "").await.unwrap();
        if seen.body.contains("\"Session\"") {
            let index = seen.head.lines().find_map(|line| line.strip_prefix("X-Consul-Index: ")).unwrap().trim().to_owned();
            raw(agent, "GET", &format!("/v1/kv/{key}?index={index}&wait=1s"), "").await;
        }
        let acquire = format!("/v1/kv/{key}?acquire={session}&flags={GO_FLAGS}");
        if raw(agent, "PUT", &acquire, "").await.trim() != "true" {
            continue;
        }
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the key");
        sleep(Duration::from_millis(5)).await;
        inside.fetch_sub(1, Ordering::SeqCst);
        turns.fetch_add(1, Ordering::SeqCst);
        raw(agent, "PUT", &format!("/v1/kv/{key}?release={session}&flags={GO_FLAGS}"), "").await;
    }
}

#[tokio::test]
async fn ours_in_line_and_programs_in_go_never_overlap_and_ours_are_not_starved() {
    let agent = ConsulAgent::start().await.unwrap();
    let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
    let processes = [process(&agent.address()).await, process(&agent.address()).await, process(&agent.address()).await];
    let ours = async {
        let each = processes.iter().enumerate().map(async |(n, process)| {
            for turn in 0..10 {
                let claim = claim("k", (n * 100 + turn + 1) as u128);
                let before = turns.load(Ordering::SeqCst);
                process.acquired(&claim).await;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the key");
                let waited = turns.load(Ordering::SeqCst) - before;
                assert!(waited <= 100, "{waited} turns of others were waited for");
                sleep(Duration::from_millis(5)).await;
                inside.fetch_sub(1, Ordering::SeqCst);
                process.released(&claim).await;
            }
        });
        futures_util::future::join_all(each).await;
    };
    let theirs = async {
        tokio::join!(locks_as_go_does(&agent, "k", &inside, &turns), locks_as_go_does(&agent, "k", &inside, &turns));
    };
    tokio::select! {
        answer = timeout(Duration::from_secs(120), ours) => answer.expect("ours must come through"),
        () = theirs => unreachable!("they go on for ever"),
    }
    assert!(turns.load(Ordering::SeqCst) > 0, "they had their turns too");
}

#[tokio::test]
async fn a_go_program_keeps_the_whole_line_waiting_and_is_kept_out_by_its_first() {
    let agent = ConsulAgent::start().await.unwrap();
    let session = go_session(&agent).await;
    let acquire = format!("/v1/kv/k?acquire={session}&flags={GO_FLAGS}");
    let release = format!("/v1/kv/k?release={session}&flags={GO_FLAGS}");
    let [first, second] = [process(&agent.address()).await, process(&agent.address()).await];
    assert_eq!(raw(&agent, "PUT", &acquire, "theirs").await.trim(), "true");
    assert!(matches!(first.claim(&claim("k", 9), Place::Try).await, Standing::Busy { .. }));
    // Those who share look for it too.
    assert!(matches!(first.claim(&shared("k", 8), Place::Try).await, Standing::Busy { .. }));
    let since = [first.waiting(&claim("k", 1)).await, second.waiting(&claim("k", 2)).await];
    assert_eq!(raw(&agent, "PUT", &release, "theirs").await.trim(), "true");
    timeout(PATIENCE, first.granted(&claim("k", 1), since[0])).await.expect("it is next");
    assert_eq!(raw(&agent, "PUT", &acquire, "theirs").await.trim(), "false");
    first.released(&claim("k", 1)).await;
    timeout(PATIENCE, second.granted(&claim("k", 2), since[1])).await.expect("it is next");
    second.released(&claim("k", 2)).await;
    let left = raw(&agent, "GET", "/v1/kv/k", "").await;
    assert!(left.contains(GO_FLAGS), "Go refuses a key with other flags: {left}");
    assert_eq!(raw(&agent, "PUT", &acquire, "theirs").await.trim(), "true");
}

#[tokio::test]
async fn consuls_own_lock_command_and_our_line_never_overlap() {
    let agent = ConsulAgent::start().await.unwrap();
    let [first, second] = [process(&agent.address()).await, process(&agent.address()).await];
    let folder = tempfile::tempdir().unwrap();
    // While the second is there, theirs does not end.
    let (marker, stay) = (folder.path().join("held"), folder.path().join("stay"));
    let touch = format!("echo held > {0}; sleep 1; while [ -e {1} ]; do sleep 0.1; done; rm {0}", marker.display(), stay.display());
    let lock = || agent.command().args(["lock", "jobs", &touch]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let contends = async || raw(&agent, "GET", "/v1/session/list", "").await.contains("Consul lock for");

    // Ours hold it, and one more is in line: theirs waits.
    let ours = [claim("jobs/.lock", 1), claim("jobs/.lock", 2)];
    first.held(&ours[0]).await;
    let since = second.waiting(&ours[1]).await;
    let mut theirs = lock();
    within(PATIENCE, "theirs contends", contends).await;
    // However the two race for it now, one at a time has it.
    first.released(&ours[0]).await;
    timeout(PATIENCE, second.granted(&ours[1], since)).await.expect("ours comes through");
    assert!(!marker.exists(), "both hold it");
    second.released(&ours[1]).await;
    assert!(theirs.wait().unwrap().success());

    // Theirs holds it: ours waits in line until it is done.
    std::fs::write(&stay, "").unwrap();
    let mut theirs = lock();
    within(PATIENCE, "theirs holds it", async || marker.exists()).await;
    let later = claim("jobs/.lock", 3);
    let since = first.waiting(&later).await;
    let granted = async {
        timeout(PATIENCE, first.granted(&later, since)).await.expect("ours comes through");
        assert!(!marker.exists(), "both hold it");
    };
    let ends = async {
        sleep(Duration::from_secs(1)).await;
        std::fs::remove_file(&stay).unwrap();
    };
    tokio::join!(granted, ends);
    assert!(theirs.wait().unwrap().success());
    first.released(&later).await;
}

#[tokio::test]
async fn clients_without_tickets_exclude_ours_and_see_no_tickets() {
    let agent = ConsulAgent::start().await.unwrap();
    let address = agent.address().to_string();
    let (fair, plain) = (process(&address).await, process_with(options(&address), LONG).await);
    fair.held(&claim("a/k", 1)).await;
    assert!(matches!(plain.claim(&claim("a/k", 2), Place::Try).await, Standing::Busy { .. }));
    let keys = |listed: Vec<(Key, _)>| listed.into_iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys(plain.consul.list("a/").await.unwrap()), ["a/k"]);
    fair.released(&claim("a/k", 1)).await;
    plain.held(&claim("a/k", 3)).await;
    let since = fair.waiting(&claim("a/k", 4)).await;
    assert_eq!(keys(fair.consul.list("a/").await.unwrap()), ["a/k"]);
    plain.released(&claim("a/k", 3)).await;
    fair.granted(&claim("a/k", 4), since).await;
}

#[tokio::test]
async fn locks_below_one_another_do_not_block_one_another() {
    let agent = ConsulAgent::start().await.unwrap();
    let process = process(&agent.address()).await;
    let names = ["a", "a/b", "a/.dlock", "a/.dlock/b", "a/.dlock-undone", "a/.dlock/.dlock"];
    for (n, name) in names.iter().enumerate() {
        process.held(&claim(name, n as u128 + 1)).await;
    }
    for name in names {
        assert_eq!(process.holders(name).await, 1, "{name}");
    }
    let listed = process.consul.list("a").await.unwrap();
    assert_eq!(listed.len(), names.len(), "{listed:?}");
    let waiting = claim("a", 20);
    let since = process.waiting(&waiting).await;
    process.released(&claim("a/.dlock", 3)).await;
    let woken = timeout(Duration::from_millis(300), process.consul.wait(&process.session, &waiting, since)).await;
    assert!(woken.is_err(), "another lock was released: {woken:?}");
    process.released(&claim("a", 1)).await;
    process.granted(&waiting, since).await;
}

#[tokio::test]
async fn tokens_grow_from_one_mode_to_another() {
    let agent = ConsulAgent::start().await.unwrap();
    let process = process(&agent.address()).await;
    let line = [claim("k", 1), claim("k", 2), shared("k", 3), permit("k", 4, 2), claim("k", 5)];
    let mut tokens = vec![process.held(&line[0]).await];
    let mut since = Vec::new();
    for waiting in &line[1..] {
        since.push(process.waiting(waiting).await);
    }
    for (n, waiting) in line[1..].iter().enumerate() {
        process.released(&line[n]).await;
        tokens.push(timeout(PATIENCE, process.granted(waiting, since[n])).await.expect("it is next"));
    }
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}

#[tokio::test]
async fn a_lock_of_the_key_that_arrives_after_the_release_has_no_effect() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let process = process(&proxy.address()).await;
    for (n, late) in [(1, claim("k", 1)), (2, shared("k", 2)), (3, claim("k", 3))] {
        let lock = match late.mode {
            Mode::Exclusive => Matching::any().body("\"check-index\"").body("\"lock\",\"Key\":\"k\""),
            _ => Matching::any().body(".s/\",\"Value\":\"eyJjbGFpbSI6IjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAyIi"),
        };
        // The first of a shared claim makes its ticket.
        let made = (late.mode != Mode::Exclusive).then(|| proxy.hold_next(lock.clone()));
        if let Some(made) = made {
            let claiming = process.consul.claim(&process.session, &late, Place::Queue);
            tokio::select! {
                answer = claiming => panic!("answered while under way: {answer:?}"),
                () = made.sent() => {}
            }
            made.deliver(agent.address()).await.unwrap();
        }
        let under_way = proxy.hold_next(lock);
        tokio::select! {
            answer = process.consul.claim(&process.session, &late, Place::Queue) => panic!("answered while under way: {answer:?}"),
            () = under_way.sent() => {}
        }
        process.released(&late).await;
        let (status, told) = under_way.deliver(agent.address()).await.unwrap();
        assert_eq!((status, process.holders("k").await), (409, 0), "{n}: {told}");
        let between = claim("k", 10 + n);
        process.held(&between).await;
        process.released(&between).await;
        assert_eq!(under_way.deliver(agent.address()).await.unwrap().0, 409);
        assert_eq!(process.holders("k").await, 0);
    }
}

#[tokio::test]
async fn a_lock_whose_reply_was_lost_is_given_back() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let process = process(&proxy.address()).await;
    let lost = Matching::any().body("\"lock\",\"Key\":\"k\"");
    proxy.next(lost, dlock_testkit::proxy::Fault::DropResponse);
    let error = process.consul.claim(&process.session, &claim("k", 1), Place::Queue).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert_eq!(process.holders("k").await, 1);
    process.released(&claim("k", 1)).await;
    assert_eq!(process.holders("k").await, 0);
    assert!(!raw(&agent, "GET", "/v1/kv/k/?keys", "").await.contains("/.dlock/"));
}

#[tokio::test]
async fn the_delay_after_a_dead_holder_is_kept_by_those_who_share_too() {
    let agent = ConsulAgent::start().await.unwrap();
    let body = r#"{"TTL":"60s","NodeChecks":[],"LockDelay":"5s"}"#;
    let opened = raw(&agent, "PUT", "/v1/session/create", body).await;
    let foreign = opened.split('"').nth(3).unwrap();
    raw(&agent, "PUT", &format!("/v1/kv/k?acquire={foreign}&flags={GO_FLAGS}"), "").await;
    let process = process(&agent.address()).await;
    let since = process.waiting(&claim("k", 1)).await;
    raw(&agent, "PUT", &format!("/v1/session/destroy/{foreign}"), "").await;
    for late in [claim("k", 2), shared("k", 3), permit("k", 4, 2)] {
        // Nobody overtakes the one in line.
        assert!(matches!(process.claim(&late, Place::Try).await, Standing::Busy { .. }));
    }
    let delayed = process.consul.confirm(&process.session, &claim("k", 1), since).await.unwrap();
    assert!(matches!(delayed, Standing::Delayed { .. }), "{delayed:?}");
    process.released(&claim("k", 1)).await;
    for late in [shared("k", 5), permit("k", 6, 2)] {
        let delayed = process.claim(&late, Place::Try).await;
        assert!(matches!(delayed, Standing::Delayed { .. }), "{delayed:?}");
    }
    assert!(!raw(&agent, "GET", "/v1/kv/k/?keys", "").await.contains("/.dlock/"), "a try leaves nothing");
    within(PATIENCE, "the delay ends", async || matches!(process.claim(&shared("k", 7), Place::Try).await, Standing::Held { .. }))
        .await;
}

// On one thread what was answered is nearly always back before the next request needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_waiting_claims_stay_within_the_connections_allowed() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let holder = process(&agent.address()).await;
    let waiter = process_with(options(&proxy.address().to_string()).fair(true).max_connections(16), LONG).await;
    let mut waits = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (exclusive, permits) = (format!("k{n}"), format!("p{n}"));
        holder.held(&claim(&exclusive, n + 1)).await;
        let permitted = [permit(&permits, n + 100, 2), permit(&permits, n + 200, 2)];
        holder.held(&permitted[0]).await;
        holder.held(&permitted[1]).await;
        for waiting in [claim(&exclusive, n + 1_000), permit(&permits, n + 2_000, 2)] {
            let (waiter, since) = (waiter.clone(), waiter.waiting(&waiting).await);
            waits.spawn(async move { waiter.granted(&waiting, since).await });
        }
    }
    for n in 0..50 {
        holder.released(&claim(&format!("k{n}"), n + 1)).await;
        holder.released(&permit(&format!("p{n}"), n + 100 * (1 + n % 2), 2)).await;
    }
    timeout(PATIENCE, waits.join_all()).await.expect("all must be granted");
    assert!(proxy.most_connections() <= 16, "{}", proxy.most_connections());
}

#[tokio::test]
async fn what_fair_mode_has_not_is_not_declared_and_refused() {
    let agent = ConsulAgent::start().await.unwrap();
    let address = agent.address().to_string();
    let process = process(&address).await;
    let declared = process.consul.capabilities();
    assert_eq!((declared.shared, declared.permits, declared.claims_at_once), (true, true, None));
    assert_eq!(declared.limits.metadata_bytes, 16 * 1024);
    let checked = process_with(options(&address).fair(true).node_checks(["serfHealth"]), Duration::from_secs(15)).await;
    let refused = checked.consul.claim(&checked.session, &shared("k", 1), Place::Try).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    checked.held(&claim("k", 2)).await;
    let contradiction = Consul::new(options(&address).fair(true).behavior(Behavior::Release));
    assert!(matches!(contradiction, Err(ConfigError::FairRelease)));
}

#[tokio::test]
async fn a_ticket_that_is_released_by_force_is_made_anew_at_the_end_of_the_line() {
    let agent = ConsulAgent::start().await.unwrap();
    let process = process(&agent.address()).await;
    process.held(&claim("k", 1)).await;
    let (robbed, next) = (claim("k", 2), claim("k", 3));
    let (since, of_next) = (process.waiting(&robbed).await, process.waiting(&next).await);
    let ticket = format!("/v1/kv/k/.dlock/{}.{}/", process.session, robbed.id);
    raw(&agent, "PUT", &format!("{ticket}?release={}", process.session), "").await;
    let wait = process.consul.wait(&process.session, &robbed, since);
    assert_eq!(timeout(PATIENCE, wait).await.unwrap().unwrap().hint, Hint::ClaimGone);
    assert_eq!(process.consul.confirm(&process.session, &robbed, since).await.unwrap(), Standing::ClaimGone);
    let since = process.waiting(&robbed).await;
    process.released(&claim("k", 1)).await;
    timeout(PATIENCE, process.granted(&next, of_next)).await.expect("it is next");
    process.released(&next).await;
    timeout(PATIENCE, process.granted(&robbed, since)).await.expect("it is next");
    process.released(&robbed).await;
    assert!(!raw(&agent, "GET", "/v1/kv/k/?keys", "").await.contains("/.dlock/"));
}

#[tokio::test]
async fn a_ticket_that_is_taken_away_is_found_by_an_audit() {
    let agent = ConsulAgent::start().await.unwrap();
    let process = process(&agent.address()).await;
    let claim = Arc::new(claim("k", 1));
    let Standing::Held { token } = process.claim(&claim, Place::Try).await else { panic!("not held") };
    let granted = [Granted { claim: Arc::clone(&claim), token }];
    assert_eq!(process.consul.audit(&process.session, &granted).await.unwrap(), []);
    raw(&agent, "DELETE", "/v1/kv/k/.dlock/?recurse", "").await;
    assert_eq!(process.consul.audit(&process.session, &granted).await.unwrap().len(), 1);
    // The lock stands on the key until its holder gives it back: nobody else is let in before.
    assert!(matches!(process.claim(&self::claim("k", 2), Place::Try).await, Standing::Busy { .. }));
    process.released(&claim).await;
    process.held(&self::claim("k", 3)).await;
}

#[tokio::test]
async fn a_key_that_was_locked_unheard_is_found_although_the_ticket_was_taken_away() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let [holder, next] = [process(&agent.address()).await, process(&proxy.address()).await];
    holder.held(&claim("k", 1)).await;
    let waiting = claim("k", 2);
    let since = next.waiting(&waiting).await;
    proxy.next(Matching::any().body("\"lock\",\"Key\":\"k\""), dlock_testkit::proxy::Fault::DropResponse);
    holder.released(&claim("k", 1)).await;
    let wait = || timeout(PATIENCE, next.consul.wait(&next.session, &waiting, since));
    assert_eq!(wait().await.unwrap().unwrap().hint, Hint::MaybeFree);
    let error = next.consul.confirm(&next.session, &waiting, since).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    raw(&agent, "DELETE", "/v1/kv/k/.dlock/?recurse", "").await;
    // Not called gone, after which nobody would release the key.
    assert_eq!(wait().await.unwrap().unwrap().hint, Hint::MaybeFree);
    assert!(matches!(next.consul.confirm(&next.session, &waiting, since).await.unwrap(), Standing::Held { .. }));
    next.released(&waiting).await;
    assert_eq!(holder.holders("k").await, 0);
}
