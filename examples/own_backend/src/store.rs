//! What the lock server knows, and its rules: sessions that lapse, locks with tokens, and releases that fence.
//!
//! All of it happens under one mutex, so every request is atomic. Yours is a database, a cache or a service; what matters is that
//! each rule below is one atomic step there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use dlock_core::Metadata;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What can be asked. Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub enum Ask {
    Open {
        ttl: u64,
        owner: String,
    },
    Renew {
        session: String,
    },
    Close {
        session: String,
    },
    Claim {
        session: String,
        key: String,
        claim: String,
        published: Metadata,
    },
    Release {
        session: String,
        key: String,
        claim: String,
    },
    /// Answered once the lock of this token is not the present one.
    Wait {
        key: String,
        token: u64,
    },
    Look {
        key: String,
    },
    Audit {
        session: String,
        claims: Vec<(String, String)>,
    },
    List {
        prefix: String,
    },
    /// For operators.
    Delete {
        key: String,
    },
    /// For operators.
    Sessions {
        owner: String,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub enum Told {
    Opened {
        session: String,
    },
    Renewed {
        ttl: u64,
    },
    SessionGone,
    Done,
    Held {
        token: u64,
    },
    Busy {
        lock: Lock,
    },
    /// The claim was released before this copy of it arrived.
    Undone,
    Released {
        had: bool,
    },
    Seen {
        lock: Option<Lock>,
    },
    /// Claims that do not hold their keys, and whether another does.
    Lost(Vec<(String, bool)>),
    Listed(Vec<(String, Lock)>),
    Counted(usize),
}

/// A lock that is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub struct Lock {
    pub session: String,
    pub claim: String,
    pub token: u64,
    pub published: Metadata,
}

#[derive(Debug)]
struct Session {
    owner: String,
    ttl: Duration,
    lapses_at: Instant,
    /// Claims that were released: a copy that arrives later finds itself here. Forgotten with the session, without which it has no
    /// effect either.
    released: HashSet<String>,
}

/// Everything that the server knows.
#[derive(Debug)]
pub struct Store {
    sessions: HashMap<String, Session>,
    locks: BTreeMap<String, Lock>,
    opened: u64,
    tokens: Tokens,
}

impl Store {
    /// A store whose tokens go on where those of the last store with this file ended, and that knows nothing else.
    pub fn open(file: PathBuf) -> std::io::Result<Self> {
        let tokens = Tokens::open(file)?;
        // Session ids must not come back either: they begin where the tokens do.
        Ok(Self { sessions: HashMap::new(), locks: BTreeMap::new(), opened: tokens.last, tokens })
    }

    /// Ends the sessions whose time is over, with all they have.
    pub fn pass(&mut self, now: Instant) {
        self.sessions.retain(|_, session| now < session.lapses_at);
        self.locks.retain(|_, lock| self.sessions.contains_key(&lock.session));
    }

    /// When the next session lapses.
    pub fn next_lapse(&self) -> Option<Instant> {
        self.sessions.values().map(|session| session.lapses_at).min()
    }

    /// Answers at once; `None` to a wait whose time has not come.
    pub fn answer(&mut self, ask: &Ask, now: Instant) -> std::io::Result<Option<Told>> {
        self.pass(now);
        Ok(Some(match ask {
            Ask::Open { ttl, owner } => {
                self.opened += 1;
                let (id, ttl) = (format!("session-{}", self.opened), Duration::from_millis(*ttl));
                let session = Session { owner: owner.clone(), ttl, lapses_at: now + ttl, released: HashSet::new() };
                self.sessions.insert(id.clone(), session);
                Told::Opened { session: id }
            }
            Ask::Renew { session } => match self.sessions.get_mut(session) {
                None => Told::SessionGone,
                Some(session) => {
                    session.lapses_at = now + session.ttl;
                    Told::Renewed { ttl: u64::try_from(session.ttl.as_millis()).unwrap_or(u64::MAX) }
                }
            },
            Ask::Close { session } => {
                self.sessions.remove(session);
                self.pass(now);
                Told::Done
            }
            Ask::Claim { session, key, claim, published } => self.claim(session, key, claim, published)?,
            Ask::Release { session, key, claim } => {
                let had = self.holds(session, key, claim);
                if had {
                    self.locks.remove(key);
                }
                if let Some(session) = self.sessions.get_mut(session) {
                    session.released.insert(claim.clone());
                }
                Told::Released { had }
            }
            Ask::Wait { key, token } => match self.locks.get(key) {
                Some(lock) if lock.token == *token => return Ok(None),
                lock => Told::Seen { lock: lock.cloned() },
            },
            Ask::Look { key } => Told::Seen { lock: self.locks.get(key).cloned() },
            Ask::Audit { session, claims } => {
                let lost = claims.iter().filter(|(key, claim)| !self.holds(session, key, claim));
                Told::Lost(lost.map(|(key, claim)| (claim.clone(), self.locks.contains_key(key))).collect())
            }
            Ask::List { prefix } => {
                let listed = self.locks.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(prefix));
                Told::Listed(listed.map(|(key, lock)| (key.clone(), lock.clone())).collect())
            }
            Ask::Delete { key } => {
                self.locks.remove(key);
                Told::Done
            }
            Ask::Sessions { owner } => Told::Counted(self.sessions.values().filter(|session| session.owner == *owner).count()),
        }))
    }

    fn claim(&mut self, session: &str, key: &str, claim: &str, published: &Metadata) -> std::io::Result<Told> {
        let Some(known) = self.sessions.get(session) else { return Ok(Told::SessionGone) };
        if known.released.contains(claim) {
            return Ok(Told::Undone);
        }
        if let Some(lock) = self.locks.get(key) {
            // Asked again, a claim finds its own grant.
            let mine = lock.session == session && lock.claim == claim;
            return Ok(if mine { Told::Held { token: lock.token } } else { Told::Busy { lock: lock.clone() } });
        }
        let token = self.tokens.next()?;
        let lock = Lock { session: session.to_owned(), claim: claim.to_owned(), token, published: published.clone() };
        self.locks.insert(key.to_owned(), lock);
        Ok(Told::Held { token })
    }

    fn holds(&self, session: &str, key: &str, claim: &str) -> bool {
        self.locks.get(key).is_some_and(|lock| lock.session == session && lock.claim == claim)
    }
}

/// Numbers that never come back: a block of them is set aside on disk before the first is given out.
#[derive(Debug)]
struct Tokens {
    file: PathBuf,
    last: u64,
    set_aside: u64,
}

impl Tokens {
    const BLOCK: u64 = 1000;

    fn open(file: PathBuf) -> std::io::Result<Self> {
        let last = match std::fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(std::io::Error::other)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { file, last, set_aside: last })
    }

    fn next(&mut self) -> std::io::Result<u64> {
        if self.last == self.set_aside {
            let next = self.file.with_extension("next");
            std::fs::write(&next, (self.set_aside + Self::BLOCK).to_string())?;
            std::fs::File::open(&next)?.sync_all()?;
            std::fs::rename(&next, &self.file)?;
            self.set_aside += Self::BLOCK;
        }
        self.last += 1;
        Ok(self.last)
    }
}
