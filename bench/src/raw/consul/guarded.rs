//! One key, locked and unlocked by the very requests that dlock sends: each only as long as the key stands as it was left. Whoever waits asks for its change,
//! and all of them wake.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Agent, By, Results, check_index, check_not_exists};
use crate::Outcome;

/// Takes keys by locking them, each by one task at a time: Consul locks a key twice for the same session.
pub struct Guarded {
    agent: Agent,
    /// The indices at which the keys stand.
    stands: Mutex<HashMap<String, Option<u64>>>,
}

/// So often others may be faster.
const MOST: usize = 10_000;

impl Guarded {
    /// Opens the session at an agent.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self { agent: Agent::connect(address, By::Reqwest).await?, stands: Mutex::default() })
    }

    /// Ends its session, and what that still locks.
    pub async fn end(&self) -> Outcome<()> {
        self.agent.end().await
    }

    /// Takes a key, and waits for it while another has it.
    pub async fn lock(&self, key: &str) -> Outcome<()> {
        for _ in 0..MOST {
            if self.change("lock", key).await? {
                return Ok(());
            }
            let mut answer = self.agent.get(&format!("{key}?consistent")).await?;
            loop {
                let index = answer.index.ok_or("Consul told no index")?;
                match answer.entries()?.first() {
                    Some(entry) if entry.session.is_some() => {
                        answer = self.agent.wait(&format!("{key}?index={index}&wait=55s")).await?;
                    }
                    entry => break self.stood(key, entry.map(|entry| entry.modify_index)),
                }
            }
        }
        Err("a raw client of Consul is refused again and again".into())
    }

    /// Gives the key back.
    pub async fn unlock(&self, key: &str) -> Outcome<()> {
        if self.change("unlock", key).await? { Ok(()) } else { Err("a raw client of Consul lost its lock".into()) }
    }

    /// Whether the key stood as it was left, and was changed.
    async fn change(&self, verb: &str, key: &str) -> Outcome<bool> {
        let stands = self.stands().get(key).copied();
        let guard = stands.flatten().map_or_else(|| check_not_exists(key), |index| check_index(key, index));
        let Some(told) = self.agent.txn(format!("[{guard},{}]", self.agent.flagged(verb, key))).await? else { return Ok(false) };
        let Results { results } = serde_json::from_slice(&told)?;
        let changed = results.last().ok_or("Consul told nothing of the key")?;
        self.stood(key, Some(changed.entry.modify_index));
        Ok(true)
    }

    /// Keeps in mind how a key stands; it has no index where it is not there.
    fn stood(&self, key: &str, index: Option<u64>) {
        self.stands().insert(key.to_owned(), index);
    }

    fn stands(&self) -> MutexGuard<'_, HashMap<String, Option<u64>>> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
