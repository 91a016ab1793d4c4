//! Whether there is such a command, before anything is locked for it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Failure};

/// Why the command cannot be run, if that is known already.
pub fn refusal(command: &[OsString]) -> Option<Failure> {
    let program = command.first()?;
    let found = candidates(program, std::env::var_os("PATH").as_deref());
    if found.iter().any(|path| is_executable(path)) {
        return None;
    }
    let name = program.display();
    Some(if found.iter().any(|path| path.is_file()) {
        Failure::new(Exit::CANNOT_RUN, format!("cannot run {name}: it may not be executed"))
    } else {
        Failure::new(Exit::NOT_FOUND, format!("cannot run {name}: there is no such command; nothing was locked"))
    })
}

/// Where the system looks for a program.
fn candidates(program: &OsStr, path: Option<&OsStr>) -> Vec<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    let path = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    std::env::split_paths(path).map(|folder| folder.join(program)).collect()
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_on_the_path_and_a_path_is_not() {
        assert_eq!(candidates(OsStr::new("x"), Some(OsStr::new("/a:/b"))), [Path::new("/a/x"), Path::new("/b/x")]);
        assert_eq!(candidates(OsStr::new("./x"), Some(OsStr::new("/a"))), [Path::new("./x")]);
    }

    #[test]
    fn what_is_missing_and_what_may_not_be_run_are_told_apart() {
        let refusal = |program: &str| refusal(&[OsString::from(program)]).map(|failure| failure.exit);
        assert_eq!(refusal("sh"), None);
        assert_eq!(refusal("no-such-command-anywhere"), Some(Exit::NOT_FOUND));
        assert_eq!(refusal("/etc/passwd"), Some(Exit::CANNOT_RUN));
        assert_eq!(refusal("/"), Some(Exit::NOT_FOUND));
    }
}
