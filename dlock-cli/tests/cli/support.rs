//! `dlock` processes, what they write, and the log of those that ran under a lock.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Generous: the machine may be busy, and Consul takes its time.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < limit, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder of one test, in which its embedded store is, and its logs.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command, with the embedded store of this folder and nothing of the surroundings' settings.
    pub fn dlock<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = unignoring(env!("CARGO_BIN_EXE_dlock"));
        command.env("XDG_STATE_HOME", self.0.path()).stdin(Stdio::null()).args(arguments);
        for name in ["DLOCK_URL", "DLOCK_LOG", "DLOCK_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs the command to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.dlock(arguments).output().unwrap()
    }

    /// What the command printed, which must have gone well.
    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code of the command, and what it said on standard error.
    pub fn code(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.output(arguments);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts the command; what it writes goes to files.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Running {
        self.start_command(name, self.dlock(arguments))
    }

    pub fn start_command(&self, name: &str, mut command: Command) -> Running {
        let (out, err) = (self.path(&format!("{name}.out")), self.path(&format!("{name}.err")));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        Running { child: command.spawn().unwrap(), out, err }
    }

    /// A log for [`ticking`] commands.
    pub fn log(&self) -> Log {
        Log(self.path("log"))
    }
}

/// A program that hears signals, also if these tests run where some are ignored, as behind `nohup` or in a script's background.
pub fn unignoring(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", program]);
    command
}

/// A `dlock` that runs; killed when dropped, and then its guardian ends the command.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    pub fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    /// Waits until it has written this on standard error.
    pub fn says(&self, what: &str) {
        until(what, || self.err().contains(what));
    }

    /// Waits until it has written this on standard output.
    pub fn prints(&self, what: &str) {
        until(what, || self.out().contains(what));
    }

    pub fn signal(&self, signal: &str) {
        kill(signal, self.pid());
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of dlock", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn code(&mut self) -> Option<i32> {
        self.ended().code()
    }

    pub fn signal_of_end(&mut self) -> Option<i32> {
        self.ended().signal()
    }

    /// Its guardian's process.
    pub fn guardian(&self) -> i32 {
        let mut found = None;
        until("the guardian", || {
            found = children(self.pid()).into_iter().find(|pid| command_line(*pid).contains("__guardian"));
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn kill(signal: &str, pid: i32) {
    let status = Command::new("kill").args([&format!("-{signal}"), "--", &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

fn children(parent: i32) -> Vec<i32> {
    let numbered = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbered.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn command_line(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// What the commands that ran under one lock wrote, line by line in the order of time.
pub struct Log(pub PathBuf);

impl Log {
    pub fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub fn count(&self, name: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(name)).count()
    }

    /// Waits until each of these has written.
    pub fn has(&self, names: &[&str]) {
        until(&names.join(" "), || names.iter().all(|name| self.count(name) > 0));
    }

    /// Waits until that many more lines of this are there.
    pub fn goes_on(&self, name: &str, lines: usize) {
        let before = self.count(name);
        until(name, || self.count(name) >= before + lines);
    }

    /// The intervals in which they ran do not overlap: no `first` wrote after any `second` had begun.
    pub fn apart(&self, first: &str, second: &str) {
        let lines = self.lines();
        let begun = lines.iter().position(|line| line.starts_with(second)).unwrap();
        let late = lines.iter().skip(begun).filter(|line| line.starts_with(first)).count();
        assert!(begun > 0, "{first} never ran: {lines:?}");
        assert_eq!(late, 0, "{first} ran on beside {second}: {lines:?}");
    }
}

/// A shell script that writes its name to the log every few milliseconds, and so do two processes that it starts: one in its group, and one that left the
/// group and the session. None of them hears `TERM`.
pub fn ticking(name: &str, log: &Path) -> String {
    let tick = |which: &str| format!("while :; do echo {name}{which} >>'{}'; sleep 0.005; done", log.display());
    format!(
        "trap '' TERM HUP INT; ({}) & setsid sh -c \"trap '' TERM HUP INT; {}\" & {}",
        tick("-group"),
        tick("-stray"),
        tick("-leader")
    )
}

/// Makes a program of a script.
pub fn program(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let mut file = File::create(path).unwrap();
    writeln!(file, "#!/bin/sh\n{script}").unwrap();
    drop(file);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
