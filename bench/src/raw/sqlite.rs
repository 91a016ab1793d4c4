//! Two bare write transactions, with the settings of a file of locks.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, TransactionBehavior};

use super::value;
use crate::Outcome;

/// A file with one row.
pub struct Raw {
    connection: Mutex<Connection>,
    value: String,
}

/// What `dlock-sqlite` sets: pages of 2 KiB, a log that is not forced and is long before it goes into the file.
const SETTINGS: &str =
    "PRAGMA page_size = 2048; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;
    PRAGMA wal_autocheckpoint = 8000; CREATE TABLE bare (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO bare VALUES (1, '')";

impl Raw {
    /// Makes the file in a folder.
    pub fn open(folder: &str) -> Outcome<Self> {
        let connection = Connection::open(Path::new(folder).join("bare.db"))?;
        connection.execute_batch(SETTINGS)?;
        Ok(Self { connection: Mutex::new(connection), value: value() })
    }

    /// One transaction that writes about as much as a lock publishes, or nothing.
    pub fn write(&self, holds: bool) -> Outcome<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let write = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let text = if holds { self.value.as_str() } else { "" };
        write.prepare_cached("UPDATE bare SET text = ?1")?.execute([text])?;
        Ok(write.commit()?)
    }
}
