//! One key, locked and unlocked; whoever waits asks for its change, and all of them wake.

use super::{Agent, By};
use crate::Outcome;

/// Takes keys by locking them.
pub struct Raw(Agent);

impl Raw {
    /// Opens the session at an agent.
    pub async fn connect(address: &str, by: By) -> Outcome<Self> {
        Ok(Self(Agent::connect(address, by).await?))
    }

    /// Ends its session, and what that still locks.
    pub async fn end(&self) -> Outcome<()> {
        self.0.end().await
    }

    /// Takes a key, and waits for it while another has it.
    pub async fn lock(&self, key: &str) -> Outcome<()> {
        let lock = format!("[{}]", self.0.operation("lock", key, &self.0.value));
        let mut index = None;
        while self.0.txn(lock.clone()).await?.is_none() {
            index = Some(self.free(key, index).await?);
        }
        Ok(())
    }

    /// Gives the key back.
    pub async fn unlock(&self, key: &str) -> Outcome<()> {
        let unlock = format!("[{}]", self.0.operation("unlock", key, ""));
        self.0.txn(unlock).await?.map(drop).ok_or_else(|| "a raw client of Consul lost its lock".into())
    }

    /// Returns when nobody has the key, with the index at which that was seen.
    async fn free(&self, key: &str, mut index: Option<u64>) -> Outcome<u64> {
        loop {
            let target = match index {
                Some(index) => format!("{key}?index={index}&wait=55s"),
                None => key.to_owned(),
            };
            let answer = self.0.wait(&target).await?;
            index = answer.index;
            if answer.entries()?.first().is_none_or(|entry| entry.session.is_none()) {
                return index.ok_or_else(|| "Consul told no index".into());
            }
        }
    }
}
