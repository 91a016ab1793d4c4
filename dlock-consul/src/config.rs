//! Where Consul is and how to speak to it: options, environment, URL.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use dlock_core::TtlRange;
use thiserror::Error;
use url::Url;

/// Options of a [`Consul`](crate::Consul) backend. Secrets are never shown by `Debug`.
#[derive(Clone)]
pub struct ConsulOptions {
    pub(crate) address: Address,
    /// Whether an address without TLS is spoken to over TLS.
    pub(crate) tls: bool,
    pub(crate) token: Option<String>,
    pub(crate) basic_auth: Option<(String, String)>,
    pub(crate) ca_certificate: Option<PathBuf>,
    pub(crate) verify: bool,
    pub(crate) attempt: Duration,
    pub(crate) max_connections: usize,
    pub(crate) ttl: TtlRange,
}

/// Where the agent listens.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Http(Url),
    Unix(PathBuf),
}

impl Default for ConsulOptions {
    fn default() -> Self {
        Self {
            address: Address::Http(Url::parse(Self::DEFAULT_URL).expect("the default address is a URL")),
            tls: false,
            token: None,
            basic_auth: None,
            ca_certificate: None,
            verify: true,
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
    /// How many connections are opened at most. Consul allows 200 per client address by default.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 64;
    /// The least number of connections that [`max_connections`](Self::max_connections) accepts.
    pub const LEAST_MAX_CONNECTIONS: usize = 8;

    /// Options for the local agent, nothing from the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Options from the environment, as Consul's own tools read it; an empty variable counts as unset.
    ///
    /// `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE` (wins over the token), `CONSUL_HTTP_AUTH`, `CONSUL_HTTP_SSL`,
    /// `CONSUL_HTTP_SSL_VERIFY`, `CONSUL_CACERT`. Unlike Go's client, a switch that cannot be read is an error, not "false".
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(environment(&SUPPORTED)?)
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let options = Self::but_address(&lookup)?;
        match lookup("CONSUL_HTTP_ADDR").filter(|address| !address.is_empty()) {
            Some(address) => options.address(&address),
            None => Ok(options),
        }
    }

    /// All that the environment says, except where Consul is.
    fn but_address(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut options = Self::default();
        for name in UNSUPPORTED {
            if get(name).is_some() {
                return Err(ConfigError::Unsupported { name });
            }
        }
        options.tls = switch("CONSUL_HTTP_SSL", &get)?.unwrap_or(false);
        options = options.address(Self::DEFAULT_URL)?;
        if let Some(verify) = switch("CONSUL_HTTP_SSL_VERIFY", &get)? {
            options.verify = verify;
        }
        options.ca_certificate = get("CONSUL_CACERT").map(PathBuf::from);
        options.token = get("CONSUL_HTTP_TOKEN");
        if let Some(path) = get("CONSUL_HTTP_TOKEN_FILE") {
            options = options.token_file(path)?;
        }
        if let Some(auth) = get("CONSUL_HTTP_AUTH") {
            let (user, password) = auth.split_once(':').unwrap_or((&auth, ""));
            options.basic_auth = Some((user.to_owned(), password.to_owned()));
        }
        Ok(options)
    }

    /// Options from the environment, with the address from a URL: `consul://host:port`, `consul+https://host:port` or
    /// `consul+unix:///path`. Without a port it is 8500, over TLS 8501. `CONSUL_HTTP_ADDR` is not looked at; `CONSUL_HTTP_SSL` turns
    /// `consul://` into TLS as well.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let but_address: Vec<_> = SUPPORTED.into_iter().filter(|name| *name != "CONSUL_HTTP_ADDR").collect();
        Self::but_address(environment(&but_address)?)?.at_url(url)
    }

    pub(crate) fn at_url(self, url: &str) -> Result<Self, ConfigError> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("consul" | "consul+http", rest)) => ("http", rest),
            Some(("consul+https", rest)) => ("https", rest),
            Some(("consul+unix", rest)) => ("unix", rest),
            _ => return Err(ConfigError::Address { address: redacted(url), reason: NOT_CONSUL }),
        };
        let mut options = self.address(&format!("{scheme}://{rest}")).map_err(|error| match error {
            ConfigError::Address { reason: NO_URL | NO_HOST, .. } => {
                ConfigError::Address { address: redacted(url), reason: NOT_CONSUL }
            }
            ConfigError::Address { reason, .. } => ConfigError::Address { address: redacted(url), reason },
            other => other,
        })?;
        // A parsed address does not tell its scheme's own port from none; no port is that of both.
        let parsed = |scheme| Url::parse(&format!("{scheme}://{rest}"));
        let given = ["http", "https"].into_iter().any(|scheme| parsed(scheme).is_ok_and(|url| url.port().is_some()));
        if let (false, Address::Http(address)) = (given, &mut options.address) {
            _ = address.set_port(Some(if address.scheme() == "https" { 8501 } else { 8500 }));
        }
        Ok(options)
    }

    /// The agent's address: `host:port`, `http://host:port`, `https://host:port` or `unix:///path`. Defaults to `127.0.0.1:8500`.
    pub fn address(mut self, address: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::Address { address: redacted(address), reason };
        if let Some(path) = address.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(refuse("a socket is named by an absolute path, as in unix:///run/consul.sock"));
            }
            self.address = Address::Unix(path.into());
            return Ok(self);
        }
        let full = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let url = Url::parse(&full).map_err(|_| refuse(NO_URL))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("its scheme must be http, https or unix"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(refuse(NO_HOST));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("it must not hold a user or password; set CONSUL_HTTP_TOKEN or CONSUL_HTTP_AUTH instead"));
        }
        if url.query().is_some() || url.fragment().is_some() || !matches!(url.path(), "" | "/") {
            return Err(refuse("it must end after the port"));
        }
        // Once TLS is asked for, no address is spoken to without. Parsed anew: a URL forgets a port that is its scheme's own.
        let url = match full.split_once("://") {
            Some((_, place)) if self.tls => Url::parse(&format!("https://{place}")).map_err(|_| refuse(NO_URL))?,
            _ => url,
        };
        self.address = Address::Http(url);
        Ok(self)
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

    /// A file of certificates, in PEM, that alone are trusted to sign the agent's. Defaults to those that the system trusts.
    #[must_use]
    pub fn ca_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_certificate = Some(path.into());
        self
    }

    /// Whether any certificate of the agent's is accepted, as `CONSUL_HTTP_SSL_VERIFY=false` says it; whoever is in between can then read
    /// and change everything. Defaults to no.
    #[must_use]
    pub fn accept_invalid_certificates(mut self, accept: bool) -> Self {
        self.verify = !accept;
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

    /// How many connections are opened at most, 30 of them for waiting keys; keys beyond share batched reads. Defaults to 64; fewer than 8
    /// count as 8, of which 3 are for waiting keys.
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
            .field("ca_certificate", &self.ca_certificate)
            .field("verify", &self.verify)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

const NO_URL: &str = "it is no URL; use for example http://127.0.0.1:8500";
const NO_HOST: &str = "it names no host; use for example http://127.0.0.1:8500";
const NOT_CONSUL: &str = "use consul://host:port, consul+https://host:port or consul+unix:///path";

/// Variables of Consul's tools that are read.
const SUPPORTED: [&str; 7] = [
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_TOKEN",
    "CONSUL_HTTP_TOKEN_FILE",
    "CONSUL_HTTP_AUTH",
    "CONSUL_HTTP_SSL",
    "CONSUL_HTTP_SSL_VERIFY",
    "CONSUL_CACERT",
];

/// Variables of Consul's tools that change where requests go or how they are signed; ignoring one silently would be wrong.
const UNSUPPORTED: [&str; 6] =
    ["CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY", "CONSUL_CAPATH", "CONSUL_TLS_SERVER_NAME", "CONSUL_NAMESPACE", "CONSUL_PARTITION"];

/// The environment, once it is sure that all that is read of it is text: what cannot be read must not count as unset.
fn environment(read: &[&'static str]) -> Result<impl Fn(&str) -> Option<String> + use<>, ConfigError> {
    match unreadable(read, |name| std::env::var_os(name)) {
        Some(name) => Err(ConfigError::NotUnicode { name }),
        None => Ok(|name: &str| std::env::var(name).ok()),
    }
}

fn unreadable(read: &[&'static str], lookup: impl Fn(&str) -> Option<OsString>) -> Option<&'static str> {
    let known = read.iter().chain(&UNSUPPORTED).copied();
    known.into_iter().find(|name| lookup(name).is_some_and(|value| value.to_str().is_none()))
}

fn switch(name: &'static str, get: &impl Fn(&str) -> Option<String>) -> Result<Option<bool>, ConfigError> {
    match get(name).as_deref() {
        None => Ok(None),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(_) => Err(ConfigError::Switch { name }),
    }
}

/// The address without what might be a secret in it. A password may hold anything, so all that comes before the last `@` goes first; what
/// follows it may be the end of a parameter.
fn redacted(address: &str) -> String {
    let (hidden, place) = match address.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => return "…".to_owned(),
        Some((_, place)) => ("…@", place),
        None => ("", address),
    };
    let place = place.split(['?', '#']).next().unwrap_or_default();
    format!("{hidden}{place}")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<ConsulOptions, ConfigError> {
        ConsulOptions::from_lookup(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_cannot_be_read_is_not_taken_for_unset() {
        use std::os::unix::ffi::OsStringExt;

        let garbled = |name: &str| (name == "CONSUL_CACERT").then(|| OsString::from_vec(vec![b'/', 0xFF]));
        assert_eq!(unreadable(&SUPPORTED, garbled), Some("CONSUL_CACERT"));
        assert_eq!(unreadable(&SUPPORTED[..1], |_| Some(OsString::from("text"))), None);
    }

    #[test]
    fn nothing_set_means_the_local_agent() {
        let options = from(&[("CONSUL_HTTP_ADDR", ""), ("CONSUL_HTTP_TOKEN", "")]).unwrap();
        assert_eq!(options.address.to_string(), "http://127.0.0.1:8500");
        assert!(options.token.is_none() && options.verify);
    }

    #[test]
    fn addresses_are_read_as_consuls_tools_do() {
        for (given, read) in [
            ("10.0.0.1:8500", "http://10.0.0.1:8500"),
            ("http://consul:8500/", "http://consul:8500"),
            ("https://consul:8501", "https://consul:8501"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            assert_eq!(from(&[("CONSUL_HTTP_ADDR", given)]).unwrap().address.to_string(), read);
        }
        let secure = from(&[("CONSUL_HTTP_ADDR", "consul:8501"), ("CONSUL_HTTP_SSL", "true")]).unwrap();
        assert_eq!(secure.address.to_string(), "https://consul:8501");
    }

    #[test]
    fn once_tls_is_asked_for_no_address_goes_without() {
        for address in ["consul:8501", "http://consul:8501"] {
            let options = from(&[("CONSUL_HTTP_SSL", "1"), ("CONSUL_HTTP_ADDR", address)]).unwrap();
            assert_eq!(options.address.to_string(), "https://consul:8501");
        }
        let options = from(&[("CONSUL_HTTP_SSL", "1")]).unwrap();
        assert_eq!(options.address.to_string(), "https://127.0.0.1:8500");
        assert_eq!(options.clone().address("http://other:80").unwrap().address.to_string(), "https://other:80");
        assert_eq!(options.clone().at_url("consul://other:80").unwrap().address.to_string(), "https://other:80");
        assert_eq!(options.clone().address("http://other:1").unwrap().address.to_string(), "https://other:1");
        assert_eq!(options.clone().at_url("consul://other:1").unwrap().address.to_string(), "https://other:1");
        assert_eq!(options.address("unix:///run/consul.sock").unwrap().address.to_string(), "unix:///run/consul.sock");
    }

    #[test]
    fn a_url_without_a_port_means_consuls_own() {
        for (url, read) in [
            ("consul://localhost", "http://localhost:8500"),
            ("consul://localhost/", "http://localhost:8500"),
            ("consul://localhost:80", "http://localhost"),
            ("consul:////localhost:9000", "http://localhost:9000"),
            ("consul://localhost:9000\\", "http://localhost:9000"),
            ("consul+https://localhost:443", "https://localhost"),
            ("consul+https://localhost", "https://localhost:8501"),
            ("consul+unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            assert_eq!(ConsulOptions::new().at_url(url).unwrap().address.to_string(), read, "{url}");
        }
    }

    #[test]
    fn token_and_authorities_come_from_the_environment() {
        let options = from(&[("CONSUL_HTTP_TOKEN", "plain"), ("CONSUL_CACERT", "/etc/ca.pem")]).unwrap();
        assert_eq!(options.token.as_deref(), Some("plain"));
        assert_eq!(options.ca_certificate.as_deref(), Some(Path::new("/etc/ca.pem")));
    }

    #[test]
    fn bad_addresses_say_what_would_be_right_and_hide_secrets() {
        for (given, hint) in [
            ("tcp://x:1", "scheme must be"),
            ("http://user:hunter2@x:1", "CONSUL_HTTP_TOKEN"),
            ("unix://relative", "absolute path"),
            ("http://x:1/prefix", "end after the port"),
            ("http://", "http://127.0.0.1:8500"),
            ("http://u:hunter2/x@h:1", "http://127.0.0.1:8500"),
            ("http://u:hunter2#x@h:1", "http://127.0.0.1:8500"),
            ("http://h:1/?token=a@hunter2", "end after the port"),
        ] {
            let error = from(&[("CONSUL_HTTP_ADDR", given)]).unwrap_err().to_string();
            assert!(error.contains(hint) && !error.contains("hunter2"), "{given}: {error}");
        }
        let error = ConsulOptions::new().at_url("redis://x").unwrap_err().to_string();
        assert!(error.contains("consul://host:port"), "{error}");
    }

    #[test]
    fn a_switch_that_cannot_be_read_never_turns_verification_off() {
        assert!(matches!(from(&[("CONSUL_HTTP_SSL_VERIFY", "flase")]), Err(ConfigError::Switch { .. })));
        assert!(!from(&[("CONSUL_HTTP_SSL_VERIFY", "0")]).unwrap().verify);
    }

    #[test]
    fn verification_can_be_turned_off_and_on() {
        let options = ConsulOptions::new().accept_invalid_certificates(true);
        assert!(!options.verify);
        assert!(options.accept_invalid_certificates(false).verify);
    }

    #[test]
    fn an_attempt_that_may_take_no_time_is_refused() {
        assert!(matches!(ConsulOptions::new().attempt_limit(Duration::ZERO), Err(ConfigError::NoTime)));
    }

    #[test]
    fn a_token_file_wins_and_must_be_readable() {
        let path = std::env::temp_dir().join(format!("dlock-token-{}", std::process::id()));
        std::fs::write(&path, " from-file \n").unwrap();
        let pairs = [("CONSUL_HTTP_TOKEN", "plain"), ("CONSUL_HTTP_TOKEN_FILE", path.to_str().unwrap())];
        assert_eq!(from(&pairs).unwrap().token.as_deref(), Some("from-file"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(from(&pairs), Err(ConfigError::File { .. })));
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = from(&[("CONSUL_HTTP_TOKEN", "hunter2"), ("CONSUL_HTTP_AUTH", "user:hunter3")]).unwrap();
        let shown = format!("{options:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        assert_eq!(options.authorization().unwrap(), "Basic dXNlcjpodW50ZXIz");
    }

    #[test]
    fn what_is_not_followed_is_refused_by_name() {
        let error = from(&[("CONSUL_NAMESPACE", "team")]).unwrap_err().to_string();
        assert!(error.contains("CONSUL_NAMESPACE"), "{error}");
    }
}
