//! Where Consul is and how to speak to it: options, environment, URL.
//!
//! `fuzz/` includes this folder by its path, so nothing here names a module outside of it.

mod address;
mod environment;
mod error;
mod scope;
mod session;
mod tls;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use dlock_core::TtlRange;
use url::Url;

pub(crate) use address::Address;
pub use error::ConfigError;
pub(crate) use scope::Scope;
pub use session::Behavior;
pub(crate) use session::{Node, SessionOptions};
pub(crate) use tls::{Authorities, TlsOptions};

/// Options of a [`Consul`](crate::Consul) backend. Secrets are never shown by `Debug`.
#[derive(Clone)]
pub struct ConsulOptions {
    pub(crate) address: Address,
    /// Whether an address without TLS is spoken to over TLS.
    pub(crate) tls: bool,
    pub(crate) token: Option<String>,
    pub(crate) basic_auth: Option<(String, String)>,
    pub(crate) certificates: TlsOptions,
    pub(crate) verify: bool,
    pub(crate) scope: Scope,
    pub(crate) sessions: SessionOptions,
    pub(crate) attempt: Duration,
    pub(crate) max_connections: usize,
    pub(crate) ttl: TtlRange,
}

impl Default for ConsulOptions {
    fn default() -> Self {
        Self {
            address: Address::Http(Url::parse(Self::DEFAULT_URL).expect("the default address is a URL")),
            tls: false,
            token: None,
            basic_auth: None,
            certificates: TlsOptions::default(),
            verify: true,
            scope: Scope::default(),
            sessions: SessionOptions::default(),
            attempt: Self::DEFAULT_ATTEMPT,
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            ttl: TtlRange { min: Duration::from_secs(10), max: Duration::from_secs(86_400) },
        }
    }
}

impl ConsulOptions {
    const DEFAULT_URL: &'static str = "http://127.0.0.1:8500/";
    /// How long a request that does not wait may take. Core gives up earlier where its ttl demands it.
    pub const DEFAULT_ATTEMPT: Duration = Duration::from_secs(3);
    /// About how many connections are opened at most. Consul allows 200 per client address by default.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 66;
    /// The least number of connections that [`max_connections`](Self::max_connections) accepts.
    pub const LEAST_MAX_CONNECTIONS: usize = 10;

    /// Options for the local agent, nothing from the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ACL token to send. Defaults to none, which is Consul's anonymous token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Reads the ACL token from a file, once and now.
    pub fn token_file(mut self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            what: "the token",
            source,
        })?;
        self.token = Some(text.trim().to_owned());
        Ok(self)
    }

    /// A user and password for a proxy before the agent, sent as basic authentication. Defaults to none.
    #[must_use]
    pub fn basic_auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.basic_auth = Some((user.into(), password.into()));
        self
    }

    /// How long a request that does not wait may take; zero is refused. Defaults to 3 s.
    pub fn attempt_limit(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::NoTime);
        }
        self.attempt = limit;
        Ok(self)
    }

    /// About how many connections are opened at most, 30 of them for waiting keys; keys beyond share batched reads. So many requests are under way at
    /// most, among them waits that were given up, which an agent keeps until they are over. A pool may keep one connection more for a while, and what a process waits for when it ends
    /// is counted for up to a minute: leave room below the agent's `http_max_conns_per_client`. Defaults to 66; fewer than 10 count as 10, of which 2 are for waiting keys.
    #[must_use]
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most.max(Self::LEAST_MAX_CONNECTIONS);
        self
    }

    /// The session lifetimes that the servers accept, for servers with another `session_ttl_min`. Defaults to 10 s to 24 h.
    #[must_use]
    pub fn ttl_range(mut self, ttl: TtlRange) -> Self {
        self.ttl = ttl;
        self
    }

    pub(crate) fn authorization(&self) -> Option<String> {
        let (user, password) = self.basic_auth.as_ref()?;
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        Some(format!("Basic {encoded}"))
    }
}

impl fmt::Debug for ConsulOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulOptions")
            .field("address", &self.address.to_string())
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("basic_auth", &self.basic_auth.as_ref().map(|_| "…"))
            .field("certificates", &self.certificates)
            .field("verify", &self.verify)
            .field("scope", &self.scope)
            .field("sessions", &self.sessions)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_may_take_no_time_is_refused() {
        assert!(matches!(ConsulOptions::new().attempt_limit(Duration::ZERO), Err(ConfigError::NoTime)));
    }
}
