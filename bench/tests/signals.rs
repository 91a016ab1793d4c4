//! A run that a signal ends leaves nothing behind: no server, no worker, no folder.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

/// A run in a process group and with a folder for temporary files of its own.
struct Run {
    child: Child,
    told: Lines<BufReader<ChildStderr>>,
    folder: TempDir,
}

impl Run {
    fn start(only: &str) -> Self {
        let folder = TempDir::with_prefix("dlock-bench-signals-").unwrap();
        let temporary = folder.path().join("temporary");
        fs::create_dir(&temporary).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dlock-bench"));
        command.args(["--quick", "--only", only, "--out"]).arg(folder.path().join("out")).env("TMPDIR", &temporary);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, told, folder }
    }

    /// Returns when it has said this.
    fn has_said(&mut self, what: &str) {
        let mut told = Vec::new();
        for line in self.told.by_ref().map(Result::unwrap) {
            if line.contains(what) {
                return;
            }
            told.push(line);
        }
        panic!("it never said {what:?}, but {told:?}");
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end; how it ended, and what is left.
    fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().unwrap().code();
        let temporary = self.folder.path().join("temporary");
        let files = fs::read_dir(&temporary).unwrap().map(|file| file.unwrap().path().display().to_string());
        (code, files.chain(processes_that_name(self.folder.path())).collect())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The command lines of all processes in which a folder stands, as those of servers have theirs.
fn processes_that_name(folder: &Path) -> Vec<String> {
    let commands = fs::read_dir("/proc").unwrap().filter_map(|process| fs::read(process.ok()?.path().join("cmdline")).ok());
    let commands = commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
    commands.filter(|command| command.contains(&*folder.to_string_lossy())).collect()
}

const NOTHING: Vec<String> = Vec::new();

#[test]
fn an_interrupt_while_it_measures_leaves_nothing_behind() {
    let mut run = Run::start("uncontended");
    run.has_said("lock and release (1/");
    assert!(processes_that_name(&run.folder.path().join("temporary")).len() >= 2);
    kill_process(run.process(), Signal::INT).unwrap();
    assert_eq!(run.ended(), (Some(130), NOTHING));
}

#[test]
fn a_request_to_terminate_while_servers_start_leaves_nothing_behind() {
    let mut run = Run::start("uncontended");
    run.has_said("starting the servers");
    kill_process(run.process(), Signal::TERM).unwrap();
    assert_eq!(run.ended(), (Some(143), NOTHING));
}

#[test]
fn a_signal_to_servers_and_workers_too_leaves_nothing_behind() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut run = Run::start("handover");
        run.has_said("handover: ");
        kill_process_group(run.process(), signal).unwrap();
        assert_eq!(run.ended(), (Some(code), NOTHING));
    }
}
