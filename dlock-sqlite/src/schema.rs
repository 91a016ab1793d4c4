//! What stands in the file, whose it is, and how it is taken over after a boot.

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::host::Host;
use crate::refusal::OpenError;

/// "dlok": marks the file as one of locks.
pub(crate) const APPLICATION: i32 = 0x646C_6F6B;
/// The layout below; another has another number.
pub(crate) const VERSION: i32 = 1;

/// So many numbers are set aside at once, which is forced to the disk: about a second of them by the wall clock, and more than half a minute of locking as fast as
/// it goes.
pub(crate) const STEP: i64 = 1 << 20;
/// What a transaction must have before it begins; none gives out so many.
pub(crate) const ROOM: i64 = 1 << 10;

/// The size of a page.
pub(crate) const PAGE_BYTES: i32 = 2_048;
/// So many pages of the log are written before they go into the file, which is forced: rarely enough to be no part of what a lock costs.
pub(crate) const LOG_PAGES: i64 = 8_000;

/// Grants and changes are numbered together, and the latest changes are kept for those who wait. The session of a claim has no index: a session ends rarely, and
/// each index is one more page that every lock writes. Triggers number the changes, and what follows from the end of a session, so that changes by hand are as good as ours.
pub(crate) const LAYOUT: &str = "
CREATE TABLE dlock_store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    boot TEXT NOT NULL,
    reserved INTEGER NOT NULL,
    settled INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,
    logs INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE dlock_session (id TEXT PRIMARY KEY, owner TEXT NOT NULL, ttl INTEGER NOT NULL, lapses INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX dlock_session_lapses ON dlock_session (lapses);
CREATE TABLE dlock_claim (
    key TEXT NOT NULL,
    token INTEGER NOT NULL,
    session TEXT NOT NULL,
    claim TEXT NOT NULL,
    mode INTEGER NOT NULL,
    amended INTEGER NOT NULL DEFAULT 0,
    published TEXT NOT NULL,
    PRIMARY KEY (key, token)
) STRICT, WITHOUT ROWID;
CREATE TABLE dlock_over (session TEXT NOT NULL, claim TEXT NOT NULL, PRIMARY KEY (session, claim)) STRICT, WITHOUT ROWID;
CREATE TABLE dlock_change (number INTEGER PRIMARY KEY, key TEXT NOT NULL) STRICT;
CREATE TRIGGER dlock_claimed AFTER INSERT ON dlock_claim BEGIN
    INSERT INTO dlock_change (number, key) VALUES (NEW.token, NEW.key);
END;
CREATE TRIGGER dlock_amended AFTER UPDATE ON dlock_claim BEGIN
    INSERT INTO dlock_change (number, key) VALUES (
        (SELECT max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)) + 1 FROM dlock_store), NEW.key
    );
END;
CREATE TRIGGER dlock_left AFTER DELETE ON dlock_claim BEGIN
    INSERT INTO dlock_change (number, key) VALUES (
        (SELECT max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)) + 1 FROM dlock_store), OLD.key
    );
END;
CREATE TRIGGER dlock_forgets AFTER INSERT ON dlock_change WHEN NEW.number % 512 = 0 BEGIN
    UPDATE dlock_store SET forgotten = max(forgotten, NEW.number - 2048);
    DELETE FROM dlock_change WHERE number <= NEW.number - 2048;
END;
CREATE TRIGGER dlock_ended AFTER DELETE ON dlock_session BEGIN
    DELETE FROM dlock_claim WHERE session = OLD.id;
    DELETE FROM dlock_over WHERE session = OLD.id;
END;
";

/// What came of looking whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is of this boot, and can be used.
    Ours,
    /// It is to be opened again: it was taken over, or another makes it.
    Again,
    /// Others have it open, and it is of another boot.
    InUse,
}

/// Makes sure that the file is one of locks, of this version and of this boot; makes it one if it is empty. At the first time whoever is about to confirm what it set
/// aside is left to do so.
pub(crate) fn settle(connection: &mut Connection, host: &Host, is_first: bool) -> Result<Settled, OpenError> {
    let boot = host.boot()?;
    if !identify_now(connection)? {
        let made = forced(connection, |change| {
            if identify(change)? {
                return Ok::<_, OpenError>(None);
            }
            change.execute_batch(LAYOUT)?;
            change.pragma_update(None, "application_id", APPLICATION)?;
            change.pragma_update(None, "user_version", VERSION)?;
            Ok(Some(take_over(change, boot, host.wall())?))
        })?;
        let Some(reserved) = made else { return Ok(Settled::Again) };
        confirm(connection, reserved)?;
        return Ok(Settled::Ours);
    }
    match of_boot(connection)? {
        Some((of, true)) if of == boot => Ok(Settled::Ours),
        Some((of, false)) if of == boot && is_first => Ok(Settled::Again),
        Some((of, false)) if of == boot => reserve(connection, host, 0).map(|()| Settled::Ours),
        _ => {
            // Whoever is of the earlier boot is gone, unless that was none: those in a container may be told of another boot than this host's. This succeeds
            // only if nobody else has the file open.
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.busy_handler(None)?;
            match forced(connection, |change| take_over(change, boot, host.wall())) {
                Ok(reserved) => confirm(connection, reserved)?,
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => return Ok(Settled::InUse),
                Err(error) => return Err(error.into()),
            }
            Ok(Settled::Again)
        }
    }
}

/// Changes the file, and has that forced to the disk, so that a power failure cannot take it back.
fn forced<T, E: From<rusqlite::Error>>(
    connection: &mut Connection,
    change: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let change_and_commit = |connection: &mut Connection| {
        debug_assert_eq!(connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i32>(0)), Ok(2));
        let under_way = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let outcome = change(&under_way)?;
        under_way.commit()?;
        Ok(outcome)
    };
    let outcome = change_and_commit(connection);
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    outcome
}

/// Sets more numbers aside, behind `last`, so that those of the next boot, and of a file made after this was deleted, are behind all that are given out.
pub(crate) fn reserve(connection: &mut Connection, host: &Host, last: i64) -> Result<(), OpenError> {
    let boot = host.boot()?;
    let raise = "UPDATE dlock_store SET reserved = max(max(reserved, ?1) + ?2, ?3), settled = 0 WHERE boot = ?4 RETURNING reserved";
    let reserved =
        forced(connection, |change| change.query_row(raise, params![last, STEP, host.wall(), boot], |row| row.get(0)).optional())?;
    // Of another boot: that is told when it is used.
    reserved.map_or(Ok(()), |reserved| Ok(confirm(connection, reserved)?))
}

/// Says that what was set aside is on the disk. Until then another may see it that a power failure would take back: whoever set it aside was killed before it was forced.
fn confirm(connection: &mut Connection, reserved: i64) -> rusqlite::Result<()> {
    forced(connection, |change| change.execute("UPDATE dlock_store SET settled = 1 WHERE reserved = ?1", [reserved]).map(|_| ()))
}

/// [`identify`] as of one moment: another process may be making the file.
pub(crate) fn identify_now(connection: &mut Connection) -> Result<bool, OpenError> {
    let seen = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    identify(&seen)
}

/// Whether the file is one of locks of this version; `false` if it is empty. To be asked within a transaction.
fn identify(connection: &Connection) -> Result<bool, OpenError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION, VERSION) => Ok(true),
        (APPLICATION, version) => Err(OpenError::Version { version }),
        (0, 0) if tables == 0 => Ok(false),
        _ => Err(OpenError::Foreign),
    }
}

/// Whether what is ours can be read. Tables of others, who keep what they guard beside it, are theirs to check.
pub(crate) fn is_sound(connection: &Connection) -> rusqlite::Result<bool> {
    for table in ["dlock_store", "dlock_session", "dlock_claim", "dlock_over", "dlock_change"] {
        let found: String = connection.query_row(&format!("PRAGMA quick_check({table})"), [], |row| row.get(0))?;
        if found != "ok" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Of which boot the file is, and whether that was confirmed.
fn of_boot(connection: &Connection) -> rusqlite::Result<Option<(String, bool)>> {
    connection.query_row("SELECT boot, settled FROM dlock_store", [], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

/// Ends all that was before this boot; up to where numbers are set aside.
fn take_over(change: &Transaction<'_>, boot: &str, wall: i64) -> rusqlite::Result<i64> {
    let before = change.query_row("SELECT boot, reserved FROM dlock_store", [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (earlier, reserved): (String, i64) = before.unwrap_or_default();
    if earlier == boot {
        // Another was faster; what it set aside is not confirmed by this one.
        return Ok(0);
    }
    let base = reserved.max(wall);
    change
        .execute_batch("DELETE FROM dlock_session; DELETE FROM dlock_claim; DELETE FROM dlock_over; DELETE FROM dlock_change;")?;
    change.execute(
        "INSERT OR REPLACE INTO dlock_store (one, boot, reserved, settled, forgotten) VALUES (1, ?1, ?2, 0, ?3)",
        params![boot, base + STEP, base],
    )?;
    Ok(base + STEP)
}
