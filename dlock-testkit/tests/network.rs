//! The store in memory over a network that a test decides about, in virtual time.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock_core::{Claim, ClaimId, Cursor, ErrorKind, Key, LockBackend, Mode, Place, Release, SessionId, SessionRequest, Standing};
use dlock_testkit::memory::{Call, ChangedBy, Homeward, Memory, Network, Observer, Outward, Profile, Route, Store};
use tokio::time::Instant;

/// Lets everything through at once but what it was told about; notes what arrives and what is answered.
#[derive(Debug, Default)]
struct Told {
    next: Mutex<VecDeque<(Outward, Homeward)>>,
    arrived: Mutex<Vec<u32>>,
    answered: Mutex<Vec<u32>>,
    homeward: Mutex<Vec<Homeward>>,
}

const AT_ONCE: (Outward, Homeward) = (Outward::After(Duration::ZERO), Homeward::After(Duration::ZERO));

impl Told {
    fn next(&self, request: Outward, reply: Homeward) {
        self.next.lock().unwrap().push_back((request, reply));
    }
}

impl Network for Told {
    fn leaves(&self, _: Call, _: &[&Claim]) -> Route {
        let (request, reply) = self.next.lock().unwrap().pop_front().unwrap_or(AT_ONCE);
        let mut homeward = self.homeward.lock().unwrap();
        homeward.push(reply);
        Route { number: homeward.len() as u32 - 1, request }
    }

    fn arrived(&self, number: u32) {
        self.arrived.lock().unwrap().push(number);
    }

    fn replies(&self, number: u32) -> Homeward {
        self.homeward.lock().unwrap()[number as usize]
    }

    fn answered(&self, number: u32) {
        self.answered.lock().unwrap().push(number);
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn key() -> Key {
    Key::new("k").unwrap()
}

fn claim(bits: u128) -> Claim {
    let (owner, acquired_at) = ("test".into(), "2026-01-01T00:00:00Z".into());
    Claim { id: ClaimId::from_bits(bits), key: key(), mode: Mode::Exclusive, owner, acquired_at, metadata: None }
}

async fn client(memory: &Memory, bits: u128) -> (Memory, Arc<Told>, SessionId) {
    let network = Arc::new(Told::default());
    let client = memory.over(network.clone());
    let request = SessionRequest { id: SessionId::from_bits(bits), ttl: Duration::from_secs(10), owner: "test".into() };
    let session = client.open(&request).await.unwrap();
    (client, network, session.id)
}

#[tokio::test(start_paused = true)]
async fn a_request_arrives_at_its_time_though_its_caller_gave_up() {
    for memory in [Memory::queue(), Memory::slot()] {
        let (client, network, session) = client(&memory, 1).await;
        network.next(Outward::After(ms(500)), Homeward::After(ms(1)));
        let claim = claim(7);
        let claiming = client.claim(&session, &claim, Place::Try);
        assert!(tokio::time::timeout(ms(100), claiming).await.is_err());
        assert_eq!((memory.control().under_way(), memory.control().claims()), (1, vec![]));
        tokio::time::sleep(ms(399)).await;
        assert_eq!(memory.control().claims(), []);
        tokio::time::sleep(ms(1)).await;
        assert_eq!((memory.control().under_way(), memory.control().claims().len()), (0, 1));
        assert_eq!(*network.answered.lock().unwrap(), [0], "only the session was heard of");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_awaits_still_wakes_those_who_wait_for_its_effect() {
    let memory = Memory::slot();
    let (holder, network, session) = client(&memory, 1).await;
    let held = claim(1);
    assert!(matches!(holder.claim(&session, &held, Place::Try).await.unwrap(), Standing::Held { .. }));
    let (waiter, _, other) = client(&memory, 2).await;
    let began = Instant::now();
    let waiting = tokio::spawn(async move { waiter.wait(&other, &claim(2), Cursor(1)).await });
    network.next(Outward::After(ms(300)), Homeward::Never);
    assert!(tokio::time::timeout(ms(10), holder.release(&session, &held)).await.is_err());
    waiting.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), ms(300));
}

#[tokio::test(start_paused = true)]
async fn a_late_copy_carries_the_guard_it_was_sent_with() {
    let memory = Memory::slot();
    let (client, network, session) = client(&memory, 1).await;
    network.next(Outward::Twice(ms(10), ms(1_000)), Homeward::After(ms(10)));
    let claim = claim(1);
    assert!(matches!(client.claim(&session, &claim, Place::Try).await.unwrap(), Standing::Held { .. }));
    assert_eq!(client.release(&session, &claim).await.unwrap(), Release::Released);
    tokio::time::sleep(ms(2_000)).await;
    assert_eq!(memory.control().claims(), [], "the second copy changed nothing");
    assert_eq!(*network.arrived.lock().unwrap(), [0, 1, 2, 1], "but it did arrive");
}

#[tokio::test(start_paused = true)]
async fn losses_and_refusals_are_told_as_decided() {
    let memory = Memory::queue();
    let (client, network, session) = client(&memory, 1).await;
    let claim = claim(1);
    network.next(Outward::Refused(ms(5), ErrorKind::Overloaded), Homeward::Never);
    let refused = client.claim(&session, &claim, Place::Try).await.unwrap_err();
    assert_eq!((refused.kind(), memory.control().claims().len()), (ErrorKind::Overloaded, 0));
    network.next(Outward::Never, Homeward::After(ms(1)));
    assert!(tokio::time::timeout(ms(100_000), client.renew(&session)).await.is_err());

    let (client, network, session) = self::client(&memory, 2).await;
    network.next(Outward::After(ms(5)), Homeward::Broken(ms(5)));
    let broken = client.claim(&session, &claim, Place::Try).await.unwrap_err();
    assert_eq!((broken.kind(), memory.control().claims().len()), (ErrorKind::Ambiguous, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_read_take_their_time_both_ways() {
    let memory = Memory::queue();
    let (client, network, session) = client(&memory, 1).await;
    let claim = claim(1);
    client.claim(&session, &claim, Place::Try).await.unwrap();
    network.next(Outward::After(ms(20)), Homeward::After(ms(30)));
    let began = Instant::now();
    client.wait(&session, &claim, Cursor(0)).await.unwrap();
    assert_eq!(began.elapsed(), ms(50));
}

#[tokio::test(start_paused = true)]
async fn a_fast_store_ends_sessions_early() {
    let memory = Memory::builder(Profile::Queue).lapses_after_percent(100).clock_fast_by(10_000).build();
    let (client, _, session) = client(&memory, 1).await;
    let began = Instant::now();
    client.disturbed(&session, None, None).await.unwrap();
    let lapsed = began.elapsed();
    assert!(lapsed > ms(9_890) && lapsed < ms(9_910), "{lapsed:?}");
}

/// What changed the store, and when.
#[derive(Debug)]
struct Seen(Instant, Mutex<Vec<(u128, ChangedBy)>>);

impl Observer for Seen {
    fn changed(&self, _: &Store, by: ChangedBy) {
        self.1.lock().unwrap().push((self.0.elapsed().as_millis(), by));
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_every_change_at_its_moment_while_time_is_kept() {
    let seen = Arc::new(Seen(Instant::now(), Mutex::default()));
    let memory = Memory::builder(Profile::Queue).lapses_after_percent(100).observer(seen.clone()).build();
    let control = memory.control();
    let time = tokio::spawn(async move { control.keep_time().await });
    let (client, network, session) = client(&memory, 1).await;
    network.next(Outward::After(ms(500)), Homeward::Never);
    assert!(tokio::time::timeout(ms(1), client.claim(&session, &claim(1), Place::Try)).await.is_err());
    tokio::time::sleep(ms(5_000)).await;
    memory.control().delete(&key());
    tokio::time::sleep(ms(20_000)).await;
    let changes = std::mem::take(&mut *seen.1.lock().unwrap());
    let (request, time_passed) = (ChangedBy::Request, ChangedBy::Time);
    assert_eq!(changes, [(0, request), (500, request), (5_001, ChangedBy::Operator), (10_000, time_passed)]);
    time.abort();
}
