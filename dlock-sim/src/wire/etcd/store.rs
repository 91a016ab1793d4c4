//! etcd's state as its members agree on it: keys under one revision, and leases. A value without clock or chance.
//!
//! Every rule and every text is that of etcd 3.5, and compared with a real member by a test.

use std::collections::BTreeMap;
use std::time::Duration;

use super::message::{DELETED, Event, KeyValue};

/// What the members know.
#[derive(Clone, Debug)]
pub struct Store {
    rules: Rules,
    pub(super) revision: i64,
    pub(super) keys: BTreeMap<Vec<u8>, KeyValue>,
    leases: BTreeMap<i64, Lease>,
    /// What happened before this revision is told to nobody who asks for it now.
    compacted: i64,
    /// All that happened: watches that live are not disturbed by a compaction.
    log: Vec<Event>,
    /// How often a lease was granted whose id nobody chose.
    chosen: i64,
}

/// What differs from one etcd to the next.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The least ttl in seconds: 1.5 times the election timeout. Shorter ones are raised to it.
    pub least_ttl: i64,
    /// After how much of its ttl a silent lease lapses, in millionths. etcd looks twice a second, and revokes in a round of its own.
    pub lapses_after_ppm: u64,
    /// What a new leader grants every lease on top of its ttl.
    pub election: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { least_ttl: 2, lapses_after_ppm: 1_000_000, election: Duration::from_secs(1) }
    }
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: i64,
    lapses_at: Duration,
}

/// How a call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code of gRPC's.
    pub code: u16,
    /// The text.
    pub message: &'static str,
}

impl Status {
    pub(super) const fn new(code: u16, message: &'static str) -> Self {
        Self { code, message }
    }

    pub(super) const NO_KEY: Self = Self::new(3, "etcdserver: key is not provided");
    pub(super) const TOO_MANY_OPS: Self = Self::new(3, "etcdserver: too many operations in txn request");
    pub(super) const DUPLICATE_KEY: Self = Self::new(3, "etcdserver: duplicate key given in txn request");
    pub(super) const NO_LEASE: Self = Self::new(5, "etcdserver: requested lease not found");
    pub(super) const LEASE_EXISTS: Self = Self::new(9, "etcdserver: lease already exists");
    pub(super) const TTL_TOO_LARGE: Self = Self::new(11, "etcdserver: too large lease TTL");
    pub(super) const COMPACTED: Self = Self::new(11, "etcdserver: mvcc: required revision has been compacted");
    pub(super) const FUTURE: Self = Self::new(11, "etcdserver: mvcc: required revision is a future revision");
    pub(super) const NO_LEADER: Self = Self::new(14, "etcdserver: no leader");
    pub(super) const TIMED_OUT: Self = Self::new(14, "etcdserver: request timed out");
    pub(super) const LEADER_CHANGED: Self = Self::new(14, "etcdserver: leader changed");
    pub(super) const TOO_MANY: Self = Self::new(8, "etcdserver: too many requests");
    pub(super) const STOPPED: Self = Self::new(14, "etcdserver: server stopped");
    pub(super) const UNKNOWN_METHOD: Self = Self::new(12, "unknown method");
    pub(super) const MALFORMED: Self = Self::new(13, "grpc: error unmarshalling request");
}

/// The longest ttl in seconds.
const LONGEST_TTL: i64 = 9_000_000_000;

impl Store {
    /// A store of which nobody has made use yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, revision: 1, keys: BTreeMap::new(), leases: BTreeMap::new(), compacted: 0, log: Vec::new(), chosen: 0 }
    }

    /// The revision of the last change.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = i64> {
        self.leases.keys().copied()
    }

    /// Whether a lease is known.
    pub fn knows(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    /// All keys, with the lease of each.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], i64)> {
        self.keys.iter().map(|(key, kv)| (key.as_slice(), kv.lease))
    }

    /// Grants a lease; its id and ttl.
    pub(super) fn grant(&mut self, at: Duration, id: i64, ttl: i64) -> Result<(i64, i64), Status> {
        if ttl > LONGEST_TTL {
            return Err(Status::TTL_TOO_LARGE);
        }
        let id = if id == 0 {
            self.chosen += 1;
            self.chosen
        } else {
            id
        };
        if self.knows(id) {
            return Err(Status::LEASE_EXISTS);
        }
        let ttl = ttl.max(self.rules.least_ttl);
        self.leases.insert(id, Lease { ttl, lapses_at: at + self.lifetime(ttl) });
        Ok((id, ttl))
    }

    /// Keeps a lease alive; its ttl, zero when it is not known.
    pub(super) fn keep_alive(&mut self, at: Duration, id: i64) -> i64 {
        let Some(ttl) = self.leases.get(&id).map(|lease| lease.ttl) else { return 0 };
        self.leases.insert(id, Lease { ttl, lapses_at: at + self.lifetime(ttl) });
        ttl
    }

    /// Ends a lease with all its keys, in one revision.
    pub(super) fn revoke(&mut self, id: i64) -> Result<(), Status> {
        self.leases.remove(&id).ok_or(Status::NO_LEASE)?;
        let keys: Vec<_> = self.keys.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        if !keys.is_empty() {
            self.revision += 1;
            for key in keys {
                self.delete(&key);
            }
        }
        Ok(())
    }

    /// How long a lease lives on, and what it was granted for; `None` when it is not known.
    pub(super) fn time_to_live(&self, at: Duration, id: i64) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        Some((lease.lapses_at.saturating_sub(at).as_secs().cast_signed().min(lease.ttl), lease.ttl))
    }

    /// The keys of a lease.
    pub(super) fn keys_of(&self, id: i64) -> Vec<Vec<u8>> {
        self.keys.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect()
    }

    /// Which lease lapses next, and when.
    pub(super) fn next_lapse(&self) -> Option<(Duration, i64)> {
        self.leases.iter().map(|(id, lease)| (lease.lapses_at, *id)).min()
    }

    /// Somebody leads from now on who does not know how long leases have been silent: all live for their whole ttl again, and longer.
    pub(super) fn elect(&mut self, at: Duration) {
        let lapses: Vec<_> = self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect();
        for (id, ttl) in lapses {
            let lapses_at = at + self.rules.election + self.lifetime(ttl);
            self.leases.insert(id, Lease { ttl, lapses_at });
        }
    }

    fn lifetime(&self, ttl: i64) -> Duration {
        Duration::from_micros(ttl.unsigned_abs() * self.rules.lapses_after_ppm)
    }

    /// Forgets what happened before a revision.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Status> {
        if revision <= self.compacted {
            return Err(Status::COMPACTED);
        }
        if revision > self.revision {
            return Err(Status::FUTURE);
        }
        self.compacted = revision;
        Ok(())
    }

    /// What stood there at a revision.
    pub(super) fn as_of(&self, revision: i64) -> Result<BTreeMap<Vec<u8>, KeyValue>, Status> {
        if revision > self.revision {
            return Err(Status::FUTURE);
        }
        if revision < self.compacted {
            return Err(Status::COMPACTED);
        }
        let mut keys = BTreeMap::new();
        for event in self.log.iter().take_while(|event| revision_of(event) <= revision) {
            let Some(kv) = event.kv.clone() else { continue };
            if event.kind == DELETED {
                keys.remove(&kv.key);
            } else {
                keys.insert(kv.key.clone(), kv);
            }
        }
        Ok(keys)
    }

    /// The revision before which nothing is told to who asks for it now.
    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// What happened from a revision on.
    pub(super) fn since(&self, revision: i64) -> &[Event] {
        &self.log[self.log.partition_point(|event| revision_of(event) < revision)..]
    }

    /// Writes a key at the present revision.
    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>, lease: i64) {
        let prev_kv = self.keys.get(&key).cloned();
        let (create_revision, version) =
            prev_kv.as_ref().map_or((self.revision, 1), |before| (before.create_revision, before.version + 1));
        let kv = KeyValue { key: key.clone(), create_revision, mod_revision: self.revision, version, value, lease };
        self.keys.insert(key, kv.clone());
        self.log.push(Event { kind: 0, kv: Some(kv), prev_kv });
    }

    /// Deletes a key at the present revision; whether it was there.
    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        let Some(prev) = self.keys.remove(key) else { return false };
        let kv = KeyValue { key: key.to_vec(), mod_revision: self.revision, ..KeyValue::default() };
        self.log.push(Event { kind: DELETED, kv: Some(kv), prev_kv: Some(prev) });
        true
    }
}

pub(super) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}
