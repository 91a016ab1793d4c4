//! The durations that Consul writes, and those that are written for it.

use std::time::Duration;

use dlock_consul::Answer;
use dlock_core::{Chance, Lease, LeaseEvent, LockBackend, Moment, Renewal, SessionId, SessionRequest};

use super::consul::{Told, at_once, ok};

/// The bytes as the ttl that a renewal grants, as the bounds that a refusal names, and as a ttl to ask for.
pub fn durations(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let granted = granted(&text);
    if let Some(ttl) = granted {
        assert!(!ttl.is_zero());
        let said = exactly(&text).expect("only what Go writes is read");
        let near = said / 1_000_000_000 + 1;
        assert!(ttl.as_nanos() <= said.saturating_add(near), "{text:?} is read as {ttl:?}: longer than it says");
        let most = u128::from(u64::MAX);
        assert!(ttl.as_nanos() + near >= said.min(most), "{text:?} is read as {ttl:?}: shorter than it says");
        a_lease_goes_on_with(ttl);
    }
    refused_with_bounds(&text);

    let mut number = [0; 8];
    for (place, byte) in number.iter_mut().zip(bytes) {
        *place = *byte;
    }
    // The longest that Consul accepts is a day.
    let ttl = Duration::from_nanos(u64::from_le_bytes(number) % 86_400_000_000_001);
    let written = asked_for(ttl);
    let read = self::granted(&written).unwrap_or_default();
    assert_eq!(read, ttl, "{written:?} is asked for");
}

/// The ttl of a renewal that Consul answers with this text.
fn granted(text: &str) -> Option<Duration> {
    let body = serde_json::json!([{ "ID": "s", "TTL": text }]).to_string();
    match at_once(Told::backend([ok(body)]).0.renew(&SessionId::new("s"))) {
        Ok(Renewal::Renewed { ttl }) => Some(ttl),
        Ok(Renewal::Gone) => panic!("a session that was shown is not gone"),
        Err(_) => None,
    }
}

/// The text in which a ttl is asked for.
fn asked_for(ttl: Duration) -> String {
    let (consul, told) = Told::backend([]);
    let request = SessionRequest { id: SessionId::new("ignored"), ttl, owner: "o".into() };
    assert!(at_once(consul.open(&request)).is_err(), "nobody answered");
    let body: serde_json::Value = serde_json::from_slice(&told.sent()[0].body).expect("a body is JSON");
    body["TTL"].as_str().expect("a ttl is text").to_owned()
}

fn refused_with_bounds(text: &str) {
    let body = format!("Invalid Session TTL '9000000000', must be between [{text}=24h0m0s]");
    let refused = Answer { status: 500, index: None, body };
    let request = SessionRequest { id: SessionId::new("ignored"), ttl: Duration::from_secs(9), owner: "o".into() };
    assert!(at_once(Told::backend([refused]).0.open(&request)).is_err());
}

/// A lease makes progress with whatever ttl the store grants.
fn a_lease_goes_on_with(ttl: Duration) {
    let mut lease = Lease::new(Duration::from_secs(15), 2);
    let at = |millis| Moment::from_origin(Duration::from_millis(millis));
    lease.step(LeaseEvent::Elapsed, at(1_000), Chance::MIDDLE);
    lease.step(LeaseEvent::Opened { ttl }, at(1_003), Chance::MIDDLE);
    lease.step(LeaseEvent::Elapsed, at(6_003), Chance::MIDDLE);
    lease.step(LeaseEvent::Renewed { ttl }, at(6_004), Chance::MIDDLE);
}

/// What a duration in Go's form says, in nanoseconds, in whole numbers.
fn exactly(text: &str) -> Option<u128> {
    let mut rest = text;
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (whole, part) = rest[..end].split_once('.').unwrap_or((&rest[..end], ""));
        if whole.len() + part.len() == 0 || part.contains('.') {
            return None;
        }
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit: u128 = match &rest[..end] {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[end..];
        let digits =
            |digits: &str| digits.bytes().fold(0_u128, |n, digit| n.saturating_mul(10).saturating_add((digit - b'0').into()));
        // Digits beyond the eighteenth are less than a nanosecond.
        let part = &part[..part.len().min(18)];
        let scale = 10_u128.pow(part.len() as u32);
        nanos = nanos.saturating_add(digits(whole).saturating_mul(unit)).saturating_add(digits(part) * unit / scale);
    }
    Some(nanos)
}
