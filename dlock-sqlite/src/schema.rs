//! What stands in the file, whose it is, and how it is taken over after a boot.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use crate::file::OpenError;
use crate::host::{Host, microseconds_since_2025};

/// "dlok": marks the file as one of locks.
pub(crate) const APPLICATION: i32 = 0x646C_6F6B;
/// The layout below; another has another number.
pub(crate) const VERSION: i32 = 1;

/// Of one boot so many numbers are given out at most, so that those of the next cannot meet them.
pub(crate) const PER_BOOT: i64 = 1 << 40;

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
    base INTEGER NOT NULL,
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

/// Makes sure that the file is one of locks, of this version and of this boot; makes it one if it is empty.
pub(crate) fn settle(connection: &mut Connection, host: &Host) -> Result<(), OpenError> {
    let boot = host.boot()?;
    if identify_now(connection)? && boot_of(connection)?.as_deref() == Some(boot) {
        return Ok(());
    }
    // The one change that a power failure must not take back: it sets the tokens of this boot apart from those of all boots before.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if !identify(&change)? {
        change.execute_batch(LAYOUT)?;
        change.pragma_update(None, "application_id", APPLICATION)?;
        change.pragma_update(None, "user_version", VERSION)?;
    }
    take_over(&change, boot)?;
    change.commit()?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(())
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

fn boot_of(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT boot FROM dlock_store", [], |row| row.get(0)).optional()
}

/// Ends all that was before this boot.
fn take_over(change: &Transaction<'_>, boot: &str) -> rusqlite::Result<()> {
    let before =
        change.query_row("SELECT boot, base FROM dlock_store", [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)));
    let before = before.optional()?;
    if before.as_ref().is_some_and(|(earlier, _)| earlier == boot) {
        return Ok(());
    }
    let after_all_before = before.map_or(0, |(_, base)| base + PER_BOOT);
    let base = after_all_before.max(microseconds_since_2025());
    change
        .execute_batch("DELETE FROM dlock_session; DELETE FROM dlock_claim; DELETE FROM dlock_over; DELETE FROM dlock_change;")?;
    change.execute(
        "INSERT OR REPLACE INTO dlock_store (one, boot, base, forgotten) VALUES (1, ?1, ?2, ?2)",
        rusqlite::params![boot, base],
    )?;
    Ok(())
}
