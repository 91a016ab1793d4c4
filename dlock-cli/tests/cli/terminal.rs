//! On a terminal, which util-linux's `script` makes.

use std::io::Write;
use std::process::{Child, Stdio};

use crate::support::{Folder, unignoring, until};

/// A command on a terminal of its own; what it shows goes to a file.
struct Terminal {
    child: Child,
    shown: std::path::PathBuf,
}

impl Terminal {
    fn run(folder: &Folder, name: &str, line: &str) -> Self {
        let shown = folder.path(name);
        let mut command = unignoring("script");
        command
            .args(["-qefc", line])
            .arg(&shown)
            .env("XDG_STATE_HOME", folder.path(""))
            .env_remove("DLOCK_URL")
            .env("TERM", "xterm");
        command.env("DLOCK", env!("CARGO_BIN_EXE_dlock")).env("SHELL", "/bin/sh");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        Self { child, shown }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.shown).unwrap_or_default()).into_owned()
    }

    fn shows(&self, what: &str) {
        until(what, || self.shown().contains(what));
    }

    fn types(&mut self, what: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(what).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let mut status = None;
        until("the end on the terminal", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whoever_waits_sees_who_has_it_and_for_how_long_and_leaves_nothing_on_ctrl_c() {
    let folder = Folder::new();
    let holding = folder.start("holder", &["hold", "k"]);
    holding.prints("holding");
    let ahead = folder.start("ahead", &["run", "k", "--", "true"]);
    ahead.says("waiting for k");
    let mut waiting = Terminal::run(&folder, "waiting", "stty cols 120; exec \"$DLOCK\" run k -- true");
    until("how long it waits", || {
        let shown = waiting.shown();
        let told = shown.split("waiting for k for ").filter_map(|told| told.split_once(" s: held by ")?.0.parse::<u64>().ok());
        told.max() >= Some(1)
    });
    waiting.shows("/dlock for ");
    waiting.shows(", and 1 more ahead of us");
    waiting.types(b"\x03");
    assert_eq!(waiting.code(), Some(130), "{}", waiting.shown());
    let waiters = folder.told(&["--json", "who", "k"]);
    assert_eq!(waiters.matches(r#""owner":"#).count(), 2, "{waiters}");
}

#[test]
fn a_command_has_the_terminal_and_gives_it_back() {
    let folder = Folder::new();
    let line = "\"$DLOCK\" run k -- sh -c 'echo ask; read x; echo got $x'; echo code $?; read y; echo again $y";
    let mut terminal = Terminal::run(&folder, "terminal", line);
    terminal.shows("ask");
    terminal.types(b"one\n");
    terminal.shows("got one");
    terminal.shows("code 0");
    terminal.types(b"two\n");
    terminal.shows("again two");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn ctrl_c_reaches_the_command_and_ctrl_z_does_not_suspend_it() {
    let folder = Folder::new();
    let line = "exec \"$DLOCK\" run k -- sh -c 'trap \"echo heard; exit 4\" INT; echo begun; while :; do sleep 0.1; done'";
    let mut terminal = Terminal::run(&folder, "terminal", line);
    terminal.shows("begun");
    terminal.types(b"\x1a");
    terminal.shows("not suspended");
    terminal.types(b"\x03");
    terminal.shows("heard");
    assert_eq!(terminal.code(), Some(4), "{}", terminal.shown());
}

#[test]
fn ctrl_c_ends_the_script_around_dlock_too() {
    let folder = Folder::new();
    let line = "sh -c '\"$DLOCK\" run k -- sh -c \"echo begun; sleep 1000\"; echo after$((1))'; echo code $?";
    let mut terminal = Terminal::run(&folder, "terminal", line);
    terminal.shows("begun");
    terminal.types(b"\x03");
    terminal.code();
    assert!(!terminal.shown().contains("after1"), "{}", terminal.shown());
    assert!(folder.told(&["who", "k"]).contains("free"));
}

#[test]
fn a_question_is_asked_before_a_lock_is_taken_away() {
    let folder = Folder::new();
    let mut holding = folder.start("holder", &["hold", "k"]);
    holding.prints("holding");
    let mut asked = Terminal::run(&folder, "asked", "exec \"$DLOCK\" break k");
    asked.shows("Take it away? [y/N]");
    asked.types(b"n\n");
    assert_eq!(asked.code(), Some(75));
    let mut asked = Terminal::run(&folder, "asked", "exec \"$DLOCK\" break k");
    asked.shows("Take it away? [y/N]");
    asked.types(b"y\n");
    assert_eq!(asked.code(), Some(0), "{}", asked.shown());
    assert_eq!(holding.code(), Some(70));
}
