//! A locker from a URL, among the backends that are compiled in.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::LockBackend;
use thiserror::Error;

use crate::error::LockError;
use crate::locker::{Locker, LockerBuilder};
use crate::options::InvalidOptions;

/// Opens a locker on the store that a URL names, with default options, and makes sure that it answers.
///
/// | URL | store | feature |
/// |---|---|---|
/// | `consul://host:port` | a Consul agent over HTTP | `consul` |
/// | `consul+https://host:port` | a Consul agent over HTTPS | `consul` |
/// | `consul+unix:///path` | a Consul agent on a unix socket | `consul` |
/// | the same with `?fair=true` | Consul, first come, first served, with shared locks and permits | `consul` |
/// | `etcd://host1:port,host2:port` | the members of an etcd cluster | `etcd` |
/// | `etcds://host1:port,host2:port` | the members of an etcd cluster over TLS | `etcd` |
/// | `sqlite:///path/to/file.db` | a file of this host, shared by all of its processes that name it | `sqlite` |
/// | `memory://name` | a store in this process, shared by all who use the name | `memory` |
///
/// A token, or a user and password, come from the environment, never from the URL. Takes at most five seconds. Free to drop.
pub async fn connect(url: &str) -> Result<Locker, ConnectError> {
    builder(url)?.connect().await
}

/// Options for a locker on the store that a URL names; [`LockerBuilder::connect`] goes on.
pub fn builder(url: &str) -> Result<LockerBuilder, ConnectError> {
    Ok(LockerBuilder::new(backend(url)?).at(without_secrets(url)))
}

/// How long [`connect`] waits for the store.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The backend that a URL names, for [`Locker::builder_from_arc`] or to ask by itself; sends nothing.
pub fn backend(url: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    let Some((scheme, rest)) = scheme(url) else {
        return Err(ConnectError::NoScheme { url: without_secrets(url) });
    };
    match scheme {
        "consul" | "consul+http" | "consul+https" | "consul+unix" => consul(url),
        "etcd" | "etcds" => etcd(url),
        "sqlite" => sqlite(url),
        "memory" => memory(rest),
        _ => Err(ConnectError::UnknownScheme { scheme: scheme.to_owned() }),
    }
}

#[cfg(feature = "consul")]
fn consul(url: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    match dlock_consul::Consul::from_url(url) {
        Ok(consul) => Ok(Arc::new(consul)),
        Err(error) => Err(ConnectError::Backend { url: without_secrets(url), source: Box::new(error) }),
    }
}

#[cfg(not(feature = "consul"))]
fn consul(_: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    Err(ConnectError::FeatureOff { feature: "consul" })
}

#[cfg(feature = "_etcd")]
fn etcd(url: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    match dlock_etcd::Etcd::from_url(url) {
        Ok(etcd) => Ok(Arc::new(etcd)),
        Err(error) => Err(ConnectError::Backend { url: without_secrets(url), source: Box::new(error) }),
    }
}

#[cfg(not(feature = "_etcd"))]
fn etcd(_: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    Err(ConnectError::FeatureOff { feature: "etcd" })
}

#[cfg(feature = "sqlite")]
fn sqlite(url: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    match dlock_sqlite::Sqlite::from_url(url) {
        Ok(sqlite) => Ok(Arc::new(sqlite)),
        Err(error) => Err(ConnectError::Backend { url: without_secrets(url), source: Box::new(error) }),
    }
}

#[cfg(not(feature = "sqlite"))]
fn sqlite(_: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    Err(ConnectError::FeatureOff { feature: "sqlite" })
}

#[cfg(feature = "memory")]
fn memory(name: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    if name.is_empty() {
        return Err(ConnectError::NoName);
    }
    Ok(Arc::new(dlock_testkit::memory::Memory::named(name)))
}

#[cfg(not(feature = "memory"))]
fn memory(_: &str) -> Result<Arc<dyn LockBackend>, ConnectError> {
    Err(ConnectError::FeatureOff { feature: "memory" })
}

/// The scheme and what follows; a password may hold `://` as well.
fn scheme(url: &str) -> Option<(&str, &str)> {
    url.split_once("://").filter(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)))
}

/// The URL without what might be a password in it, for messages.
fn without_secrets(url: &str) -> String {
    let (scheme, rest) = scheme(url).map_or((String::new(), url), |(scheme, rest)| (format!("{scheme}://"), rest));
    // A password may hold anything, so all that comes before the last `@` goes first; what follows it may be the end of a parameter.
    let (hidden, rest) = match rest.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => return format!("{scheme}…"),
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}{hidden}{rest}")
}

/// Why there is no locker for a URL.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The text is no URL.
    #[error(
        "{url:?} names no store; use for example \"consul://127.0.0.1:8500\", \"etcd://127.0.0.1:2379\", \"sqlite:///path/to/file.db\" or \"memory://name\""
    )]
    NoScheme {
        /// The refused text.
        url: String,
    },
    /// No backend goes by this scheme.
    #[error("unknown scheme {scheme:?}; known are consul, consul+https, consul+unix, etcd, etcds, sqlite and memory")]
    UnknownScheme {
        /// The refused scheme.
        scheme: String,
    },
    /// The backend exists, but is not compiled in.
    #[error("the backend for this URL is not compiled in; enable the cargo feature {feature:?} of dlock-rs")]
    FeatureOff {
        /// The feature to enable.
        feature: &'static str,
    },
    /// A store in memory needs a name.
    #[error("a store in memory needs a name, for example \"memory://demo\"")]
    NoName,
    /// The options contradict the store's limits; nothing was sent.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The backend refused its configuration.
    #[error("cannot use {url:?}")]
    Backend {
        /// The URL, without secrets.
        url: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store did not answer, or refused a session.
    #[error("the store{} is not ready", .url.as_ref().map(|url| format!(" at {url}")).unwrap_or_default())]
    NotReady {
        /// The URL, without secrets, if there is one.
        url: Option<String>,
        /// What is wrong.
        #[source]
        source: Box<LockError>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_no_secrets() {
        assert_eq!(without_secrets("consul://user:pass@host:1/x?token=t"), "consul://…@host:1/x");
        assert_eq!(without_secrets("consul://host:1"), "consul://host:1");
        assert_eq!(without_secrets("consul://u:secret/x@host:1"), "consul://…@host:1");
        for odd in ["consul://u:secret?x@host:1", "consul://u:secret#x@host:1", "consul://host:1?token=a@secret"] {
            assert_eq!(without_secrets(odd), "consul://…", "{odd}");
        }
    }

    #[test]
    fn a_password_that_looks_like_a_scheme_is_not_named_as_one() {
        let error = backend("user:secret://x@host:1").unwrap_err();
        assert!(matches!(&error, ConnectError::NoScheme { url } if url == "…@host:1"), "{error:?}");
    }

    #[test]
    fn what_is_no_url_of_a_store_is_refused_with_what_would_be() {
        for (url, hint) in [("localhost:8500", "consul://"), ("redis://x", "known are consul"), ("", "consul://")] {
            let error = backend(url).unwrap_err().to_string();
            assert!(error.contains(hint), "{url}: {error}");
        }
    }
}
