//! One key, locked and unlocked by the very requests that dlock sends: each only as long as the key stands as it was left.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::{Agent, By};
use crate::Outcome;

/// Takes keys that nobody else takes.
pub struct Guarded {
    agent: Agent,
    /// The indices at which the keys stand.
    stands: Mutex<HashMap<String, u64>>,
}

/// What marks a key as a lock.
const FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

impl Guarded {
    /// Opens the session at an agent.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self { agent: Agent::connect(address, By::Reqwest).await?, stands: Mutex::default() })
    }

    /// Takes a free key.
    pub async fn lock(&self, key: &str) -> Outcome<()> {
        self.guarded("lock", key).await
    }

    /// Gives the key back.
    pub async fn unlock(&self, key: &str) -> Outcome<()> {
        self.guarded("unlock", key).await
    }

    async fn guarded(&self, verb: &str, key: &str) -> Outcome<()> {
        let known = self.stands().get(key).copied();
        let stands = match known {
            Some(index) => Some(index),
            None => self.agent.get(key).await?.entries()?.first().map(|entry| entry.modify_index),
        };
        let guard = match stands {
            Some(index) => format!(r#"{{"KV":{{"Verb":"check-index","Key":"{key}","Index":{index}}}}}"#),
            None => format!(r#"{{"KV":{{"Verb":"check-not-exists","Key":"{key}"}}}}"#),
        };
        let Agent { session, value, .. } = &self.agent;
        let change =
            format!(r#"{{"KV":{{"Verb":"{verb}","Key":"{key}","Value":"{value}","Flags":{FLAGS},"Session":"{session}"}}}}"#);
        let told = self.agent.txn(format!("[{guard},{change}]")).await?.ok_or("a raw client of Consul met another at its key")?;
        let told: Value = serde_json::from_slice(&told)?;
        let changed = told["Results"].as_array().and_then(|results| results.last());
        let index = changed.and_then(|changed| changed["KV"]["ModifyIndex"].as_u64()).ok_or("Consul told no index")?;
        self.stands().insert(key.to_owned(), index);
        Ok(())
    }

    fn stands(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
