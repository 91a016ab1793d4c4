//! The lives of sessions, as parts of one transaction.

use dlock_core::SessionId;
use rusqlite::{OptionalExtension, params};

use crate::line::Change;

impl Change<'_> {
    /// Ends those whose time is over, with all they have.
    pub(crate) fn end_lapsed(&self) -> rusqlite::Result<()> {
        self.db.prepare_cached("DELETE FROM dlock_session WHERE lapses <= ?1")?.execute([self.now])?;
        Ok(())
    }

    /// Whether the session is there and its time is not over.
    pub(crate) fn is_alive(&self, session: &SessionId) -> rusqlite::Result<bool> {
        let mut alive = self.db.prepare_cached("SELECT 1 FROM dlock_session WHERE id = ?1 AND lapses > ?2")?;
        alive.exists(params![session.as_str(), self.now])
    }

    /// Makes a session with this ttl in nanoseconds; a second request finds it made, and gives it its own ttl from now on.
    pub(crate) fn open(&self, session: &SessionId, owner: &str, ttl: i64) -> rusqlite::Result<()> {
        let open = "INSERT INTO dlock_session (id, owner, ttl, lapses) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (id) DO UPDATE SET ttl = excluded.ttl, lapses = max(lapses, excluded.lapses)";
        self.db.prepare_cached(open)?.execute(params![session.as_str(), owner, ttl, self.now.saturating_add(ttl)])?;
        Ok(())
    }

    /// Gives a session its whole ttl from now on; the ttl in nanoseconds, or `None` if there is no such session.
    pub(crate) fn renew(&self, session: &SessionId) -> rusqlite::Result<Option<i64>> {
        // Never back: the clock was read before this change, by a process that may have been slow since.
        let renew = "UPDATE dlock_session SET lapses = max(lapses, ?2 + ttl) WHERE id = ?1 RETURNING ttl";
        self.db.prepare_cached(renew)?.query_row(params![session.as_str(), self.now], |row| row.get(0)).optional()
    }

    /// Writes to the file what stands in it.
    pub(crate) fn write_nothing_new(&self) -> rusqlite::Result<()> {
        self.db.prepare_cached("UPDATE dlock_store SET forgotten = forgotten")?.execute([]).map(|_| ())
    }

    /// Ends a session with all it has.
    pub(crate) fn close(&self, session: &SessionId) -> rusqlite::Result<()> {
        self.db.prepare_cached("DELETE FROM dlock_session WHERE id = ?1")?.execute([session.as_str()])?;
        Ok(())
    }
}
