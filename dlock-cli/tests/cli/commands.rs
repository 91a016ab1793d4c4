//! The other commands, on the embedded store.

use serde_json::Value;

use crate::support::{Folder, Running};

fn holder(folder: &Folder, arguments: &[&str]) -> Running {
    let running = folder.start("holder", &[&["hold"], arguments].concat());
    running.prints("holding");
    running
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn who_shows_the_holder_and_those_who_wait() {
    let folder = Folder::new();
    let holding = holder(&folder, &["--metadata", "why=nightly", "k"]);
    let waiting = folder.start("waiting", &["run", "k", "--", "true"]);
    waiting.says("waiting for k");
    let seen = json(&folder.told(&["--json", "who", "k"]));
    let (first, next) = (&seen["holders"][0], &seen["waiters"][0]);
    assert_eq!((seen["key"].as_str(), first["pid"].as_i64()), (Some("k"), Some(holding.pid().into())));
    assert_eq!(first["metadata"]["why"], "nightly");
    assert!(first["token"].as_u64().unwrap() > 0 && first["since"].is_string() && first["host"].is_string(), "{seen}");
    assert_eq!((next["pid"].as_i64(), next["token"].as_u64()), (Some(waiting.pid().into()), None), "{seen}");
    let table = folder.told(&["who", "k"]);
    assert!(table.contains("why=nightly") && table.contains("waits, 0 ahead") && table.contains("TOKEN"), "{table}");
    assert!(!table.contains('\x1b'), "{table}");
}

#[test]
fn ls_lists_what_is_held_with_a_prefix() {
    let folder = Folder::new();
    let _held = [holder(&folder, &["jobs/a"]), holder(&folder, &["jobs/b"]), holder(&folder, &["other"])];
    let keys = |prefix: &[&str]| -> Vec<String> {
        let told = folder.told(&[&["--json", "ls"], prefix].concat());
        told.lines().map(|line| json(line)["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&["jobs/"]), ["jobs/a", "jobs/b"]);
    assert_eq!(keys(&[]), ["jobs/a", "jobs/b", "other"]);
    let table = folder.told(&["ls", "jobs/"]);
    assert!(table.starts_with("KEY") && table.contains("jobs/b"), "{table}");
    let (code, said) = folder.code(&["ls", "nothing/"]);
    assert_eq!((code, said.contains("no lock is held")), (0, true), "{said}");
}

#[test]
fn watch_shows_every_change() {
    let folder = Folder::new();
    for (what, key) in [("k", "k"), ("jobs/", "jobs/a")] {
        let mut watching = folder.start("watching", &["--json", "watch", what]);
        // With a prefix there is nothing to show yet.
        if what == "k" {
            watching.prints(r#""event":"free""#);
        } else {
            watching.says("no lock is held yet");
        }
        let mut holding = holder(&folder, &[key]);
        watching.prints(&format!(r#""pid":{}"#, holding.pid()));
        holding.signal("INT");
        assert_eq!(holding.code(), Some(0), "{}", holding.err());
        crate::support::until("the end of it", || watching.out().lines().last().is_some_and(|line| json(line)["event"] == "free"));
        watching.signal("INT");
        assert_eq!(watching.code(), Some(0), "{}", watching.err());
    }
}

#[test]
fn break_takes_a_lock_away_and_its_holder_is_told() {
    let folder = Folder::new();
    let mut holding = holder(&folder, &["k"]);
    let (code, said) = folder.code(&["break", "k"]);
    assert_eq!((code, said.contains("--yes")), (64, true), "{said}");
    assert!(folder.told(&["break", "--yes", "k"]).contains("took k away"));
    assert_eq!(holding.code(), Some(70), "{}", holding.err());
    assert!(holding.err().contains("the lock k was lost"), "{}", holding.err());
    let (code, said) = folder.code(&["break", "--yes", "k"]);
    assert_eq!((code, said.contains("nobody holds k")), (75, true), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn break_leaves_foreign_keys_alone() {
    let (folder, agent) = (Folder::new(), dlock_testkit::servers::ConsulAgent::start().await.unwrap());
    let mut foreign =
        agent.command().args(["lock", "theirs", "touch mark; exec sleep 100"]).current_dir(folder.path("")).spawn().unwrap();
    crate::support::until("the foreign lock", || folder.path("mark").exists());
    let (code, said) = folder.code(&["--backend", &agent.url(), "break", "--yes", "theirs/.lock"]);
    let still = folder.told(&["--backend", &agent.url(), "who", "theirs/.lock"]);
    assert!(still.contains("held") && foreign.try_wait().unwrap().is_none(), "{still}");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    assert_eq!((code, said.contains("left alone")), (77, true), "{said}");
}

#[test]
fn what_happens_to_a_lock_is_told_in_lines_of_json() {
    let folder = Folder::new();
    let start = |name: &str| {
        let running = folder.start(name, &["--json", "hold", "k"]);
        running.prints(r#""event":"held","key":"k","token":"#);
        running
    };
    let mut first = start("first");
    first.signal("INT");
    assert_eq!(first.code(), Some(0));
    let events: Vec<_> = first.out().lines().map(|line| json(line)["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["held", "released"]);
    let mut second = start("second");
    assert_eq!(json(&folder.told(&["--json", "break", "--yes", "k"]))["event"], "broken");
    assert_eq!(second.code(), Some(70));
    let last = json(second.out().lines().last().unwrap());
    assert!(last["event"] == "lost" && last["reason"].is_string(), "{last}");
}

#[test]
fn a_candidate_need_not_wait_for_ever() {
    let folder = Folder::new();
    let leader = folder.start("leader", &["elect", "scheduler", "--metadata", "zone=a"]);
    leader.prints("elected");
    assert!(folder.told(&["who", "scheduler"]).contains("zone=a"));
    let (code, said) = folder.code(&["elect", "scheduler", "--wait", "2s"]);
    assert_eq!(code, 75, "{said}");
}

#[test]
fn hold_gives_its_lock_back_on_ctrl_c() {
    let folder = Folder::new();
    let mut holding = holder(&folder, &["k"]);
    assert_eq!(folder.code(&["hold", "--try", "k"]).0, 75);
    holding.signal("INT");
    assert_eq!(holding.code(), Some(0), "{}", holding.err());
    assert!(folder.told(&["who", "k"]).contains("free"));
}

#[test]
fn a_leader_is_elected_and_observed() {
    let folder = Folder::new();
    let watching = folder.start("watching", &["elect", "scheduler", "--observe"]);
    watching.prints("nobody leads scheduler");
    let mut first = folder.start("first", &["elect", "scheduler", "--value", "10.0.0.1:80"]);
    first.prints("elected to lead scheduler, token ");
    watching.prints("leads scheduler, token ");
    assert!(watching.out().contains(": 10.0.0.1:80"), "{}", watching.out());
    let second = folder.start("second", &["--json", "elect", "scheduler"]);
    second.says("waiting for scheduler");
    first.signal("TERM");
    assert_eq!(first.code(), Some(0), "{}", first.err());
    second.prints(r#""event":"elected","key":"scheduler","token":"#);
    watching.prints(&format!("/{}/dlock leads scheduler", second.pid()));
}

#[test]
fn completions_and_the_manual_page_name_every_command() {
    let folder = Folder::new();
    let told = [folder.told(&["completions", "bash"]), folder.told(&["completions", "zsh"]), folder.told(&["man"])];
    for text in &told {
        for command in ["run", "hold", "who", "ls", "watch", "break", "elect", "doctor"] {
            assert!(text.to_lowercase().contains(command), "{command} is missing");
        }
        assert!(!text.contains("__guardian"), "nothing to be started by hand");
    }
    assert!(told[2].contains("hold\\-at\\-least") && told[2].contains("Exit codes"), "{}", told[2]);
}

#[test]
fn doctor_finds_a_fit_store_and_tells_of_one_that_is_not() {
    let folder = Folder::new();
    let told = folder.told(&["doctor"]);
    assert!(told.starts_with("store        sqlite:///") && told.contains("reachable") && told.contains("ok"), "{told}");
    let findings = folder.told(&["--json", "doctor"]);
    assert!(findings.lines().all(|line| json(line)["fitness"] == "ok"), "{findings}");
    std::fs::write(folder.path("text.db"), "no database at all, but long enough to be looked at").unwrap();
    let url = format!("sqlite://{}", folder.path("text.db").display());
    let output = folder.output(&["--backend", &url, "doctor"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), told.contains("what to do: ")), (Some(69), true), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_permission_that_is_missing() {
    let folder = Folder::new();
    let agent = dlock_testkit::servers::ConsulAgent::builder().acl().start().await.unwrap();
    let token = agent.token_with(r#"key_prefix "" { policy = "write" }"#).unwrap();
    let output = folder.dlock(["--backend", &agent.url(), "doctor"]).env("CONSUL_HTTP_TOKEN", &token).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(77), "{told}");
    assert!(told.contains("permissions") && told.contains("clock") && told.contains("session") && !told.contains(&token), "{told}");
}
