//! The file as a connection: made, looked at, refused with a reason, and begun anew when another was put in its place.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock_core::{BackendError, Claim, ErrorKind, Key};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

use crate::classify::{AtStep, Failed, classify, meaning};
use crate::host::Host;
use crate::line::{About, Change};
use crate::{place, schema};

/// The file, as one thread uses it.
#[derive(Debug)]
pub(crate) struct File {
    connection: Connection,
    path: PathBuf,
    identity: Identity,
    host: Host,
    haste: Haste,
    touched: Option<Touched>,
}

/// Whether a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
    None,
    InHaste,
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

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

impl File {
    /// Opens the file, and makes it if there is none.
    pub(crate) fn open(path: &Path, host: &Host) -> Result<Self, OpenError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_folder(folder)?;
        place::check_folder(folder)?;
        let made = make_file(folder, path)?;
        // Never opened but by SQLite: closing a file ends all locks that this process has on it.
        let metadata = std::fs::metadata(path).map_err(|source| OpenError::Unreadable { path: path.into(), source })?;
        if !metadata.is_file() {
            return Err(OpenError::NoFile { path: path.into() });
        }
        if metadata.permissions().readonly() {
            return Err(OpenError::ReadOnlyFile { path: path.into() });
        }
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        let connection = connect(path, host).map_err(|error| error.at(path))?;
        if made {
            let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|source| OpenError::Unreadable { path: folder.into(), source })?;
        }
        Ok(Self { connection, path: path.to_owned(), identity, host: host.clone(), haste: Haste::None, touched: None })
    }

    /// Whether the name still stands for this file, and nothing is left of an earlier transaction.
    pub(crate) fn is_in_place(&self) -> bool {
        self.connection.is_autocommit() && Identity::of(&self.path).is_ok_and(|identity| identity == self.identity)
    }

    /// Reads as of one moment, with nothing in it whose time is over.
    pub(crate) fn read<T>(&mut self, read: impl FnOnce(&Change<'_>) -> Result<T, Failed>) -> Result<T, BackendError> {
        if self.next_lapse()?.is_some_and(|lapses| lapses <= self.host.now()) {
            self.change(|_| Ok(()))?;
        }
        self.look(read)
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
        let is_in_haste = self.haste == Haste::InHaste;
        let Some(under_way) = UnderWay::begin_change(&mut self.connection, is_in_haste)? else {
            return Err(put_off(&mut self.haste));
        };
        // The clock is read now that nobody else can change anything.
        let mut begun = Change::begin(under_way.0, &self.host, about)?;
        let ends_some = begun.is_due;
        if ends_some {
            if is_in_haste {
                return Err(put_off(&mut self.haste));
            }
            begun.end_lapsed().map_err(Failed::from)?;
            begun = Change::begin(under_way.0, &self.host, about)?;
        }
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

    /// Does what waits for nothing; `None` if something would have to be waited for, and nothing was done.
    pub(crate) fn in_haste<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, BackendError>,
    ) -> Option<Result<T, BackendError>> {
        self.haste = Haste::InHaste;
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

    /// Puts a long log into the file, as far as nobody reads it. Transactions never do this by themselves, since it is forced to the disk.
    pub(crate) fn tend_log(&self) -> rusqlite::Result<()> {
        let pages = |how| self.connection.query_row(how, [], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)));
        if pages("PRAGMA wal_checkpoint(NOOP)")?.0 < schema::LOG_PAGES {
            return Ok(());
        }
        let (written, put_in) = pages("PRAGMA wal_checkpoint(PASSIVE)")?;
        if written == put_in {
            // The next to write begins the log anew, and has that forced to the disk. Better here than where a caller waits.
            self.connection.execute("UPDATE dlock_store SET logs = logs + 1", [])?;
        }
        Ok(())
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

fn make_folder(folder: &Path) -> Result<(), OpenError> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Ok(()) => Ok(()),
        Err(source) if is_read_only(&source) => Err(OpenError::ReadOnlyFolder { path: folder.into(), source: Some(source) }),
        Err(source) => Err(OpenError::Unreadable { path: folder.into(), source }),
    }
}

/// Numbers the names under which files are made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Makes an empty file for nobody but this user, if there is none; whether it did.
///
/// Under another name first, so that the file is never open but in SQLite, not even in this moment.
fn make_file(folder: &Path, path: &Path) -> Result<bool, OpenError> {
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(false);
    }
    let refuse = |source: std::io::Error| {
        if is_read_only(&source) {
            OpenError::ReadOnlyFolder { path: folder.into(), source: Some(source) }
        } else {
            OpenError::Unreadable { path: path.into(), source }
        }
    };
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}-{number}", std::process::id()));
    let fresh = PathBuf::from(name);
    // One that a process of the same id left behind when it was killed.
    _ = std::fs::remove_file(&fresh);
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(refuse)?;
    let linked = std::fs::hard_link(&fresh, path);
    _ = std::fs::remove_file(&fresh);
    match linked {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(refuse(source)),
    }
}

fn is_read_only(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
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

/// A connection to a file of locks of this version and this boot.
fn connect(path: &Path, host: &Host) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(ask_again))?;
    connection.set_prepared_statement_cache_capacity(64);
    // First of all, so that a file of somebody else's is left as it is.
    schema::identify_now(&mut connection)?;
    // Of a file that is made now; rows are short, and whole pages are written.
    connection.pragma_update(None, "page_size", schema::PAGE_BYTES)?;
    log_ahead(&connection)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if sound != "ok" {
        return Err(OpenError::Damaged { path: path.into(), source: None });
    }
    schema::settle(&mut connection, host)?;
    Ok(connection)
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

/// Why a file cannot be used for locks; the source of a [`BackendError`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder is on a file system that other hosts may change.
    #[error(
        "{path:?} is on a network file system ({kind}), on which locks do not hold; choose a folder on a disk of this host, or another backend"
    )]
    NetworkFileSystem {
        /// The folder.
        path: PathBuf,
        /// What the file system is called.
        kind: &'static str,
    },
    /// Nothing can be written into the folder.
    #[error(
        "the folder {path:?} cannot be written; allow this user to write it, or choose another: SQLite keeps its log beside the file"
    )]
    ReadOnlyFolder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: Option<std::io::Error>,
    },
    /// The file cannot be written.
    #[error("the file {path:?} cannot be written; allow this user to read and write it")]
    ReadOnlyFile {
        /// The file.
        path: PathBuf,
    },
    /// It is something else than a file.
    #[error("{path:?} is no file; name a file, or nothing that is there yet")]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// The file or its folder cannot be looked at.
    #[error("cannot use {path:?}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no database, or a damaged one.
    #[error(
        "{path:?} is damaged, or no database; end all processes that use it, move it and what stands beside it away, and a new one is made"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: Option<rusqlite::Error>,
    },
    /// The file is a database of something else.
    #[error("the file is a database of something else than locks, and was left alone; choose another name")]
    Foreign,
    /// The file is of another version of this backend.
    #[error("the file is of version {version}, this backend knows version {known}; use the version of dlock-sqlite that made it, or a new file", known = schema::VERSION)]
    Version {
        /// The version of the file.
        version: i32,
    },
    /// SQLite cannot keep its log beside the file.
    #[error("SQLite cannot turn its write-ahead log on for the file; choose a folder on a disk of this host")]
    NoLog,
    /// The system does not tell its boots apart.
    #[error(
        "this system tells no boot from another, without which a lock would outlive one; this backend works on Linux with /proc"
    )]
    NoBoot {
        /// What the system says.
        source: Option<std::io::Error>,
    },
    /// SQLite refused.
    #[error("SQLite cannot open the file")]
    Sqlite(#[from] rusqlite::Error),
}

impl OpenError {
    /// The same, with the file where it is about its content or its permissions.
    fn at(self, path: &Path) -> Self {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, PermissionDenied, ReadOnly};

        let Self::Sqlite(error) = self else { return self };
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged { path: path.into(), source: Some(error) },
            Some(ReadOnly | PermissionDenied | CannotOpen) => Self::ReadOnlyFile { path: path.into() },
            _ => Self::Sqlite(error),
        }
    }
}

impl From<OpenError> for BackendError {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::ReadOnlyFolder { .. } | OpenError::ReadOnlyFile { .. } => ErrorKind::Denied,
            OpenError::Foreign => ErrorKind::Conflict,
            OpenError::Sqlite(error) => meaning(error.sqlite_error_code(), AtStep::Before).0,
            _ => ErrorKind::Invalid,
        };
        Self::new(kind, format!("opening the file of locks: {error}")).caused_by(error)
    }
}
