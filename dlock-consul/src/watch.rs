//! Waiting for many keys with few connections: the first so many wait by themselves, all others share batched reads.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock_core::BackendError;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio::time::Instant;

use crate::api::{Api, BATCH};
use crate::classify::{Asked, Needs};
use crate::waits::{Waits, Watched};
use crate::wire::{Entry, Op};

/// The connections that waiting requests may use, and the reads that the others share.
#[derive(Debug)]
pub(crate) struct Watches {
    /// For waiting claims.
    pub(crate) waits: Waits,
    /// For the session and the held keys.
    pub(crate) disturbances: Waits,
    /// For requests that are answered at once.
    pub(crate) short: Semaphore,
    /// How many of those there are: so many calls for claims and releases are sent at a time, each of which has one request under way.
    pub(crate) calls_in_flight: Option<NonZeroUsize>,
    shared: SharedReads,
}

/// Keys that are read together, by whichever waiter has the turn.
#[derive(Debug)]
struct SharedReads {
    /// Each key with the number of its waiters; in order, so that the same waiters make the same requests.
    wanted: Mutex<BTreeMap<String, usize>>,
    /// Whoever has it reads for all, but not before then; given up with the waiter's future.
    turn: AsyncMutex<Option<Instant>>,
    seen: watch::Sender<HashMap<String, Option<Entry>>>,
}

impl Watches {
    /// Divides a budget of connections. Two are left for the sessions of a locker, and one for each of the two other pools, which may keep one that no request
    /// waits for.
    pub(crate) fn new(max_connections: usize) -> Self {
        let rest = max_connections.min(Semaphore::MAX_PERMITS) - 4;
        let disturbances = 17.min(rest / 3);
        // Of claims one less is in flight, so that a release never waits for them.
        let short = ((rest - disturbances) / 3).max(2);
        let shared = SharedReads { wanted: Mutex::default(), turn: AsyncMutex::default(), seen: watch::Sender::default() };
        Self {
            waits: Waits::new(rest - disturbances - short),
            disturbances: Waits::new(disturbances),
            short: Semaphore::new(short),
            calls_in_flight: NonZeroUsize::new(short),
            shared,
        }
    }

    /// How many held keys can be watched beside the session.
    pub(crate) fn watched_claims(&self) -> usize {
        self.disturbances.left() - 1
    }

    /// The key once its index is greater than `index`, or it is gone; on a connection of its own if one is left.
    pub(crate) async fn wait(&self, api: &Arc<Api>, key: &str, index: u64) -> Result<(Option<Entry>, u64), BackendError> {
        match self.waits.watching(api, Watched::Key(key.to_owned())).news(index).await {
            Some(told) => told.map(|(entries, index)| (entries.into_iter().next(), index)),
            None => self.shared.wait(self, api, key, index).await,
        }
    }

    /// Gives back the connections of requests that were answered when nobody waited for them any more.
    pub(crate) fn sweep(&self) {
        self.waits.sweep();
        self.disturbances.sweep();
    }

    /// The index of the key now, to wait from.
    pub(crate) async fn index(&self, api: &Api, key: &str) -> Result<u64, BackendError> {
        let _permit = self.short.acquire().await;
        api.wait_key(key, None).await.map(|(_, index)| index)
    }
}

impl SharedReads {
    /// How long between two reads. A wait that shares a connection learns of a release so much later at most.
    const PACE: Duration = Duration::from_millis(500);

    /// Free to drop: the turn passes to another waiter.
    async fn wait(&self, all: &Watches, api: &Api, key: &str, index: u64) -> Result<(Option<Entry>, u64), BackendError> {
        let _wanted = Wanted::new(self, key);
        let mut seen = self.seen.subscribe();
        let mut fresh = false;
        loop {
            // What was read before this wait began says nothing of it.
            if let Some(found) = seen.borrow_and_update().get(key).filter(|_| fresh) {
                match found {
                    None => return Ok((None, index)),
                    Some(entry) if entry.modify_index != index => return Ok((Some(entry.clone()), entry.modify_index)),
                    Some(_) => {}
                }
            }
            fresh = true;
            tokio::select! {
                biased;
                _ = seen.changed() => {}
                mut turn = self.turn.lock() => {
                    if let Some(next) = *turn {
                        tokio::time::sleep_until(next).await;
                    }
                    let found = self.read(all, api).await?;
                    *turn = Some(Instant::now() + Self::PACE);
                    _ = self.seen.send_replace(found);
                }
            }
        }
    }

    async fn read(&self, all: &Watches, api: &Api) -> Result<HashMap<String, Option<Entry>>, BackendError> {
        let mut keys: Vec<String> = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let mut found = HashMap::new();
        while !keys.is_empty() {
            let batch: Vec<String> = keys.drain(..keys.len().min(BATCH)).collect();
            let ops: Vec<Op<'_>> = batch.iter().map(|key| Op::get(key)).collect();
            let asked = Asked { what: "waiting for keys", writes: false, needs: Needs::KeysRead };
            let permit = all.short.acquire().await;
            let reply = api.txn(asked, &ops).await?;
            drop(permit);
            match reply {
                Ok(results) => {
                    found.extend(results.into_iter().map(|result| (result.kv.key.clone(), Some(result.kv))));
                }
                // A key that is gone fails the whole read: it is news for its waiters, and the others are asked for again.
                Err(errors) => {
                    let gone: Vec<usize> = errors.iter().map(|error| error.op_index).collect();
                    for (place, key) in batch.into_iter().enumerate() {
                        if gone.contains(&place) {
                            found.insert(key, None);
                        } else if !gone.is_empty() {
                            keys.push(key);
                        }
                    }
                }
            }
        }
        Ok(found)
    }
}

/// Counts a waiter of a key in, and out when dropped.
struct Wanted<'a> {
    shared: &'a SharedReads,
    key: &'a str,
}

impl<'a> Wanted<'a> {
    fn new(shared: &'a SharedReads, key: &'a str) -> Self {
        *shared.wanted.lock().unwrap_or_else(PoisonError::into_inner).entry(key.to_owned()).or_default() += 1;
        Self { shared, key }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiters) = wanted.get_mut(self.key) {
            *waiters -= 1;
            if *waiters == 0 {
                wanted.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConsulOptions;

    #[test]
    fn every_budget_leaves_something_for_everybody() {
        for (budget, waits, disturbances, short) in [(10, 2, 2, 2), (11, 3, 2, 2), (16, 6, 4, 2), (66, 30, 17, 15)] {
            let watches = Watches::new(budget);
            let divided = [watches.waits.left(), watches.disturbances.left(), watches.short.available_permits()];
            assert_eq!(divided, [waits, disturbances, short], "{budget}");
            assert_eq!(divided.iter().sum::<usize>(), budget - 4);
        }
        assert_eq!(ConsulOptions::new().max_connections(0).max_connections, 10);
        assert_eq!(Watches::new(usize::MAX).watched_claims(), 16);
    }
}
