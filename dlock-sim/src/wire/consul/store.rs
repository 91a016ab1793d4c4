//! Consul's state as its servers keep it: sessions and keys under one raft index. A value without clock or chance.
//!
//! Every rule and every text is that of Consul 1.8.7, and compared with a real agent by a test.

use std::collections::BTreeMap;
use std::time::Duration;

/// What the servers know.
#[derive(Clone, Debug)]
pub struct Store {
    rules: Rules,
    index: u64,
    sessions: BTreeMap<String, Session>,
    sessions_index: u64,
    keys: BTreeMap<String, Entry>,
    keys_index: u64,
    /// Deleted keys, with the index at which each was.
    graves: BTreeMap<String, u64>,
    /// Until when a key is granted to nobody.
    delays: BTreeMap<String, Duration>,
}

/// What differs from one Consul to the next.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The least ttl that a session may ask for.
    pub least_ttl: Duration,
    /// After how much of its ttl a silent session lapses, in millionths. Consul promises one ttl and takes two.
    pub lapses_after_ppm: u64,
    /// What every session's lock-delay is at least, as if all belonged to peers that ask for one.
    pub least_delay: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { least_ttl: Duration::from_millis(200), lapses_after_ppm: 2_000_000, least_delay: Duration::ZERO }
    }
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// What it was called.
    pub name: String,
    /// As it was sent.
    pub ttl_text: String,
    /// Zero where there is none.
    pub ttl: Duration,
    /// For how long nobody is granted what it held when it ended.
    pub lock_delay: Duration,
    /// Whether its keys are deleted when it ends, instead of released.
    pub deletes: bool,
    /// When it was created.
    pub created: u64,
    /// When it lapses unless it is renewed; never without a ttl.
    pub lapses_at: Option<Duration>,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How often it was locked, as far as nobody overwrote it.
    pub lock_index: u64,
    /// For applications.
    pub flags: u64,
    /// For applications.
    pub value: Vec<u8>,
    /// Who holds it.
    pub session: Option<String>,
    /// When it was created.
    pub created: u64,
    /// When it last changed.
    pub modified: u64,
}

/// How a write treats the holder of a key.
#[derive(Clone, Debug)]
enum Holder {
    Kept,
    Set(Option<String>),
}

impl Store {
    const LONGEST_TTL: Duration = Duration::from_secs(86_400);
    const LONGEST_DELAY: Duration = Duration::from_secs(60);

    /// A store of which nobody has made use yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            index: 10,
            sessions: BTreeMap::new(),
            sessions_index: 0,
            keys: BTreeMap::new(),
            keys_index: 0,
            graves: BTreeMap::new(),
            delays: BTreeMap::new(),
        }
    }

    /// A key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// A session.
    pub fn session(&self, id: &str) -> Option<&Session> {
        self.sessions.get(id)
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &str> {
        self.sessions.keys().map(String::as_str)
    }

    /// All keys that start with `prefix`, and the index of that answer.
    pub(super) fn list<'a>(&'a self, prefix: &'a str) -> (Vec<(&'a str, &'a Entry)>, u64) {
        let under = |key: &&String| key.starts_with(prefix);
        let found: Vec<_> = self.keys.iter().filter(|(key, _)| under(key)).map(|(key, entry)| (key.as_str(), entry)).collect();
        let graves = self.graves.iter().filter(|(key, _)| under(key)).map(|(_, index)| *index);
        let newest = found.iter().map(|(_, entry)| entry.modified).chain(graves).max();
        let index = match newest {
            Some(newest) if !prefix.is_empty() => newest,
            _ => self.keys_index,
        };
        (found, index.max(1))
    }

    /// The index of an answer about a key.
    pub(super) fn index_of(&self, key: &str) -> u64 {
        // Index 1 never happens, and keeps a wait for a key that never was from being none.
        self.keys.get(key).map_or(self.keys_index.max(1), |entry| entry.modified)
    }

    /// The index of an answer about sessions.
    pub(super) fn sessions_index(&self) -> u64 {
        self.sessions_index.max(1)
    }

    /// The index of the last write that entered the log.
    pub fn last_index(&self) -> u64 {
        self.index
    }

    /// A write enters the log, whether or not it changes anything.
    pub(super) fn log(&mut self) -> u64 {
        self.index += 1;
        self.index
    }

    /// Opens a session under an id, unless what was asked for makes no sense.
    pub(super) fn open(&mut self, at: Duration, id: &str, mut session: Session) -> Result<(), String> {
        let (least, longest) = (self.rules.least_ttl, Self::LONGEST_TTL);
        if !session.ttl.is_zero() && !(least..=longest).contains(&session.ttl) {
            let (ttl, least) = (session.ttl.as_nanos(), least.as_millis());
            return Err(format!("Invalid Session TTL '{ttl}', must be between [{least}ms=24h0m0s]"));
        }
        let index = self.log();
        session.lock_delay = session.lock_delay.max(self.rules.least_delay);
        session.created = index;
        session.lapses_at = self.lapse(session.ttl, at);
        self.sessions.insert(id.to_owned(), session);
        self.sessions_index = index;
        Ok(())
    }

    /// Starts the timer of a session anew; `None` when there is no such session.
    pub(super) fn renew(&mut self, at: Duration, id: &str) -> Option<&Session> {
        let ttl = self.sessions.get(id)?.ttl;
        let lapses_at = self.lapse(ttl, at);
        let session = self.sessions.get_mut(id)?;
        session.lapses_at = lapses_at;
        Some(session)
    }

    fn lapse(&self, ttl: Duration, at: Duration) -> Option<Duration> {
        let after = ttl.as_nanos() * u128::from(self.rules.lapses_after_ppm) / 1_000_000;
        (!ttl.is_zero()).then(|| at + Duration::from_nanos(after as u64))
    }

    /// Starts the timers of all sessions anew, as a new leader does.
    pub fn elect(&mut self, at: Duration) {
        let ids: Vec<_> = self.sessions.keys().cloned().collect();
        for id in ids {
            self.renew(at, &id);
        }
    }

    /// The session that lapses next, and when.
    pub fn next_lapse(&self) -> Option<(Duration, String)> {
        self.sessions.iter().filter_map(|(id, session)| Some((session.lapses_at?, id.clone()))).min()
    }

    /// Ends a session: its keys are released or deleted, and delayed if it asked for that. Whether there was one.
    pub fn end(&mut self, at: Duration, id: &str) -> bool {
        let index = self.log();
        let Some(session) = self.sessions.remove(id) else { return false };
        self.sessions_index = index;
        let held = self.keys.iter().filter(|(_, entry)| entry.session.as_deref() == Some(id));
        let held: Vec<String> = held.map(|(key, _)| key.clone()).collect();
        for key in held {
            if session.deletes {
                self.delete(&key, index);
            } else if let Some(entry) = self.keys.get(&key).cloned() {
                self.put(&key, index, Entry { session: None, ..entry }, Holder::Set(None));
            }
            let delay = session.lock_delay.min(Self::LONGEST_DELAY);
            if !delay.is_zero() {
                self.delays.insert(key, at + delay);
            }
        }
        true
    }

    /// Whether the leader refuses to let anybody lock the key; asked before the log, so that it costs none.
    pub(super) fn is_delayed(&self, at: Duration, key: &str) -> bool {
        self.delays.get(key).is_some_and(|until| *until > at)
    }

    /// Writes a value whoever holds the key.
    pub(super) fn set(&mut self, key: &str, index: u64, flags: u64, value: Vec<u8>) -> &Entry {
        // The count of locks starts anew, the holder stays.
        let entry = Entry { lock_index: 0, flags, value, session: None, created: index, modified: index };
        self.put(key, index, entry, Holder::Kept)
    }

    /// As [`set`](Self::set), if the key stands at `expected`; zero is its absence.
    pub(super) fn cas(&mut self, key: &str, index: u64, expected: u64, flags: u64, value: Vec<u8>) -> Option<&Entry> {
        let stands = self.keys.get(key).map_or(0, |entry| entry.modified);
        (stands == expected).then(|| self.set(key, index, flags, value))
    }

    /// Gives the key to a session, unless another has it.
    pub(super) fn lock(
        &mut self,
        key: &str,
        index: u64,
        session: &str,
        flags: u64,
        value: Vec<u8>,
    ) -> Result<Option<&Entry>, String> {
        self.known(session)?;
        let lock_index = match self.keys.get(key) {
            Some(entry) if entry.session.as_deref() == Some(session) => entry.lock_index,
            Some(entry) if entry.session.is_some() => return Ok(None),
            Some(entry) => entry.lock_index + 1,
            None => 1,
        };
        let holder = Some(session.to_owned());
        let entry = Entry { lock_index, flags, value, session: None, created: index, modified: index };
        Ok(Some(self.put(key, index, entry, Holder::Set(holder))))
    }

    /// Takes the key from a session, if it has it. The session need not live.
    pub(super) fn unlock(
        &mut self,
        key: &str,
        index: u64,
        session: &str,
        flags: u64,
        value: Vec<u8>,
    ) -> Result<Option<&Entry>, String> {
        if session.is_empty() {
            return Err("missing session".to_owned());
        }
        let Some(held) = self.keys.get(key).filter(|entry| entry.session.as_deref() == Some(session)) else { return Ok(None) };
        let entry = Entry { lock_index: held.lock_index, flags, value, session: None, created: index, modified: index };
        Ok(Some(self.put(key, index, entry, Holder::Set(None))))
    }

    /// Whether a session lives, in the words in which Consul denies it.
    fn known(&self, session: &str) -> Result<(), String> {
        if session.is_empty() {
            return Err("missing session".to_owned());
        }
        well_formed(session)?;
        if self.sessions.contains_key(session) { Ok(()) } else { Err(format!("invalid session {session:?}")) }
    }

    /// Deletes a key, if there is one.
    pub(super) fn delete(&mut self, key: &str, index: u64) {
        if self.keys.remove(key).is_some() {
            self.graves.insert(key.to_owned(), index);
            self.keys_index = index;
        }
    }

    fn put(&mut self, key: &str, index: u64, mut entry: Entry, holder: Holder) -> &Entry {
        let existing = self.keys.get(key);
        entry.created = existing.map_or(index, |existing| existing.created);
        entry.session = match holder {
            Holder::Kept => existing.and_then(|existing| existing.session.clone()),
            Holder::Set(holder) => holder,
        };
        entry.modified = existing.map_or(index, |existing| existing.modified);
        // What changes nothing leaves the index, and wakes nobody.
        if existing != Some(&entry) {
            entry.modified = index;
            self.keys_index = index;
        }
        self.keys.insert(key.to_owned(), entry);
        &self.keys[key]
    }
}

/// Whether an id has the form of one, in the words in which Consul denies it.
pub(super) fn well_formed(id: &str) -> Result<(), String> {
    if id.len() == 36 { Ok(()) } else { Err("failed session lookup: index error: UUID must be 36 characters".to_owned()) }
}
