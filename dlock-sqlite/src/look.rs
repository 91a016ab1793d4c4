//! What can be read of the file, as of one moment.

use dlock_core::{
    BackendError, Cause, Claim, Cursor, Granted, Hint, Holder, Inspection, Interference, Key, Mode, SessionId, Woken,
};
use rusqlite::{Row, params};

use crate::classify::Failed;
use crate::line::{Change, cursor, holder, place, refuse_contradiction};

/// One in line, with what it published.
struct Shown {
    key: String,
    mode: Mode,
    holder: Holder,
}

impl Shown {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (number, session, published): (i64, String, String) = (row.get(0)?, row.get(2)?, row.get(4)?);
        Ok(Self { key: row.get(1)?, mode: crate::line::mode(row.get(3)?), holder: holder(&session, number, &published) })
    }
}

/// How many of those in a line hold.
fn holders(line: &[Shown]) -> usize {
    Mode::holders(line.iter().map(|entry| entry.mode))
}

impl Change<'_> {
    pub(crate) fn inspect(&self, key: &Key) -> Result<Inspection, Failed> {
        let line = "SELECT token, key, session, mode, published FROM dlock_claim WHERE key = ?1 ORDER BY token";
        let line: Vec<Shown> = self.db.prepare_cached(line)?.query_map([key.as_str()], Shown::of)?.collect::<Result<_, _>>()?;
        let held = holders(&line);
        let mut shown = line.into_iter().map(|entry| entry.holder);
        let mut inspection = Inspection::default();
        inspection.holders = shown.by_ref().take(held).collect();
        inspection.waiters = Some(shown.collect());
        Ok(inspection)
    }

    /// All who hold keys that begin so, in the order of the keys.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, Failed> {
        let all = "SELECT token, key, session, mode, published FROM dlock_claim WHERE key >= ?1 ORDER BY key, token";
        let mut all = self.db.prepare_cached(all)?;
        let (mut listed, mut line) = (Vec::new(), Vec::<Shown>::new());
        let mut list = |line: &mut Vec<Shown>| {
            let held = holders(line);
            listed.extend(line.drain(..).take(held).filter_map(|entry| Some((Key::new(entry.key).ok()?, entry.holder))));
        };
        for entry in all.query_map([prefix], Shown::of)? {
            let entry = entry?;
            if !entry.key.starts_with(prefix) {
                break;
            }
            if line.last().is_some_and(|last| last.key != entry.key) {
                list(&mut line);
            }
            line.push(entry);
        }
        list(&mut line);
        Ok(listed)
    }

    /// Those that do not hold any more.
    pub(crate) fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, Failed> {
        let mut found = Vec::new();
        for Granted { claim, .. } in claims {
            let line = self.line(&claim.key)?;
            if !matches!(place(&line, session, claim), Some((_, true))) {
                let cause = if line.is_empty() { Cause::KeyDeleted } else { Cause::TakenOver };
                found.push(Interference { claim: claim.id, cause });
            }
        }
        Ok(found)
    }

    /// Why a wait should return now, if it should.
    pub(crate) fn woken(&self, session: &SessionId, claim: &Claim) -> Result<Option<Woken>, Failed> {
        let line = self.line(&claim.key)?;
        let hint = match place(&line, session, claim) {
            _ if !self.is_alive(session)? => Hint::MaybeFree,
            None => Hint::ClaimGone,
            Some((_, true)) => Hint::MaybeFree,
            Some((_, false)) => {
                // Whoever came to hold the key may have been named another number than this one.
                refuse_contradiction(&line, claim)?;
                return Ok(None);
            }
        };
        Ok(Some(Woken { cursor: cursor(self.revision()?), hint }))
    }

    /// Where a grant was ended since, if it was.
    pub(crate) fn claim_disturbed(
        &self,
        session: &SessionId,
        granted: &Granted,
        since: Option<Cursor>,
    ) -> Result<Option<Cursor>, Failed> {
        let line = self.line(&granted.claim.key)?;
        if matches!(place(&line, session, &granted.claim), Some((_, true))) {
            return Ok(None);
        }
        let changed = cursor(self.changed(&granted.claim.key)?);
        Ok(since.is_none_or(|since| changed > since).then_some(changed))
    }

    /// Whether a session is over.
    pub(crate) fn session_disturbed(&self, session: &SessionId) -> Result<Option<Cursor>, Failed> {
        Ok((!self.is_alive(session)?).then_some(Cursor(0)))
    }

    /// Where a key changed since, if it did.
    pub(crate) fn key_changed(&self, key: &Key, since: Option<Cursor>) -> Result<Option<Cursor>, Failed> {
        let changed = cursor(self.changed(key)?);
        Ok(since.is_none_or(|since| changed > since).then_some(changed))
    }

    /// The keys that changed since, and up to where; no keys at all where that is not known any more.
    pub(crate) fn changes_since(&self, seen: i64) -> Result<(i64, Option<Vec<String>>), BackendError> {
        self.read_changes_since(seen).map_err(|error| Failed::from(error).into())
    }

    fn read_changes_since(&self, seen: i64) -> rusqlite::Result<(i64, Option<Vec<String>>)> {
        let revision = self.revision()?;
        let forgotten: i64 = self.db.prepare_cached("SELECT forgotten FROM dlock_store")?.query_row([], |row| row.get(0))?;
        if forgotten > seen {
            return Ok((revision, None));
        }
        let keys = "SELECT DISTINCT key FROM dlock_change WHERE number > ?1";
        let keys = self.db.prepare_cached(keys)?.query_map(params![seen], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok((revision, Some(keys)))
    }

    /// When a key last changed, or the last change that is forgotten.
    fn changed(&self, key: &Key) -> rusqlite::Result<i64> {
        let changed = "SELECT coalesce((SELECT max(number) FROM dlock_change WHERE key = ?1), forgotten) FROM dlock_store";
        self.db.prepare_cached(changed)?.query_row([key.as_str()], |row| row.get(0))
    }
}
