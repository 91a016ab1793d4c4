//! What a claim that stands in line asks Consul for, and when.
#![allow(missing_docs)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Answer, Consul, ConsulOptions, Method, Request, Transport, TransportError};
use dlock_core::{Claim, ClaimId, Hint, Key, LockBackend, Mode, Place, SessionId, Standing};
use tokio::time::timeout;

const BEFORE: &str = "k/.dlock/other.0000000000000000000000000000000a/";
const OWN: &str = "k/.dlock/s.00000000000000000000000000000001/";

/// Shows the claim behind another. What is waited for stays as it is, but for its own ticket once that was taken away.
#[derive(Debug, Default)]
struct Behind {
    taken_away: bool,
    waits: Mutex<Vec<String>>,
}

fn entry(name: &str, session: &str, index: u64) -> String {
    format!(
        r#"{{"Key":"{name}","Flags":3304740253564472344,"Value":null,"CreateIndex":{index},"ModifyIndex":{index},"Session":"{session}"}}"#
    )
}

#[async_trait]
impl Transport for Behind {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        if request.method == Method::Put {
            let line = [entry("k", "other", 7), entry(BEFORE, "other", 5), entry(OWN, "s", 9)];
            let shown = line.map(|entry| format!(r#"{{"KV":{entry}}}"#)).join(",");
            return Ok(Answer { status: 200, index: None, body: format!(r#"{{"Results":[{shown}],"Errors":null}}"#) });
        }
        let of_own = request.target.contains("/s.");
        self.waits.lock().unwrap().push(request.target);
        if of_own && self.taken_away {
            return Ok(Answer { status: 404, index: Some(12), body: String::new() });
        }
        std::future::pending().await
    }
}

/// What such a claim is told within so long, and the tickets that it asks for.
async fn waits(taken_away: bool, so_long: Duration) -> (Option<Hint>, Vec<String>) {
    let transport = Arc::new(Behind { taken_away, waits: Mutex::default() });
    let known = Arc::clone(&transport) as Arc<dyn Transport>;
    let consul = Consul::with_transport(&ConsulOptions::new().fair(true), known);
    let (session, key) = (SessionId::new("s"), Key::new("k").unwrap());
    let (owner, acquired_at) = ("test".into(), "2026-01-01T00:00:00Z".into());
    let claim = Claim { id: ClaimId::from_bits(1), key, mode: Mode::Exclusive, owner, acquired_at, metadata: None };
    // Whether the key is there is guessed; it is.
    let standing = consul.claim(&session, &claim, Place::Queue).await.unwrap();
    let Standing::Waiting { cursor, .. } = standing else { panic!("{standing:?}") };
    let woken = timeout(so_long, consul.wait(&session, &claim, cursor)).await.ok();
    let tickets = transport.waits.lock().unwrap().iter().map(|target| target["/v1/kv/".len()..].to_owned()).collect();
    (woken.map(|woken| woken.unwrap().hint), tickets)
}

fn of(ticket: &str, tickets: &[String]) -> usize {
    tickets.iter().filter(|asked| asked.starts_with(ticket)).count()
}

#[tokio::test(start_paused = true)]
async fn whose_turn_comes_soon_asks_for_the_ticket_before_its_own_alone() {
    for (so_long, watched) in [(249, 0), (251, 1), (10_000, 1)] {
        let (told, tickets) = waits(false, Duration::from_millis(so_long)).await;
        assert_eq!(told, None);
        assert_eq!((of(BEFORE, &tickets), of(OWN, &tickets)), (1, watched), "{so_long} ms: {tickets:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whose_ticket_is_taken_away_hears_of_it_within_a_quarter_of_a_second() {
    let (told, tickets) = waits(true, Duration::from_millis(251)).await;
    assert_eq!(told, Some(Hint::ClaimGone), "{tickets:?}");
}
