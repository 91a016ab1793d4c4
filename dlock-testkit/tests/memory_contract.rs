//! The contract on the in-memory store, in virtual time.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, SessionId};
use dlock_testkit::contract::{Harness, Sent, UnderWay};
use dlock_testkit::memory::{Call, HeldRequest, Memory};

struct InMemory(Memory);

impl InMemory {
    fn call(sent: Sent) -> Call {
        match sent {
            Sent::Claim => Call::Claim,
            Sent::Release => Call::Release,
        }
    }
}

#[async_trait]
impl Harness for InMemory {
    async fn client(&self) -> Arc<dyn LockBackend> {
        Arc::new(self.0.clone())
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(15)
    }

    fn long_ttl(&self) -> Duration {
        Duration::from_secs(3600)
    }

    fn prompt(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn end_session(&self, session: &SessionId) {
        assert!(self.0.control().end_session(session));
    }

    async fn delete(&self, key: &Key) {
        self.0.control().delete(key);
    }

    async fn release_by_force(&self, key: &Key) {
        assert!(self.0.control().release_by_force(key));
    }

    async fn put_foreign(&self, key: &Key) {
        self.0.control().put_foreign(key, "data");
    }

    fn lose_reply(&self, of: Sent) {
        self.0.control().lose_reply_of_next(Self::call(of));
    }

    fn hold(&self, what: Sent) -> Box<dyn UnderWay> {
        Box::new(Held(self.0.control().hold_next(Self::call(what))))
    }
}

struct Held(HeldRequest);

#[async_trait]
impl UnderWay for Held {
    async fn sent(&self) {
        while !self.0.is_under_way() {
            tokio::task::yield_now().await;
        }
    }

    async fn deliver(&self) {
        self.0.deliver().expect("it was sent");
    }
}

mod queue {
    use super::*;

    dlock_testkit::contract! { #[tokio::test(start_paused = true)] InMemory(Memory::queue()) }
}

mod slot {
    use super::*;

    dlock_testkit::contract! { #[tokio::test(start_paused = true)] InMemory(Memory::slot()) }
}
