//! What a lock in a file costs: `cargo bench -p dlock-sqlite --bench locks`.
//!
//! Four questions, each answered with numbers: what lock and release of a free key cost beside two bare write transactions with the same settings, in turns on
//! the same disk; what they cost while another lock is held and watched; how soon a process that waits hears of another's release; and how much of a core
//! waiting takes.
#![allow(missing_docs)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dlock_core::{Claim, ClaimId, Cursor, Granted, Key, LockBackend, Metadata, Mode, Place, SessionId, SessionRequest, Standing};
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

/// As long as what hosts in a cloud are called.
const OWNER: &str = "ip-10-0-112-234.eu-central-1.compute.internal/1234567/billing";
/// Thirty bytes.
const KEY: &str = "billing/invoices/2026/00012345";

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
    let request = SessionRequest { id: id.clone(), ttl: Duration::from_secs(3_600), owner: OWNER.into() };
    client.open(&request).await.expect("it opens");
    id
}

fn claim(key: &str) -> Claim {
    let mut metadata = Metadata::new();
    metadata.insert("purpose", "month-end closing").expect("the name is free");
    metadata.insert("version", "4.17.2").expect("the name is free");
    Claim {
        id: ClaimId::from_bits(fastrand::u128(..)),
        key: Key::new(key).expect("a good name"),
        mode: Mode::Exclusive,
        owner: OWNER.into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: Some(Arc::new(metadata)),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Median, mean and the one of a hundred that took longest.
fn told(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX);
    format!("{:.1?} (mean {mean:.1?}, p99 {:.1?})", times[times.len() / 2], times[times.len() * 99 / 100])
}

/// With the settings of a file of locks.
fn bare(folder: &Path) -> Connection {
    let bare = Connection::open(folder.join("bare.db")).expect("it opens");
    let locks = Connection::open(folder.join("locks.db")).expect("it opens");
    let page_bytes: i64 = locks.pragma_query_value(None, "page_size", |row| row.get(0)).expect("it has one");
    let layout = format!(
        "PRAGMA page_size = {page_bytes}; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;
        PRAGMA wal_autocheckpoint = 8000; CREATE TABLE bare (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO bare VALUES (1, '')"
    );
    bare.execute_batch(&layout).expect("it is laid out");
    bare
}

fn write(bare: &mut Connection, text: &str) {
    let write = bare.transaction_with_behavior(TransactionBehavior::Immediate).expect("it begins");
    write.prepare_cached("UPDATE bare SET text = ?1").and_then(|mut update| update.execute([text])).expect("it writes");
    write.commit().expect("it is committed");
}

fn lock_and_release(runtime: &Runtime, folder: &Path) {
    let client = client(folder);
    let session = runtime.block_on(session(&client));
    let mut bare = bare(folder);
    let alone = in_turns(runtime, &client, &session, &mut bare);
    println!("lock and release of a free key: {alone}");
    let watched = claim("held and watched");
    let standing = runtime.block_on(client.claim(&session, &watched, Place::Queue)).expect("it is answered");
    let Standing::Held { token } = standing else { panic!("{standing:?}") };
    let watch = runtime.spawn({
        let (client, session, granted) = (client.clone(), session.clone(), Granted { claim: Arc::new(watched), token });
        async move { client.disturbed(&session, Some(&granted), None).await }
    });
    let watched = in_turns(runtime, &client, &session, &mut bare);
    println!("the same while another lock is held and watched: {watched}");
    watch.abort();
}

fn in_turns(runtime: &Runtime, client: &Sqlite, session: &SessionId, bare: &mut Connection) -> String {
    let (mut bares, mut locks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..A_ROUND {
            let began = Instant::now();
            write(bare, black_box("taken"));
            write(bare, black_box("given back"));
            bares.push(began.elapsed());
        }
        runtime.block_on(async {
            for _ in 0..A_ROUND {
                let claim = claim(black_box(KEY));
                let began = Instant::now();
                let standing = client.claim(session, &claim, Place::Queue).await.expect("it is answered");
                assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
                client.release(session, &claim).await.expect("it is answered");
                locks.push(began.elapsed());
            }
        });
    }
    let mean = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64();
    let means = mean(&locks) / mean(&bares);
    let medians = median(locks.clone()).as_secs_f64() / median(bares.clone()).as_secs_f64();
    let (locks, bares) = (told(locks), told(bares));
    format!("{locks}, two bare write transactions: {bares}, ratio {medians:.2} (of the means {means:.2})")
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
