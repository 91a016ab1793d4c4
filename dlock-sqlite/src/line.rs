//! The lines of the keys: who enters, who holds, who leaves. Each of these is a part of one transaction.

use dlock_core::{
    BackendError, Claim, Cursor, ErrorKind, FencingToken, Holder, Key, Metadata, Mode, Place, Published, Release, Room, SessionId,
    Standing, Together,
};
use rusqlite::{Connection, Row, params};

use crate::classify::Failed;
use crate::host::Host;
use crate::schema::PER_BOOT;

/// A transaction under way, and the moment it began.
pub(crate) struct Change<'t> {
    pub(crate) db: &'t Connection,
    /// Nanoseconds since boot.
    pub(crate) now: i64,
    /// Whether the time of a session is over that is still there.
    pub(crate) is_due: bool,
}

/// One in line.
pub(crate) struct Entry {
    pub(crate) token: i64,
    session: String,
    claim: String,
    pub(crate) mode: Mode,
}

impl Entry {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { token: row.get(0)?, session: row.get(1)?, claim: row.get(2)?, mode: mode(row.get(3)?) })
    }

    fn is(&self, session: &SessionId, claim: &Claim) -> bool {
        self.session == session.as_str() && self.claim == claim.id.to_string()
    }
}

/// How a mode is written: its number of permits, 0 for an exclusive claim, -1 for a shared one.
fn number(mode: Mode) -> Result<i64, BackendError> {
    match mode {
        Mode::Exclusive => Ok(0),
        Mode::Shared => Ok(-1),
        Mode::Permits(all) => Ok(i64::from(all.get())),
        other => Err(BackendError::new(ErrorKind::Unsupported, format!("this backend does not know {other}"))),
    }
}

/// What cannot be read keeps out everybody else.
pub(crate) fn mode(number: i64) -> Mode {
    match u32::try_from(number).ok().and_then(std::num::NonZeroU32::new) {
        Some(all) => Mode::Permits(all),
        None if number == -1 => Mode::Shared,
        None => Mode::Exclusive,
    }
}

/// A number of the file's as a token. It is above zero, as all that the file gives out.
pub(crate) fn token(number: i64) -> Result<FencingToken, BackendError> {
    let token = u64::try_from(number).ok().and_then(FencingToken::new);
    token.ok_or_else(|| BackendError::new(ErrorKind::Ambiguous, "the file of locks holds a grant without a token"))
}

/// What a number that stands for a change is to those who wait.
pub(crate) fn cursor(number: i64) -> Cursor {
    Cursor(number.max(0).unsigned_abs())
}

/// A holder from what it published.
pub(crate) fn holder(session: &str, number: i64, published: &str) -> Holder {
    let published = match serde_json::from_str::<Metadata>(published) {
        Ok(metadata) => Published::Metadata(metadata),
        Err(_) => Published::Raw(published.as_bytes().to_vec()),
    };
    let mut holder = Holder::new(published);
    holder.session = Some(SessionId::new(session));
    holder.token = token(number).ok();
    holder
}

/// Whether the first `ahead` in line leave room for a claim of this mode.
fn has_room(line: &[Entry], mode: Mode, ahead: usize) -> bool {
    mode.room(line[..ahead].iter().rev().map(|entry| ((), entry.mode))) == Room::Enough
}

/// Where the claim stands, and whether it holds there.
pub(crate) fn place(line: &[Entry], session: &SessionId, claim: &Claim) -> Option<(usize, bool)> {
    let place = line.iter().position(|entry| entry.is(session, claim))?;
    Some((place, has_room(line, line[place].mode, place)))
}

impl<'t> Change<'t> {
    /// Looks whether the file is still one of this boot: of another, another host uses it.
    pub(crate) fn begin(db: &'t Connection, host: &Host) -> Result<Self, BackendError> {
        let store = "SELECT boot, (SELECT min(lapses) FROM dlock_session) FROM dlock_store";
        let read = |db: &Connection| db.prepare_cached(store)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)));
        let (boot, next_lapse): (String, Option<i64>) = read(db).map_err(|error| BackendError::from(Failed::from(error)))?;
        if boot != host.boot()? {
            let message = "the file of locks was opened on another host since; give every host a file of its own";
            return Err(BackendError::new(ErrorKind::Conflict, message));
        }
        let now = host.now();
        Ok(Self { db, now, is_due: next_lapse.is_some_and(|lapses| lapses <= now) })
    }

    /// Those in the line of a key, first come first.
    pub(crate) fn line(&self, key: &Key) -> rusqlite::Result<Vec<Entry>> {
        let line = "SELECT token, session, claim, mode FROM dlock_claim WHERE key = ?1 ORDER BY token";
        self.db.prepare_cached(line)?.query_map([key.as_str()], Entry::of)?.collect()
    }

    /// Who is first in a line.
    fn first(&self, key: &Key, line: &[Entry]) -> rusqlite::Result<Option<Holder>> {
        let Some(first) = line.first() else { return Ok(None) };
        let mut published = self.db.prepare_cached("SELECT published FROM dlock_claim WHERE key = ?1 AND token = ?2")?;
        let published: String = published.query_row(params![key.as_str(), first.token], |row| row.get(0))?;
        Ok(Some(holder(&first.session, first.token, &published)))
    }

    /// The number of the last change.
    pub(crate) fn revision(&self) -> rusqlite::Result<i64> {
        let last = "SELECT max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)) FROM dlock_store";
        self.db.prepare_cached(last)?.query_row([], |row| row.get(0))
    }

    /// Whether the session is alive, and whether the claim was released while a copy of it may have been under way.
    fn is_alive_or_over(&self, session: &SessionId, claim: &Claim) -> rusqlite::Result<(bool, bool)> {
        let both = "SELECT EXISTS (SELECT 1 FROM dlock_session WHERE id = ?1 AND lapses > ?2),
            EXISTS (SELECT 1 FROM dlock_over WHERE session = ?1 AND claim = ?3)";
        let asked = params![session.as_str(), self.now, claim.id.to_string()];
        self.db.prepare_cached(both)?.query_row(asked, |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// Puts a claim at the end of its line; its number.
    fn enter(&self, session: &SessionId, claim: &Claim, published: &str) -> Result<i64, Failed> {
        let next = "SELECT max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)) + 1, base FROM dlock_store";
        let (token, base): (i64, i64) = self.db.prepare_cached(next)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if token > base + PER_BOOT {
            let message = "the tokens of this boot are used up; others are there after the next";
            return Err(BackendError::new(ErrorKind::Invalid, message).into());
        }
        let enter = "INSERT INTO dlock_claim (token, key, session, claim, mode, published) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let id = claim.id.to_string();
        let mut enter = self.db.prepare_cached(enter)?;
        enter.execute(params![token, claim.key.as_str(), session.as_str(), id, number(claim.mode)?, published])?;
        Ok(token)
    }

    pub(crate) fn claim(&self, session: &SessionId, claim: &Claim, published: &str, place: Place) -> Result<Standing, Failed> {
        match self.is_alive_or_over(session, claim)? {
            (false, _) => return Ok(Standing::SessionGone),
            (true, true) => return Ok(Standing::ClaimGone),
            (true, false) => {}
        }
        let line = self.line(&claim.key)?;
        refuse_contradiction(&line, claim)?;
        if line.iter().any(|entry| entry.is(session, claim)) {
            return self.standing(&line, session, claim);
        }
        let has_room = has_room(&line, claim.mode, line.len());
        if place == Place::Try && !has_room {
            return Ok(Standing::Busy { holder: self.first(&claim.key, &line)?, cursor: cursor(self.revision()?) });
        }
        let number = self.enter(session, claim, published)?;
        if has_room {
            return Ok(Standing::Held { token: token(number)? });
        }
        let (ahead, holder) = (u32::try_from(line.len()).ok(), self.first(&claim.key, &line)?);
        Ok(Standing::Waiting { cursor: cursor(number), ahead, holder })
    }

    /// Takes all keys, or none.
    pub(crate) fn claim_all(&self, session: &SessionId, claims: &[Claim], published: &[String]) -> Result<Together, Failed> {
        if !self.is_alive(session)? {
            return Ok(Together::SessionGone);
        }
        let lines: Vec<_> = claims.iter().map(|claim| self.line(&claim.key)).collect::<Result<_, _>>()?;
        let places: Vec<_> = claims.iter().zip(&lines).map(|(claim, line)| place(line, session, claim)).collect();
        let held =
            |(at, line): (&Option<(usize, bool)>, &Vec<Entry>)| at.filter(|(_, holds)| *holds).map(|(place, _)| line[place].token);
        if let Some(tokens) = places.iter().zip(&lines).map(held).collect::<Option<Vec<_>>>() {
            let tokens = tokens.into_iter().map(token).collect::<Result<_, _>>()?;
            return Ok(Together::Held { tokens });
        }
        if places.iter().any(Option::is_some) {
            let message = "of the keys that were taken at once some were taken away since; undo what is left of them";
            return Err(BackendError::new(ErrorKind::Ambiguous, message).into());
        }
        for (refused, (claim, line)) in claims.iter().zip(&lines).enumerate() {
            if !line.is_empty() || self.is_alive_or_over(session, claim)?.1 {
                return Ok(Together::Busy { claim: refused, holder: self.first(&claim.key, line)? });
            }
        }
        let entered = claims.iter().zip(published).map(|(claim, published)| Ok(token(self.enter(session, claim, published)?)?));
        Ok(Together::Held { tokens: entered.collect::<Result<_, Failed>>()? })
    }

    pub(crate) fn confirm(&self, session: &SessionId, claim: &Claim) -> Result<Standing, Failed> {
        if !self.is_alive(session)? {
            return Ok(Standing::SessionGone);
        }
        let line = self.line(&claim.key)?;
        if place(&line, session, claim).is_some() {
            refuse_contradiction(&line, claim)?;
        }
        self.standing(&line, session, claim)
    }

    /// How a claim stands that is in line, or is not.
    fn standing(&self, line: &[Entry], session: &SessionId, claim: &Claim) -> Result<Standing, Failed> {
        Ok(match place(line, session, claim) {
            None => Standing::ClaimGone,
            Some((place, true)) => Standing::Held { token: token(line[place].token)? },
            Some((place, false)) => {
                let (cursor, holder) = (cursor(self.revision()?), self.first(&claim.key, line)?);
                Standing::Waiting { cursor, ahead: u32::try_from(place).ok(), holder }
            }
        })
    }

    /// Takes a claim out of its line; no copy of it that may be under way takes effect afterwards.
    pub(crate) fn release(&self, session: &SessionId, claim: &Claim, may_be_under_way: bool) -> Result<Release, Failed> {
        let (of, id) = (session.as_str(), claim.id.to_string());
        let leave = "DELETE FROM dlock_claim WHERE key = ?1 AND session = ?2 AND claim = ?3";
        let had = self.db.prepare_cached(leave)?.execute(params![claim.key.as_str(), of, id])? > 0;
        // Without its session it has no effect either.
        if may_be_under_way && self.is_alive(session)? {
            let over = "INSERT OR IGNORE INTO dlock_over (session, claim) VALUES (?1, ?2)";
            self.db.prepare_cached(over)?.execute(params![of, id])?;
        }
        Ok(if had { Release::Released } else { Release::NotHeld })
    }

    /// Replaces what a holder published, unless a later call did.
    pub(crate) fn amend(&self, session: &SessionId, claim: &Claim, published: &str, called: i64) -> Result<bool, Failed> {
        let line = self.line(&claim.key)?;
        let Some((place, true)) = place(&line, session, claim) else { return Ok(false) };
        let amend = "UPDATE dlock_claim SET published = ?2, amended = ?3 WHERE key = ?4 AND token = ?1 AND amended < ?3";
        if self.db.prepare_cached(amend)?.execute(params![line[place].token, published, called, claim.key.as_str()])? == 0 {
            return Err(BackendError::new(ErrorKind::Transient, "the metadata was amended by a later call").into());
        }
        Ok(true)
    }

    /// Ends a grant by force.
    pub(crate) fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, Failed> {
        let line = self.line(key)?;
        let mut holders = line[..Mode::holders(line.iter().map(|entry| entry.mode))].iter();
        let Some(held) = holders.find(|entry| u64::try_from(entry.token) == Ok(token.get())) else { return Ok(false) };
        self.db
            .prepare_cached("DELETE FROM dlock_claim WHERE key = ?1 AND token = ?2")?
            .execute(params![key.as_str(), held.token])?;
        Ok(true)
    }
}

fn refuse_contradiction(line: &[Entry], claim: &Claim) -> Result<(), BackendError> {
    match line.first().filter(|first| claim.mode.contradicts(first.mode)) {
        Some(first) => Err(BackendError::contradiction(claim, first.mode)),
        None => Ok(()),
    }
}

/// Metadata as it stands in the file.
pub(crate) fn json(metadata: &Metadata) -> String {
    // A map of strings is always JSON.
    serde_json::to_string(metadata).unwrap_or_default()
}
