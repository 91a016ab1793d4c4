//! The dead-man's switch of `dlock run`: a second process that starts the command, and ends it at the deadline of the lock unless it keeps
//! hearing of a later one.
//!
//! A `dlock` that is frozen or killed cannot end its command; this process can. It knows no store and no network, waits for nothing but its
//! socket, the command and the clock, and hears no signal but `KILL`. If it is killed itself, the system kills the command, and `dlock` the rest.

mod command;
pub mod tree;
pub mod wire;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

pub use command::become_command;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, kill_process_group, waitid};

use self::wire::{BootTime, Gone, Incoming, Order, Report, Why, line};
use crate::args::Inner;
use crate::exit::Exit;
use crate::terminal::Terminal;

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
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// So often those are waited for that a command left behind and that have ended.
const REAP_INTERVAL: Duration = Duration::from_secs(1);
/// Processes that live on for so long after `KILL` cannot be killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The command's process group, for as long as its leader was not waited for: then the number may be another's.
    group: Option<Pid>,
    /// Tells that the leader has ended, where the system has that.
    pidfd: Option<OwnedFd>,
    grace: Duration,
    margin: Duration,
    /// The command must be killed by then.
    kill_by: BootTime,
    /// `TERM` was sent.
    stopping: Option<Stopping>,
    /// How the leader ended: its exit code as a shell tells it, and the signal.
    status: Option<(u8, Option<i32>)>,
    /// It was told that some cannot be killed.
    told_of_lingering: bool,
    terminal: Option<Terminal>,
}

/// A command that is being ended.
#[derive(Clone, Copy)]
struct Stopping {
    why: Why,
    kill_at: BootTime,
}

impl Guardian {
    fn begin(setting: &Setting) -> io::Result<Self> {
        let socket = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
        let stdin = wire::take_over(&socket)?;
        let (grace, margin) = (Duration::from_millis(setting.grace), Duration::from_millis(setting.margin));
        let kill_by = setting.until.minus(margin);
        if BootTime::now() >= kill_by.minus(grace) {
            let _ = (&socket).write_all(&line(&Report::TooLate));
            return Err(io::ErrorKind::TimedOut.into());
        }
        let terminal = match setting.terminal.and_then(Pid::from_raw) {
            Some(owner) => Some(Terminal::of(stdin.try_clone()?, owner)),
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
        let pidfd = rustix::process::pidfd_open(leader, rustix::process::PidfdFlags::empty()).ok();
        #[cfg(not(target_os = "linux"))]
        let pidfd = None;
        // Whoever does not read, be it `dlock` or a terminal, must not hold up the guardian.
        socket.set_nonblocking(true)?;
        let nowhere = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
        let mut guardian = Self {
            dlock: Some(socket),
            incoming: Incoming::default(),
            leader,
            group: Some(leader),
            pidfd,
            grace,
            margin,
            kill_by,
            stopping: None,
            status: None,
            told_of_lingering: false,
            terminal,
        };
        guardian.tell(&Report::Started(leader.as_raw_nonzero().get()));
        Ok(guardian)
    }

    /// Until the command and all that came from it are gone.
    fn watch(&mut self) -> Gone {
        let mut reaped = BootTime::now();
        loop {
            self.hear();
            self.look_at_leader();
            let now = BootTime::now();
            if let Some(stopping) = self.stopping {
                if let Some(gone) = self.end_all(stopping, now) {
                    return gone;
                }
            } else if now >= self.kill_by.minus(self.grace) {
                self.stop(Why::Deadline);
            } else if now.since(reaped) >= REAP_INTERVAL {
                reaped = now;
                tree::reap_adopted(&[self.leader]);
            }
            self.nap(now);
        }
    }

    /// Until something may have happened.
    fn nap(&self, now: BootTime) {
        // The clock of `poll` stands still while the machine is suspended, so it is never asked for long.
        let nap = match self.stopping {
            // What cannot be killed is looked at now and then.
            Some(_) if self.told_of_lingering => REAP_INTERVAL,
            Some(_) => LOOK_INTERVAL,
            None => self.kill_by.minus(self.grace).since(now).clamp(LOOK_INTERVAL, REAP_INTERVAL / 4),
        };
        let mut watched = Vec::with_capacity(2);
        if let Some(dlock) = &self.dlock {
            watched.push(PollFd::new(dlock, PollFlags::IN));
        }
        if let (Some(pidfd), None) = (&self.pidfd, self.status) {
            watched.push(PollFd::new(pidfd, PollFlags::IN));
        }
        let timeout = rustix::time::Timespec { tv_sec: nap.as_secs().cast_signed(), tv_nsec: i64::from(nap.subsec_nanos()) };
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
                // A command that was told to end is killed when its grace is over, whatever comes.
                Order::Until(until) => self.kill_by = self.kill_by.max(until.minus(self.margin)),
                Order::Signal(number) => self.pass_on(number),
                Order::End => self.stop(Why::Ordered),
            }
        }
        if self.dlock.is_none() {
            self.stop(Why::Ordered);
        }
    }

    fn pass_on(&self, number: i32) {
        let (Some(group), Some(signal)) = (self.group, Signal::from_named_raw(number)) else { return };
        let _ = kill_process_group(group, signal);
        if [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT].contains(&signal) {
            // What is stopped does not hear it.
            let _ = kill_process_group(group, Signal::CONT);
        }
    }

    /// Sends `TERM`, and sees to it that `KILL` comes after the grace, but not after the deadline.
    fn stop(&mut self, why: Why) {
        if self.stopping.is_some() {
            return;
        }
        let kill_at = self.kill_by.min(BootTime::now().plus(self.grace));
        self.stopping = Some(Stopping { why, kill_at });
        tree::signal_all(self.group, Signal::TERM, &[]);
        tree::signal_all(self.group, Signal::CONT, &[]);
    }

    /// Ends what is left, by `KILL` when its time is over; how it all ended, once that is so.
    fn end_all(&mut self, stopping: Stopping, now: BootTime) -> Option<Gone> {
        let Stopping { why, kill_at } = stopping;
        if self.status.is_some() && self.nothing_is_left() {
            return Some(self.gone(why, Vec::new()));
        }
        if now < kill_at {
            return None;
        }
        tree::signal_all(self.group, Signal::KILL, &[]);
        if !self.told_of_lingering {
            tree::chase(&[]);
        }
        if now < kill_at.plus(KILL_TIMEOUT) {
            return None;
        }
        let left = tree::descendants(&[]).into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        if why != Why::Itself || now >= self.kill_by || self.dlock.is_none() {
            return Some(self.gone(why, left));
        }
        // The lock is sound, and kept for as long as something runs under it.
        if !std::mem::replace(&mut self.told_of_lingering, true) {
            self.tell(&Report::Lingering(left));
        }
        None
    }

    /// Whether all that came from the command is gone; the leader, whose end is known, is waited for last.
    fn nothing_is_left(&mut self) -> bool {
        if !tree::descendants(&[]).is_empty() {
            return false;
        }
        // A look may miss one; the system does not.
        self.group = None;
        tree::reap_all()
    }

    /// Finds out whether the leader has ended, without waiting for it: its number stays its own, and that of its group.
    fn look_at_leader(&mut self) {
        if self.status.is_some() {
            return;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.leader), options) {
            Ok(None) | Err(Errno::INTR) => self.look_at_stop(),
            Ok(Some(status)) => {
                self.status = Some((code(&status), status.terminating_signal()));
                // What it left behind is no longer under the lock's protection once that is given back.
                self.stop(Why::Itself);
            }
            // Somebody else has waited for it: how it ended is not known.
            Err(_) => {
                (self.status, self.group) = (Some((Exit::KILLED.code(), None)), None);
                self.stop(Why::Itself);
            }
        }
    }

    /// A command that has the terminal is not suspended by its keyboard; one that wants a terminal it does not have is told of.
    fn look_at_stop(&mut self) {
        let stopped = waitid(WaitId::Pid(self.leader), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
        let Some(signal) = stopped.ok().flatten().and_then(|status| status.stopping_signal()) else { return };
        let continued = signal == Signal::TSTP.as_raw() && self.terminal.is_some();
        if continued && let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::CONT);
        }
        if continued || [Signal::TTIN.as_raw(), Signal::TTOU.as_raw()].contains(&signal) {
            self.tell(&Report::Suspended { continued });
        }
    }

    fn gone(&mut self, why: Why, left: Vec<i32>) -> Gone {
        let (code, signal) = self.status.unwrap_or((Exit::KILLED.code(), None));
        if let Some(terminal) = self.terminal.take() {
            terminal.give_back(self.leader, why != Why::Itself || signal.is_some());
        }
        Gone { code, signal, why, left }
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
