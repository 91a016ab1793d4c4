//! A line of tickets before a key, a ticket for each contender, who locks the key once nobody is ahead: one transaction to enter and see who is, one to
//! lock, one to unlock and leave.
//!
//! Whoever waits asks for the end of the ticket before its own alone. If that was the only one, it locks the key then; otherwise it looks first how it
//! stands: a ticket ends with its session, too, so one further ahead may still be there, and its own may not.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use super::{Agent, By, Entry};
use crate::Outcome;

/// Takes keys by standing in line.
pub struct Line {
    agent: Agent,
    tickets: AtomicU64,
}

/// What stands between a key and the names of its tickets.
const LINE: &str = "/.line/";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Results {
    results: Vec<Shown>,
}

#[derive(Deserialize)]
struct Shown {
    #[serde(rename = "KV")]
    entry: Entry,
}

impl Line {
    /// Opens the session at an agent.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self { agent: Agent::connect(address, By::Reqwest).await?, tickets: AtomicU64::new(0) })
    }

    /// Takes a place in the line of a key, and locks it when it is the first; the ticket.
    pub async fn lock(&self, key: &str) -> Outcome<String> {
        let line = format!("{key}{LINE}");
        let ticket = format!("{line}{}.{}", self.agent.session, self.tickets.fetch_add(1, Ordering::Relaxed));
        let enter = self.agent.operation("lock", &ticket, &self.agent.value);
        let see = format!(r#"{{"KV":{{"Verb":"get-tree","Key":"{line}"}}}}"#);
        let seen = self.agent.txn(format!("[{enter},{see}]")).await?.ok_or("a raw client of Consul got no ticket")?;
        let Results { results } = serde_json::from_slice(&seen)?;
        let entered = results.first().ok_or("Consul told nothing of the ticket")?.entry.create_index;
        let mut ahead: Vec<Entry> =
            results.into_iter().map(|shown| shown.entry).filter(|other| other.create_index < entered).collect();
        ahead.sort_unstable_by_key(|other| other.create_index);
        while let Some(nearest) = ahead.pop() {
            self.gone(&nearest.key, entered).await?;
            if ahead.is_empty() {
                break;
            }
            let answer = self.agent.get(&format!("{line}?keys")).await?;
            let there: Vec<String> = serde_json::from_slice(&answer.body)?;
            if !there.contains(&ticket) {
                return Err("a raw client of Consul lost its ticket".into());
            }
            ahead.retain(|other| there.contains(&other.key));
        }
        let lock = format!("[{}]", self.agent.operation("lock", key, &self.agent.value));
        self.agent.txn(lock).await?.ok_or("a raw client of Consul was first in line, and the key is taken")?;
        Ok(ticket)
    }

    /// Gives the key back and leaves the line.
    pub async fn unlock(&self, ticket: &str) -> Outcome<()> {
        let (key, _) = ticket.rsplit_once(LINE).ok_or("this is no ticket")?;
        let unlock = self.agent.operation("unlock", key, "");
        let leave = format!(r#"[{unlock},{{"KV":{{"Verb":"delete","Key":"{ticket}"}}}}]"#);
        self.agent.txn(leave).await?.map(drop).ok_or_else(|| "a raw client of Consul lost its lock".into())
    }

    /// Returns when a ticket is gone that was there at this index.
    async fn gone(&self, ticket: &str, mut index: u64) -> Outcome<()> {
        loop {
            let answer = self.agent.wait(&format!("{ticket}?index={index}&wait=55s")).await?;
            if answer.entries()?.is_empty() {
                return Ok(());
            }
            index = answer.index.ok_or("Consul told no index")?;
        }
    }
}
