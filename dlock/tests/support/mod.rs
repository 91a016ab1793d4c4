//! What the tests of the locker share: stores, lockers, keys.
#![allow(dead_code, missing_docs)] // each test binary uses a part

pub mod plain;

use std::time::Duration;

use dlock::{Key, Locker};
use dlock_testkit::memory::Memory;

pub const TTL: Duration = Duration::from_secs(15);

pub fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// A store of each profile, with a locker on it.
pub fn stores() -> [(Memory, Locker); 2] {
    [Memory::queue(), Memory::slot()].map(|memory| {
        let locker = locker(&memory);
        (memory, locker)
    })
}

pub fn locker(memory: &Memory) -> Locker {
    Locker::builder(memory.clone()).ttl(TTL).name("test").build().unwrap()
}

/// Lets virtual time pass, so that everything that is due by then has happened.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
