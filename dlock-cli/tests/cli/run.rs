//! `dlock run` on the embedded store.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Folder, kill, program, ticking, until};

#[test]
fn a_command_runs_with_the_lock_and_its_exit_code_is_ours() {
    let folder = Folder::new();
    let told = folder.told(&["run", "jobs/a", "--", "sh", "-c", "echo $DLOCK_KEY $DLOCK_TOKEN $DLOCK_BACKEND"]);
    let words: Vec<_> = told.split_whitespace().collect();
    assert_eq!(words[0], "jobs/a");
    assert!(words[1].parse::<u64>().unwrap() > 0, "{told}");
    assert!(words[2].starts_with("sqlite:///") && words[2].ends_with("/dlock/locks.db"), "{told}");
    assert_eq!(folder.code(&["run", "jobs/a", "--", "sh", "-c", "exit 7"]).0, 7);
    assert_eq!(folder.code(&["run", "jobs/a", "--", "sh", "-c", "kill -9 $$"]).0, 137);
    assert!(folder.told(&["who", "jobs/a"]).contains("free"));
}

#[test]
fn one_waits_for_the_other_and_says_for_whom() {
    let folder = Folder::new();
    let log = folder.log();
    let file = log.0.display().to_string();
    let goes_on = folder.path("goes-on");
    let script = format!("echo first >>{file}; while [ ! -e {} ]; do sleep 0.05; done; echo first >>{file}", goes_on.display());
    let mut first = folder.start("first", &["run", "k", "--", "sh", "-c", &script]);
    log.has(&["first"]);
    let mut second = folder.start("second", &["run", "k", "--", "sh", "-c", &format!("echo second >>{file}")]);
    second.says(&format!("waiting for k: held by {}", owner(first.pid())));
    std::fs::write(&goes_on, "").unwrap();
    assert_eq!((first.code(), second.code()), (Some(0), Some(0)), "{}{}", first.err(), second.err());
    assert_eq!(log.lines(), ["first", "first", "second"]);
}

/// The beginning of a holder's name.
fn owner(pid: i32) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    format!("{}/{pid}/", host.trim())
}

#[test]
fn who_does_not_want_to_wait_hears_who_has_it() {
    let folder = Folder::new();
    let holder = folder.start("holder", &["hold", "k"]);
    holder.prints("holding k");
    for options in [&["--try"][..], &["--wait", "2s"]] {
        let arguments = [&["run"][..], options, &["k", "--", "true"]].concat();
        let (code, said) = folder.code(&arguments);
        assert_eq!(code, 75, "{said}");
        assert!(said.contains(&owner(holder.pid())), "{said}");
    }
}

#[test]
fn all_that_a_command_started_ends_with_it_before_the_lock_is_given_back() {
    let folder = Folder::new();
    let log = folder.log();
    // The leader ends as soon as all run; a process in its group and one that left it would go on.
    let file = log.0.display();
    let runs = |which: &str| format!("while ! grep -qs first-{which} '{file}'; do sleep 0.01; done; ");
    let ends = format!("& {}{}sleep 0.3; exit 3; while", runs("group"), runs("stray"));
    let script = ticking("first", &log.0).replace("& while", &ends);
    let mut first = folder.start("first", &["run", "--grace", "200ms", "k", "--", "sh", "-c", &script]);
    log.has(&["first-group", "first-stray"]);
    let mut second =
        folder.start("second", &["run", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.2", log.0.display())]);
    assert_eq!(first.code(), Some(3), "{}", first.err());
    assert_eq!(second.code(), Some(0), "{}", second.err());
    log.apart("first", "second");
}

#[test]
fn a_command_that_does_not_hear_is_killed_by_the_end_of_its_time() {
    let folder = Folder::new();
    let log = folder.log();
    let arguments = ["run", "--hold-at-most", "6s", "--grace", "500ms", "k", "--", "sh", "-c", &ticking("first", &log.0)];
    let started = Instant::now();
    let mut first = folder.start("first", &arguments);
    log.has(&["first-leader", "first-group", "first-stray"]);
    let mut second =
        folder.start("second", &["run", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.2", log.0.display())]);
    assert_eq!(first.code(), Some(70), "{}", first.err());
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert!(first.err().contains("lost"), "{}", first.err());
    assert_eq!(second.code(), Some(0), "{}", second.err());
    log.apart("first", "second");
}

#[test]
fn a_lock_that_is_taken_away_stops_its_command() {
    let folder = Folder::new();
    let mut job = folder.start(
        "job",
        &["run", "--grace", "5s", "k", "--", "sh", "-c", "trap 'echo told; exit 0' TERM; echo begun; while :; do sleep 0.05; done"],
    );
    job.prints("begun");
    assert!(folder.told(&["break", "--yes", "k"]).contains("took k away from"));
    assert_eq!(job.code(), Some(70), "{}", job.err());
    assert_eq!(job.out(), "begun\ntold\n");
}

#[test]
fn a_command_hears_signals_as_if_it_were_started_by_a_shell() {
    let folder = Folder::new();
    let status = folder.told(&["run", "k", "--", "grep", "-e", "SigBlk", "-e", "SigIgn", "/proc/self/status"]);
    let masks: Vec<_> = status.lines().map(|line| line.split_once(':').unwrap().1.trim()).collect();
    assert_eq!(masks[0], "0000000000000000", "none is blocked: {status}");
    // HUP, INT, QUIT, USR1, USR2 and TERM; libraries have ways of their own with some others.
    let asked: u64 = [1, 2, 3, 10, 12, 15].iter().map(|number| 1 << (number - 1)).sum();
    assert_eq!(u64::from_str_radix(masks[1], 16).unwrap() & asked, 0, "none is ignored: {status}");
    // What dlock was to ignore is ignored by its command too, as behind `nohup`.
    let mut behind_nohup = Command::new("env");
    behind_nohup.args([
        "--ignore-signal=HUP",
        env!("CARGO_BIN_EXE_dlock"),
        "run",
        "k",
        "--",
        "grep",
        "SigIgn",
        "/proc/self/status",
    ]);
    let told = String::from_utf8(behind_nohup.env("XDG_STATE_HOME", folder.path("")).output().unwrap().stdout).unwrap();
    assert_eq!(u64::from_str_radix(told.trim().rsplit('\t').next().unwrap(), 16).unwrap() & 1, 1, "{told}");

    // A program that does nothing about TERM ends at once, long before the grace.
    let mut job = folder.start("job", &["run", "--ttl", "300s", "--grace", "100s", "k", "--", "sleep", "1000"]);
    until("the lock", || folder.told(&["--json", "who", "k"]).contains("\"pid\""));
    let _ = job.guardian();
    let started = Instant::now();
    job.signal("TERM");
    assert_eq!(job.code(), Some(143), "{}", job.err());
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn a_dlock_within_the_command_means_the_same_store() {
    let folder = Folder::new();
    let url = format!("sqlite://{}", folder.path("named.db").display());
    let told = folder.told(&[
        "--backend",
        &url,
        "run",
        "outer",
        "--",
        env!("CARGO_BIN_EXE_dlock"),
        "run",
        "inner",
        "--",
        "sh",
        "-c",
        "echo $DLOCK_KEY $DLOCK_BACKEND",
    ]);
    assert_eq!(told.trim(), format!("inner {url}"));
}

#[test]
fn signals_are_passed_on() {
    let folder = Folder::new();
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo begun; while :; do sleep 0.05; done";
    let mut job = folder.start("job", &["run", "k", "--", "sh", "-c", script]);
    job.prints("begun");
    job.signal("USR1");
    job.prints("usr1");
    job.signal("TERM");
    assert_eq!(job.code(), Some(9), "{}", job.err());
    assert!(folder.told(&["who", "k"]).contains("free"));
}

#[test]
fn an_interrupted_wait_leaves_nothing() {
    let folder = Folder::new();
    let holder = folder.start("holder", &["hold", "k"]);
    holder.prints("holding k");
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut waiting = folder.start("waiting", &["run", "k", "--", "true"]);
        waiting.says("waiting for k");
        assert!(folder.told(&["--json", "who", "k"]).contains(&format!("/{}/", waiting.pid())));
        waiting.signal(signal);
        assert_eq!(waiting.code(), Some(code), "{}", waiting.err());
        assert!(folder.told(&["--json", "who", "k"]).contains(r#""waiters":[]"#));
    }
}

#[test]
fn a_killed_dlock_leaves_neither_its_command_nor_its_lock() {
    let folder = Folder::new();
    let log = folder.log();
    let mut first =
        folder.start("first", &["run", "--ttl", "6s", "--grace", "500ms", "k", "--", "sh", "-c", &ticking("first", &log.0)]);
    log.has(&["first-leader", "first-group", "first-stray"]);
    first.signal("KILL");
    assert_eq!(first.signal_of_end(), Some(9));
    assert_eq!(
        folder.code(&["run", "--wait", "60s", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.2", log.0.display())]).0,
        0
    );
    log.apart("first", "second");
}

#[test]
fn a_frozen_dlock_comes_back_to_a_command_that_is_gone() {
    let folder = Folder::new();
    let log = folder.log();
    let mut first =
        folder.start("first", &["run", "--ttl", "6s", "--grace", "500ms", "k", "--", "sh", "-c", &ticking("first", &log.0)]);
    log.has(&["first-leader", "first-group", "first-stray"]);
    first.signal("STOP");
    assert_eq!(
        folder.code(&["run", "--wait", "60s", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.2", log.0.display())]).0,
        0
    );
    first.signal("CONT");
    assert_eq!(first.code(), Some(70), "{}", first.err());
    log.apart("first", "second");
}

#[test]
fn a_killed_guardian_takes_the_command_along() {
    let folder = Folder::new();
    let log = folder.log();
    let mut first = folder.start("first", &["run", "k", "--", "sh", "-c", &ticking("first", &log.0)]);
    log.has(&["first-leader", "first-group", "first-stray"]);
    let mut second =
        folder.start("second", &["run", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.2", log.0.display())]);
    kill("KILL", first.guardian());
    assert_eq!(first.code(), Some(70), "{}", first.err());
    assert!(first.err().contains("guardian"), "{}", first.err());
    assert_eq!(second.code(), Some(0), "{}", second.err());
    log.apart("first", "second");
}

#[test]
fn a_frozen_guardian_does_not_keep_its_command_alive() {
    let folder = Folder::new();
    let log = folder.log();
    let arguments = ["run", "--hold-at-most", "6s", "--grace", "300ms", "k", "--", "sh", "-c", &ticking("first", &log.0)];
    let mut first = folder.start("first", &arguments);
    log.has(&["first-leader", "first-group", "first-stray"]);
    let guardian = first.guardian();
    kill("STOP", guardian);
    let mut second =
        folder.start("second", &["run", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.2", log.0.display())]);
    assert_eq!(first.code(), Some(70), "{}", first.err());
    assert_eq!(second.code(), Some(0), "{}", second.err());
    log.apart("first", "second");
}

#[test]
fn signals_to_all_processes_do_not_end_the_guardian() {
    let folder = Folder::new();
    let mut job = folder.start(
        "job",
        &[
            "run",
            "k",
            "--",
            "sh",
            "-c",
            "echo begun; while [ ! -e 'DONE' ]; do sleep 0.05; done; echo whole"
                .replace("DONE", folder.path("done").to_str().unwrap())
                .as_str(),
        ],
    );
    job.prints("begun");
    let guardian = job.guardian();
    for signal in ["TERM", "INT", "HUP", "QUIT", "USR1"] {
        kill(signal, guardian);
    }
    std::fs::write(folder.path("done"), "").unwrap();
    assert_eq!((job.code(), job.out().as_str()), (Some(0), "begun\nwhole\n"), "{}", job.err());
}

#[test]
fn a_short_job_keeps_its_lock_for_as_long_as_was_asked() {
    let folder = Folder::new();
    let started = Instant::now();
    let mut job = folder.start("job", &["run", "--hold-at-least", "1500ms", "k", "--", "sh", "-c", "echo ran"]);
    job.prints("ran");
    assert_eq!(folder.code(&["run", "--wait", "60s", "k", "--", "true"]).0, 0);
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(job.code(), Some(0), "{}", job.err());
}

#[test]
fn a_supervised_singleton_runs_again_until_it_is_told_to_end() {
    let folder = Folder::new();
    let log = folder.log();
    let script = format!(
        "echo begun >>{0}; [ $(wc -l <{0}) -ge 3 ] || exit 1; trap 'exit 5' TERM; echo third; while :; do sleep 0.05; done",
        log.0.display()
    );
    let mut job = folder.start("job", &["run", "--forever", "k", "--", "sh", "-c", &script]);
    job.prints("third");
    assert_eq!(log.count("begun"), 3);
    job.signal("TERM");
    assert_eq!(job.code(), Some(5), "{}", job.err());
}

#[test]
fn a_lost_lock_is_waited_for_again_if_that_is_wanted() {
    let folder = Folder::new();
    let job = folder.start(
        "job",
        &["run", "--forever", "--hold-at-most", "600ms", "--grace", "100ms", "k", "--", "sh", "-c", "echo begun; sleep 100"],
    );
    until("three terms", || job.out().lines().count() >= 3);
}

#[test]
fn readers_share_and_permits_are_counted() {
    let folder = Folder::new();
    for (options, more) in [(vec!["--shared"], true), (vec!["--permits", "2"], false)] {
        let hold = |name: &str| {
            let arguments = [&["hold"], &options[..], &["k"]].concat();
            let running = folder.start(name, &arguments);
            running.prints("holding k");
            running
        };
        let _two = [hold("one"), hold("other")];
        let arguments = [&["run", "--try"], &options[..], &["k", "--", "sh", "-c", "echo token=$DLOCK_TOKEN"]].concat();
        let third = folder.dlock(&arguments).env("DLOCK_TOKEN", "12").stderr(Stdio::null()).output().unwrap();
        // Those who share have no token, and not that of a lock around them either.
        let (code, out) = if more { (0, "token=\n") } else { (75, "") };
        assert_eq!((third.status.code(), String::from_utf8(third.stdout).unwrap().as_str()), (Some(code), out));
    }
}

#[test]
fn measurements_are_served_for_prometheus() {
    use std::io::{Read, Write};
    let folder = Folder::new();
    // Given back, and of an address on which nothing else takes ports.
    let address = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let job =
        folder.start("job", &["run", "--metrics-listen", &address.to_string(), "k", "--", "sh", "-c", "echo begun; sleep 100"]);
    job.prints("begun");
    let mut page = String::new();
    until("the page", || {
        let Ok(mut connection) = std::net::TcpStream::connect(address) else { return false };
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        page.clear();
        connection.read_to_string(&mut page).is_ok()
    });
    for line in [
        "dlock_locks_held{mode=\"exclusive\"} 1",
        "dlock_wait_seconds_count{mode=\"exclusive\",outcome=\"acquired\"} 1",
        "dlock_requests_total{kind=\"open\",outcome=\"ok\"} 1",
    ] {
        assert!(page.contains(line), "{line} is missing: {page}");
    }
    // Another cannot have the place.
    let (code, said) = folder.code(&["run", "--metrics-listen", &address.to_string(), "other", "--", "true"]);
    assert_eq!((code, said.contains("cannot serve measurements")), (78, true), "{said}");
}

#[test]
fn a_dlock_whose_parent_ignored_the_ends_of_children_sees_its_command_end() {
    let folder = Folder::new();
    let mut command = Command::new("env");
    command.args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_dlock"), "run", "k", "--", "sh", "-c", "exit 7"]);
    let mut job = folder.start_command("job", {
        command.env("XDG_STATE_HOME", folder.path(""));
        command
    });
    assert_eq!(job.code(), Some(7), "{}", job.err());
}

#[test]
fn a_process_whose_number_changes_all_the_time_does_not_get_away() {
    let folder = Folder::new();
    let (log, chain) = (folder.log(), folder.path("chain"));
    program(&chain, &format!("echo first-chain >>'{}'\nsetsid \"$0\" &", log.0.display()));
    let script = format!(
        "'{}' & while ! grep -q first-chain '{}'; do sleep 0.01; done; sleep 0.3; exit 3",
        chain.display(),
        log.0.display()
    );
    let mut first = folder.start("first", &["run", "--grace", "200ms", "k", "--", "sh", "-c", &script]);
    log.has(&["first-chain"]);
    let mut second =
        folder.start("second", &["run", "k", "--", "sh", "-c", &format!("echo second >>{}; sleep 0.3", log.0.display())]);
    assert_eq!(first.code(), Some(3), "{}", first.err());
    assert_eq!(second.code(), Some(0), "{}", second.err());
    log.apart("first", "second");
}

#[test]
fn a_loss_is_acted_on_although_nobody_reads_what_is_said() {
    let folder = Folder::new();
    let log = folder.log();
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut writer, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let script = ticking("first", &log.0);
    let mut first =
        folder.dlock(["run", "--ttl", "300s", "--grace", "300ms", "k", "--", "sh", "-c", &script]).stderr(writer).spawn().unwrap();
    log.has(&["first-leader", "first-group", "first-stray"]);
    folder.told(&["break", "--yes", "k"]);
    // Long before the deadline, which the guardian would keep to by itself.
    until("the end of dlock", || first.try_wait().unwrap().is_some());
    let before = log.count("first");
    assert_eq!(folder.code(&["run", "k", "--", "sleep", "0.3"]).0, 0);
    assert_eq!(log.count("first"), before, "nothing of it goes on");
    drop(reader);
}

#[test]
fn a_stopped_command_can_be_told_to_end() {
    let folder = Folder::new();
    let mut job =
        folder.start("job", &["run", "--ttl", "300s", "--grace", "100s", "k", "--", "sh", "-c", "echo begun; kill -STOP $$"]);
    job.prints("begun");
    job.signal("TERM");
    assert_eq!(job.code(), Some(143), "{}", job.err());
}

#[test]
fn a_singleton_that_is_to_hold_its_lock_for_long_can_be_told_to_end() {
    let folder = Folder::new();
    let mut job = folder.start("job", &["run", "--forever", "--hold-at-least", "10m", "k", "--", "echo", "ran"]);
    job.says("stays locked");
    job.signal("TERM");
    assert_eq!(job.code(), Some(0), "{}", job.err());
    assert_eq!(job.out(), "ran\n");
    assert!(folder.told(&["who", "k"]).contains("free"));
}

#[test]
fn what_was_started_before_dlock_by_the_same_process_is_left_alone() {
    let folder = Folder::new();
    let script = format!(
        "sleep 1000 & echo $! >'{}'; exec \"$0\" run k -- sh -c 'echo begun; sleep 1000'",
        folder.path("sidecar").display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_dlock")]).env("XDG_STATE_HOME", folder.path(""));
    let mut job = folder.start_command("job", command);
    job.prints("begun");
    let sidecar = std::fs::read_to_string(folder.path("sidecar")).unwrap().trim().parse().unwrap();
    kill("KILL", job.guardian());
    assert_eq!(job.code(), Some(70), "{}", job.err());
    // Fails if it is gone.
    kill("KILL", sidecar);
}

#[test]
fn whoever_told_it_to_end_is_not_forgotten_when_the_lock_is_lost_meanwhile() {
    let folder = Folder::new();
    let script = "trap 'echo told; sleep 1000 & wait' TERM; echo begun; sleep 1000 & wait";
    let mut job = folder.start("job", &["run", "--forever", "--grace", "300ms", "k", "--", "sh", "-c", script]);
    job.prints("begun");
    job.signal("TERM");
    job.prints("told");
    folder.told(&["break", "--yes", "k"]);
    assert_eq!(job.code(), Some(70), "{}", job.err());
    assert_eq!(job.out().matches("begun").count(), 1);
}

#[test]
fn a_hangup_is_passed_on_and_ends_no_singleton() {
    let folder = Folder::new();
    let script = "trap 'echo again; exit 0' HUP; echo begun; while :; do sleep 0.05; done";
    let job = folder.start("job", &["run", "--forever", "k", "--", "sh", "-c", script]);
    job.prints("begun");
    job.signal("HUP");
    until("the second term", || job.out().matches("begun").count() == 2);
    assert!(job.out().contains("again"));
}

#[test]
fn who_wants_no_words_gets_none_when_another_was_first() {
    let folder = Folder::new();
    let holder = folder.start("holder", &["hold", "k"]);
    holder.prints("holding k");
    assert_eq!(folder.code(&["--quiet", "run", "--try", "k", "--", "true"]), (75, String::new()));
}
