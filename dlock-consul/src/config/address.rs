//! Where the agent listens.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use super::{ConfigError, ConsulOptions};

/// Where the agent listens.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Http(Url),
    Unix(PathBuf),
}

impl ConsulOptions {
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
            return Err(refuse(LONGER));
        }
        // Once TLS is asked for, no address is spoken to without. Parsed anew: a URL forgets a port that is its scheme's own.
        let url = match full.split_once("://") {
            Some((_, place)) if self.tls => Url::parse(&format!("https://{place}")).map_err(|_| refuse(NO_URL))?,
            _ => url,
        };
        self.address = Address::Http(url);
        Ok(self)
    }

    pub(crate) fn at_url(self, url: &str) -> Result<Self, ConfigError> {
        match url.rsplit_once('?') {
            Some((place, "fair=true")) => self.at_place(place).map(|options| options.fair(true)),
            Some((place, "fair=false")) => self.at_place(place).map(|options| options.fair(false)),
            _ => self.at_place(url),
        }
    }

    fn at_place(self, url: &str) -> Result<Self, ConfigError> {
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
            ConfigError::Address { reason: LONGER, .. } => {
                ConfigError::Address { address: redacted(url), reason: "it must end after the port, or in ?fair=true" }
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
const LONGER: &str = "it must end after the port";
const NO_HOST: &str = "it names no host; use for example http://127.0.0.1:8500";
const NOT_CONSUL: &str = "use consul://host:port, consul+https://host:port or consul+unix:///path";

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

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<ConsulOptions, ConfigError> {
        ConsulOptions::from_lookup(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
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
    fn a_url_asks_for_fair_mode_and_for_nothing_else() {
        let at = |url| ConsulOptions::new().at_url(url);
        for (url, fair, read) in [
            ("consul://h:1?fair=true", true, "http://h:1"),
            ("consul://h/?fair=true", true, "http://h:8500"),
            ("consul+https://h?fair=true", true, "https://h:8501"),
            ("consul+unix:///run/consul.sock?fair=true", true, "unix:///run/consul.sock"),
            ("consul://h:1?fair=false", false, "http://h:1"),
            ("consul://h:1", false, "http://h:1"),
        ] {
            let options = at(url).unwrap();
            assert_eq!((options.sessions.fair, options.address.to_string().as_str()), (fair, read), "{url}");
        }
        for url in ["consul://h:1?fair", "consul://h:1?fair=yes", "consul://h:1?token=hunter2", "consul://h:1?a=b?fair=true"] {
            let error = at(url).unwrap_err().to_string();
            assert!(error.contains("?fair=true") && !error.contains("hunter2"), "{url}: {error}");
        }
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
}
