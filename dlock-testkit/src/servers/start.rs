//! How a server comes up, and why it did not.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use thiserror::Error;

use super::binary::MissingBinary;
use super::process::Process;

/// Why there is no server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no binary.
    #[error(transparent)]
    Missing(#[from] MissingBinary),
    /// The machine refused.
    #[error("cannot set up a server")]
    Io(#[from] std::io::Error),
    /// No certificates could be made.
    #[error("cannot make certificates for a server")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not come up; the end of its log says why.
    #[error("the server did not come up within {waited:?}:\n{log}")]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// The last lines of its log.
        log: String,
    },
}

impl StartError {
    fn is_taken_port(&self) -> bool {
        matches!(self, Self::NotReady { log, .. } if log.contains("address already in use"))
    }
}

/// A folder that is removed when dropped, with a server's log in it.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

/// How long a server may take to come up on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Between choosing a port and listening on it another process may take it: then others are chosen, so many times in all.
const PORT_CHOICES: u32 = 3;

/// Asks until there is an answer; `None` if there is none for a minute.
pub(super) async fn until<T>(mut asks: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let answered = async {
        loop {
            if let Some(answer) = asks().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.ok()
}

/// A start that is under way.
pub(super) type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T, StartError>> + Send + 'a>>;

/// Starts with ports of its own choice, and again with others when one was taken.
pub(super) async fn with_free_ports<'a, T>(attempt: impl Fn() -> Attempt<'a, T>) -> Result<T, StartError> {
    for _ in 1..PORT_CHOICES {
        match attempt().await {
            Err(error) if error.is_taken_port() => {}
            started => return started,
        }
    }
    attempt().await
}

/// Ports that were free a moment ago.
pub(super) fn free_ports<const N: usize>() -> std::io::Result<[u16; N]> {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

impl Folder {
    pub(super) fn new(server: &str) -> std::io::Result<Self> {
        let name = format!("dlock-{server}-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Starts a server; its output goes to the log.
    pub(super) fn spawn(&self, command: &mut Command) -> std::io::Result<Process> {
        let log = File::options().create(true).append(true).open(self.0.join("log"))?;
        let errors = log.try_clone()?;
        Process::start(command.stdin(Stdio::null()).stdout(log).stderr(errors))
    }

    /// That the server did not come up, with the end of the log.
    pub(super) fn not_ready(&self, waited: Duration) -> StartError {
        let log = fs::read_to_string(self.0.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        StartError::NotReady { waited, log: lines[lines.len().saturating_sub(12)..].join("\n") }
    }

    /// Removes it from the disk now.
    pub(super) fn remove(&self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.remove();
    }
}
