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
    find("consul", "CONSUL_BIN", std::env::var_os("CONSUL_BIN"), "consul", None)
}

/// `ETCD_BIN`, else `etcd` on PATH, else where the workspace's script unpacks it.
pub(crate) fn etcd() -> Result<PathBuf, MissingBinary> {
    find("etcd", "ETCD_BIN", std::env::var_os("ETCD_BIN"), "etcd", None)
}

/// `ETCDCTL_BIN`, else `etcdctl` beside that `etcd`, else on PATH.
pub(crate) fn etcdctl(etcd: &Path) -> Result<PathBuf, MissingBinary> {
    find("etcdctl", "ETCDCTL_BIN", std::env::var_os("ETCDCTL_BIN"), "etcd", etcd.parent())
}

/// A program by what names it, by a folder that comes first, on PATH, or in the folder where the script unpacks a server.
fn find(
    name: &'static str,
    variable: &'static str,
    named: Option<OsString>,
    server: &str,
    first: Option<&Path>,
) -> Result<PathBuf, MissingBinary> {
    if let Some(path) = named.filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(MissingBinary::NoFile { variable, path }) };
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"), PathBuf::from);
    let unpacked = target.join("servers").join(server).join("usr/bin");
    let folders = first.map(Path::to_owned).into_iter().chain(on_path).chain([unpacked]);
    let missing = MissingBinary::Nowhere { name, variable, script: "./scripts/install-servers.sh" };
    folders.map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_names_no_file_is_told_with_what_it_says() {
        let error = find("consul", "CONSUL_BIN", Some("/nowhere/consul".into()), "consul", None).unwrap_err();
        assert_eq!(error.to_string(), "CONSUL_BIN is /nowhere/consul, which is no file");
    }
}
