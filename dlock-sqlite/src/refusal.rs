//! Why a file cannot be used for locks, and what would be right.

use std::path::{Path, PathBuf};

use dlock_core::{BackendError, ErrorKind};
use thiserror::Error;

use crate::classify::{AtStep, meaning};
use crate::{place, schema};

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
    /// The file goes by another name too.
    #[error(
        "{path:?} is one file under several names (hard links), with SQLite's log beside only one of them; remove the others, or use a symbolic link"
    )]
    Linked {
        /// The file.
        path: PathBuf,
    },
    /// The file is mounted without its folder.
    #[error("{path:?} is mounted by itself, without SQLite's log beside it; mount the folder, not the file")]
    MountedAlone {
        /// The file.
        path: PathBuf,
    },
    /// The file is gone, and what SQLite kept beside it is not.
    #[error(
        "{path:?} is left of a file of locks that is gone; end all processes that use it and remove -wal and -shm, and a new one is made"
    )]
    Leftovers {
        /// What is left.
        path: PathBuf,
    },
    /// Others use the file who are told of another boot of this host than this process.
    #[error(
        "others have {path:?} open, and it was not opened since this boot; end them if they are left from before, and give containers that are told of a boot of their own a file each"
    )]
    InUseByAnotherBoot {
        /// The file.
        path: PathBuf,
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
    /// The same, with the file where it is about its content, or what it is that cannot be written.
    pub(crate) fn at(self, path: &Path) -> Self {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, PermissionDenied, ReadOnly};

        let Self::Sqlite(error) = self else { return self };
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged { path: path.into(), source: Some(error) },
            Some(ReadOnly | PermissionDenied | CannotOpen) => place::what_is_denied(path).unwrap_or(Self::Sqlite(error)),
            _ => Self::Sqlite(error),
        }
    }
}

/// What the system says, as a kind: what passes by itself (too many open files, no room, a failing disk) is not told as if it did not.
fn kind_of(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};

    match error.kind() {
        PermissionDenied | ReadOnlyFilesystem => ErrorKind::Denied,
        NotFound | NotADirectory | IsADirectory | InvalidInput => ErrorKind::Invalid,
        _ => ErrorKind::Transient,
    }
}

impl From<OpenError> for BackendError {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::ReadOnlyFolder { .. } | OpenError::ReadOnlyFile { .. } => ErrorKind::Denied,
            OpenError::Unreadable { source, .. } | OpenError::NoBoot { source: Some(source) } => kind_of(source),
            OpenError::Foreign | OpenError::InUseByAnotherBoot { .. } => ErrorKind::Conflict,
            OpenError::Sqlite(error) => meaning(error.sqlite_error_code(), AtStep::Before).0,
            _ => ErrorKind::Invalid,
        };
        Self::new(kind, format!("opening the file of locks: {error}")).caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_as_passing() {
        use rustix::io::Errno;

        for (errno, kind) in [
            (Errno::MFILE, ErrorKind::Transient),
            (Errno::NFILE, ErrorKind::Transient),
            (Errno::NOSPC, ErrorKind::Transient),
            (Errno::IO, ErrorKind::Transient),
            (Errno::ACCESS, ErrorKind::Denied),
            (Errno::PERM, ErrorKind::Denied),
            (Errno::ROFS, ErrorKind::Denied),
            (Errno::NOENT, ErrorKind::Invalid),
            (Errno::NOTDIR, ErrorKind::Invalid),
        ] {
            let unreadable = OpenError::Unreadable { path: "/locks.db".into(), source: errno.into() };
            assert_eq!(BackendError::from(unreadable).kind(), kind, "{errno:?}");
            assert_eq!(BackendError::from(OpenError::NoBoot { source: Some(errno.into()) }).kind(), kind, "{errno:?}");
        }
        assert_eq!(BackendError::from(OpenError::NoBoot { source: None }).kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_file_that_cannot_be_opened_though_all_is_allowed_may_be_later() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("locks.db");
        std::fs::write(&path, "").unwrap();
        let cannot_open = || rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN), None);
        let error = BackendError::from(OpenError::Sqlite(cannot_open()).at(&path));
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        let log = folder.path().join("locks.db-wal");
        std::fs::write(&log, "").unwrap();
        std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        let error = BackendError::from(OpenError::Sqlite(cannot_open()).at(&path));
        assert!(error.kind() == ErrorKind::Denied && error.message().contains("locks.db-wal"), "{error}");
    }
}
