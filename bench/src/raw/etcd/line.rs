//! A line of entries, a key for each contender, who holds once nobody is ahead: one transaction to enter and see who is, one to leave.
//!
//! Of a free key they are those that dlock sends, but that one name ahead is read instead of up to eight entries. Their conditions keep late copies out:
//! an entry is made only where neither it nor what a released claim may have left is there, and deleted only as of the revision at which it was made.
//!
//! Whoever waits watches the entry before its own alone. After that it looks once how it stands: an entry ends with its lease, too, so one
//! further ahead may still be there, and its own may not.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, TxnOp, TxnOpResponse};

use super::{Member, revision};
use crate::Outcome;

/// Takes keys by standing in line.
pub struct Line {
    member: Member,
    entries: Mutex<Entries>,
}

/// The names of entries, each in use by one task at a time. One that was left is taken again: etcd walks over the names of deleted keys.
#[derive(Default)]
struct Entries {
    drawn: u64,
    /// By the line they stand in.
    free: HashMap<String, Vec<String>>,
    /// The revisions at which those in use were made.
    made: HashMap<String, i64>,
}

impl Line {
    /// Opens the lease at a member.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self { member: Member::connect(address).await?, entries: Mutex::default() })
    }

    /// Leaves nothing there.
    pub async fn end(&self) -> Outcome<()> {
        self.member.end().await
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the line of a key, and waits until it is the first; the entry.
    pub async fn lock(&self, key: &str) -> Outcome<String> {
        let line = format!("{key}/");
        let entry = self.entries().take(&line, self.member.lease);
        let left = format!("{key}\0{:x}.{:032x}", self.member.lease, fastrand::u128(..));
        let answer = self.member.put(&entry, &[&entry, &left], Some(TxnOp::get(line.as_str(), Some(nearest(1))))).await?;
        let created = revision(answer.header())?;
        self.entries().made.insert(entry.clone(), created);
        let mut seen = created;
        let Some(TxnOpResponse::Get(shown)) = answer.op_responses().into_iter().next() else {
            return Err("etcd told nothing of the line".into());
        };
        let mut ahead = shown.kvs().first().map(|before| before.key().to_vec());
        while let Some(gone) = ahead {
            self.member.gone(&gone, seen).await?;
            let look = nearest(2).with_max_create_revision(created);
            let mut shown = self.member.client.kv_client().get(line.as_str(), Some(look)).await?;
            seen = revision(shown.header())?;
            ahead = before(&entry, &shown.take_kvs())?;
        }
        Ok(entry)
    }

    /// Leaves the line, which gives the key back.
    pub async fn unlock(&self, entry: String) -> Outcome<()> {
        let made = self.entries().made.remove(&entry).ok_or("a raw client of etcd leaves a line that it is not in")?;
        self.member.delete_made(&entry, made).await?;
        self.entries().leave(entry);
        Ok(())
    }
}

impl Entries {
    fn take(&mut self, line: &str, lease: i64) -> String {
        self.free.get_mut(line).and_then(Vec::pop).unwrap_or_else(|| {
            self.drawn += 1;
            format!("{line}{lease:x}.{}", self.drawn)
        })
    }

    fn leave(&mut self, entry: String) {
        let line = entry.rfind('/').map_or("", |slash| &entry[..=slash]);
        match self.free.get_mut(line) {
            Some(free) => free.push(entry),
            None => _ = self.free.insert(line.to_owned(), vec![entry]),
        }
    }
}

/// So many at the end of a line.
fn nearest(many: i64) -> GetOptions {
    GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(many).with_keys_only()
}

/// The name of the entry before one's own; `None` for the first.
fn before(entry: &str, shown: &[KeyValue]) -> Outcome<Option<Vec<u8>>> {
    match shown {
        [own, others @ ..] if own.key() == entry.as_bytes() => Ok(others.first().map(|before| before.key().to_vec())),
        _ => Err("a raw client of etcd lost its entry".into()),
    }
}
