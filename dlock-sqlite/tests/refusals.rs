//! Files and folders in which no locks can be kept are refused, and the error says what would be right.
#![allow(missing_docs)]

use std::error::Error;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dlock_core::{BackendError, ErrorKind, LockBackend};
use dlock_sqlite::{OpenError, Sqlite, SqliteOptions};
use rusqlite::Connection;
use tempfile::TempDir;

fn client(path: &Path) -> Sqlite {
    Sqlite::new(SqliteOptions::new(path).unwrap()).unwrap()
}

/// What the first call of a client answers.
async fn refused(path: &Path, hint: &str) -> BackendError {
    let error = client(path).list("").await.unwrap_err();
    assert!(error.message().contains(hint), "{error}");
    assert!(error.source().is_some_and(<dyn Error>::is::<OpenError>), "{error:?}");
    error
}

fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("locks.db");
    (folder, path)
}

/// A file of locks that nobody has open.
async fn made(path: &Path) {
    client(path).list("").await.unwrap();
    // The thread of the client has it for a moment longer; this waits until it is the only one.
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
}

#[tokio::test]
async fn a_file_and_its_folders_are_made_for_this_user_alone() {
    let (folder, _) = folder();
    let path = folder.path().join("a/b/locks.db");
    client(&path).list("").await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder.path().join("a")), mode(&folder.path().join("a/b"))), (0o700, 0o700));
    for name in ["locks.db", "locks.db-wal", "locks.db-shm"] {
        if folder.path().join("a/b").join(name).exists() {
            assert_eq!(mode(&folder.path().join("a/b").join(name)), 0o600, "{name}");
        }
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_as_it_is() {
    let (_folder, path) = folder();
    let text = b"these are the orders of last year, and no database at all\n".repeat(200);
    std::fs::write(&path, &text).unwrap();
    assert_eq!(refused(&path, "no database").await.kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read(&path).unwrap(), text);
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let (_folder, path) = folder();
    made(&path).await;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let pages = file.metadata().unwrap().len() / 1_024;
    assert!(pages > 4, "{pages} pages");
    for page in 2..pages {
        file.write_all_at(&[0xA5; 512], page * 1_024).unwrap();
    }
    drop(file);
    assert_eq!(refused(&path, "damaged").await.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_both_versions_are_named() {
    let (_folder, path) = folder();
    made(&path).await;
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = refused(&path, "version 7").await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("knows version 1"), "{error}");
}

#[tokio::test]
async fn a_database_of_something_else_is_left_alone() {
    let (_folder, path) = folder();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert_eq!(refused(&path, "something else").await.kind(), ErrorKind::Conflict);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_read_only_folder_is_refused() {
    let (folder, path) = folder();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o500)).unwrap();
    let error = refused(&path, "folder").await;
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.message().contains("cannot be written"), "{error}");
}

#[tokio::test]
async fn a_read_only_file_is_refused() {
    let (_folder, path) = folder();
    made(&path).await;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
    assert_eq!(refused(&path, "cannot be written").await.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn a_folder_is_no_file() {
    let (folder, _) = folder();
    assert_eq!(refused(folder.path(), "is no file").await.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn what_was_mended_is_taken_by_the_next_call() {
    let (_folder, path) = folder();
    std::fs::write(&path, "no database, and too long to be an empty one".repeat(99)).unwrap();
    let client = client(&path);
    client.list("").await.unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(client.list("").await.unwrap(), []);
}
