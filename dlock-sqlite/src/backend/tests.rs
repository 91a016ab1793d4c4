//! What needs a host, a boot or a clock of a test's own.

use std::path::Path;

use dlock_core::{Check, ClaimId, Mode};
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::schema::STEP;

const TTL: Duration = Duration::from_secs(10);
const SECOND: i64 = 1_000_000_000;

/// A folder with a file of locks, and the clock of the host that it is on.
struct Stage {
    folder: TempDir,
    clock: Arc<AtomicI64>,
    wall: Arc<AtomicI64>,
}

impl Stage {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), clock: Arc::new(AtomicI64::new(SECOND)), wall: Arc::new(AtomicI64::new(1 << 45)) }
    }

    fn client_at(&self, path: &Path, boot: &str) -> Sqlite {
        let options = SqliteOptions::new(path).unwrap();
        Sqlite::on(&options, Host::of_test(boot, &self.clock, &self.wall), Arc::new(Direct)).unwrap()
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("locks.db")
    }

    fn client(&self, boot: &str) -> Sqlite {
        self.client_at(&self.path(), boot)
    }

    fn operator(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    /// Returns when nobody has the file open: the thread of a client that was dropped has it for a moment longer.
    fn is_left(&self) {
        let last = self.operator();
        last.busy_timeout(Duration::from_secs(60)).unwrap();
        last.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT").unwrap();
    }

    fn count(&self, table: &str) -> i64 {
        self.operator().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }
}

fn claim(id: u128, key: &str) -> Claim {
    Claim {
        id: ClaimId::from_bits(id),
        key: Key::new(key).unwrap(),
        mode: Mode::Exclusive,
        owner: "host/1/test".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

async fn session(client: &Sqlite, id: u128) -> SessionId {
    let id = SessionId::from_bits(id);
    client.open(&SessionRequest { id: id.clone(), ttl: TTL, owner: "host/1/test".into() }).await.unwrap();
    id
}

async fn held(client: &Sqlite, session: &SessionId, claim: &Claim) -> FencingToken {
    match client.claim(session, claim, Place::Try).await.unwrap() {
        Standing::Held { token } => token,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reboot_frees_everything_and_tokens_go_on() {
    let stage = Stage::new();
    let before = stage.client("boot 1");
    let old = session(&before, 1).await;
    let token = held(&before, &old, &claim(1, "k")).await;
    before.claim(&old, &claim(2, "k"), Place::Queue).await.unwrap();
    before.release(&old, &claim(3, "k")).await.unwrap();
    drop(before);
    stage.is_left();
    // The clock begins anew, so that by it alone the old session would live for a while.
    stage.clock.store(0, Ordering::SeqCst);
    let after = stage.client("boot 2");
    let new = session(&after, 2).await;
    assert_eq!(after.inspect(&Key::new("k").unwrap()).await.unwrap().holders, []);
    assert_eq!(after.renew(&old).await.unwrap(), Renewal::Gone);
    assert!(held(&after, &new, &claim(4, "k")).await > token);
    assert_eq!((stage.count("dlock_session"), stage.count("dlock_claim"), stage.count("dlock_over")), (1, 1, 0));
}

/// After the first opening of a boot nothing is forced to the disk, so a power failure may take all of it along.
#[tokio::test]
async fn a_power_failure_that_takes_every_grant_of_a_boot_sets_no_token_back() {
    let stage = Stage::new();
    let mut folder = TempDir::new().unwrap();
    let mut highest = None;
    for boot in 1..4 {
        let client = stage.client_at(&folder.path().join("locks.db"), &format!("boot {boot}"));
        client.list("").await.unwrap();
        // What was forced to the disk by now, and is all that is there after the failure.
        let on_disk = TempDir::new().unwrap();
        for name in ["locks.db", "locks.db-wal"] {
            std::fs::copy(folder.path().join(name), on_disk.path().join(name)).unwrap();
        }
        let session = session(&client, boot).await;
        for id in 0..10 {
            let claim = claim(id, "k");
            let token = held(&client, &session, &claim).await;
            assert!(Some(token) > highest, "boot {boot}: {token} after {highest:?}");
            highest = Some(token);
            client.release(&session, &claim).await.unwrap();
        }
        folder = on_disk;
    }
}

#[tokio::test]
async fn tokens_go_on_though_the_wall_clock_was_set_back_a_century() {
    let stage = Stage::new();
    let client = stage.client("boot 1");
    let old = session(&client, 1).await;
    let last = held(&client, &old, &claim(1, "k")).await;
    drop(client);
    stage.is_left();
    stage.wall.store(0, Ordering::SeqCst);
    let client = stage.client("boot 2");
    let new = session(&client, 2).await;
    assert!(held(&client, &new, &claim(3, "k")).await > last);
}

#[tokio::test]
async fn tokens_beyond_those_set_aside_are_set_aside_first() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    let reserved = || {
        stage.operator().query_row("SELECT reserved, settled FROM dlock_store", [], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))
    };
    let (before, _) = reserved().unwrap();
    stage.operator().execute("UPDATE dlock_store SET forgotten = reserved - 10", []).unwrap();
    for id in 0..20 {
        let token = held(&client, &session, &claim(id, &format!("k{id}"))).await;
        assert!(i64::try_from(token.get()).unwrap() < reserved().unwrap().0);
    }
    assert_eq!(reserved().unwrap(), (before + STEP, true));
    // As a process leaves it that is killed before what it set aside is on the disk.
    stage.operator().execute("UPDATE dlock_store SET settled = 0", []).unwrap();
    held(&client, &session, &claim(20, "k")).await;
    assert_eq!(reserved().unwrap(), (before + 2 * STEP, true));
}

#[tokio::test]
async fn a_file_made_after_a_hundred_boots_and_a_deletion_goes_on_with_the_tokens() {
    let stage = Stage::new();
    let mut highest = None;
    for boot in 0..101 {
        let client = stage.client(&format!("boot {boot}"));
        let session = session(&client, boot).await;
        let token = held(&client, &session, &claim(boot, "k")).await;
        assert!(Some(token) > highest, "boot {boot}: {token} after {highest:?}");
        highest = Some(token);
        drop(client);
        stage.is_left();
        // No host boots faster.
        stage.wall.fetch_add(2_000_000, Ordering::SeqCst);
        if boot == 99 {
            for name in ["locks.db", "locks.db-wal", "locks.db-shm"] {
                // What SQLite removes by itself when the last one leaves is gone already.
                _ = std::fs::remove_file(stage.folder.path().join(name));
            }
        }
    }
}

#[tokio::test]
async fn who_is_of_another_boot_does_not_take_over_what_others_use() {
    let stage = Stage::new();
    let ours = stage.client("our boot");
    let session_of_ours = session(&ours, 1).await;
    held(&ours, &session_of_ours, &claim(1, "k")).await;
    let error = stage.client("a container's boot").list("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("others have"), "{error}");
    assert!(matches!(ours.renew(&session_of_ours).await.unwrap(), Renewal::Renewed { .. }));
    drop(ours);
    stage.is_left();
    stage.client("a container's boot").list("").await.unwrap();
    assert_eq!(stage.count("dlock_claim"), 0);
}

#[test]
fn many_that_come_at_once_after_a_boot_take_over_once() {
    let stage = Stage::new();
    let run = |boot: String, id| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(session(&stage.client(&boot), id));
    };
    for boot in 0..10 {
        std::thread::scope(|threads| {
            for id in 0..8 {
                threads.spawn(move || run(format!("boot {boot}"), id));
            }
        });
        assert_eq!(stage.count("dlock_session"), 8);
        stage.is_left();
    }
}

#[tokio::test]
async fn a_file_that_another_host_opened_is_told_of() {
    let stage = Stage::new();
    let ours = stage.client("our boot");
    let session_of_ours = session(&ours, 1).await;
    held(&ours, &session_of_ours, &claim(1, "k")).await;
    // SQLite's locks do not hold between the two.
    stage.operator().execute("UPDATE dlock_store SET boot = 'another host''s boot'", []).unwrap();
    for error in [
        ours.renew(&session_of_ours).await.unwrap_err(),
        ours.claim(&session_of_ours, &claim(2, "k"), Place::Try).await.unwrap_err(),
        ours.inspect(&Key::new("k").unwrap()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains("another host"), "{error}");
    }
}

#[tokio::test]
async fn a_session_lapses_on_the_hosts_clock_and_not_before() {
    let stage = Stage::new();
    let (silent, other) = (stage.client("boot"), stage.client("boot"));
    let (silents, others) = (session(&silent, 1).await, session(&other, 2).await);
    held(&silent, &silents, &claim(1, "k")).await;
    stage.clock.fetch_add(10 * SECOND - 1, Ordering::SeqCst);
    assert!(matches!(other.renew(&others).await.unwrap(), Renewal::Renewed { .. }));
    assert!(matches!(other.claim(&others, &claim(2, "k"), Place::Try).await.unwrap(), Standing::Busy { .. }));
    stage.clock.fetch_add(1, Ordering::SeqCst);
    held(&other, &others, &claim(3, "k")).await;
    assert_eq!(silent.renew(&silents).await.unwrap(), Renewal::Gone);
}

#[tokio::test]
async fn only_a_release_that_must_leaves_a_tombstone() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    held(&client, &session, &claim(1, "k")).await;
    client.release(&session, &claim(1, "k")).await.unwrap();
    assert_eq!(stage.count("dlock_over"), 0, "all copies had arrived");
    client.release(&session, &claim(2, "k")).await.unwrap();
    assert_eq!(stage.count("dlock_over"), 1, "nothing was known of it");
    assert_eq!(client.claim(&session, &claim(2, "k"), Place::Queue).await.unwrap(), Standing::ClaimGone);
    client.close(&session).await.unwrap();
    assert_eq!(stage.count("dlock_over"), 0);
}

#[tokio::test]
async fn where_nobody_waits_nobody_looks() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    for id in 0..100 {
        held(&client, &session, &claim(id, "k")).await;
        client.release(&session, &claim(id, "k")).await.unwrap();
    }
    assert_eq!(client.shared.watcher.polls(), 0);
}

#[tokio::test]
async fn changes_of_long_ago_are_forgotten_and_whoever_follows_a_key_hears_of_it() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    let kept = claim(0, "kept");
    let token = held(&client, &session, &kept).await;
    let followed = Key::new("followed").unwrap();
    let since = client.changed(&followed, None).await.unwrap();
    for id in 1..2_000 {
        let claim = claim(id, "k");
        held(&client, &session, &claim).await;
        client.release(&session, &claim).await.unwrap();
    }
    assert!(stage.count("dlock_change") < 2_048 + 512);
    assert!(client.changed(&followed, Some(since)).await.unwrap() > since, "it may have changed");
    assert_eq!(held(&client, &session, &kept).await, token);
    assert!(held(&client, &session, &claim(2_000, "k")).await > token);
}

#[tokio::test]
async fn a_probe_tells_of_the_file_and_its_host_and_changes_nothing() {
    let stage = Stage::new();
    let client = stage.client("boot 1");
    let (holder, lock) = (session(&client, 1).await, claim(1, "k"));
    held(&client, &holder, &lock).await;
    let revision = client.changed(&lock.key, None).await.unwrap();
    let found = client.probe().await;
    let checks: Vec<_> = found.iter().map(|found| found.check).collect();
    let all = [Check::Reachable, Check::Version, Check::Ttl, Check::Permissions, Check::Clock, Check::Storage];
    assert_eq!(checks, all);
    let clock = found[4].to_string();
    assert!(clock.contains("up for 1s") && clock.contains("boot 1"), "{clock}");
    assert!(found.iter().all(|found| !found.is_broken()), "{found:?}");
    assert_eq!((stage.count("dlock_session"), stage.count("dlock_claim")), (1, 1));
    assert_eq!(client.changed(&lock.key, None).await.unwrap(), revision);
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_told_with_what_would_do() {
    let stage = Stage::new();
    std::fs::write(stage.path(), "this is no database, and it is long enough to be taken for one ".repeat(20)).unwrap();
    let found = stage.client("boot 1").probe().await;
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert!(finding.check == Check::Reachable && finding.is_broken(), "{finding}");
    assert!(finding.remedy().is_some_and(|remedy| remedy.contains("move it")), "{finding}");
}

#[tokio::test]
async fn a_file_that_others_change_all_the_time_is_told_as_one_that_cannot_be_changed() {
    let stage = Stage::new();
    let client = stage.client("boot 1");
    client.list("").await.unwrap();
    let operator = stage.operator();
    operator.execute_batch("BEGIN IMMEDIATE").unwrap();
    let found = client.probe().await;
    let broken: Vec<_> = found.iter().filter(|found| found.is_broken()).collect();
    let [finding] = broken[..] else { panic!("{found:?}") };
    assert!(finding.check == Check::Permissions && finding.to_string().contains("stopped in the middle"), "{finding}");
}

/// The thread that does a short job.
async fn does(client: &Sqlite) -> std::thread::ThreadId {
    let change = |file: &mut File| {
        file.change(|_| Ok(()))?;
        Ok(std::thread::current().id())
    };
    client.shared.worker.ask_at_once(Sent::Claim, change).await.unwrap()
}

#[tokio::test]
async fn a_short_change_is_its_callers_if_nothing_has_to_be_waited_for() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let here = std::thread::current().id();
    assert_ne!(does(&client).await, here, "the file is opened by the thread");
    // Once the thread is done with what it answered.
    while does(&client).await != here {}
    let other = stage.operator();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (by, ()) = tokio::join!(biased; does(&client), async { other.execute_batch("COMMIT").unwrap() });
    assert_ne!(by, here, "others were at it");
    session(&client, 1).await;
    while does(&client).await != here {}
    stage.clock.fetch_add(20 * SECOND, Ordering::SeqCst);
    assert_ne!(does(&client).await, here, "a session has to be ended, with all it has");
    while does(&client).await != here {}
}

#[tokio::test]
async fn whoever_is_ahead_stays_ahead_but_for_renewals_and_who_gave_up() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let order = Arc::clone(&order);
        move |_: &mut File| {
            order.lock().unwrap().push(what);
            Ok(())
        }
    };
    let worker = &client.shared.worker;
    let (begun, is_begun) = tokio::sync::oneshot::channel();
    let (free, freed) = std::sync::mpsc::channel();
    let long = worker.ask(Sent::Look, move |_| {
        begun.send(()).unwrap();
        freed.recv().unwrap();
        Ok(())
    });
    let others = async {
        is_begun.await.unwrap();
        tokio::join!(
            biased;
            async { worker.ask(Sent::Claim, note("first")).await.unwrap() },
            async { worker.ask_at_once(Sent::Release, note("second")).await.unwrap() },
            async { worker.ask(Sent::Renew, note("renewal")).await.unwrap() },
            async {
                for sent in [Sent::Open, Sent::Renew, Sent::Claim, Sent::Look, Sent::Release] {
                    let given_up = tokio::time::timeout(Duration::ZERO, worker.ask(sent, note("given up"))).await;
                    assert!(given_up.is_err());
                }
                free.send(()).unwrap();
            },
        );
    };
    let (long, ()) = tokio::join!(biased; long, others);
    long.unwrap();
    client.list("").await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["renewal", "first", "second", "given up"], "what was given up is a release");
}

#[tokio::test]
async fn a_long_log_is_put_into_the_file_and_begun_anew() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    let begun = || stage.operator().query_row("SELECT logs FROM dlock_store", [], |row| row.get::<_, i64>(0)).unwrap();
    let is_long = || {
        let pages = stage.operator().query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get::<_, i64>(1)).unwrap();
        pages >= crate::schema::LOG_PAGES
    };
    for id in 0..6_000 {
        let claim = claim(id, "k");
        held(&client, &session, &claim).await;
        client.release(&session, &claim).await.unwrap();
        if id % 128 == 0 {
            // Whoever looks meanwhile adds nothing to it, however long the disk takes.
            let begins = async {
                while is_long() {
                    client.list("").await.unwrap();
                }
            };
            tokio::time::timeout(Duration::from_secs(60), begins).await.expect("a long log is begun anew");
        }
    }
    client.list("").await.unwrap();
    assert!(begun() > 0);
    let log = std::fs::metadata(stage.folder.path().join("locks.db-wal")).unwrap().len();
    assert!(log < 2 * 8_000 * 2_048, "{log} bytes");
}

#[tokio::test]
async fn a_job_that_panics_fails_alone() {
    let stage = Stage::new();
    let client = stage.client("boot");
    for _ in 0..2 {
        let error = client.shared.worker.ask(Sent::Look, |_| -> Result<(), _> { panic!("as planned") }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ambiguous);
        client.list("").await.unwrap();
        let change = |file: &mut File| file.change(|_| -> Result<(), _> { panic!("as planned") });
        client.shared.worker.ask_at_once(Sent::Claim, change).await.unwrap_err();
    }
    let session = session(&client, 1).await;
    held(&client, &session, &claim(1, "k")).await;
}

#[tokio::test]
async fn nobody_waits_for_a_thread_that_has_ended() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let watcher = &client.shared.watcher;
    let (other, panics) = tokio::join!(
        biased;
        watcher.until(None, |_| Ok(None::<()>)),
        watcher.until(None, |_| -> Result<Option<()>, _> { panic!("as planned") }),
    );
    assert_eq!((other.unwrap_err().kind(), panics.unwrap_err().kind()), (ErrorKind::Transient, ErrorKind::Transient));
    assert_eq!(watcher.until(None, |_| Ok(Some(()))).await.unwrap_err().kind(), ErrorKind::Transient);
}

#[tokio::test]
async fn only_changes_of_keys_that_are_waited_for_wake_the_watcher() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    held(&client, &session, &claim(0, "watched")).await;
    let watched = Key::new("watched").unwrap();
    let since = client.changed(&watched, None).await.unwrap();
    let waits = client.changed(&watched, Some(since));
    let bustle = async {
        // As often as it looks by itself, while thousands of changes are made.
        let before = client.shared.watcher.polls();
        for id in 1..2_000 {
            held(&client, &session, &claim(id, "k")).await;
            client.release(&session, &claim(id, "k")).await.unwrap();
        }
        let polls = client.shared.watcher.polls() - before;
        client.release(&session, &claim(0, "watched")).await.unwrap();
        polls
    };
    let (changed, polls) = tokio::join!(biased; waits, bustle);
    assert!(changed.unwrap() > since);
    assert!(polls < 500, "{polls} looks");
}

#[tokio::test]
async fn a_session_that_is_opened_again_has_the_ttl_it_was_opened_with_last() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let id = session(&client, 1).await;
    let longer = SessionRequest { id: id.clone(), ttl: TTL * 6, owner: "host/1/test".into() };
    client.open(&longer).await.unwrap();
    stage.clock.fetch_add(50 * SECOND, Ordering::SeqCst);
    assert_eq!(client.renew(&id).await.unwrap(), Renewal::Renewed { ttl: TTL * 6 });
    session(&client, 1).await;
    stage.clock.fetch_add(50 * SECOND, Ordering::SeqCst);
    assert_eq!(client.renew(&id).await.unwrap(), Renewal::Renewed { ttl: TTL }, "never sooner than was said before");
}

#[tokio::test]
async fn nothing_is_noted_of_a_session_that_is_gone() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let ask = async |how: u128| {
        let session = session(&client, how).await;
        held(&client, &session, &claim(how, &format!("k{how}"))).await;
        assert!(!client.shared.notes.may_be_under_way(ClaimId::from_bits(how)));
        stage.operator().execute("DELETE FROM dlock_session", []).unwrap();
        match how {
            0 => assert_eq!(client.renew(&session).await.unwrap(), Renewal::Gone),
            1 => {
                let standing = client.claim(&session, &claim(100, "other"), Place::Try).await.unwrap();
                assert_eq!(standing, Standing::SessionGone);
            }
            2 => {
                let standing = client.confirm(&session, &claim(how, "k2"), dlock_core::Cursor(0)).await.unwrap();
                assert_eq!(standing, Standing::SessionGone);
            }
            _ => assert_eq!(client.claim_all(&session, &[claim(101, "other")]).await.unwrap(), Together::SessionGone),
        }
        assert!(client.shared.notes.may_be_under_way(ClaimId::from_bits(how)), "nothing is known of it: {how}");
    };
    for how in 0..4 {
        ask(how).await;
    }
}

#[tokio::test]
async fn a_release_that_fails_is_known_to_leave_no_tombstone_when_it_is_asked_for_again() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    held(&client, &session, &claim(1, "k")).await;
    stage
        .operator()
        .execute_batch("CREATE TRIGGER stuck BEFORE DELETE ON dlock_claim BEGIN SELECT RAISE(ABORT, 'stuck'); END")
        .unwrap();
    client.release(&session, &claim(1, "k")).await.unwrap_err();
    stage.operator().execute_batch("DROP TRIGGER stuck").unwrap();
    client.release(&session, &claim(1, "k")).await.unwrap();
    assert_eq!(stage.count("dlock_over"), 0);
}

#[tokio::test]
async fn whoever_waits_hears_that_the_key_is_held_by_permits_of_another_number() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    let first = claim(0, "k");
    let permits = |id, all| Claim { mode: Mode::Permits(std::num::NonZeroU32::new(all).unwrap()), ..claim(id, "k") };
    held(&client, &session, &first).await;
    client.claim(&session, &permits(1, 2), Place::Queue).await.unwrap();
    let last = permits(2, 3);
    let Standing::Waiting { cursor, .. } = client.claim(&session, &last, Place::Queue).await.unwrap() else { panic!("it is held") };
    let wait = client.wait(&session, &last, cursor);
    let (waited, released) = tokio::join!(biased; wait, client.release(&session, &first));
    released.unwrap();
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::Conflict);
}

/// As the documentation says it.
#[tokio::test]
async fn a_transaction_of_a_holder_takes_the_lock_of_an_attached_file_or_fails() {
    let stage = Stage::new();
    let client = stage.client("boot");
    let session = session(&client, 1).await;
    held(&client, &session, &claim(1, "k")).await;
    let own = Connection::open(stage.folder.path().join("own.db")).unwrap();
    let attach = |mode: &str| format!("ATTACH 'file:{}?mode={mode}' AS locks", stage.path().display());
    let lock = "BEGIN IMMEDIATE; UPDATE dlock_store SET one = one WHERE one = 1";
    own.execute_batch(&attach("ro")).unwrap();
    own.execute_batch(lock).unwrap_err();
    own.execute_batch("ROLLBACK; DETACH locks").unwrap();
    own.execute_batch(&attach("rw")).unwrap();
    own.execute_batch(lock).unwrap();
    let beside = stage.operator();
    beside.busy_timeout(Duration::ZERO).unwrap();
    assert!(beside.execute_batch("BEGIN IMMEDIATE").is_err(), "nobody changes the file meanwhile");
    own.execute_batch("COMMIT").unwrap();
    beside.execute_batch("BEGIN IMMEDIATE").unwrap();
}
