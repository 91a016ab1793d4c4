//! The file as a connection: opened, read, changed, and begun anew when another was put in its place.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dlock_core::{BackendError, Claim, ErrorKind, Key};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::classify::{AtStep, Failed, classify};
use crate::host::Host;
use crate::line::{About, Change};
use crate::place::Found;
use crate::refusal::OpenError;
use crate::schema::Settled;
use crate::{place, schema};

/// The file, as one thread uses it.
#[derive(Debug)]
pub(crate) struct File {
    connection: Connection,
    /// Of the file, of its log and of the index of that.
    names: [PathBuf; 3],
    identity: Identity,
    host: Host,
    haste: Haste,
    touched: Option<Touched>,
}

/// Whether a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
    None,
    MayNotWait,
    /// It was in haste, and found something to wait for.
    PutOff,
}

/// What the last change touched, for those who wait.
#[derive(Debug)]
pub(crate) enum Touched {
    Key(Key),
    Anything,
}

/// A transaction, undone unless it is committed; by statements that are prepared once, as all others are.
struct UnderWay<'c>(&'c Connection);

impl<'c> UnderWay<'c> {
    fn begin(connection: &'c mut Connection, how: &'static str) -> Result<Self, BackendError> {
        execute(connection, how).map_err(|error| classify(error, AtStep::Before))?;
        Ok(Self(connection))
    }

    /// `None` if it is in haste and others are at it.
    fn begin_change(connection: &'c mut Connection, is_in_haste: bool) -> Result<Option<Self>, BackendError> {
        if !is_in_haste {
            return Self::begin(connection, "BEGIN IMMEDIATE").map(Some);
        }
        let ask = |connection: &Connection, again| connection.busy_handler(again).map_err(|error| classify(error, AtStep::Before));
        ask(connection, None)?;
        let begun = execute(connection, "BEGIN IMMEDIATE");
        ask(connection, Some(ask_again))?;
        match begun {
            Ok(()) => Ok(Some(Self(connection))),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(None),
            Err(error) => Err(classify(error, AtStep::Before)),
        }
    }

    fn commit(self) -> Result<(), BackendError> {
        execute(self.0, "COMMIT").map_err(|error| classify(error, AtStep::Commit))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // What cannot be undone here is undone when the connection is closed, before the next transaction.
            _ = execute(self.0, "ROLLBACK");
        }
    }
}

/// Said to nobody.
fn put_off(haste: &mut Haste) -> BackendError {
    *haste = Haste::PutOff;
    BackendError::new(ErrorKind::Overloaded, "put off, and done by the thread")
}

fn execute(connection: &Connection, statement: &'static str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(|_| ())
}

/// Which files they are, whatever their names: the file of locks, and the log and its index beside it, without which it is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity([Option<(u64, u64)>; 3]);

impl Identity {
    fn of(names: &[PathBuf; 3]) -> Self {
        Self(names.each_ref().map(|name| identity(name)))
    }
}

fn identity(name: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(name).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl File {
    /// Opens the file, and makes it if there is none.
    pub(crate) fn open(path: &Path, host: &Host) -> Result<Self, OpenError> {
        let Found { path: real, is_new } = place::find(path)?;
        // By the name that was given, in case that is a link which is put elsewhere.
        let names = [path.to_owned(), place::beside(&real, "-wal"), place::beside(&real, "-shm")];
        let before = Identity::of(&names).0[0];
        let connection = connect(&real, host).map_err(|error| error.at(&real))?;
        if is_new {
            let folder = place::folder_of(&real);
            let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|source| OpenError::Unreadable { path: folder.into(), source })?;
        }
        let mut identity = Identity::of(&names);
        identity.0[0] = before;
        Ok(Self { connection, names, identity, host: host.clone(), haste: Haste::None, touched: None })
    }

    /// Whether the names still stand for these files, and nothing is left of an earlier transaction.
    pub(crate) fn is_in_place(&self) -> bool {
        self.connection.is_autocommit() && Identity::of(&self.names) == self.identity
    }

    /// Reads as of one moment, with nothing in it whose time is over.
    pub(crate) fn read<T>(&mut self, read: impl FnOnce(&Change<'_>) -> Result<T, Failed>) -> Result<T, BackendError> {
        loop {
            let under_way = UnderWay::begin(&mut self.connection, "BEGIN")?;
            let seen = Change::begin(under_way.0, &self.host, About::Anything)?;
            if !seen.is_due {
                return Ok(read(&seen)?);
            }
            drop(under_way);
            self.change(|_| Ok(()))?;
        }
    }

    /// Reads as of one moment; what lapsed may still be there.
    pub(crate) fn look<T>(&mut self, read: impl FnOnce(&Change<'_>) -> Result<T, Failed>) -> Result<T, BackendError> {
        let under_way = UnderWay::begin(&mut self.connection, "BEGIN")?;
        let seen = Change::begin(under_way.0, &self.host, About::Anything)?;
        Ok(read(&seen)?)
    }

    /// Changes the file in one step, once all whose time is over has ended.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&Change<'_>) -> Result<T, Failed>) -> Result<T, BackendError> {
        self.change_of(About::Anything, change)
    }

    /// The same for a change of which it is known what it is about.
    pub(crate) fn change_of<T>(
        &mut self,
        about: About<'_>,
        change: impl FnOnce(&Change<'_>) -> Result<T, Failed>,
    ) -> Result<T, BackendError> {
        let is_in_haste = self.haste == Haste::MayNotWait;
        let (under_way, begun, ends_some) = loop {
            let Some(under_way) = UnderWay::begin_change(&mut self.connection, is_in_haste)? else {
                return Err(put_off(&mut self.haste));
            };
            // The clock is read now that nobody else can change anything.
            let mut begun = Change::begin(under_way.0, &self.host, about)?;
            let ends_some = begun.is_due;
            if is_in_haste && (ends_some || begun.lacks_numbers(about).is_some()) {
                return Err(put_off(&mut self.haste));
            }
            if ends_some {
                begun.end_lapsed().map_err(Failed::from)?;
                begun = Change::begin(under_way.0, &self.host, about)?;
            }
            let Some(last) = begun.lacks_numbers(about) else { break (under_way, begun, ends_some) };
            drop(under_way);
            schema::reserve(&mut self.connection, &self.host, last)?;
        };
        let outcome = change(&begun)?;
        under_way.commit()?;
        self.touched = match about {
            About::Anything => Some(Touched::Anything),
            _ if ends_some => Some(Touched::Anything),
            About::Sessions => None,
            About::Key(key) | About::Claim(_, Claim { key, .. }) => Some(Touched::Key(key.clone())),
        };
        Ok(outcome)
    }

    /// The host whose clock and boot it goes by.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.names[0]
    }

    /// Does what waits for nothing; `None` if something would have to be waited for, and nothing was done.
    pub(crate) fn in_haste<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, BackendError>,
    ) -> Option<Result<T, BackendError>> {
        if !self.connection.is_autocommit() || !self.is_in_place() {
            return None;
        }
        self.haste = Haste::MayNotWait;
        let answer = work(self);
        let was_put_off = std::mem::replace(&mut self.haste, Haste::None) == Haste::PutOff;
        (!was_put_off).then_some(answer)
    }

    /// Whether the change was in haste, and will be asked for again.
    pub(crate) fn was_put_off(&self) -> bool {
        self.haste == Haste::PutOff
    }

    /// What the last change touched, asked once.
    pub(crate) fn touched(&mut self) -> Option<Touched> {
        self.touched.take()
    }

    pub(crate) fn is_log_long(&self) -> rusqlite::Result<bool> {
        Ok(Log::look(&self.connection, "PRAGMA wal_checkpoint(NOOP)")?.written >= schema::LOG_PAGES)
    }

    /// When the next session lapses if nobody renews it, in nanoseconds since boot.
    pub(crate) fn next_lapse(&self) -> Result<Option<i64>, BackendError> {
        let next = self.connection.prepare_cached("SELECT min(lapses) FROM dlock_session");
        next.and_then(|mut next| next.query_row([], |row| row.get(0))).map_err(|error| classify(error, AtStep::Before))
    }

    /// Another number after every change by another connection, of whatever process.
    pub(crate) fn data_version(&self) -> Result<i64, BackendError> {
        let asked = self.connection.prepare_cached("PRAGMA data_version");
        asked.and_then(|mut asked| asked.query_row([], |row| row.get(0))).map_err(|error| classify(error, AtStep::Before))
    }
}

/// The write-ahead log, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// Others were at it, and not all was done.
    is_busy: bool,
    written: i64,
    put_in: i64,
}

impl Log {
    fn look(connection: &Connection, how: &str) -> rusqlite::Result<Self> {
        connection.query_row(how, [], |row| Ok(Self { is_busy: row.get(0)?, written: row.get(1)?, put_in: row.get(2)? }))
    }

    /// Puts the log into the file, which is forced to the disk, and begins it anew; transactions never do this by themselves. Whether it is short now.
    ///
    /// By a connection of its own: it takes as long as the disk needs for all that is in the log, and holds up others for as long as it needs for what they write meanwhile.
    pub(crate) fn shorten(path: &Path) -> Result<bool, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        // While it asks for readers to go, nobody else may write.
        connection.busy_handler(Some(|times| times < 30 && ask_again(times)))?;
        if !schema::identify_now(&mut connection)? {
            return Ok(true);
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        Self::look(&connection, "PRAGMA wal_checkpoint(PASSIVE)")?;
        let log = Self::look(&connection, "PRAGMA wal_checkpoint(RESTART)")?;
        if log.is_busy || log.written != log.put_in {
            return Ok(false);
        }
        // The next to write has the beginning of the log forced to the disk. Better here than where a caller waits.
        connection.execute("UPDATE dlock_store SET logs = logs + 1", [])?;
        Ok(Self::look(&connection, "PRAGMA wal_checkpoint(NOOP)")?.written < schema::LOG_PAGES)
    }
}

/// How often SQLite asks again for a file that another is changing, a millisecond apart; a change takes a fraction of one.
const ASKED_AGAIN: i32 = 1_000;

fn ask_again(times: i32) -> bool {
    if times >= ASKED_AGAIN {
        return false;
    }
    std::thread::sleep(Duration::from_micros(if times < 10 { 100 } else { 1_000 }));
    true
}

/// How long others may have the file open who are of another boot.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// A connection to a file of locks of this version and this boot.
fn connect(path: &Path, host: &Host) -> Result<Connection, OpenError> {
    let (mut times, mut in_use) = (0_u32, None);
    loop {
        let began = Instant::now();
        let (connection, settled) = connect_once(path, host, times == 0)?;
        if settled == Settled::Ours {
            return Ok(connection);
        }
        // Not while others are asked to leave.
        drop(connection);
        if settled == Settled::InUse {
            let (since, tries) = in_use.get_or_insert((Instant::now(), 0));
            *tries += 1;
            if since.elapsed() > LEAVE_WITHIN && *tries > 10 {
                return Err(OpenError::InUseByAnotherBoot { path: path.into() });
            }
        }
        // Of several that take the file over at once one finds the others away, if they do not come back in step.
        let at_most = (2_000 << times.min(4)).max(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_mul(2));
        std::thread::sleep(Duration::from_micros(500 + RandomState::new().build_hasher().finish() % at_most));
        times += 1;
    }
}

fn connect_once(path: &Path, host: &Host, is_first: bool) -> Result<(Connection, Settled), OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(ask_again))?;
    connection.set_prepared_statement_cache_capacity(64);
    // First of all, so that a file of somebody else's is left as it is.
    let is_made = schema::identify_now(&mut connection)?;
    // Of a file that is made now.
    connection.pragma_update(None, "page_size", schema::PAGE_BYTES)?;
    log_ahead(&connection)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let settled = schema::settle(&mut connection, host, is_first)?;
    // Once, and not while others of another boot are asked to leave: it takes long where much is in the file.
    if settled == Settled::Ours && is_made && !schema::is_sound(&connection)? {
        return Err(OpenError::Damaged { path: path.into(), source: None });
    }
    Ok((connection, settled))
}

/// Turns the write-ahead log on, for which SQLite does not ask again by itself.
fn log_ahead(connection: &Connection) -> Result<(), OpenError> {
    for times in 0.. {
        let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => break,
            Ok(_) => return Err(OpenError::NoLog),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) && ask_again(times) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However busy others are: the log is begun anew once a writer may not go on for a moment.
    #[test]
    fn a_log_is_short_once_it_was_put_into_the_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("locks.db");
        let file = File::open(&path, &Host::this()).unwrap();
        let written = || Log::look(&file.connection, "PRAGMA wal_checkpoint(NOOP)").unwrap().written;
        let write = |connection: &Connection| connection.execute("UPDATE dlock_store SET logs = logs + 1", []).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (path, stop) = (&path, &stop);
            scope.spawn(move || {
                let other = File::open(path, &Host::this()).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    write(&other.connection);
                }
            });
            while written() < schema::LOG_PAGES {
                write(&file.connection);
            }
            // Whoever reads for long is left alone, and the log goes on.
            let reader = File::open(path, &Host::this()).unwrap();
            reader.connection.execute_batch("BEGIN; SELECT * FROM dlock_store").unwrap();
            assert!(!Log::shorten(path).unwrap());
            reader.connection.execute_batch("COMMIT").unwrap();
            let mut tries = 0;
            while !Log::shorten(path).unwrap() {
                tries += 1;
                assert!(tries < 100, "{} pages", written());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    /// What another process makes in their place is another file.
    #[test]
    fn a_file_is_in_place_while_its_log_and_index_are() {
        for name in ["locks.db", "locks.db-wal", "locks.db-shm"] {
            let folder = tempfile::TempDir::new().unwrap();
            let mut file = File::open(&folder.path().join("locks.db"), &Host::this()).unwrap();
            assert!(file.is_in_place());
            let name = folder.path().join(name);
            for replaced in [false, true] {
                _ = std::fs::remove_file(&name);
                if replaced {
                    std::fs::write(&name, "").unwrap();
                }
                assert!(!file.is_in_place(), "{name:?}");
                assert!(file.in_haste(|_| Ok(())).is_none(), "{name:?}");
            }
        }
    }
}
