//! A line of entries, a key for each contender, who holds once nobody is ahead: one transaction to enter and see who is, one deletion to leave.
//!
//! Whoever waits watches the entry before its own alone. After that it looks once how it stands: an entry ends with its lease, too, so one
//! further ahead may still be there, and its own may not.

use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, TxnOp, TxnOpResponse};

use super::{Member, revision};
use crate::Outcome;

/// Takes keys by standing in line.
pub struct Line {
    member: Member,
    entries: AtomicU64,
}

impl Line {
    /// Opens the lease at a member.
    pub async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self { member: Member::connect(address).await?, entries: AtomicU64::new(0) })
    }

    /// Takes a place in the line of a key, and waits until it is the first; the entry.
    pub async fn lock(&self, key: &str) -> Outcome<String> {
        let line = format!("{key}/");
        let entry = format!("{line}{:x}.{}", self.member.lease, self.entries.fetch_add(1, Ordering::Relaxed));
        let answer = self.member.put(&entry, Some(TxnOp::get(line.as_str(), Some(nearest())))).await?;
        let (mut seen, created) = (revision(answer.header())?, revision(answer.header())?);
        let Some(TxnOpResponse::Get(mut shown)) = answer.op_responses().pop() else {
            return Err("etcd told nothing of the line".into());
        };
        while let Some(before) = before(&entry, &shown.take_kvs())? {
            self.member.gone(&before, seen).await?;
            let look = nearest().with_max_create_revision(created);
            shown = self.member.client.kv_client().get(line.as_str(), Some(look)).await?;
            seen = revision(shown.header())?;
        }
        Ok(entry)
    }

    /// Leaves the line, which gives the key back.
    pub async fn unlock(&self, entry: &str) -> Outcome<()> {
        self.member.delete(entry).await
    }
}

/// The end of a line: one's own entry, and that before it.
fn nearest() -> GetOptions {
    GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(2).with_keys_only()
}

/// The name of the entry before one's own; `None` for the first.
fn before(entry: &str, shown: &[KeyValue]) -> Outcome<Option<Vec<u8>>> {
    match shown {
        [own, others @ ..] if own.key() == entry.as_bytes() => Ok(others.first().map(|before| before.key().to_vec())),
        _ => Err("a raw client of etcd lost its entry".into()),
    }
}
