//! The lines of the keys: who enters, who holds, who leaves. Each of these is a part of one transaction.

use std::cell::Cell;

use dlock_core::{
    BackendError, Claim, Cursor, ErrorKind, FencingToken, Holder, Key, Metadata, Mode, Place, Published, Release, Room, SessionId,
    Standing, Together,
};
use rusqlite::{Connection, Row, params};

use crate::classify::Failed;
use crate::host::Host;
use crate::schema::ROOM;

/// A transaction under way, the moment it began, and what stood in the file then.
pub(crate) struct Change<'t> {
    pub(crate) db: &'t Connection,
    /// Nanoseconds since boot.
    pub(crate) now: i64,
    /// Whether the time of a session is over that is still there.
    pub(crate) is_due: bool,
    /// The number of the last change, as far as this one knows.
    last: Cell<i64>,
    /// Up to where numbers can be given out.
    reserved: i64,
    /// Whether the claim that this is about has a session that is alive, and whether it was released while a copy of it may have been under way.
    alive_and_over: (bool, bool),
}

/// What a change is about: what it looks at first, and who is told of it.
#[derive(Clone, Copy)]
pub(crate) enum About<'c> {
    /// Perhaps several keys.
    Anything,
    /// Sessions, and no end of one.
    Sessions,
    Key(&'c Key),
    Claim(&'c SessionId, &'c Claim),
}

/// What a transaction looks at first, by one statement. A claim is asked for along with it, since it needs little more.
const OPENING: &str = "
SELECT boot = ?1, (SELECT min(lapses) FROM dlock_session),
    max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)), reserved * settled, FALSE, FALSE
FROM dlock_store";
const OPENING_OF_A_CLAIM: &str = "
SELECT boot = ?1, (SELECT min(lapses) FROM dlock_session),
    max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)), reserved * settled,
    EXISTS (SELECT 1 FROM dlock_session WHERE id = ?2 AND lapses > ?3),
    EXISTS (SELECT 1 FROM dlock_over WHERE session = ?2 AND claim = ?4)
FROM dlock_store";
const ENTER: &str = "INSERT INTO dlock_claim (token, key, session, claim, mode, published) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
/// By the whole primary key, though the session and the claim are all that is known: what is found by it is deleted at once, without a list of what is to be.
const LEAVE: &str = "
DELETE FROM dlock_claim WHERE key = ?1 AND session = ?2 AND claim = ?3
    AND token = (SELECT token FROM dlock_claim WHERE key = ?1 AND session = ?2 AND claim = ?3)";

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
    pub(crate) fn begin(db: &'t Connection, host: &Host, about: About<'_>) -> Result<Self, BackendError> {
        let (boot, now) = (host.boot()?, host.now());
        let read = |db: &Connection| {
            let answer = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, (row.get(4)?, row.get(5)?)));
            if let About::Claim(session, claim) = about {
                let asked = params![boot, session.as_str(), now, claim.id.to_string()];
                return db.prepare_cached(OPENING_OF_A_CLAIM)?.query_row(asked, answer);
            }
            db.prepare_cached(OPENING)?.query_row([boot], answer)
        };
        let opening = read(db).map_err(|error| BackendError::from(Failed::from(error)))?;
        let (is_of_this_boot, next_lapse, last, reserved, alive_and_over): (bool, Option<i64>, i64, i64, _) = opening;
        if !is_of_this_boot {
            let message = "the file of locks was opened on another host since; give every host a file of its own";
            return Err(BackendError::new(ErrorKind::Conflict, message));
        }
        let is_due = next_lapse.is_some_and(|lapses| lapses <= now);
        Ok(Self { db, now, is_due, last: Cell::new(last), reserved, alive_and_over })
    }

    /// The number of the last change, if a transaction like this should not begin before more numbers are set aside behind it.
    pub(crate) fn lacks_numbers(&self, about: About<'_>) -> Option<i64> {
        let may_give_some = matches!(about, About::Anything | About::Claim(..));
        (may_give_some && self.last.get() + ROOM > self.reserved).then_some(self.last.get())
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

    /// Whether the claim was released while a copy of it may have been under way.
    fn is_over(&self, session: &SessionId, claim: &Claim) -> rusqlite::Result<bool> {
        let mut over = self.db.prepare_cached("SELECT 1 FROM dlock_over WHERE session = ?1 AND claim = ?2")?;
        over.exists(params![session.as_str(), claim.id.to_string()])
    }

    /// Puts a claim at the end of its line; its number.
    fn enter(&self, session: &SessionId, claim: &Claim, published: &str) -> Result<i64, Failed> {
        let token = self.last.get() + 1;
        if token > self.reserved {
            return Err(
                BackendError::new(ErrorKind::Transient, "no token is set aside in the file of locks for so many claims").into()
            );
        }
        let id = claim.id.to_string();
        let mut enter = self.db.prepare_cached(ENTER)?;
        enter.execute(params![token, claim.key.as_str(), session.as_str(), id, number(claim.mode)?, published])?;
        self.last.set(token);
        Ok(token)
    }

    /// To be called of a change that was begun with this claim.
    pub(crate) fn claim(&self, session: &SessionId, claim: &Claim, published: &str, place: Place) -> Result<Standing, Failed> {
        match self.alive_and_over {
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
            return Ok(Standing::Busy { holder: self.first(&claim.key, &line)?, cursor: cursor(self.last.get()) });
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
            if !line.is_empty() || self.is_over(session, claim)? {
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
        let had = self.db.prepare_cached(LEAVE)?.execute(params![claim.key.as_str(), of, id])? > 0;
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

pub(crate) fn refuse_contradiction(line: &[Entry], claim: &Claim) -> Result<(), BackendError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each would make a table in memory, fill it and read it again.
    #[test]
    fn no_statement_of_a_lock_keeps_a_list_of_what_is_to_be_done() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::schema::LAYOUT).unwrap();
        for statement in [OPENING, OPENING_OF_A_CLAIM, ENTER, LEAVE] {
            let mut explained = db.prepare(&format!("EXPLAIN {statement}")).unwrap();
            let parameters = explained.parameter_count();
            let codes = explained.query_map(rusqlite::params_from_iter(vec![0; parameters]), |row| row.get::<_, String>(1));
            let codes: Vec<String> = codes.unwrap().collect::<Result<_, _>>().unwrap();
            assert!(codes.len() > 10, "{codes:?}");
            for list in ["OpenEphemeral", "OpenAutoindex", "OpenPseudo", "RowSetAdd", "SorterOpen"] {
                assert!(!codes.iter().any(|code| code == list), "{list} in {statement}: {codes:?}");
            }
        }
    }
}
