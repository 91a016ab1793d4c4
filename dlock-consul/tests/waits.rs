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

/// Who is ahead of the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    /// One that holds the key and stands in line before it.
    InLine,
    /// One that holds the key and knows of no line. It writes to the key, once, at this index.
    Writes(u64),
}

/// Shows the claim behind another. What is waited for stays as it is, but for the claim's own ticket if that is released by force at an index.
#[derive(Debug)]
struct Behind {
    ahead: Ahead,
    released_at: Option<u64>,
    waits: Mutex<Vec<String>>,
}

fn entry(name: &str, session: &str, created: u64, index: u64) -> String {
    let session = if session.is_empty() { String::new() } else { format!(r#","Session":"{session}""#) };
    format!(r#"{{"Key":"{name}","Flags":3304740253564472344,"Value":null,"CreateIndex":{created},"ModifyIndex":{index}{session}}}"#)
}

#[async_trait]
impl Transport for Behind {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        if request.method == Method::Put {
            let mut line = vec![entry("k", "other", 7, 7), entry(OWN, "s", 9, 9)];
            line.extend((self.ahead == Ahead::InLine).then(|| entry(BEFORE, "other", 5, 5)));
            let shown = line.into_iter().map(|entry| format!(r#"{{"KV":{entry}}}"#)).collect::<Vec<_>>().join(",");
            return Ok(Answer { status: 200, index: None, body: format!(r#"{{"Results":[{shown}],"Errors":null}}"#) });
        }
        let of_own = request.target.contains("/s.");
        let (_, rest) = request.target.split_once("index=").expect("it waits");
        let since: u64 = rest.split('&').next().and_then(|index| index.parse().ok()).expect("an index");
        self.waits.lock().unwrap().push(request.target);
        let shown = match (self.released_at, self.ahead) {
            (Some(released), _) if of_own && since < released => (released, entry(OWN, "", 9, released)),
            (_, Ahead::Writes(index)) if !of_own && since < index => (index, entry("k", "other", 7, index)),
            _ => return std::future::pending().await,
        };
        Ok(Answer { status: 200, index: Some(shown.0), body: format!("[{}]", shown.1) })
    }
}

/// What such a claim is told within so long, and the tickets that it asks for.
async fn waits(ahead: Ahead, released_at: Option<u64>, so_long: Duration) -> (Option<Hint>, Vec<String>) {
    let transport = Arc::new(Behind { ahead, released_at, waits: Mutex::default() });
    let known = Arc::clone(&transport) as Arc<dyn Transport>;
    let consul = Consul::with_transport(&ConsulOptions::new().fair(true), known);
    let (session, key) = (SessionId::new("s"), Key::new("k").unwrap());
    let (owner, acquired_at) = ("test".into(), "2026-01-01T00:00:00Z".into());
    let claim = Claim { id: ClaimId::from_bits(1), key, mode: Mode::Exclusive, owner, acquired_at, metadata: None };
    let standing = consul.claim(&session, &claim, Place::Queue).await.unwrap();
    let Standing::Waiting { mut cursor, .. } = standing else { panic!("{standing:?}") };
    let told = async {
        loop {
            let woken = consul.wait(&session, &claim, cursor).await.unwrap();
            match woken.hint {
                Hint::StillHeld { .. } => cursor = woken.cursor,
                hint => break hint,
            }
        }
    };
    let told = timeout(so_long, told).await.ok();
    let tickets = transport.waits.lock().unwrap().iter().map(|target| target["/v1/kv/".len()..].to_owned()).collect();
    (told, tickets)
}

fn of(ticket: &str, tickets: &[String]) -> usize {
    tickets.iter().filter(|asked| asked.starts_with(ticket)).count()
}

#[tokio::test(start_paused = true)]
async fn whose_turn_comes_soon_asks_for_the_ticket_before_its_own_alone() {
    for (so_long, watched) in [(249, 0), (251, 1), (10_000, 1)] {
        let (told, tickets) = waits(Ahead::InLine, None, Duration::from_millis(so_long)).await;
        assert_eq!(told, None);
        assert_eq!((of(BEFORE, &tickets), of(OWN, &tickets)), (1, watched), "{so_long} ms: {tickets:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whose_ticket_is_taken_away_hears_of_it_within_a_quarter_of_a_second() {
    // The key may have changed since, and is known as of a later index.
    for ahead in [Ahead::InLine, Ahead::Writes(11), Ahead::Writes(13)] {
        let (told, tickets) = waits(ahead, Some(12), Duration::from_millis(251)).await;
        assert_eq!(told, Some(Hint::ClaimGone), "{ahead:?}: {tickets:?}");
    }
}
