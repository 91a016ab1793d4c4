//! How many instructions an operation takes, as valgrind counts them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::Subject;

/// Instructions were not counted.
#[derive(Debug, Error)]
pub enum Uncounted {
    /// There is no valgrind.
    #[error("there is no valgrind; ./scripts/install-valgrind.sh unpacks it")]
    NoValgrind,
    /// It does not run.
    #[error("valgrind cannot be run")]
    Broken(#[from] io::Error),
    /// It failed, or said something else than how many.
    #[error("valgrind counted nothing:\n{0}")]
    Unheard(String),
}

/// In cargo's target folder.
const UNPACKED: &str = "valgrind/usr";
/// The first run does so many operations, the second twice as many; what both do apart from that falls out.
const OPERATIONS: u32 = 1_000;

/// Instructions of one operation of a subject.
///
/// This program is run under valgrind as `PROGRAM operate SUBJECT TIMES`, and is to start the subject then and do as many operations.
pub fn instructions(subject: Subject) -> Result<f64, Uncounted> {
    let valgrind = valgrind().ok_or(Uncounted::NoValgrind)?;
    let [once, twice] = [OPERATIONS, 2 * OPERATIONS].map(|times| collected(&valgrind, subject, times));
    Ok((twice? as f64 - once? as f64) / f64::from(OPERATIONS))
}

/// Instructions of a whole run.
fn collected(valgrind: &Path, subject: Subject, times: u32) -> Result<u64, Uncounted> {
    let mut command = Command::new(valgrind);
    // Elsewhere than where it was built for, it does not find its tools by itself.
    if let Some(unpacked) = valgrind.ancestors().find(|folder| folder.ends_with(UNPACKED)) {
        command.env("VALGRIND_LIB", unpacked.join("libexec/valgrind"));
    }
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe()?);
    command.args(["operate", subject.name(), &times.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(Uncounted::Unheard(told));
    }
    // "==17== Collected : 1234567"
    let count = told.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.ok_or(Uncounted::Unheard(told))
}

/// On PATH, or where the workspace's script unpacks it, in cargo's target folder.
fn valgrind() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::current_exe().ok()?;
    let unpacked = program.ancestors().map(|folder| folder.join(UNPACKED).join("bin"));
    std::env::split_paths(&path).chain(unpacked).map(|folder| folder.join("valgrind")).find(|program| program.is_file())
}
