//! Where etcd is and how to speak to it: options, environment, URL.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use dlock_core::TtlRange;
use thiserror::Error;
use tonic::transport::Endpoint;

/// Options of an [`Etcd`](crate::Etcd) backend. Secrets are never shown by `Debug`.
#[derive(Clone)]
pub struct EtcdOptions {
    endpoints: Vec<Address>,
    /// Whether an endpoint that does not say is spoken to over TLS.
    tls: bool,
    pub(crate) user: Option<(String, String)>,
    ca_certificate: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) namespace: String,
    pub(crate) attempt: Duration,
    pub(crate) connect: Duration,
    pub(crate) ttl: TtlRange,
}

/// Where a member listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    /// Host and port.
    place: String,
    /// Whether it is spoken to over TLS, where it was said.
    tls: Option<bool>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: vec![Address { place: "127.0.0.1:2379".to_owned(), tls: None }],
            tls: false,
            user: None,
            ca_certificate: None,
            client_certificate: None,
            namespace: String::new(),
            attempt: Self::DEFAULT_ATTEMPT,
            connect: Self::DEFAULT_CONNECT,
            ttl: TtlRange { min: Duration::from_secs(2), max: Duration::from_secs(86_400) },
        }
    }
}

impl EtcdOptions {
    /// The port that members listen on unless told otherwise.
    pub const DEFAULT_PORT: u16 = 2379;
    /// How long a request that does not wait may take. Core gives up earlier where its ttl demands it.
    pub const DEFAULT_ATTEMPT: Duration = Duration::from_secs(3);
    /// How long a connection may take to be made.
    pub const DEFAULT_CONNECT: Duration = Duration::from_secs(1);

    /// Options for a member on this machine, nothing from the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Options from the environment, as `etcdctl` reads it; an empty variable counts as unset.
    ///
    /// `ETCDCTL_ENDPOINTS`, `ETCDCTL_USER` (`user:password`, or the user alone with `ETCDCTL_PASSWORD`), `ETCDCTL_CACERT`, `ETCDCTL_CERT`
    /// and `ETCDCTL_KEY`.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(environment(&SUPPORTED)?)
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let options = Self::but_endpoints(&lookup)?;
        match lookup("ETCDCTL_ENDPOINTS").filter(|endpoints| !endpoints.is_empty()) {
            Some(endpoints) => options.endpoints(listed(&endpoints)?),
            None => Ok(options),
        }
    }

    /// All that the environment says, except where etcd is.
    fn but_endpoints(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        for name in UNSUPPORTED {
            if get(name).is_some_and(|value| !matches!(value.as_str(), "false" | "0")) {
                return Err(ConfigError::Unsupported { name });
            }
        }
        let mut options = Self::default();
        if let Some(user) = get("ETCDCTL_USER") {
            let (user, password) = match (user.split_once(':'), get("ETCDCTL_PASSWORD")) {
                (_, Some(password)) => (user, password),
                (Some((user, password)), None) => (user.to_owned(), password.to_owned()),
                (None, None) => return Err(ConfigError::NoPassword),
            };
            options = options.user(user, password);
        }
        if let Some(path) = get("ETCDCTL_CACERT") {
            options = options.ca_certificate(path);
        }
        match (get("ETCDCTL_CERT"), get("ETCDCTL_KEY")) {
            (Some(certificate), Some(key)) => Ok(options.client_certificate(certificate, key)),
            (None, None) => Ok(options),
            _ => Err(ConfigError::HalfCertificate),
        }
    }

    /// Options from the environment, with the endpoints from a URL: `etcd://host1:port,host2,host3`, or `etcds://` over TLS. Without a port
    /// it is 2379. `ETCDCTL_ENDPOINTS` is not looked at.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let but_endpoints: Vec<_> = SUPPORTED.into_iter().filter(|name| *name != "ETCDCTL_ENDPOINTS").collect();
        Self::but_endpoints(environment(&but_endpoints)?)?.at_url(url)
    }

    pub(crate) fn at_url(self, url: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::Endpoint { endpoint: redacted(url), reason };
        let (tls, endpoints) = match url.split_once("://") {
            Some(("etcd", endpoints)) => (None, endpoints),
            Some(("etcds", endpoints)) => (Some(true), endpoints),
            _ => return Err(refuse(NOT_ETCD)),
        };
        if endpoints.contains("://") {
            return Err(refuse(NOT_ETCD));
        }
        let mut options = self.endpoints(listed(endpoints.trim_end_matches('/'))?)?;
        for endpoint in &mut options.endpoints {
            endpoint.tls = tls;
        }
        Ok(options)
    }

    /// The members: `host`, `host:port`, `http://host:port` or `https://host:port` each. Calls go to the first, until it fails. Those that do
    /// not say are spoken to over TLS if a certificate is given. Defaults to `127.0.0.1:2379`.
    pub fn endpoints<E: AsRef<str>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Result<Self, ConfigError> {
        self.endpoints = endpoints.into_iter().map(|endpoint| Address::parse(endpoint.as_ref())).collect::<Result<_, _>>()?;
        if self.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoint);
        }
        Ok(self)
    }

    /// The user to be, with its password. Defaults to none.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((user.into(), password.into()));
        self
    }

    /// A file of certificates, in PEM, that alone are trusted to sign the members'. Defaults to those that the system trusts.
    #[must_use]
    pub fn ca_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_certificate = Some(path.into());
        self.tls = true;
        self
    }

    /// A certificate and its key, files in PEM, for members that ask for one. Defaults to none.
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self.tls = true;
        self
    }

    /// What stands before every key in etcd, exactly as written, such as `team-a/`. Defaults to nothing: keys are then those that Go programs and
    /// `etcdctl lock` know by the same name.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
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

    /// How long a connection may take to be made, until the next endpoint is tried; zero is refused. Defaults to 1 s.
    pub fn connect_limit(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::NoTime);
        }
        self.connect = limit;
        Ok(self)
    }

    /// The session lifetimes that the members accept. They raise a shorter one silently, to 1.5 of their election timeouts; with another
    /// election timeout than 1 s, say so here. Defaults to 2 s to 24 h.
    #[must_use]
    pub fn ttl_range(mut self, ttl: TtlRange) -> Self {
        self.ttl = ttl;
        self
    }

    /// The endpoints with their names, ready to be connected to.
    pub(crate) fn dialled(&self) -> Result<Vec<(String, Endpoint)>, ConfigError> {
        self.endpoints.iter().map(|address| Ok((address.place.clone(), self.dialled_one(address)?))).collect()
    }

    fn dialled_one(&self, address: &Address) -> Result<Endpoint, ConfigError> {
        let refuse = |reason| ConfigError::Endpoint { endpoint: address.place.clone(), reason };
        let tls = match address.tls {
            Some(false) if self.tls => return Err(refuse("a certificate is given, so it must not be spoken to without TLS")),
            Some(tls) => tls,
            None => self.tls,
        };
        let scheme = if tls { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", address.place)).map_err(|_| refuse(NO_HOST))?;
        if tls { self.secured(endpoint) } else { Ok(endpoint) }
    }

    #[cfg(feature = "_tls")]
    fn secured(&self, endpoint: Endpoint) -> Result<Endpoint, ConfigError> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};

        let read = |path: &PathBuf, what, begins: &str| {
            let refuse = |source| ConfigError::File { path: path.clone(), what, source };
            let pem = std::fs::read(path).map_err(refuse)?;
            if !String::from_utf8_lossy(&pem).contains(begins) {
                return Err(refuse(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("it holds no {begins:?}"))));
            }
            Ok(pem)
        };
        let mut tls = match &self.ca_certificate {
            Some(path) => {
                let pem = read(path, "certificates", "-----BEGIN CERTIFICATE-----")?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.client_certificate {
            let certificate = read(certificate, "the client certificate", "-----BEGIN CERTIFICATE-----")?;
            let key = read(key, "the key of the client certificate", "PRIVATE KEY-----")?;
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(tls).map_err(|error| ConfigError::Tls(error.into()))
    }

    #[cfg(not(feature = "_tls"))]
    #[allow(clippy::unused_self, clippy::needless_pass_by_value)] // as its other form
    fn secured(&self, _: Endpoint) -> Result<Endpoint, ConfigError> {
        Err(ConfigError::TlsMissing)
    }
}

impl Address {
    fn parse(endpoint: &str) -> Result<Self, ConfigError> {
        let endpoint = endpoint.trim();
        let refuse = |reason| ConfigError::Endpoint { endpoint: redacted(endpoint), reason };
        let (tls, place) = match endpoint.split_once("://") {
            None => (None, endpoint),
            Some(("http", place)) => (Some(false), place),
            Some(("https", place)) => (Some(true), place),
            Some(_) => return Err(refuse("its scheme must be http or https")),
        };
        let place = place.trim_end_matches('/');
        if place.contains('@') {
            return Err(refuse(NO_USER));
        }
        if place.contains(['/', '?', '#']) {
            return Err(refuse("it must end after the port"));
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port: u16 = port.parse().map_err(|_| refuse("its port is no number from 1 to 65535"))?;
                (host, port)
            }
            _ => (place, EtcdOptions::DEFAULT_PORT),
        };
        if host.is_empty() || port == 0 {
            return Err(refuse(NO_HOST));
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(refuse("an IPv6 address stands in brackets, as in [::1]:2379"));
        }
        if host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(refuse(NO_HOST));
        }
        Ok(Self { place: format!("{host}:{port}"), tls })
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints.iter().map(|address| &address.place).collect::<Vec<_>>())
            .field("user", &self.user.as_ref().map(|(user, _)| user))
            .field("ca_certificate", &self.ca_certificate)
            .field("client_certificate", &self.client_certificate.as_ref().map(|(certificate, _)| certificate))
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

const NO_HOST: &str = "it names no host; use for example 127.0.0.1:2379";
const NO_USER: &str = "it must not hold a user or password; set ETCDCTL_USER to user:password instead";
const NOT_ETCD: &str = "use etcd://host1:port,host2:port or etcds://host1:port,host2:port";

/// Variables of `etcdctl` that are read.
const SUPPORTED: [&str; 6] =
    ["ETCDCTL_ENDPOINTS", "ETCDCTL_USER", "ETCDCTL_PASSWORD", "ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"];

/// Variables of `etcdctl` that change where requests go or whom they trust; ignoring one silently would be wrong.
const UNSUPPORTED: [&str; 3] = ["ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "ETCDCTL_DISCOVERY_SRV", "ETCDCTL_DISCOVERY_SRV_NAME"];

/// The environment, once it is sure that all that is read of it is text: what cannot be read must not count as unset.
fn environment(read: &[&'static str]) -> Result<impl Fn(&str) -> Option<String> + use<>, ConfigError> {
    match unreadable(read, |name| std::env::var_os(name)) {
        Some(name) => Err(ConfigError::NotUnicode { name }),
        None => Ok(|name: &str| std::env::var(name).ok()),
    }
}

fn unreadable(read: &[&'static str], lookup: impl Fn(&str) -> Option<OsString>) -> Option<&'static str> {
    read.iter().chain(&UNSUPPORTED).copied().find(|name| lookup(name).is_some_and(|value| value.to_str().is_none()))
}

/// The endpoints of a list. A password may hold a comma, so it is looked for before the list is taken apart.
fn listed(endpoints: &str) -> Result<std::str::Split<'_, char>, ConfigError> {
    if endpoints.contains('@') {
        return Err(ConfigError::Endpoint { endpoint: redacted(endpoints), reason: NO_USER });
    }
    Ok(endpoints.split(','))
}

/// What names the place, without what might be a secret before or after it.
fn redacted(endpoint: &str) -> String {
    let (hidden, place) = match endpoint.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => return "…".to_owned(),
        Some((_, place)) => ("…@", place),
        None => ("", endpoint),
    };
    format!("{hidden}{}", place.split(['?', '#']).next().unwrap_or_default())
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An endpoint is none of a member.
    #[error("{endpoint:?} is no endpoint of etcd: {reason}")]
    Endpoint {
        /// The refused endpoint, without secrets.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is nobody to speak to.
    #[error("no endpoint is named; use for example 127.0.0.1:2379")]
    NoEndpoint,
    /// A user is named whose password is not.
    #[error("ETCDCTL_USER names a user without a password; set it to user:password, or set ETCDCTL_PASSWORD too")]
    NoPassword,
    /// A certificate without its key, or a key without its certificate.
    #[error("a client certificate needs its key; set both ETCDCTL_CERT and ETCDCTL_KEY")]
    HalfCertificate,
    /// A variable is set that this backend does not follow.
    #[error("{name} is set, but not supported; unset it for this program")]
    Unsupported {
        /// The variable.
        name: &'static str,
    },
    /// A variable cannot be read.
    #[error("{name} is not UTF-8")]
    NotUnicode {
        /// Which.
        name: &'static str,
    },
    /// A file cannot be used.
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
    #[error("TLS cannot be set up with these certificates")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// TLS is not compiled in.
    #[error("TLS is asked for, but not compiled in; turn on the feature `tls-aws-lc` or `tls-ring` of dlock-etcd")]
    TlsMissing,
    /// No request can be answered within no time.
    #[error("attempt_limit and connect_limit must be longer than zero")]
    NoTime,
}

#[cfg(test)]
mod tests;
