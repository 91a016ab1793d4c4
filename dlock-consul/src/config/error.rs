//! Why a configuration cannot be used.

use std::path::PathBuf;

use thiserror::Error;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The address is none of an agent.
    #[error("{address:?} is no address of a Consul agent: {reason}")]
    Address {
        /// The refused address, without secrets.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A switch is neither true nor false.
    #[error("{name} must be true or false")]
    Switch {
        /// The variable.
        name: &'static str,
    },
    /// A variable is set that this backend does not follow.
    #[error("{name} is set, but not supported; unset it for this program, or put a local agent in between")]
    Unsupported {
        /// The variable.
        name: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {what} from {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was to be read from it.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error("{} holds no certificate in PEM that can be used", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token holds characters that no header can carry.
    #[error("the {what} holds characters that cannot be sent")]
    Secret {
        /// Token or password.
        what: &'static str,
    },
    /// A variable cannot be read.
    #[error("{name} is not UTF-8")]
    NotUnicode {
        /// Which.
        name: &'static str,
    },
    /// No request can be answered within no time.
    #[error("attempt_limit must be longer than zero")]
    NoTime,
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}
