//! Files and folders in which no locks can be kept are refused, and the error says what would be right.
#![allow(missing_docs)]

use std::error::Error;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind, LockBackend, Renewal, SessionId, SessionRequest};
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
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
}

#[tokio::test]
async fn a_file_and_its_folders_are_made_for_this_user_alone() {
    let (folder, _) = folder();
    let path = folder.path().join("a/b/locks.db");
    // Alive to the end, since the last to leave takes two of the files along.
    let client = client(&path);
    client.list("").await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder.path().join("a")), mode(&folder.path().join("a/b"))), (0o700, 0o700));
    let files = std::fs::read_dir(folder.path().join("a/b")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap()).map(|file| (file.file_name(), mode(&file.path()))).collect();
    files.sort();
    assert_eq!(files, [("locks.db".into(), 0o600), ("locks.db-shm".into(), 0o600), ("locks.db-wal".into(), 0o600)]);
    drop(client);
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
    let page_bytes: u32 = Connection::open(&path).unwrap().pragma_query_value(None, "page_size", |row| row.get(0)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let page_bytes = u64::from(page_bytes);
    let pages = file.metadata().unwrap().len() / page_bytes;
    assert!(pages > 4, "{pages} pages");
    for page in 2..pages {
        file.write_all_at(&[0xA5; 512], page * page_bytes).unwrap();
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
async fn a_damaged_table_of_somebody_elses_is_theirs_to_check() {
    let (_folder, path) = folder();
    made(&path).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE orders (text TEXT); INSERT INTO orders VALUES (hex(randomblob(9000)))").unwrap();
    let root: u32 = other.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'orders'", [], |row| row.get(0)).unwrap();
    let page_bytes: u32 = other.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap();
    drop(other);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xA5; 64], u64::from((root - 1) * page_bytes)).unwrap();
    drop(file);
    client(&path).list("").await.unwrap();
}

#[tokio::test]
async fn a_file_with_two_names_is_refused() {
    let (folder, path) = folder();
    made(&path).await;
    let other = folder.path().join("other.db");
    std::fs::hard_link(&path, &other).unwrap();
    for name in [&path, &other] {
        assert_eq!(refused(name, "hard links").await.kind(), ErrorKind::Invalid);
    }
    std::fs::remove_file(&other).unwrap();
    client(&path).list("").await.unwrap();
}

#[tokio::test]
async fn a_symbolic_link_stands_for_the_file_it_leads_to() {
    let (folder, path) = folder();
    let link = folder.path().join("links/to.db");
    std::fs::create_dir(folder.path().join("links")).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    refused(&link, "cannot use").await;
    let (by_name, by_link) = (client(&path), client(&link));
    by_name.list("").await.unwrap();
    let id = SessionId::from_bits(1);
    by_name.open(&SessionRequest { id: id.clone(), ttl: Duration::from_secs(60), owner: "host/1/test".into() }).await.unwrap();
    assert!(matches!(by_link.renew(&id).await.unwrap(), Renewal::Renewed { .. }));
    assert_eq!(std::fs::read_dir(folder.path().join("links")).unwrap().count(), 1, "nothing is kept beside the link");
    // What it leads to now is another file.
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(folder.path().join("other.db"), &link).unwrap();
    client(&folder.path().join("other.db")).list("").await.unwrap();
    assert_eq!(by_link.renew(&id).await.unwrap(), Renewal::Gone);
}

#[tokio::test]
async fn what_is_left_of_a_file_that_is_gone_is_not_taken_for_another() {
    let (folder, path) = folder();
    let client = client(&path);
    client.list("").await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let error = client.list("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("locks.db-wal") && error.message().contains("end all processes"), "{error}");
    for left in ["locks.db-wal", "locks.db-shm"] {
        // The client closed what it had, and took along what it could.
        _ = std::fs::remove_file(folder.path().join(left));
    }
    client.list("").await.unwrap();
}

/// Does nothing unless it is started by the test below, where a file is mounted by itself.
#[tokio::test]
async fn is_where_a_file_is_mounted_alone() {
    let Some(path) = std::env::var_os("DLOCK_SQLITE_MOUNTED_ALONE").map(PathBuf::from) else { return };
    assert_eq!(refused(&path, "mount the folder, not the file").await.kind(), ErrorKind::Invalid);
    println!("was refused");
}

#[tokio::test]
async fn a_file_that_is_mounted_without_its_folder_is_refused() {
    let (folder, path) = folder();
    made(&path).await;
    std::fs::create_dir(folder.path().join("container")).unwrap();
    let inside = folder.path().join("container/locks.db");
    std::fs::write(&inside, "").unwrap();
    // In a namespace of its own, which ends with it; only root may make one, and not everywhere.
    let mount = "mount --bind \"$1\" \"$2\" || exit 0; DLOCK_SQLITE_MOUNTED_ALONE=\"$2\" exec \"$3\" --exact is_where_a_file_is_mounted_alone --nocapture";
    let ran = Command::new("unshare")
        .args(["--mount", "sh", "-c", mount, "sh"])
        .args([&path, &inside])
        .arg(std::env::current_exe().unwrap())
        .output();
    if let Ok(ran) = &ran
        && !ran.stdout.is_empty()
    {
        assert!(String::from_utf8_lossy(&ran.stdout).contains("was refused"), "{ran:?}");
    } else {
        println!("no file can be mounted here: {ran:?}");
    }
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
