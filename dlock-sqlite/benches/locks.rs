//! What a lock in a file costs: `cargo bench -p dlock-sqlite --bench locks`.
//!
//! Three questions, each answered with numbers: what lock and release of a free key cost beside two bare write transactions with the same durability, in turns on
//! the same disk; how soon a process that waits hears of another's release; and how much of a core waiting takes.
#![allow(missing_docs)]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use dlock_core::{Claim, ClaimId, Cursor, Key, LockBackend, Mode, Place, SessionId, SessionRequest, Standing};
use dlock_sqlite::{Sqlite, SqliteOptions};
use rusqlite::{Connection, TransactionBehavior};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const ROUNDS: usize = 50;
const A_ROUND: u32 = 200;
const RELEASES: usize = 40;
const WAITERS: usize = 20;
const WATCHED_FOR: Duration = Duration::from_secs(5);

fn main() {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime can be built");
    let folder = TempDir::new().expect("a folder can be made");
    lock_and_release(&runtime, folder.path());
    runtime.block_on(waking(folder.path()));
    runtime.block_on(waiting(folder.path()));
}

fn client(folder: &Path) -> Sqlite {
    let options = SqliteOptions::new(folder.join("locks.db")).expect("the path is absolute");
    Sqlite::new(options).expect("a thread can be started")
}

async fn session(client: &Sqlite) -> SessionId {
    let id = SessionId::from_bits(fastrand::u128(..));
    let request = SessionRequest { id: id.clone(), ttl: Duration::from_secs(3_600), owner: "host/1/bench".into() };
    client.open(&request).await.expect("it opens");
    id
}

fn claim(key: &str) -> Claim {
    Claim {
        id: ClaimId::from_bits(fastrand::u128(..)),
        key: Key::new(key).expect("a good name"),
        mode: Mode::Exclusive,
        owner: "host/1/bench".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn bare(folder: &Path) -> Connection {
    let bare = Connection::open(folder.join("bare.db")).expect("it opens");
    let layout = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 8000; CREATE TABLE bare (id INTEGER PRIMARY KEY, text TEXT);
        INSERT INTO bare VALUES (1, '')";
    bare.execute_batch(layout).expect("it is laid out");
    bare
}

fn write(bare: &mut Connection, text: &str) {
    let write = bare.transaction_with_behavior(TransactionBehavior::Immediate).expect("it begins");
    write.prepare_cached("UPDATE bare SET text = ?1").and_then(|mut update| update.execute([text])).expect("it writes");
    write.commit().expect("it is committed");
}

fn lock_and_release(runtime: &Runtime, folder: &Path) {
    let (mut bare, client) = (bare(folder), client(folder));
    let session = runtime.block_on(session(&client));
    let (mut bares, mut locks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..A_ROUND {
            write(&mut bare, black_box("taken"));
            write(&mut bare, black_box("given back"));
        }
        bares.push(began.elapsed() / A_ROUND);
        let began = Instant::now();
        runtime.block_on(async {
            for _ in 0..A_ROUND {
                let claim = claim(black_box("k"));
                let standing = client.claim(&session, &claim, Place::Queue).await.expect("it is answered");
                assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
                client.release(&session, &claim).await.expect("it is answered");
            }
        });
        locks.push(began.elapsed() / A_ROUND);
    }
    let (bare, lock) = (median(bares), median(locks));
    let ratio = lock.as_secs_f64() / bare.as_secs_f64();
    println!("lock and release of a free key: {lock:?}, two bare write transactions: {bare:?}, ratio {ratio:.2}");
}

/// Two backend values share nothing, as two processes.
async fn waking(folder: &Path) {
    let (holder, waiter) = (client(folder), client(folder));
    let (holders, waiters) = (session(&holder).await, session(&waiter).await);
    let mut times = Vec::new();
    for _ in 0..RELEASES {
        let (held, waiting) = (claim("woken"), claim("woken"));
        holder.claim(&holders, &held, Place::Queue).await.expect("it is answered");
        let standing = waiter.claim(&waiters, &waiting, Place::Queue).await.expect("it is answered");
        let Standing::Waiting { cursor, .. } = standing else { panic!("{standing:?}") };
        let woken = async {
            waiter.wait(&waiters, &waiting, cursor).await.expect("it is answered");
            Instant::now()
        };
        let released = async {
            // Long enough for the waiter to look as seldom as it ever does.
            tokio::time::sleep(Duration::from_millis(400 + fastrand::u64(..20))).await;
            let asked = Instant::now();
            holder.release(&holders, &held).await.expect("it is answered");
            asked
        };
        let (woken, released) = tokio::join!(woken, released);
        times.push(woken.duration_since(released));
        waiter.release(&waiters, &waiting).await.expect("it is answered");
    }
    let longest = times.iter().max().copied().unwrap_or_default();
    println!("a waiter hears of another's release after {:?}, at the longest {longest:?}, of {RELEASES}", median(times));
}

fn used() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or_default())
}

async fn waiting(folder: &Path) {
    let (holder, waiter) = (client(folder), client(folder));
    let (holders, waiters) = (session(&holder).await, session(&waiter).await);
    holder.claim(&holders, &claim("idle"), Place::Queue).await.expect("it is answered");
    let mut waits = Vec::new();
    for _ in 0..WAITERS {
        let (waiter, session, waiting) = (waiter.clone(), waiters.clone(), claim("idle"));
        waiter.claim(&session, &waiting, Place::Queue).await.expect("it is answered");
        waits.push(tokio::spawn(async move { waiter.wait(&session, &waiting, Cursor(0)).await }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = used();
    tokio::time::sleep(WATCHED_FOR).await;
    let share = used().saturating_sub(before).as_secs_f64() / WATCHED_FOR.as_secs_f64();
    println!("{WAITERS} waiters of one process take {:.3} % of a core", share * 100.0);
    for wait in waits {
        wait.abort();
    }
}
