//! The last step to the command: this process becomes it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;
use rustix::process::{Pid, getpgrp, getppid};
use rustix::termios::tcsetpgrp;

use crate::exit::Exit;
use crate::output::note;

/// Becomes the command, which ends with the guardian whatever ends that; returns only if it cannot.
///
/// `terminal`: the command's group, which is this process's own, is to have the terminal on standard input.
pub fn become_command(guardian: i32, terminal: bool, command: &[OsString]) -> Exit {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        note(format_args!("the command would outlive its guardian: {}", io::Error::from(error)));
        return Exit::CANNOT_RUN;
    }
    // It may have ended before it could be heard of.
    if getppid() != Pid::from_raw(guardian) {
        return Exit::LOST;
    }
    if terminal {
        // Whoever is not in the foreground is stopped for this, but the guardian's mask is still ours.
        let _ = tcsetpgrp(rustix::stdio::stdin(), getpgrp());
    }
    let Some((program, arguments)) = command.split_first() else { return Exit::USAGE };
    // The guardian blocks all signals, and a mask outlives all that is started.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        note(format_args!("the command would hear no signals: {error}"));
        return Exit::CANNOT_RUN;
    }
    let error = Command::new(program).args(arguments).exec();
    note(format_args!("cannot run {}: {error}", program.display()));
    if error.kind() == io::ErrorKind::NotFound { Exit::NOT_FOUND } else { Exit::CANNOT_RUN }
}
