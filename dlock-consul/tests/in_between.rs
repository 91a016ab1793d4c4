//! What stands between dlock and Consul, and answers in its place or takes headers away.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Answer, Consul, ConsulOptions, Request, Transport, TransportError};
use dlock_core::{Claim, ClaimId, ErrorKind, Key, LockBackend, Mode, Place, SessionId, Standing};

/// Gives these answers, one after the other.
#[derive(Debug)]
struct Script(Mutex<Vec<Answer>>);

#[async_trait]
impl Transport for Script {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        let mut answers = self.0.lock().unwrap();
        assert!(!answers.is_empty(), "{} was not expected", request.target);
        Ok(answers.remove(0))
    }
}

fn answer(status: u16, index: Option<u64>, body: &str) -> Answer {
    Answer { status, index, body: body.to_owned() }
}

#[tokio::test]
async fn a_404_of_a_proxy_is_not_taken_for_consuls_word() {
    let locked = r#"{"Results":[{"KV":{"Key":"a","Flags":3304740253564472344,"Value":null,"ModifyIndex":9}}],"Errors":null}"#;
    let script = vec![
        // The key is absent, and claimed.
        answer(404, Some(5), ""),
        answer(200, None, locked),
        // The release is not passed on; then the proxy has no route for a moment.
        answer(502, None, "Bad Gateway"),
        answer(404, None, "404 page not found"),
        answer(404, None, "404 page not found"),
    ];
    let consul = Consul::with_transport(&ConsulOptions::new(), Arc::new(Script(Mutex::new(script))));
    let (session, key) = (SessionId::new("s"), Key::new("a").unwrap());
    let (owner, acquired_at) = ("test".into(), "2026-01-01T00:00:00Z".into());
    let claim = Claim { id: ClaimId::from_bits(1), key, mode: Mode::Exclusive, owner, acquired_at, metadata: None };
    let standing = consul.claim(&session, &claim, Place::Try).await.unwrap();
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
    for attempt in ["not passed on", "no route"] {
        let released = consul.release(&session, &claim).await;
        assert!(released.as_ref().is_err_and(|error| error.kind().is_passing()), "{attempt}: {released:?}");
    }
    let renewed = consul.renew(&session).await;
    assert_eq!(renewed.unwrap_err().kind(), ErrorKind::Ambiguous);
}

/// Takes the index away from what it shows, and counts.
#[derive(Debug, Default)]
struct NoHeaders(AtomicUsize);

#[async_trait]
impl Transport for NoHeaders {
    async fn send(&self, _: Request) -> Result<Answer, TransportError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(answer(200, None, r#"[{"ID":"s","TTL":"15s"}]"#))
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_not_watched_in_a_hot_loop_without_an_index() {
    let transport = Arc::new(NoHeaders::default());
    let consul = Consul::with_transport(&ConsulOptions::new(), Arc::clone(&transport) as Arc<dyn Transport>);
    let disturbed = tokio::time::timeout(Duration::from_secs(1), consul.disturbed(&SessionId::new("s"), None, None)).await;
    disturbed.expect("it returns, so that its caller sets the pace").unwrap();
    assert_eq!(transport.0.load(Ordering::Relaxed), 1);
}

/// Shows the session at these indexes, one after the other, each when so much time is up; then at none.
#[derive(Debug)]
struct Shows(Mutex<VecDeque<(u64, Duration)>>);

#[async_trait]
impl Transport for Shows {
    async fn send(&self, _: Request) -> Result<Answer, TransportError> {
        let next = self.0.lock().unwrap().pop_front();
        let Some((index, after)) = next else { return std::future::pending().await };
        tokio::time::sleep(after).await;
        Ok(answer(200, Some(index), r#"[{"ID":"s","TTL":"15s"}]"#))
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_session_that_ran_out_while_others_came_and_went_is_no_disturbance() {
    let (at_once, ran_out) = (Duration::from_millis(1), Duration::from_secs(56));
    for (shown, disturbed) in [
        (vec![(10, at_once), (10, ran_out), (12, at_once), (12, ran_out), (15, at_once), (16, ran_out)], false),
        (vec![(10, at_once), (12, at_once), (13, at_once), (14, at_once)], false),
        (vec![(10, at_once), (9, ran_out)], true),
    ] {
        let transport = Arc::new(Shows(Mutex::new(shown.iter().copied().collect())));
        let consul = Consul::with_transport(&ConsulOptions::new(), Arc::clone(&transport) as Arc<dyn Transport>);
        let told = tokio::time::timeout(Duration::from_secs(600), consul.disturbed(&SessionId::new("s"), None, None)).await;
        assert_eq!(told.is_ok(), disturbed, "{shown:?}");
        assert!(transport.0.lock().unwrap().is_empty(), "{shown:?}");
    }
}

/// Shows the session at once, with an index that grows if others come and go; counts.
#[derive(Debug)]
struct NeverWaits {
    grows: bool,
    asked: AtomicU64,
}

#[async_trait]
impl Transport for NeverWaits {
    async fn send(&self, _: Request) -> Result<Answer, TransportError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(answer(200, Some(if self.grows { 10 + asked } else { 10 }), r#"[{"ID":"s","TTL":"15s"}]"#))
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_asked_for_twice_a_second_at_most() {
    for grows in [true, false] {
        let transport = Arc::new(NeverWaits { grows, asked: AtomicU64::new(0) });
        let consul = Consul::with_transport(&ConsulOptions::new(), Arc::clone(&transport) as Arc<dyn Transport>);
        let told = tokio::time::timeout(Duration::from_secs(10), consul.disturbed(&SessionId::new("s"), None, None)).await;
        assert!(told.is_err(), "nothing happened to it");
        assert!((18..=22).contains(&transport.asked.load(Ordering::Relaxed)), "{transport:?}");
    }
}
