//! Every example, run as a user would; `cron_leader` as several processes on a real Consul and a real etcd.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dlock_testkit::servers::ConsulAgent;

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    stdout
}

#[test]
fn hello_locks_and_gives_back() {
    let told = output(&mut Command::new(env!("CARGO_BIN_EXE_hello")));
    assert!(told.contains("giving it back: Released") && told.contains("nothing left behind: true"), "{told}");
}

#[test]
fn a_late_write_is_refused() {
    let told = output(&mut Command::new(env!("CARGO_BIN_EXE_fenced_write")));
    assert!(told.contains("refused: token 1 is stale") && told.contains("the balance is 250"), "{told}");
}

#[test]
fn three_of_six_workers_are_at_work() {
    let told = output(&mut Command::new(env!("CARGO_BIN_EXE_limited_workers")));
    let at_work: Vec<u32> = told.lines().map(|line| line.split_once("begins, ").unwrap().1[..1].parse().unwrap()).collect();
    assert_eq!((at_work.len(), at_work.iter().max()), (6, Some(&3)), "{told}");
}

#[test]
fn a_migration_has_its_tables_to_itself() {
    let told = output(&mut Command::new(env!("CARGO_BIN_EXE_migration")));
    let who: Vec<_> = told.lines().filter_map(|line| line.split_once(": migrating ")).map(|(who, _)| who).collect();
    assert_eq!(who.len(), 5, "{told}");
    assert!(who.chunk_by(|one, other| one == other).count() == 2, "one after the other: {told}");
    assert!(told.ends_with("done in 5 steps\n"), "{told}");
}

/// The writes in the order in which they were made, and what became of them.
const GUARDED: &str = "first: holds the lock; its write is taken\nsecond: holds the lock\nsecond: its write is taken\n\
                       first: goes on; its write is refused\n";

#[tokio::test]
async fn consul_refuses_the_write_of_a_past_holder() {
    let agent = ConsulAgent::start().await.unwrap();
    let told = output(Command::new(env!("CARGO_BIN_EXE_guarded_write_consul")).arg(agent.address().to_string()));
    assert_eq!(told, GUARDED);
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn etcd_refuses_the_write_of_a_past_holder() {
    let server = dlock_testkit::servers::EtcdServer::start().await.unwrap();
    let told = output(Command::new(env!("CARGO_BIN_EXE_guarded_write_etcd")).arg(server.address().to_string()));
    assert_eq!(told, GUARDED);
}

#[test]
fn observers_see_who_leads_and_what_is_proclaimed() {
    let told = output(&mut Command::new(env!("CARGO_BIN_EXE_who_leads")));
    let phases: Vec<_> = told.lines().filter_map(|line| line.split_once("phase ")).map(|(_, phase)| phase).collect();
    // An observer that is late may see the last of several changes alone.
    assert!(
        phases.is_sorted_by_key(|phase| ["warming up", "scheduling", "cleaning up"].iter().position(|known| known == phase)),
        "{told}"
    );
    assert_eq!(phases.last(), Some(&"cleaning up"), "{told}");
    let token = |line: &str| line.split_once("with token ").map(|(_, rest)| rest.split(',').next().unwrap().to_owned());
    let tokens: std::collections::BTreeSet<_> = told.lines().filter_map(token).collect();
    assert_eq!(tokens.len(), 1, "one term: {told}");
    assert!(told.ends_with("nobody leads any more\n"), "{told}");
}

#[test]
fn the_demonstration_shows_three_leaders_with_growing_tokens() {
    let told = output(Command::new(env!("CARGO_BIN_EXE_cron_leader")).args(["--every", "200ms", "--ttl", "2s"]));
    let leaders: Vec<_> = told.lines().filter_map(|line| line.split_once(": leading with token ")).collect();
    let names: std::collections::BTreeSet<_> = leaders.iter().map(|(name, _)| *name).collect();
    let tokens: Vec<u64> = leaders.iter().map(|(_, token)| token.parse().unwrap()).collect();
    assert_eq!(names.len(), 3, "{told}");
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{told}");
}

#[test]
fn bad_options_are_told() {
    let refused = Command::new(env!("CARGO_BIN_EXE_cron_leader")).args(["--backend", "redis://x"]).output().unwrap();
    assert!(!refused.status.success());
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("unknown scheme"), "{told}");
}

const TTL: Duration = Duration::from_secs(10);
/// More than a busy machine adds, and less than is left of a session whose holder does not give back.
const BUSY: Duration = Duration::from_secs(5);

/// A candidate in a process of its own; killed when dropped.
struct Candidate {
    process: Child,
    lines: Receiver<String>,
}

impl Candidate {
    fn start(url: &str, ttl: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_cron_leader"))
            .args(["--backend", url, "--key", "jobs/nightly", "--ttl", ttl, "--every", "100ms"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (tell, lines) = channel();
        let out = BufReader::new(process.stdout.take().unwrap());
        // Ends with the process.
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { process, lines }
    }

    /// Waits for a line that contains this; what follows in it.
    fn says(&self, what: &str) -> String {
        let began = Instant::now();
        loop {
            let left = LIMIT.saturating_sub(began.elapsed());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("it never said {what:?}"));
            if let Some((_, rest)) = line.split_once(what) {
                return rest.to_owned();
            }
        }
    }

    fn leads(&self) -> u64 {
        self.says("leading with token ").parse().unwrap()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[tokio::test]
async fn sigterm_hands_over_within_a_second_and_sigkill_within_twice_the_ttl_and_one() {
    let agent = ConsulAgent::start().await.unwrap();
    // A session that nobody renews ends at twice its ttl.
    hand_over(&agent.url(), TTL * 2 + Duration::from_secs(1));
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn on_etcd_sigterm_hands_over_within_a_second_and_sigkill_within_the_ttl_and_two_seconds() {
    let server = dlock_testkit::servers::EtcdServer::start().await.unwrap();
    hand_over(&server.url(), TTL + Duration::from_secs(2));
}

fn hand_over(url: &str, after_a_kill: Duration) {
    let first = Candidate::start(url, "10s");
    let first_token = first.leads();
    let second = Candidate::start(url, "10s");
    second.says("campaigning for jobs/nightly");

    let stopped = Instant::now();
    first.signal("TERM");
    let second_token = second.leads();
    assert!(stopped.elapsed() < Duration::from_secs(1) + BUSY, "{:?}", stopped.elapsed());
    assert_eq!(first.says("everything given back: "), "true");
    assert!(second_token > first_token);

    let third = Candidate::start(url, "10s");
    third.says("campaigning for jobs/nightly");
    let killed = Instant::now();
    second.signal("KILL");
    let third_token = third.leads();
    assert!(killed.elapsed() <= after_a_kill + BUSY, "{:?}", killed.elapsed());
    assert!(third_token > second_token);
}
