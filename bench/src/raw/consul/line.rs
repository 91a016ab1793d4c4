//! A line of tickets before a key, a ticket for each contender, who locks the key once nobody is ahead, by the requests that dlock sends in fair mode: one
//! transaction to enter and see who is, one to lock, one to unlock and leave.
//!
//! Their conditions keep late copies out: a ticket is made only where neither it nor what a released claim may have left is there, and the key is locked and
//! unlocked only as it was left. Whoever waits asks for the end of the ticket before its own alone. If that was the only one, it locks the key as of
//! that end; otherwise it hears by a mark of the one before that nobody else is ahead, or looks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{Agent, By, FLAGS, Results, check_index, check_not_exists};
use crate::Outcome;

/// Takes keys by standing in line, each by one task at a time: an older answer to another would take the place of a later one.
pub struct Line {
    agent: Agent,
    tickets: AtomicU64,
    /// At which index each key was left when it was last seen; [`ABSENT`] where it was not there.
    left: Mutex<HashMap<String, u64>>,
}

/// A place in a line.
pub struct Place {
    key: String,
    ticket: String,
}

/// What stands between a key and the names of its tickets.
const LINE: &str = "/.line/";
/// What stands between a key and what may have been left of a ticket.
const LEFT: &str = "/.left/";
/// The mark of a ticket whose holder came to the key after others.
const FIRST: u64 = FLAGS + 2;

/// No key has this index.
const ABSENT: u64 = 0;

/// What stood before a ticket that was just made.
struct Seen {
    entered: u64,
    /// The nearest comes last.
    ahead: Vec<String>,
}

impl Line {
    /// Opens the session at an agent.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self { agent: Agent::connect(address, By::Reqwest).await?, tickets: AtomicU64::new(0), left: Mutex::default() })
    }

    /// Ends its session, and what that still locks.
    pub async fn end(&self) -> Outcome<()> {
        self.agent.end().await
    }

    /// Takes a place in the line of a key, and locks it when it is the first.
    pub async fn lock(&self, key: &str) -> Outcome<Place> {
        let name = format!("{}.{}/", self.agent.session, self.tickets.fetch_add(1, Ordering::Relaxed));
        let (ticket, tombstone) = (format!("{key}{LINE}{name}"), format!("{key}{LEFT}{name}"));
        let enter = [check_not_exists(&tombstone), check_not_exists(&ticket), self.agent.flagged("lock", &ticket)].join(",");
        let Seen { entered, mut ahead } = self.see(key, Some((&ticket, &enter))).await?;
        let came_to = if ahead.is_empty() {
            check_index(&ticket, entered)
        } else {
            let value = &self.agent.value;
            format!(r#"{{"KV":{{"Verb":"cas","Key":"{ticket}","Value":"{value}","Flags":{FIRST},"Index":{entered}}}}}"#)
        };
        while let Some(nearest) = ahead.pop() {
            let (marked, index) = self.gone(&nearest, entered).await?;
            if ahead.is_empty() || marked {
                self.leave(key, index);
                break;
            }
            let there = self.see(key, None).await?.ahead;
            if !there.contains(&ticket) {
                return Err("a raw client of Consul lost its ticket".into());
            }
            ahead.retain(|other| there.contains(other));
        }
        let lock = [came_to, self.as_left(key), self.agent.flagged("lock", key)].join(",");
        self.change(key, &lock).await?.ok_or("a raw client of Consul was first in line, and the key is taken")?;
        Ok(Place { key: key.to_owned(), ticket })
    }

    /// Gives the key back and leaves the line.
    pub async fn unlock(&self, Place { key, ticket }: &Place) -> Outcome<()> {
        let leave = format!(r#"{{"KV":{{"Verb":"delete","Key":"{ticket}"}}}}"#);
        let unlock = [self.as_left(key), self.agent.flagged("unlock", key), leave].join(",");
        self.change(key, &unlock).await?.ok_or_else(|| "a raw client of Consul lost its lock".into())
    }

    /// Sends what locks or unlocks a key, and keeps in mind how that leaves it; `None` when it was refused.
    async fn change(&self, key: &str, operations: &str) -> Outcome<Option<()>> {
        let Some(told) = self.agent.txn(format!("[{operations}]")).await? else { return Ok(None) };
        let Results { results } = serde_json::from_slice(&told)?;
        let changed = results.iter().rfind(|shown| shown.entry.key == key).ok_or("Consul told nothing of the key")?;
        self.leave(key, changed.entry.modify_index);
        Ok(Some(()))
    }

    /// The key and the line before it, with the ticket that these operations make; without one, all of the line counts as ahead.
    async fn see(&self, key: &str, entering: Option<(&str, &str)>) -> Outcome<Seen> {
        let (ticket, enter) = entering.map_or((None, String::new()), |(ticket, enter)| (Some(ticket), format!("{enter},")));
        // Whether the key is there is guessed, and tried the other way when that was wrong: others may make it meanwhile.
        for _ in 0..5 {
            let there = self.left(key) != Some(ABSENT);
            let of_key = if there { format!(r#"{{"KV":{{"Verb":"get","Key":"{key}"}}}}"#) } else { check_not_exists(key) };
            let of_line = format!(r#"{{"KV":{{"Verb":"get-tree","Key":"{key}{LINE}"}}}}"#);
            let Some(told) = self.agent.txn(format!("[{enter}{of_key},{of_line}]")).await? else {
                // At which index it is there, the answer tells.
                self.leave(key, if there { ABSENT } else { u64::MAX });
                continue;
            };
            let Results { results } = serde_json::from_slice(&told)?;
            let (of_key, mut line): (Vec<_>, Vec<_>) =
                results.into_iter().map(|shown| shown.entry).partition(|entry| entry.key == key);
            self.leave(key, of_key.first().map_or(ABSENT, |entry| entry.modify_index));
            line.sort_unstable_by_key(|entry| entry.create_index);
            let own = line.iter().find(|entry| Some(entry.key.as_str()) == ticket);
            let entered = own.map_or(u64::MAX, |entry| entry.create_index);
            let ahead = line.into_iter().filter(|other| other.create_index < entered).map(|other| other.key);
            return Ok(Seen { entered, ahead: ahead.collect() });
        }
        Err("a raw client of Consul got no ticket".into())
    }

    /// Waits until a ticket is gone that was there at this index; whether it was marked, and when it went.
    async fn gone(&self, ticket: &str, mut index: u64) -> Outcome<(bool, u64)> {
        let mut marked = false;
        loop {
            let answer = self.agent.wait(&format!("{ticket}?recurse&index={index}&wait=55s")).await?;
            index = answer.index.ok_or("Consul told no index")?;
            match answer.entries()?.first() {
                Some(entry) => marked = entry.flags == FIRST,
                None => return Ok((marked, index)),
            }
        }
    }

    fn left(&self, key: &str) -> Option<u64> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn leave(&self, key: &str, index: u64) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), index);
    }

    /// The condition that a key stands as it was left.
    fn as_left(&self, key: &str) -> String {
        let left = self.left(key).filter(|&index| index != ABSENT);
        left.map_or_else(|| check_not_exists(key), |index| check_index(key, index))
    }
}
