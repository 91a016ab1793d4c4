//! Where the server binaries are.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// No binary of a server was found.
#[derive(Debug, Clone, Error)]
#[error("no {name} binary: set {variable} to its path, put it on PATH, or run {script} in the workspace")]
pub struct MissingBinary {
    name: &'static str,
    variable: &'static str,
    script: &'static str,
}

/// `CONSUL_BIN`, else `consul` on PATH, else where the workspace's script unpacks it.
pub(crate) fn consul() -> Result<PathBuf, MissingBinary> {
    let missing = MissingBinary { name: "consul", variable: "CONSUL_BIN", script: "./scripts/install-consul.sh" };
    if let Some(path) = std::env::var_os("CONSUL_BIN").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(missing) };
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"), PathBuf::from);
    let unpacked = target.join("servers/consul/usr/bin");
    on_path.chain([unpacked]).map(|folder| folder.join("consul")).find(|path| path.is_file()).ok_or(missing)
}
