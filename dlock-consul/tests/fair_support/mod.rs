//! What tests of fair mode on a real Consul share: processes with a session each, and their claims.
#![allow(dead_code, missing_docs)] // each test binary uses a part

use std::num::NonZeroU32;
use std::time::Duration;

use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{
    Claim, ClaimId, Cursor, Hint, Key, LockBackend, Mode, Place, Release, SessionId, SessionRequest, Standing, TtlRange,
};
use dlock_testkit::servers::{ConsulAgent, http};
use tokio::time::{Instant, sleep};

pub const LONG: Duration = Duration::from_secs(600);

/// One process: a client with a session.
#[derive(Clone, Debug)]
pub struct Process {
    pub consul: Consul,
    pub session: SessionId,
}

pub fn options(address: &str) -> ConsulOptions {
    let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    ConsulOptions::new().address(address).unwrap().ttl_range(ttl)
}

pub async fn process_with(options: ConsulOptions, ttl: Duration) -> Process {
    let consul = Consul::new(options).unwrap();
    let request = SessionRequest { id: SessionId::new("ignored"), ttl, owner: "host/1/test".into() };
    let session = consul.open(&request).await.unwrap().id;
    Process { consul, session }
}

pub async fn process(address: &impl ToString) -> Process {
    process_with(options(&address.to_string()).fair(true), LONG).await
}

pub fn claim(key: &str, id: u128) -> Claim {
    Claim {
        id: ClaimId::from_bits(id),
        key: Key::new(key).unwrap(),
        mode: Mode::Exclusive,
        owner: "host/1/test".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

pub fn shared(key: &str, id: u128) -> Claim {
    Claim { mode: Mode::Shared, ..claim(key, id) }
}

pub fn permit(key: &str, id: u128, all: u32) -> Claim {
    Claim { mode: Mode::Permits(NonZeroU32::new(all).unwrap()), ..claim(key, id) }
}

impl Process {
    pub async fn claim(&self, claim: &Claim, place: Place) -> Standing {
        self.consul.claim(&self.session, claim, place).await.unwrap()
    }

    pub async fn held(&self, claim: &Claim) -> u64 {
        match self.claim(claim, Place::Try).await {
            Standing::Held { token } => token.get(),
            other => panic!("not held: {other:?}"),
        }
    }

    pub async fn waiting(&self, claim: &Claim) -> Cursor {
        match self.claim(claim, Place::Queue).await {
            Standing::Waiting { cursor, .. } => cursor,
            other => panic!("not waiting: {other:?}"),
        }
    }

    /// Waits as core does until the claim, which keeps a place, holds its key; its token.
    pub async fn granted(&self, claim: &Claim, since: Cursor) -> u64 {
        let mut since = since;
        loop {
            let woken = self.consul.wait(&self.session, claim, since).await.unwrap();
            since = woken.cursor;
            if woken.hint != Hint::MaybeFree {
                assert!(matches!(woken.hint, Hint::StillHeld { .. }), "{woken:?}");
                continue;
            }
            match self.consul.confirm(&self.session, claim, since).await.unwrap() {
                Standing::Held { token } => return token.get(),
                Standing::Waiting { cursor, .. } => since = cursor,
                other => panic!("{other:?}"),
            }
        }
    }

    /// From the end of the line to the key.
    pub async fn acquired(&self, claim: &Claim) -> u64 {
        match self.claim(claim, Place::Queue).await {
            Standing::Held { token } => token.get(),
            Standing::Waiting { cursor, .. } => self.granted(claim, cursor).await,
            other => panic!("{other:?}"),
        }
    }

    /// The key that keeps the place of an exclusive claim.
    pub fn ticket(&self, claim: &Claim) -> String {
        format!("{}/.dlock/{}.{}/", claim.key, self.session, claim.id)
    }

    pub async fn released(&self, claim: &Claim) {
        assert_eq!(self.consul.release(&self.session, claim).await.unwrap(), Release::Released);
    }

    pub async fn holders(&self, key: &str) -> usize {
        self.consul.inspect(&Key::new(key).unwrap()).await.unwrap().holders.len()
    }
}

pub async fn raw(agent: &ConsulAgent, method: &str, path: &str, body: &str) -> String {
    http(agent.address(), method, path, &[], body).await.unwrap().body
}

pub async fn within(limit: Duration, what: &str, holds: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
