//! Where nothing is as it should be: no home, no store, nobody who reads, large and odd input.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

use crate::support::Folder;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It ended with this, and not in a panic.
fn ends(output: &Output, code: i32, says: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(says) && !said.contains("panicked"), "{said}");
}

#[test]
fn without_a_home_it_says_what_to_name() {
    let folder = Folder::new();
    let mut command = folder.dlock(["run", "k", "--", "true"]);
    ends(&command.env_remove("XDG_STATE_HOME").env_remove("HOME").output().unwrap(), 78, "name a store by --backend");
    let mut command = folder.dlock(["run", "k", "--", "true"]);
    ends(&command.env("XDG_STATE_HOME", "/proc/nothing").output().unwrap(), 78, "name a store by --backend");
    // A home alone is enough.
    let mut command = folder.dlock(["run", "k", "--", "true"]);
    ends(&command.env_remove("XDG_STATE_HOME").env("HOME", folder.path("home")).output().unwrap(), 0, "");
    assert!(folder.path("home/.local/state/dlock/locks.db").exists());
}

#[test]
fn a_store_that_is_not_there_is_told() {
    let folder = Folder::new();
    for arguments in [
        &["run", "k", "--", "true"][..],
        &["run", "--try", "k", "--", "true"],
        &["who", "k"],
        &["ls"],
        &["hold", "k"],
        &["elect", "k"],
    ] {
        let output = folder.output(&[&["--backend", "consul://127.0.0.1:1"], arguments].concat());
        ends(&output, 69, "dlock: ");
    }
}

#[test]
fn what_is_no_store_is_refused_with_what_would_be() {
    let folder = Folder::new();
    ends(&folder.output(&["--backend", "redis://x", "who", "k"]), 78, "known are consul");
    ends(&folder.output(&["--backend", "sqlite://relative.db", "who", "k"]), 78, "sqlite");
    ends(&folder.output(&["who", "/k"]), 64, "empty segment");
    ends(&folder.output(&["run", "--shared", "--backend", "consul://127.0.0.1:1", "k", "--", "true"]), 78, "shared");
    let mut command = folder.dlock(["run", "k", "--", "true"]);
    ends(&command.env("DLOCK_URL", "").output().unwrap(), 64, "name a store, or leave it out");
    for url in ["consul://user:hidden@127.0.0.1:1", "consul://127.0.0.1:1/?token=hidden", "etcd://user:hidden@127.0.0.1:1"] {
        for arguments in [&["doctor"][..], &["who", "k"], &["run", "k", "--", "true"]] {
            let output = folder.output(&[&["--backend", url], arguments].concat());
            let all = format!("{}{}", said(&output), String::from_utf8_lossy(&output.stdout));
            assert!(!output.status.success() && !all.contains("hidden"), "{all}");
        }
    }
}

#[test]
fn bad_usage_says_what_is_right() {
    let folder = Folder::new();
    for (arguments, says) in [
        (&["run", "k"][..], "<CMD>"),
        (&["run", "--wait", "soon", "k", "--", "true"], "--wait"),
        (&["run", "--try", "--wait", "1s", "k", "--", "true"], "cannot be used with"),
        (&["run", "--permits", "0", "k", "--", "true"], "--permits"),
        (&["run", "--metadata", "novalue", "k", "--", "true"], "NAME=VALUE"),
        (&["run", "--metadata", "owner=me", "k", "--", "true"], "owner"),
        (&["run", "--ttl", "6s", "--grace", "3s", "k", "--", "true"], "use --ttl 9s, or --grace 2s"),
        (&["run", "--hold-at-least", "3s", "--hold-at-most", "2s", "k", "--", "true"], "is longer than --hold-at-most"),
        (&["run", "--grace", "500000000000years", "k", "--", "true"], "ten years"),
        (&["run", "--hold-at-most", "0s", "k", "--", "true"], "longer than zero"),
        (&["run", "k", "true"], "comes behind --"),
        (&["nonsense"], "unrecognized subcommand"),
    ] {
        ends(&folder.output(arguments), 64, says);
    }
    ends(&folder.output(&["run", "k", "--", "no-such-command"]), 127, "no such command; nothing was locked");
    ends(&folder.output(&["run", "k", "--", "/etc/passwd"]), 126, "may not be executed");
}

#[test]
fn nobody_needs_to_read() {
    let folder = Folder::new();
    let holding = folder.start("holder", &["hold", "k"]);
    holding.prints("holding");
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command
            .env("XDG_STATE_HOME", folder.path(""))
            .env_remove("DLOCK_URL")
            .env("DLOCK", env!("CARGO_BIN_EXE_dlock"))
            .stdin(Stdio::null());
        command.args(["-c", script]).output().unwrap()
    };
    for closed in [">&-", "2>&-", ">&- 2>&-", "<&-", "</dev/null >/dev/full 2>&1"] {
        for what in ["who k", "ls", "run other -- true", "run --try k -- true"] {
            let output = shell(&format!("\"$DLOCK\" {what} {closed}; echo code=$? >&2"));
            let said = said(&output);
            assert!(!said.contains("panicked"), "{what} {closed}: {said}");
            let code = said.rsplit("code=").next().unwrap().trim().to_owned();
            // A full disk is told, a closed output is not.
            let expected = match what {
                "run --try k -- true" => "75",
                "who k" | "ls" if closed.contains("/dev/full") => "78",
                _ => "0",
            };
            assert_eq!(code, expected, "{what} {closed}: {said}");
        }
    }
    ends(&shell("\"$DLOCK\" --help | head -c 1 >/dev/null; \"$DLOCK\" man | true; \"$DLOCK\" ls | true"), 0, "");
}

#[test]
fn arguments_and_surroundings_reach_the_command_as_they_are() {
    let folder = Folder::new();
    let odd = OsStr::from_bytes(b"not \xff\xfe utf-8");
    let large = "x".repeat(100_000);
    let mut command = folder.dlock(["run", "k", "--", "sh", "-c", "printf '%s' \"$1\"; printf '%s' \"$ODD$L9\"", "sh"]);
    command.arg(odd).env("ODD", odd);
    // A megabyte of surroundings.
    for number in 0..10 {
        command.env(format!("L{number}"), &large);
    }
    let output = command.output().unwrap();
    ends(&output, 0, "");
    assert_eq!(output.stdout, [odd.as_bytes(), odd.as_bytes(), large.as_bytes()].concat());

    let mut command = folder.dlock(["run"]);
    ends(&command.arg(odd).args(["--", "true"]).output().unwrap(), 64, "UTF-8");
    let mut command = folder.dlock(["who", "k"]);
    ends(&command.env("DLOCK_URL", odd).output().unwrap(), 64, "UTF-8");
}

#[test]
fn a_command_keeps_its_standard_streams() {
    use std::io::Write;
    let folder = Folder::new();
    let mut child = folder.dlock(["run", "k", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through\n");
}

#[test]
fn nothing_of_ours_is_left_open_in_the_command() {
    let folder = Folder::new();
    let told = folder.told(&["run", "k", "--", "sh", "-c", "ls -l /proc/$$/fd | grep -c -e socket -e locks.db; true"]);
    assert_eq!(told.trim(), "0");
}
