//! The harness of the store in memory, and the shortest example of one.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, Ownership, SessionId};

use super::harness::{Harness, Hook, Hooked, Sent, UnderWay};
use super::line::Line;
use crate::memory::{Call, HeldRequest, Memory, OTHER_PERMITS, Outage};

/// A [`Memory`] under test; clients are behind lines of their own.
pub struct InMemory {
    name: &'static str,
    memory: Memory,
    lines: Mutex<Vec<Line>>,
}

impl InMemory {
    /// A harness on a [queue](Memory::queue).
    pub fn queue() -> Self {
        Self::new("memory, queue", Memory::queue())
    }

    /// A harness on a [line](Memory::line).
    pub fn line() -> Self {
        Self::new("memory, line", Memory::line())
    }

    /// A harness on a [slot](Memory::slot).
    pub fn slot() -> Self {
        Self::new("memory, slot", Memory::slot())
    }

    /// A harness on this store, under this name.
    pub fn new(name: &'static str, memory: Memory) -> Self {
        Self { name, memory, lines: Mutex::default() }
    }

    fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn call(sent: Sent) -> Call {
        match sent {
            Sent::Open => Call::Open,
            Sent::Renew => Call::Renew,
            Sent::Claim => Call::Claim,
            Sent::Release => Call::Release,
            Sent::Amend => Call::Amend,
        }
    }
}

#[async_trait]
impl Harness for InMemory {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        let line = Line::new(Arc::new(self.memory.clone()));
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
        Arc::new(line)
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

    /// The store is a value of this process: it ends with the process, and no other can reach it.
    fn missing_hooks_allowed(&self) -> &[Hook] {
        &[Hook::Restart, Hook::SecondProcess]
    }

    async fn heal(&self) {
        self.memory.control().outage(None);
        self.lines().iter().for_each(Line::heal);
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        assert!(self.memory.control().end_session(session), "there is no session {session}");
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Hooked {
        self.memory.control().delete(key);
        Ok(())
    }

    async fn release_by_force(&self, key: &Key) -> Hooked {
        assert!(self.memory.control().release_by_force(key), "nobody holds {key}");
        Ok(())
    }

    async fn put_foreign(&self, key: &Key, value: &str) -> Hooked {
        self.memory.control().put_foreign(key, value);
        Ok(())
    }

    async fn write_if(&self, ownership: &Ownership) -> Hooked<bool> {
        Ok(self.memory.control().owns(ownership))
    }

    async fn take_permits(&self, key: &Key, owner: &str, all: NonZeroU32) -> Hooked {
        self.memory.control().take_permits(key, owner, all);
        Ok(())
    }

    /// All of them: the store belongs to one case, and does not keep whose session is whose.
    async fn sessions(&self, _owner: &str) -> Hooked<usize> {
        let others = |session: &&SessionId| !session.as_str().starts_with(OTHER_PERMITS);
        Ok(self.memory.control().sessions().iter().filter(others).count())
    }

    fn lose_reply(&self, of: Sent) -> Hooked {
        self.memory.control().lose_reply_of_next(Self::call(of));
        Ok(())
    }

    fn hold(&self, what: Sent) -> Hooked<Box<dyn UnderWay>> {
        Ok(Box::new(Held(self.memory.control().hold_next(Self::call(what)))))
    }

    async fn cut(&self) -> Hooked {
        self.lines().iter().for_each(Line::cut);
        Ok(())
    }

    async fn fail(&self) -> Hooked {
        self.lines().iter().for_each(Line::fail);
        Ok(())
    }

    async fn freeze(&self) -> Hooked {
        self.memory.control().outage(Some(Outage::Hanging));
        Ok(())
    }
}

struct Held(HeldRequest);

#[async_trait]
impl UnderWay for Held {
    async fn sent(&self) {
        // Asleep in between, so that paused time goes on until somebody sends.
        while !self.0.is_under_way() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn deliver(&self) {
        self.0.deliver().expect("it was sent");
    }
}
