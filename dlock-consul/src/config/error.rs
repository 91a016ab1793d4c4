//! Why a configuration cannot be used.

use std::path::PathBuf;
use std::time::Duration;

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
    /// A certificate without its key, or a key without its certificate.
    #[error("{given} is set, but {missing} is not; a client certificate needs its key, each in a file of its own or both in one")]
    HalfCertificate {
        /// The variable that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// No certificate can carry the name that the agent's must carry.
    #[error("{name:?} is no name that TLS can ask for; use a host name, for example server.dc1.consul")]
    ServerName {
        /// The refused name.
        name: String,
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
    /// A file holds nothing that can be used.
    #[error("{} holds no {what} in PEM that can be used", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why it cannot be used, where there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A key does not belong to its certificate, or is of a kind that is not known.
    #[error("{} is no key of the certificate in {}", key.display(), certificate.display())]
    ForeignKey {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody would be trusted.
    #[error("the folder {} holds no file; put a certificate in PEM of every trusted authority there", path.display())]
    NoAuthority {
        /// Which folder.
        path: PathBuf,
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
    /// Consul would cut the delay short.
    #[error("a lock delay of {delay:?} is more than the 60s that Consul keeps to")]
    LockDelay {
        /// The refused delay.
        delay: Duration,
    },
    /// Tickets that outlive their session would keep everybody behind them waiting for ever.
    #[error("fair mode needs sessions that delete their keys, and the behavior was set to release; leave it unset")]
    FairRelease,
    /// No request can be answered within no time.
    #[error("attempt_limit must be longer than zero")]
    NoTime,
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}
