//! What an error of SQLite's means for the caller.

use std::error::Error as _;

use dlock_core::{BackendError, ErrorKind};
use rusqlite::ErrorCode;

/// How far a change had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtStep {
    /// Nothing can have been applied: a transaction that is not committed is undone, by whoever opens the file next if need be.
    Before,
    /// The commit itself failed.
    Commit,
}

/// What ended a transaction before its commit.
#[derive(Debug)]
pub(crate) enum Failed {
    /// SQLite refused.
    Sqlite(rusqlite::Error),
    /// The request was refused by the rules.
    Told(BackendError),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<BackendError> for Failed {
    fn from(error: BackendError) -> Self {
        Self::Told(error)
    }
}

impl From<Failed> for BackendError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Sqlite(error) => classify(error, AtStep::Before),
            Failed::Told(error) => error,
        }
    }
}

/// The kind and the words for an error at this step.
pub(crate) fn classify(error: rusqlite::Error, step: AtStep) -> BackendError {
    let (kind, message) = meaning(error.sqlite_error_code(), step);
    BackendError::new(kind, message).caused_by(error)
}

/// Whether there was no room on the disk.
pub(crate) fn is_full(error: &BackendError) -> bool {
    let refusal = error.source().and_then(|source| source.downcast_ref::<rusqlite::Error>());
    refusal.and_then(rusqlite::Error::sqlite_error_code) == Some(ErrorCode::DiskFull)
}

pub(crate) fn meaning(code: Option<ErrorCode>, step: AtStep) -> (ErrorKind, &'static str) {
    match (code, step) {
        (Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked), AtStep::Before) => (
            ErrorKind::Overloaded,
            "the file of locks was being changed by others all the time; is a process stopped in the middle of a change?",
        ),
        (Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase), _) => {
            (ErrorKind::Invalid, "the file of locks is damaged; end all processes that use it, and move it away")
        }
        (Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied), AtStep::Before) => {
            (ErrorKind::Denied, "the file of locks cannot be written; allow this user to write it and its folder")
        }
        (Some(ErrorCode::DiskFull), AtStep::Before) => {
            (ErrorKind::Transient, "there is no room for the file of locks; make room on its disk")
        }
        (_, AtStep::Before) => (ErrorKind::Transient, "SQLite cannot read or change the file of locks"),
        (_, AtStep::Commit) => (ErrorKind::Ambiguous, "SQLite does not say whether it changed the file of locks"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_committed_was_surely_not_applied() {
        for code in [ErrorCode::DatabaseBusy, ErrorCode::DiskFull, ErrorCode::SystemIoFailure] {
            let (kind, _) = meaning(Some(code), AtStep::Before);
            assert!(matches!(kind, ErrorKind::Overloaded | ErrorKind::Transient), "{code:?}: {kind:?}");
        }
    }

    #[test]
    fn a_failed_commit_is_perhaps_applied() {
        for code in [None, Some(ErrorCode::DiskFull), Some(ErrorCode::SystemIoFailure), Some(ErrorCode::DatabaseBusy)] {
            assert_eq!(meaning(code, AtStep::Commit).0, ErrorKind::Ambiguous, "{code:?}");
        }
    }

    #[test]
    fn what_does_not_pass_by_itself_is_not_told_as_passing() {
        for code in [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase, ErrorCode::ReadOnly] {
            assert!(!meaning(Some(code), AtStep::Before).0.is_passing(), "{code:?}");
        }
    }
}
