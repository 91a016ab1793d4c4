//! The dead-man's switch of `dlock run`: a second process that starts the command, and ends it at the deadline of the lock unless it keeps
//! hearing of a later one.
//!
//! A `dlock` that is frozen or killed cannot end its command; this process can. It knows no store and no network, waits for nothing but its
//! socket, the command and the clock, and hears no signal but `KILL`. If it is killed itself, the system kills the command, and `dlock` the rest.

mod command;
pub mod tree;
pub mod wire;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

pub use command::become_command;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, waitid};
use rustix::termios::tcsetpgrp;

use self::wire::{BootTime, Gone, Incoming, Order, Report, Why, line};
use crate::args::Inner;
use crate::exit::Exit;

/// What the guardian is started with.
#[derive(Clone, Debug, clap::Args)]
pub struct Setting {
    /// When the command must be gone, in nanoseconds since the machine was started.
    #[arg(long)]
    pub until: BootTime,
    /// What the command has between `TERM` and `KILL`, in milliseconds.
    #[arg(long)]
    pub grace: u64,
    /// How long before the deadline `KILL` is sent, in milliseconds.
    #[arg(long)]
    pub margin: u64,
    /// The process group that has the terminal now, if the command is to have it.
    #[arg(long)]
    pub terminal: Option<i32>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// So often it is looked whether anything is left of a command that is being ended.
const LOOK: Duration = Duration::from_millis(10);
/// So often a command that runs is looked at for what nobody tells of.
const CARE: Duration = Duration::from_secs(1);
/// Processes that live on for so long after `KILL` are not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The guardian's whole life; its standard input is the socket to `dlock`.
pub fn guard(setting: &Setting) -> Exit {
    // Whoever signals all processes of a service at once means the command; it is told by `dlock`.
    let _ = SigSet::all().thread_block();
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(c"dlock-guardian");
    tree::adopt_orphans();
    match Guardian::begin(setting) {
        Ok(mut guardian) => {
            let gone = guardian.watch();
            guardian.tell(&Report::Gone(gone));
            Exit::OK
        }
        // `dlock` was told, and tells.
        Err(_) => Exit::CANNOT_RUN,
    }
}

struct Guardian {
    dlock: Option<UnixStream>,
    incoming: Incoming,
    leader: Pid,
    /// Tells that the leader has ended, where the system has that.
    ending: Option<OwnedFd>,
    grace: Duration,
    margin: Duration,
    /// Where the command is not ended by something else, it is killed then.
    kill_at: BootTime,
    /// `TERM` was sent, and why.
    ended: Option<Why>,
    /// How the leader ended.
    status: Option<u8>,
    terminal: Option<(OwnedFd, Pid)>,
}

impl Guardian {
    fn begin(setting: &Setting) -> io::Result<Self> {
        let socket = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
        let stdin = wire::take_over(&socket)?;
        let (grace, margin) = (Duration::from_millis(setting.grace), Duration::from_millis(setting.margin));
        let kill_at = setting.until.minus(margin);
        if BootTime::now() >= kill_at.minus(grace) {
            let _ = (&socket).write_all(&line(&Report::TooLate));
            return Err(io::ErrorKind::TimedOut.into());
        }
        let terminal = match setting.terminal.and_then(Pid::from_raw) {
            Some(group) => Some((stdin.try_clone()?, group)),
            None => None,
        };
        let mut command = Command::new(myself());
        command.arg0("dlock").arg(Inner::COMMAND).arg("--guardian").arg(getpid().as_raw_nonzero().to_string());
        if terminal.is_some() {
            command.arg("--terminal");
        }
        command.arg("--").args(&setting.command).stdin(Stdio::from(stdin)).process_group(0);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let _ = (&socket).write_all(&line(&Report::NotStarted(error.to_string())));
                return Err(error);
            }
        };
        let leader = Pid::from_child(&child);
        #[cfg(target_os = "linux")]
        let ending = rustix::process::pidfd_open(leader, rustix::process::PidfdFlags::empty()).ok();
        #[cfg(not(target_os = "linux"))]
        let ending = None;
        // Whoever does not read must not hold up the guardian.
        socket.set_nonblocking(true)?;
        let mut guardian = Self {
            dlock: Some(socket),
            incoming: Incoming::default(),
            leader,
            ending,
            grace,
            margin,
            kill_at,
            ended: None,
            status: None,
            terminal,
        };
        guardian.tell(&Report::Started(leader.as_raw_nonzero().get()));
        Ok(guardian)
    }

    /// Until the command and all that came from it are gone.
    fn watch(&mut self) -> Gone {
        let mut cared = BootTime::now();
        loop {
            self.hear();
            self.look_at_leader();
            let now = BootTime::now();
            if self.ended.is_none() && now >= self.kill_at.minus(self.grace) {
                self.end(Why::Deadline);
            }
            if let Some(why) = self.ended {
                let left = tree::descendants(Some(self.leader));
                if self.status.is_some() && left.is_empty() {
                    return self.gone(why, left);
                }
                if now >= self.kill_at {
                    tree::signal_all(self.leader, Signal::KILL);
                    if now >= self.kill_at.plus(PATIENCE) {
                        return self.gone(why, left);
                    }
                }
            } else if now.since(cared) >= CARE {
                cared = now;
                // Waits for the adopted ones that ended.
                let _ = tree::descendants(Some(self.leader));
            }
            self.nap(now);
        }
    }

    /// Until something may have happened.
    fn nap(&self, now: BootTime) {
        // The clock of `poll` stands still while the machine is suspended, so it is never asked for long.
        let nap = match self.ended {
            Some(_) => LOOK,
            None => self.kill_at.minus(self.grace).since(now).clamp(LOOK, CARE / 4),
        };
        let mut watched = Vec::with_capacity(2);
        if let Some(dlock) = &self.dlock {
            watched.push(PollFd::new(dlock, PollFlags::IN));
        }
        if let (Some(ending), None) = (&self.ending, self.status) {
            watched.push(PollFd::new(ending, PollFlags::IN));
        }
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(nap.subsec_nanos()) };
        let _ = poll(&mut watched, Some(&timeout));
    }

    /// Follows all orders that came in.
    fn hear(&mut self) {
        let mut buffer = [0; 1024];
        while let Some(dlock) = &mut self.dlock {
            match dlock.read(&mut buffer) {
                Ok(0) => self.dlock = None,
                Ok(bytes) => self.incoming.take_in(&buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.dlock = None,
            }
        }
        while let Some(order) = self.incoming.next() {
            match order {
                // What was told to end is not told to go on.
                Order::Until(until) if self.ended.is_none() => self.kill_at = self.kill_at.max(until.minus(self.margin)),
                Order::Until(_) => {}
                Order::Signal(number) => {
                    if let Some(signal) = Signal::from_named_raw(number) {
                        let _ = rustix::process::kill_process_group(self.leader, signal);
                    }
                }
                Order::End => self.end(Why::Asked),
            }
        }
        if self.dlock.is_none() {
            self.end(Why::Asked);
        }
    }

    /// Sends `TERM`, and sees to it that `KILL` comes after the grace, but not after the deadline.
    fn end(&mut self, why: Why) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        self.kill_at = self.kill_at.min(BootTime::now().plus(self.grace));
        tree::signal_all(self.leader, Signal::TERM);
        // What is stopped hears nothing else.
        tree::signal_all(self.leader, Signal::CONT);
    }

    /// Finds out whether the leader has ended, without waiting for it: its number stays its own, and that of its group.
    fn look_at_leader(&mut self) {
        if self.status.is_some() {
            return;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if let Ok(Some(status)) = waitid(WaitId::Pid(self.leader), options) {
            self.status = Some(code(&status));
            // What it left behind is no longer under the lock's protection once that is given back.
            self.end(Why::Itself);
            return;
        }
        let stopped = waitid(WaitId::Pid(self.leader), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
        let by_keyboard =
            stopped.is_ok_and(|status| status.is_some_and(|status| status.stopping_signal() == Some(Signal::TSTP.as_raw())));
        if by_keyboard && self.terminal.is_some() {
            crate::speak::note("a command under a lock is not suspended by the keyboard; it goes on");
            let _ = rustix::process::kill_process_group(self.leader, Signal::CONT);
        }
    }

    fn gone(&mut self, why: Why, left: Vec<Pid>) -> Gone {
        if let Some((terminal, group)) = self.terminal.take() {
            let _ = tcsetpgrp(terminal, group);
        }
        Gone {
            code: self.status.unwrap_or(Exit::KILLED.code()),
            why,
            left: left.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect(),
        }
    }

    fn tell(&mut self, report: &Report) {
        // A few of them fit into any socket's buffer.
        if let Some(dlock) = &mut self.dlock {
            let _ = dlock.write_all(&line(report));
        }
    }
}

fn code(status: &WaitIdStatus) -> u8 {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or(signal);
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::KILLED.code())
}

/// This very program, even if another has taken its file's place.
pub fn myself() -> std::path::PathBuf {
    let link = std::path::PathBuf::from("/proc/self/exe");
    if link.exists() { link } else { std::env::current_exe().unwrap_or(link) }
}

/// A descriptor that standard input can be handed over as.
pub fn standard_input() -> io::Result<OwnedFd> {
    rustix::stdio::stdin().as_fd().try_clone_to_owned()
}
