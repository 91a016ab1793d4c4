//! The terminal that a command has while it runs, as a shell gives it to its jobs.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, getpgrp, test_kill_process_group};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

/// Whether this is a terminal in whose foreground we are.
pub fn is_ours(descriptor: impl AsFd) -> bool {
    isatty(&descriptor) && tcgetpgrp(&descriptor).is_ok_and(|group| group == getpgrp())
}

/// A terminal that is lent to a command.
#[derive(Debug)]
pub struct Terminal {
    descriptor: OwnedFd,
    /// Whose it is when the command has gone.
    owner: Pid,
    /// How it was set when it was lent.
    modes: Option<Termios>,
}

impl Terminal {
    /// That on standard input, if it is ours and nobody else's: in a pipeline others may need it.
    pub fn ours() -> Option<Self> {
        if !is_ours(stdin()) || !is_ours(stdout()) {
            return None;
        }
        Some(Self::of(stdin().as_fd().try_clone_to_owned().ok()?, getpgrp()))
    }

    /// That of another process group.
    pub fn of(descriptor: OwnedFd, owner: Pid) -> Self {
        let modes = tcgetattr(&descriptor).ok();
        Self { descriptor, owner, modes }
    }

    /// Whose it is.
    pub fn owner(&self) -> Pid {
        self.owner
    }

    /// Gives it back, if the command still has it: a shell may have taken it meanwhile. After a command that was `killed` it is set as it was before.
    ///
    /// The caller does not hear `SIGTTOU`.
    pub fn give_back(&self, command: Pid, killed: bool) {
        // Of a group without members nobody else takes it.
        let is_the_commands = |group| group == command || test_kill_process_group(group).is_err();
        if !tcgetpgrp(&self.descriptor).is_ok_and(is_the_commands) {
            return;
        }
        let _ = tcsetpgrp(&self.descriptor, self.owner);
        if let (Some(modes), true) = (&self.modes, killed) {
            let _ = tcsetattr(&self.descriptor, OptionalActions::Now, modes);
        }
    }
}
