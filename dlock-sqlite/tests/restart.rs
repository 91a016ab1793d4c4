//! What is held outlives those who use the file, whether they leave or are killed, and nothing outlives the file.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dlock_core::{Claim, ClaimId, FencingToken, Key, LockBackend, Mode, Place, Renewal, SessionId, SessionRequest, Standing};
use dlock_sqlite::{Sqlite, SqliteOptions};
use rusqlite::Connection;
use tempfile::TempDir;

const TTL: Duration = Duration::from_secs(600);

fn client(path: &Path) -> Sqlite {
    Sqlite::new(SqliteOptions::new(path).unwrap()).unwrap()
}

async fn session(client: &Sqlite) -> SessionId {
    let id = SessionId::from_bits(fastrand::u128(..));
    client.open(&SessionRequest { id: id.clone(), ttl: TTL, owner: "host/1/test".into() }).await.unwrap();
    id
}

fn claim() -> Claim {
    Claim {
        id: ClaimId::from_bits(fastrand::u128(..)),
        key: Key::new("orders/42").unwrap(),
        mode: Mode::Exclusive,
        owner: "host/1/test".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

async fn held(client: &Sqlite, session: &SessionId, claim: &Claim) -> FencingToken {
    match client.claim(session, claim, Place::Try).await.unwrap() {
        Standing::Held { token } => token,
        other => panic!("{other:?}"),
    }
}

/// Runs a test of this program again, as a process of its own that does its part on this file.
fn start(part: &str, path: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", part, "--nocapture"]).env(PART, path).stdout(Stdio::piped()).spawn().unwrap()
}

const PART: &str = "DLOCK_SQLITE_PART_ON";

/// The file, in a process that does a part.
fn part() -> Option<PathBuf> {
    std::env::var_os(PART).map(PathBuf::from)
}

/// Returns when the process said that it has come so far.
fn ready(child: &mut Child) {
    let said = BufReader::new(child.stdout.as_mut().unwrap());
    let ready = said.lines().any(|line| line.unwrap().contains("has come so far"));
    assert!(ready, "it ended before");
}

/// Says so, and does nothing until it is killed.
fn stand_still() -> ! {
    println!("has come so far");
    loop {
        std::thread::park();
    }
}

/// Returns when that is so: the thread of a client that was dropped has the file for a moment longer.
fn nobody_has_it_open(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT").unwrap();
}

#[tokio::test]
async fn what_is_held_is_there_when_everybody_left_and_came_back() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("locks.db");
    let (claim, first) = (claim(), client(&path));
    let session = session(&first).await;
    let token = held(&first, &session, &claim).await;
    drop(first);
    nobody_has_it_open(&path);
    let again = client(&path);
    assert_eq!(again.renew(&session).await.unwrap(), Renewal::Renewed { ttl: TTL });
    assert_eq!(held(&again, &session, &claim).await, token);
    again.release(&session, &claim).await.unwrap();
    assert!(held(&again, &session, &self::claim()).await > token);
}

#[tokio::test]
async fn a_file_that_is_deleted_takes_all_along_and_tokens_go_on() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("locks.db");
    let client = client(&path);
    let old = session(&client).await;
    let token = held(&client, &old, &claim()).await;
    for name in ["locks.db", "locks.db-wal", "locks.db-shm"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert_eq!(client.renew(&old).await.unwrap(), Renewal::Gone);
    let new = session(&client).await;
    // By the wall clock a file that is made anew begins where the old one cannot have been yet.
    assert!(held(&client, &new, &claim()).await > token);
}

/// Without its log, or the index of that, a file is another, of which nothing is read or written before all have noticed.
#[tokio::test]
async fn a_log_that_is_deleted_divides_nobody() {
    for name in ["locks.db-wal", "locks.db-shm"] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("locks.db");
        let (one, other) = (client(&path), client(&path));
        let old = session(&one).await;
        other.renew(&old).await.unwrap();
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let (new, mut tries) = (SessionId::from_bits(1), 0);
        let request = SessionRequest { id: new.clone(), ttl: TTL, owner: "host/1/test".into() };
        while let Err(error) = one.open(&request).await {
            assert!(error.kind().is_passing() && tries < 10, "{name}: {error}");
            // It lets go of what it had.
            _ = other.renew(&old).await;
            tries += 1;
        }
        assert!(matches!(other.renew(&new).await.unwrap(), Renewal::Renewed { .. }), "{name}");
    }
}

#[test]
fn is_killed_in_the_middle_of_a_change() {
    let Some(path) = part() else { return };
    let connection = Connection::open(path).unwrap();
    let begin = "BEGIN IMMEDIATE;
        INSERT INTO dlock_session VALUES ('half', 'host/2/killed', 600000000000, 9223372036854775807);
        INSERT INTO dlock_claim (token, key, session, claim, mode, published)
            SELECT forgotten + 1, 'orders/42', 'half', '00000000000000000000000000000001', 0, '{}' FROM dlock_store";
    connection.execute_batch(begin).unwrap();
    stand_still();
}

#[tokio::test]
async fn a_change_whose_process_was_killed_in_its_middle_was_never_begun() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("locks.db");
    let client = client(&path);
    let session = session(&client).await;
    let mut killed = start("is_killed_in_the_middle_of_a_change", &path);
    ready(&mut killed);
    let waiting = {
        tokio::spawn({
            let (client, session) = (client.clone(), session.clone());
            async move { held(&client, &session, &claim()).await }
        })
    };
    // Until the claim was sent, and finds the change under way.
    tokio::task::yield_now().await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    waiting.await.unwrap();
    let count: i64 = Connection::open(&path).unwrap().query_row("SELECT count(*) FROM dlock_claim", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1, "nothing of the half change is left");
}

#[test]
fn is_killed_while_it_holds() {
    let Some(path) = part() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let client = client(&path);
    runtime.block_on(async {
        let id = SessionId::from_bits(1);
        let request = SessionRequest { id: id.clone(), ttl: Duration::from_secs(5), owner: "host/2/killed".into() };
        client.open(&request).await.unwrap();
        held(&client, &id, &claim()).await;
    });
    stand_still();
}

#[tokio::test]
async fn the_lock_of_a_killed_process_is_granted_when_its_session_lapses() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("locks.db");
    let client = Arc::new(client(&path));
    let session = session(&client).await;
    let mut killed = start("is_killed_while_it_holds", &path);
    ready(&mut killed);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let waiting = claim();
    let Standing::Waiting { mut cursor, .. } = client.claim(&session, &waiting, Place::Queue).await.unwrap() else {
        panic!("its session lives for a while")
    };
    loop {
        cursor = client.wait(&session, &waiting, cursor).await.unwrap().cursor;
        if matches!(client.confirm(&session, &waiting, cursor).await.unwrap(), Standing::Held { .. }) {
            break;
        }
    }
}

#[test]
fn many_that_make_the_file_at_once_make_one() {
    for _ in 0..300 {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("locks.db");
        let comes = || {
            let (client, id) = (client(&path), SessionId::from_bits(fastrand::u128(..)));
            let request = SessionRequest { id, ttl: TTL, owner: "host/1/test".into() };
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                // The disk may keep one so long that the others give up, but they wait first.
                for asked_again in 0.. {
                    let asked = Instant::now();
                    let Err(error) = client.open(&request).await else { break };
                    let waited = asked.elapsed() >= Duration::from_millis(900);
                    assert!(error.kind().is_passing() && waited && asked_again < 60, "{error}");
                }
            });
        };
        std::thread::scope(|threads| {
            let coming: Vec<_> = (0..8).map(|_| threads.spawn(comes)).collect();
            for one in coming {
                one.join().unwrap();
            }
        });
        let file = Connection::open(&path).unwrap();
        let sessions: i64 = file.query_row("SELECT count(*) FROM dlock_session", [], |row| row.get(0)).unwrap();
        assert_eq!(sessions, 8);
    }
}
