//! Where the server binaries are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// No binary of a server was found.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum MissingBinary {
    /// The variable that names it is wrong.
    #[error("{variable} is {}, which is no file", path.display())]
    NoFile {
        /// The variable.
        variable: &'static str,
        /// What it says.
        path: PathBuf,
    },
    /// It is nowhere.
    #[error("no {name} binary: set {variable} to its path, or put it on PATH (in dlock's workspace: {script})")]
    Nowhere {
        /// The server.
        name: &'static str,
        /// The variable that may name its path.
        variable: &'static str,
        /// What installs it in the workspace of dlock.
        script: &'static str,
    },
}

/// `CONSUL_BIN`, else `consul` on PATH, else where the workspace's script unpacks it.
pub(crate) fn consul() -> Result<PathBuf, MissingBinary> {
    find(std::env::var_os(VARIABLE))
}

const VARIABLE: &str = "CONSUL_BIN";

fn find(named: Option<OsString>) -> Result<PathBuf, MissingBinary> {
    if let Some(path) = named.filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(MissingBinary::NoFile { variable: VARIABLE, path }) };
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"), PathBuf::from);
    let unpacked = target.join("servers/consul/usr/bin");
    let missing = MissingBinary::Nowhere { name: "consul", variable: VARIABLE, script: "./scripts/install-servers.sh" };
    on_path.chain([unpacked]).map(|folder| folder.join("consul")).find(|path| path.is_file()).ok_or(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_names_no_file_is_told_with_what_it_says() {
        let error = find(Some("/nowhere/consul".into())).unwrap_err();
        assert_eq!(error.to_string(), "CONSUL_BIN is /nowhere/consul, which is no file");
    }
}
