//! What the environment says, as Consul's own tools read it.

use std::ffi::OsString;

use super::{ConfigError, ConsulOptions};

impl ConsulOptions {
    /// Options from the environment, as Consul's own tools read it; an empty variable counts as unset.
    ///
    /// `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE` (wins over the token), `CONSUL_HTTP_AUTH`, `CONSUL_HTTP_SSL`,
    /// `CONSUL_HTTP_SSL_VERIFY`, `CONSUL_CACERT`, `CONSUL_CAPATH` (of which nothing is read when there is a `CONSUL_CACERT`),
    /// `CONSUL_CLIENT_CERT` with `CONSUL_CLIENT_KEY`, `CONSUL_TLS_SERVER_NAME`, `CONSUL_NAMESPACE`, `CONSUL_PARTITION`. Unlike Go's client,
    /// a switch that cannot be read is an error, not "false".
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
        let tls = switch("CONSUL_HTTP_SSL", &get)?.unwrap_or(false);
        let mut options = Self { tls, ..Self::default() }.address(Self::DEFAULT_URL)?;
        if let Some(verify) = switch("CONSUL_HTTP_SSL_VERIFY", &get)? {
            options.verify = verify;
        }
        options = match (get("CONSUL_CACERT"), get("CONSUL_CAPATH")) {
            (Some(file), _) => options.ca_certificate(file),
            (None, Some(folder)) => options.ca_folder(folder),
            (None, None) => options,
        };
        options = match (get("CONSUL_CLIENT_CERT"), get("CONSUL_CLIENT_KEY")) {
            (Some(certificate), Some(key)) => options.client_certificate(certificate, key),
            (None, None) => options,
            (certificate, _) => return Err(half(certificate.is_some())),
        };
        if let Some(name) = get("CONSUL_TLS_SERVER_NAME") {
            options = options.tls_server_name(&name)?;
        }
        options.scope.namespace = get("CONSUL_NAMESPACE");
        options.scope.partition = get("CONSUL_PARTITION");
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
    /// `consul://` into TLS as well. `?fair=true` at the end asks for [fair mode](Self::fair).
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let but_address: Vec<_> = SUPPORTED.into_iter().filter(|name| *name != "CONSUL_HTTP_ADDR").collect();
        Self::but_address(environment(&but_address)?)?.at_url(url)
    }
}

/// Variables of Consul's tools that are read.
const SUPPORTED: [&str; 13] = [
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_TOKEN",
    "CONSUL_HTTP_TOKEN_FILE",
    "CONSUL_HTTP_AUTH",
    "CONSUL_HTTP_SSL",
    "CONSUL_HTTP_SSL_VERIFY",
    "CONSUL_CACERT",
    "CONSUL_CAPATH",
    "CONSUL_CLIENT_CERT",
    "CONSUL_CLIENT_KEY",
    "CONSUL_TLS_SERVER_NAME",
    "CONSUL_NAMESPACE",
    "CONSUL_PARTITION",
];

fn half(certificate: bool) -> ConfigError {
    let (given, missing) = ("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY");
    if certificate {
        ConfigError::HalfCertificate { given, missing }
    } else {
        ConfigError::HalfCertificate { given: missing, missing: given }
    }
}

/// The environment, once it is sure that all that is read of it is text: what cannot be read must not count as unset.
fn environment(read: &[&'static str]) -> Result<impl Fn(&str) -> Option<String> + use<>, ConfigError> {
    match unreadable(read, |name| std::env::var_os(name)) {
        Some(name) => Err(ConfigError::NotUnicode { name }),
        None => Ok(|name: &str| std::env::var(name).ok()),
    }
}

fn unreadable(read: &[&'static str], lookup: impl Fn(&str) -> Option<OsString>) -> Option<&'static str> {
    read.iter().copied().find(|name| lookup(name).is_some_and(|value| value.to_str().is_none()))
}

fn switch(name: &'static str, get: &impl Fn(&str) -> Option<String>) -> Result<Option<bool>, ConfigError> {
    match get(name).as_deref() {
        None => Ok(None),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(_) => Err(ConfigError::Switch { name }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authorities, Scope};
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
    fn token_and_authorities_come_from_the_environment() {
        let options = from(&[("CONSUL_HTTP_TOKEN", "plain"), ("CONSUL_CACERT", "/etc/ca.pem")]).unwrap();
        assert_eq!(options.token.as_deref(), Some("plain"));
        assert_eq!(options.certificates.authorities, Authorities::File("/etc/ca.pem".into()));
    }

    #[test]
    fn a_switch_that_cannot_be_read_never_turns_verification_off() {
        assert!(matches!(from(&[("CONSUL_HTTP_SSL_VERIFY", "flase")]), Err(ConfigError::Switch { .. })));
        assert!(!from(&[("CONSUL_HTTP_SSL_VERIFY", "0")]).unwrap().verify);
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
    fn a_file_of_authorities_wins_over_a_folder_as_for_consuls_tools() {
        let folder = ("CONSUL_CAPATH", "/etc/ca");
        assert_eq!(from(&[folder]).unwrap().certificates.authorities, Authorities::Folder("/etc/ca".into()));
        let both = from(&[folder, ("CONSUL_CACERT", "/etc/ca.pem")]).unwrap();
        assert_eq!(both.certificates.authorities, Authorities::File("/etc/ca.pem".into()));
    }

    #[test]
    fn a_certificate_and_its_key_come_together() {
        let (certificate, key) = (("CONSUL_CLIENT_CERT", "/etc/me.pem"), ("CONSUL_CLIENT_KEY", "/etc/me.key"));
        let read = from(&[certificate, key]).unwrap().certificates.client;
        assert_eq!(read, Some(("/etc/me.pem".into(), "/etc/me.key".into())));
        for (given, missing) in [(certificate, "CONSUL_CLIENT_KEY is not"), (key, "CONSUL_CLIENT_CERT is not")] {
            let error = from(&[given]).unwrap_err().to_string();
            assert!(error.contains(given.0) && error.contains(missing), "{error}");
        }
    }

    #[test]
    fn the_name_for_tls_comes_without_its_port() {
        let options = from(&[("CONSUL_TLS_SERVER_NAME", "server.dc1.consul:8501")]).unwrap();
        assert_eq!(options.certificates.server_name.as_deref(), Some("server.dc1.consul"));
        assert!(matches!(from(&[("CONSUL_TLS_SERVER_NAME", "10.0.0.1")]), Err(ConfigError::ServerName { .. })));
    }

    #[test]
    fn namespace_and_partition_come_from_the_environment() {
        let scope = from(&[("CONSUL_NAMESPACE", "team"), ("CONSUL_PARTITION", "east")]).unwrap().scope;
        assert_eq!((scope.namespace.as_deref(), scope.partition.as_deref()), (Some("team"), Some("east")));
        assert_eq!(from(&[("CONSUL_NAMESPACE", ""), ("CONSUL_PARTITION", "")]).unwrap().scope, Scope::default());
    }
}
