//! Twenty processes compete for one key while they are killed at random, for as many seconds as `DLOCK_TORTURE_SECONDS` says, 20 unless set.
//!
//! Each holder writes its token to a register that refuses any that is not greater, and says in a log when its turn begins and ends. Nobody's turn may begin
//! before the last one ended, unless its process was killed or its session may have lapsed.
#![allow(missing_docs)]

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dlock_core::{Claim, ClaimId, FencingToken, Key, LockBackend, Mode, Place, Renewal, SessionId, SessionRequest, Standing};
use dlock_sqlite::{Sqlite, SqliteOptions};
use rusqlite::Connection;
use tempfile::TempDir;

const PROCESSES: usize = 20;
const REGISTER: &str = "register";
const TTL: Duration = Duration::from_secs(1);
/// What of its ttl a holder does not rely on.
const MARGIN: Duration = Duration::from_millis(300);
/// Locks taken and given back between two turns, so that a kill is likely to meet a change under way.
const BUSTLE: usize = 20;
const FOLDER: &str = "DLOCK_SQLITE_TORTURE_IN";
const NUMBER: &str = "DLOCK_SQLITE_TORTURE_AS";

fn claim(key: &str) -> Claim {
    Claim {
        id: ClaimId::from_bits(fastrand::u128(..)),
        key: Key::new(key).unwrap(),
        mode: Mode::Exclusive,
        owner: format!("host/{}/torture", std::process::id()).into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    }
}

fn client(folder: &Path) -> Sqlite {
    Sqlite::new(SqliteOptions::new(folder.join("locks.db")).unwrap()).unwrap()
}

fn register(folder: &Path) -> Connection {
    let register = Connection::open(folder.join("register.db")).unwrap();
    register.busy_timeout(Duration::from_secs(60)).unwrap();
    register
}

/// The system's monotonic clock, which all processes share.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// One of the processes: a session, and turn after turn until the file `stop` is there.
struct Contender {
    backend: Sqlite,
    session: SessionId,
    /// Until when its session lives, as far as it knows.
    believed: Duration,
}

impl Contender {
    async fn new(folder: &Path) -> Self {
        let backend = client(folder);
        let (session, believed) = Self::open(&backend).await;
        Self { backend, session, believed }
    }

    async fn open(backend: &Sqlite) -> (SessionId, Duration) {
        loop {
            let asked = now();
            let request = SessionRequest { id: SessionId::from_bits(fastrand::u128(..)), ttl: TTL, owner: "host/1/torture".into() };
            match backend.open(&request).await {
                Ok(session) => return (session.id, asked + session.ttl.saturating_sub(MARGIN)),
                Err(error) => assert!(error.kind().is_passing(), "{error:?}"),
            }
        }
    }

    /// Keeps the session alive, or opens another; whether it is the same.
    async fn renew(&mut self) -> bool {
        let asked = now();
        match self.backend.renew(&self.session).await {
            Ok(Renewal::Renewed { ttl }) => {
                self.believed = asked + ttl.saturating_sub(MARGIN);
                true
            }
            Ok(Renewal::Gone) => {
                (self.session, self.believed) = Self::open(&self.backend).await;
                false
            }
            Err(error) => {
                assert!(error.kind().is_passing(), "{error:?}");
                true
            }
        }
    }

    /// Waits in line, and renews its session meanwhile; `None` if the session ended or an answer was none, after which nothing is left of the claim.
    async fn take(&mut self, claim: &Claim) -> Option<FencingToken> {
        let mut standing = self.backend.claim(&self.session, claim, Place::Queue).await;
        loop {
            match standing {
                Ok(Standing::Held { token }) => return Some(token),
                Ok(Standing::Waiting { cursor, .. }) => {
                    let waited = tokio::time::timeout(TTL / 4, self.backend.wait(&self.session, claim, cursor)).await;
                    if !self.renew().await {
                        return None;
                    }
                    let cursor = waited.ok().and_then(Result::ok).map_or(cursor, |woken| woken.cursor);
                    standing = self.backend.confirm(&self.session, claim, cursor).await;
                }
                Ok(Standing::SessionGone | Standing::ClaimGone) => {
                    self.renew().await;
                    return None;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    assert!(error.kind().is_passing(), "{error:?}");
                    self.give_back(claim).await;
                    return None;
                }
            }
        }
    }

    async fn give_back(&mut self, claim: &Claim) {
        while let Err(error) = self.backend.release(&self.session, claim).await {
            assert!(error.kind().is_passing(), "{error:?}");
        }
    }
}

/// Does nothing unless it is started by `at_any_instruction`, as a process of its own.
#[test]
fn contends() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let log = OpenOptions::new().append(true).open(folder.join("log")).unwrap();
    let register = register(&folder);
    let number = std::env::var(NUMBER).unwrap();
    // One write is one line, whoever else writes.
    let say = |what: &str, token: FencingToken, at: Duration, believed: Duration| {
        let lapses = believed + MARGIN;
        (&log).write_all(format!("{number} {what} {token} {} {}\n", at.as_nanos(), lapses.as_nanos()).as_bytes()).unwrap();
    };
    runtime.block_on(async {
        let mut contender = Contender::new(&folder).await;
        while !folder.join("stop").exists() {
            for _ in 0..BUSTLE {
                let own = claim(&format!("bustle/{number}"));
                _ = contender.take(&own).await;
                contender.give_back(&own).await;
            }
            let claim = claim(REGISTER);
            contender.renew().await;
            let Some(token) = contender.take(&claim).await else { continue };
            let (from, until) = (now(), contender.believed);
            if from < until {
                say("begins", token, from, until);
                let written = i64::try_from(token.get()).unwrap();
                let rows = register.execute("UPDATE register SET token = ?1 WHERE token < ?1", [written]).unwrap();
                let believes = now() < until;
                say(
                    if !believes {
                        "lost"
                    } else if rows == 1 {
                        "ends"
                    } else {
                        "refused"
                    },
                    token,
                    now(),
                    until,
                );
            }
            contender.give_back(&claim).await;
        }
        while let Err(error) = contender.backend.close(&contender.session).await {
            assert!(error.kind().is_passing(), "{error:?}");
        }
    });
}

fn start(folder: &Path, number: usize) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "contends", "--nocapture"])
        .env(FOLDER, folder)
        .env(NUMBER, number.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The turns of the log, judged.
#[derive(Debug, Default, PartialEq, Eq)]
struct Turns {
    begun: usize,
    lost: usize,
    refused: usize,
    overlaps: Vec<String>,
    not_grown: Vec<String>,
}

/// A turn that has not ended.
struct Open {
    turn: (usize, u64),
    /// When its session may lapse.
    lapses: u64,
    /// Those that began within it before, which is wrong if it lived.
    beside: Vec<String>,
}

impl Turns {
    /// In the order of the times in the log: whoever loses the core between looking at the clock and writing is not accused for it.
    fn of(log: &str, killed: &HashSet<usize>) -> Self {
        let mut turns = Self::default();
        let mut open: Vec<Open> = Vec::new();
        let mut highest = 0;
        let mut said: Vec<_> = log.lines().map(Self::read).collect();
        said.sort_by_key(|(.., at, _)| *at);
        for (what, turn, at, lapses) in said {
            if what == "begins" {
                turns.begun += 1;
                for within in open.iter_mut().filter(|open| at < open.lapses) {
                    within.beside.push(format!("{turn:?} began within {:?}", within.turn));
                }
                if turn.1 <= highest {
                    turns.not_grown.push(format!("{} after {highest}", turn.1));
                }
                open.push(Open { turn, lapses, beside: Vec::new() });
                highest = turn.1;
                continue;
            }
            match what {
                "lost" => turns.lost += 1,
                "refused" => turns.refused += 1,
                _ => {}
            }
            match open.iter().position(|open| open.turn == turn) {
                Some(ended) => turns.overlaps.extend(open.swap_remove(ended).beside),
                None => turns.overlaps.push(format!("{turn:?} ended, and had not begun")),
            }
        }
        let lived = open.into_iter().filter(|open| !killed.contains(&open.turn.0));
        turns.overlaps.extend(lived.flat_map(|open| open.beside));
        turns
    }

    fn read(line: &str) -> (&str, (usize, u64), u64, u64) {
        let [number, what, token, at, lapses] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        (what, (number.parse().unwrap(), token.parse().unwrap()), at.parse().unwrap(), lapses.parse().unwrap())
    }
}

#[test]
fn the_judge_finds_what_it_looks_for() {
    let (none, first) = (HashSet::new(), HashSet::from([1]));
    let (fine, once) = (Turns { begun: 2, ..Turns::default() }, Turns { begun: 2, lost: 1, ..Turns::default() });
    assert_eq!(Turns::of("1 begins 5 10 90\n1 ends 5 11 90\n2 begins 6 12 90\n2 ends 6 13 90\n", &none), fine);
    assert_eq!(Turns::of("1 begins 5 10 90\n2 begins 6 11 90\n2 ends 6 12 90\n", &none).overlaps.len(), 1);
    assert_eq!(Turns::of("1 begins 5 10 90\n2 begins 6 11 90\n2 ends 6 12 90\n", &first), fine);
    let lived = "1 begins 5 10 90\n2 begins 6 11 90\n1 ends 5 12 90\n2 ends 6 13 90\n";
    assert_eq!(Turns::of(lived, &first).overlaps.len(), 1, "it lived after all");
    assert_eq!(Turns::of("1 begins 5 10 90\n1 ends 5 11 90\n2 begins 5 12 90\n2 ends 5 13 90\n", &none).not_grown.len(), 1);
    assert_eq!(Turns::of("1 ends 5 11 90\n", &none).overlaps.len(), 1, "it never began");
    let slow = |second| format!("2 begins 6 {second} 190\n1 begins 5 10 90\n2 ends 6 99 190\n1 lost 5 99 90\n");
    assert_eq!(Turns::of(&slow(90), &none), once, "its session may have lapsed");
    assert_eq!(Turns::of(&slow(89), &none).overlaps.len(), 1);
}

#[tokio::test]
async fn processes_killed_at_any_instruction_leave_no_overlap_and_nothing_behind() {
    let seconds = std::env::var("DLOCK_TORTURE_SECONDS").map_or(20, |seconds| seconds.parse().unwrap());
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("log"), "").unwrap();
    register(folder.path())
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE register (token INTEGER); INSERT INTO register VALUES (0)")
        .unwrap();

    let mut processes: Vec<Child> = (0..PROCESSES).map(|number| start(folder.path(), number)).collect();
    let mut numbers: Vec<usize> = (0..PROCESSES).collect();
    let mut killed = HashSet::new();
    let until = now() + Duration::from_secs(seconds);
    while now() < until {
        std::thread::sleep(Duration::from_micros(fastrand::u64(..400_000)));
        let struck = fastrand::usize(..processes.len());
        processes[struck].kill().unwrap();
        processes[struck].wait().unwrap();
        killed.insert(numbers[struck]);
        numbers[struck] = PROCESSES + killed.len();
        processes[struck] = start(folder.path(), numbers[struck]);
    }
    std::fs::write(folder.path().join("stop"), "").unwrap();
    // Each has its turn once the sessions of the killed have lapsed, sees that it is to stop, and leaves.
    for process in &mut processes {
        assert!(process.wait().unwrap().success(), "a process failed");
    }

    let turns = Turns::of(&std::fs::read_to_string(folder.path().join("log")).unwrap(), &killed);
    println!("torture: {} turns, {} kills, {} lost by slowness, in {seconds} s", turns.begun, killed.len(), turns.lost);
    assert_eq!((&turns.overlaps, &turns.not_grown, turns.refused), (&vec![], &vec![], 0), "{turns:?}");
    assert!(turns.begun > 0, "nobody had a turn");

    // Whoever comes now is granted the key, once the sessions of the killed have lapsed.
    let mut last = Contender::new(folder.path()).await;
    let claim = claim(REGISTER);
    let token = tokio::time::timeout(TTL * 10, async {
        loop {
            if let Some(token) = last.take(&claim).await {
                return token;
            }
        }
    });
    token.await.expect("the key is free");
    last.give_back(&claim).await;
    let seen = last.backend.inspect(&claim.key).await.unwrap();
    assert_eq!((seen.holders, seen.waiters), (vec![], Some(vec![])));
    let alone = tokio::time::timeout(TTL * 10, async {
        while last.renew().await && sessions(folder.path()) > 1 {
            tokio::time::sleep(TTL / 10).await;
        }
    });
    alone.await.expect("the sessions of the killed lapse");
    last.backend.close(&last.session).await.unwrap();
    let file = Connection::open(folder.path().join("locks.db")).unwrap();
    for table in ["dlock_session", "dlock_claim", "dlock_over"] {
        let left: i64 = file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{table}");
    }
    let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
}

fn sessions(folder: &Path) -> i64 {
    let file = Connection::open(folder.join("locks.db")).unwrap();
    file.query_row("SELECT count(*) FROM dlock_session", [], |row| row.get(0)).unwrap()
}
