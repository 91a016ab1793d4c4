//! The harness of a file, with the wire and the operator that it needs; also of the suite of the `Locker`.

use std::io::{BufRead, BufReader};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, Ownership, SessionId};
use dlock_sqlite::{Request, Sent, Sqlite, SqliteOptions, Wire};
use dlock_testkit::conformance::{self, Harness, Hook, Hooked, Line, SecondProcess, UnderWay};
use rusqlite::{Connection, OptionalExtension, params};
use tempfile::TempDir;
use tokio::sync::Notify;

/// A file of its own, the clients that use it, and an operator with a connection of its own.
pub struct OnSqlite {
    folder: TempDir,
    post: Arc<Post>,
    clients: Arc<Mutex<Vec<Sqlite>>>,
    lines: Mutex<Vec<Line>>,
    operator: Mutex<Connection>,
    /// A program that takes a key at a URL, and those of the hooks that are missing without it.
    process: Option<PathBuf>,
    missing: Vec<Hook>,
}

impl OnSqlite {
    pub async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let post = Arc::new(Post::default());
        let first = Self::open(&folder, &post);
        // Makes the file, so that the operator finds one.
        first.list("").await.unwrap();
        let operator = Connection::open(folder.path().join("locks.db")).unwrap();
        operator.busy_timeout(Duration::from_secs(5)).unwrap();
        operator.execute_batch("CREATE TABLE written (by INTEGER)").unwrap();
        Self {
            folder,
            post,
            clients: Arc::new(Mutex::new(vec![first])),
            lines: Mutex::default(),
            operator: Mutex::new(operator),
            process: None,
            missing: vec![Hook::PutForeign, Hook::Restart, Hook::SecondProcess],
        }
    }

    /// With a program that takes a key, `holder URL KEY TTL-IN-MILLISECONDS`, says a line when it holds it, and gives it back at the end of its input.
    #[allow(dead_code)] // by the suite of the `Locker` only
    #[must_use]
    pub fn with_second_process(mut self, program: impl Into<PathBuf>) -> Self {
        self.process = Some(program.into());
        self.missing.retain(|hook| *hook != Hook::SecondProcess);
        self
    }

    fn open(folder: &TempDir, post: &Arc<Post>) -> Sqlite {
        let options = SqliteOptions::new(folder.path().join("locks.db")).unwrap();
        Sqlite::with_wire(&options, Arc::clone(post) as Arc<dyn Wire>).unwrap()
    }

    fn operator(&self) -> MutexGuard<'_, Connection> {
        self.operator.lock().unwrap()
    }
}

/// A wire on which some requests meet an obstacle.
#[derive(Debug, Default)]
struct Post(Mutex<Vec<(Sent, Obstacle)>>);

#[derive(Debug)]
enum Obstacle {
    LoseReply,
    Hold(Arc<Held>),
}

impl Post {
    fn next(&self, sent: conformance::Sent, obstacle: Obstacle) {
        let sent = match sent {
            conformance::Sent::Open => Sent::Open,
            conformance::Sent::Renew => Sent::Renew,
            conformance::Sent::Claim => Sent::Claim,
            conformance::Sent::Release => Sent::Release,
            conformance::Sent::Amend => Sent::Amend,
        };
        self.0.lock().unwrap().push((sent, obstacle));
    }
}

impl Wire for Post {
    fn send(&self, request: Request) {
        let mut obstacles = self.0.lock().unwrap();
        let met = obstacles.iter().position(|(sent, _)| *sent == request.sent());
        match met.map(|met| obstacles.remove(met).1) {
            None => request.deliver(),
            Some(Obstacle::LoseReply) => request.deliver_without_reply(),
            Some(Obstacle::Hold(held)) => {
                *held.request.lock().unwrap() = Some(request);
                held.sent.notify_one();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Held {
    request: Mutex<Option<Request>>,
    sent: Notify,
}

struct OnTheWay {
    held: Arc<Held>,
    clients: Arc<Mutex<Vec<Sqlite>>>,
}

#[async_trait]
impl UnderWay for OnTheWay {
    async fn sent(&self) {
        self.held.sent.notified().await;
    }

    async fn deliver(&self) {
        self.held.request.lock().unwrap().take().expect("it was sent").deliver();
        // What is asked now is answered after it, whosever it was.
        let clients = self.clients.lock().unwrap().clone();
        for client in clients {
            client.list("").await.unwrap();
        }
    }
}

#[async_trait]
impl Harness for OnSqlite {
    fn name(&self) -> String {
        "sqlite".to_owned()
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        let client = Self::open(&self.folder, &self.post);
        self.clients.lock().unwrap().push(client.clone());
        let line = Line::new(Arc::new(client));
        self.lines.lock().unwrap().push(line.clone());
        Arc::new(line)
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn long_ttl(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn prompt(&self) -> Duration {
        Duration::from_millis(500)
    }

    /// The file holds nothing but locks, so there is nothing foreign under a key. There is no server to be killed: that the file outlives all who use it, and
    /// those who are killed, is shown by `restart.rs` and `torture.rs`. A second process is asked for by the suite of the `Locker` alone.
    fn missing_hooks_allowed(&self) -> &[Hook] {
        &self.missing
    }

    async fn heal(&self) {
        let operator = self.operator();
        if !operator.is_autocommit() {
            operator.execute_batch("COMMIT").unwrap();
        }
        self.lines.lock().unwrap().iter().for_each(Line::heal);
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        let ended = self.operator().execute("DELETE FROM dlock_session WHERE id = ?1", [session.as_str()]).unwrap();
        assert_eq!(ended, 1, "there is no session {session}");
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Hooked {
        self.operator().execute("DELETE FROM dlock_claim WHERE key = ?1", [key.as_str()]).unwrap();
        Ok(())
    }

    async fn release_by_force(&self, key: &Key) -> Hooked {
        let first = "DELETE FROM dlock_claim WHERE key = ?1 AND token = (SELECT min(token) FROM dlock_claim WHERE key = ?1)";
        assert_eq!(self.operator().execute(first, [key.as_str()]).unwrap(), 1, "nobody holds {key}");
        Ok(())
    }

    async fn sessions(&self, owner: &str) -> Hooked<usize> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = now.tv_sec * 1_000_000_000 + now.tv_nsec;
        let count = "SELECT count(*) FROM dlock_session WHERE owner = ?1 AND lapses > ?2";
        let sessions: i64 = self.operator().query_row(count, params![owner, now], |row| row.get(0)).unwrap();
        Ok(usize::try_from(sessions).unwrap())
    }

    fn lose_reply(&self, of: conformance::Sent) -> Hooked {
        self.post.next(of, Obstacle::LoseReply);
        Ok(())
    }

    fn hold(&self, what: conformance::Sent) -> Hooked<Box<dyn UnderWay>> {
        let held = Arc::new(Held::default());
        self.post.next(what, Obstacle::Hold(Arc::clone(&held)));
        Ok(Box::new(OnTheWay { held, clients: Arc::clone(&self.clients) }))
    }

    async fn cut(&self) -> Hooked {
        self.lines.lock().unwrap().iter().for_each(Line::cut);
        Ok(())
    }

    async fn fail(&self) -> Hooked {
        self.lines.lock().unwrap().iter().for_each(Line::fail);
        Ok(())
    }

    /// As a process does that is stopped in the middle of a change.
    async fn freeze(&self) -> Hooked {
        self.operator().execute_batch("BEGIN IMMEDIATE").unwrap();
        Ok(())
    }

    async fn write_if(&self, ownership: &Ownership) -> Hooked<bool> {
        let mut operator = self.operator();
        let write = operator.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        let owns = "SELECT token FROM dlock_claim WHERE key = ?1 AND session = ?2 AND token = ?3";
        let revision = i64::try_from(ownership.revision).unwrap();
        let row = params![ownership.key, ownership.session.as_str(), revision];
        let Some(token) = write.query_row(owns, row, |row| row.get::<_, i64>(0)).optional().unwrap() else { return Ok(false) };
        write.execute("INSERT INTO written (by) VALUES (?1)", [token]).unwrap();
        write.commit().unwrap();
        Ok(true)
    }

    async fn take_permits(&self, key: &Key, owner: &str, all: NonZeroU32) -> Hooked {
        let mut operator = self.operator();
        // Also while the file is frozen, which is by this connection.
        let take = operator.savepoint().unwrap();
        let open = "INSERT OR IGNORE INTO dlock_session (id, owner, ttl, lapses) VALUES ('others', ?1, 1, ?2)";
        take.execute(open, params![owner, i64::MAX]).unwrap();
        for nth in 1..all.get() {
            let enter = "INSERT INTO dlock_claim (token, key, session, claim, mode, published)
                SELECT max(forgotten, coalesce((SELECT max(number) FROM dlock_change), 0)) + 1, ?1, 'others', ?2, ?3, ?4 FROM dlock_store";
            let published = format!("{{\"owner\":\"{owner}\"}}");
            take.execute(enter, params![key.as_str(), format!("{nth:032x}"), all.get(), published]).unwrap();
        }
        take.commit().unwrap();
        Ok(())
    }

    async fn second_process(&self, key: &Key, ttl: Duration) -> Hooked<Box<dyn SecondProcess>> {
        let Some(program) = &self.process else { return Err(Hook::SecondProcess) };
        let url = format!("sqlite://{}", self.folder.path().join("locks.db").display());
        let mut child = Command::new(program)
            .args([url, key.to_string(), ttl.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().next();
        assert!(said.is_some(), "it ended without holding the key");
        Ok(Box::new(Process(child)))
    }
}

struct Process(Child);

#[async_trait]
impl SecondProcess for Process {
    async fn finish(mut self: Box<Self>) {
        drop(self.0.stdin.take());
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    async fn kill(mut self: Box<Self>) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
