//! Whom to trust over TLS, and as whom to speak.

use std::fmt;
use std::path::PathBuf;

use url::{Host, Url};

use super::{ConfigError, ConsulOptions};

/// What is needed of certificates; the files are read when the backend is made.
#[derive(Clone, Default)]
pub(crate) struct TlsOptions {
    pub(crate) authorities: Authorities,
    /// A certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: Option<String>,
}

/// Who may sign the agent's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Authorities {
    /// Whom the system trusts.
    #[default]
    System,
    File(PathBuf),
    Folder(PathBuf),
}

impl ConsulOptions {
    /// A file of certificates, in PEM, that alone are trusted to sign the agent's; takes the place of [`ca_folder`](Self::ca_folder).
    /// Defaults to those that the system trusts.
    ///
    /// The file is read when the backend is made: what cannot be read, or holds no certificate, is an error then.
    #[must_use]
    pub fn ca_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificates.authorities = Authorities::File(path.into());
        self
    }

    /// A folder of certificates, each file in PEM, that alone are trusted to sign the agent's; takes the place of
    /// [`ca_certificate`](Self::ca_certificate). Defaults to those that the system trusts.
    ///
    /// Every file counts, those in folders within as well, as for Consul's own tools; links to folders are not followed. The files are read
    /// when the backend is made: a file that holds no certificate is an error then, and so is a folder without files.
    #[must_use]
    pub fn ca_folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificates.authorities = Authorities::Folder(path.into());
        self
    }

    /// A certificate and its key, files in PEM, for agents that ask for one (`verify_incoming`). Defaults to none.
    ///
    /// The certificate may be followed by those between it and its authority; the key must not be encrypted. Both are read when the backend
    /// is made: what cannot be read, is no PEM or does not belong together is an error then. Says nothing without TLS.
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificates.client = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the agent's certificate must carry, such as `server.dc1.consul`, where it is another than the address's host. Defaults to
    /// the address's host.
    ///
    /// Connections go to the address all the same, and requests name it in their header `Host`; the name is what TLS asks for (SNI) and
    /// what the certificate is checked against. A port after the name is ignored, as Consul's own tools do. An IP address is refused: a
    /// certificate is checked against one by connecting to it. Says nothing without TLS.
    pub fn tls_server_name(mut self, name: &str) -> Result<Self, ConfigError> {
        let refuse = || ConfigError::ServerName { name: name.to_owned() };
        if name.contains(['/', '\\', '@', '?', '#']) {
            return Err(refuse());
        }
        match Url::parse(&format!("https://{name}")).map_err(|_| refuse())?.host() {
            Some(Host::Domain(domain)) => self.certificates.server_name = Some(domain.to_owned()),
            _ => return Err(refuse()),
        }
        Ok(self)
    }

    /// Whether any certificate of the agent's is accepted, as `CONSUL_HTTP_SSL_VERIFY=false` says it; whoever is in between can then read
    /// and change everything. Defaults to no.
    #[must_use]
    pub fn accept_invalid_certificates(mut self, accept: bool) -> Self {
        self.verify = !accept;
        self
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("authorities", &self.authorities)
            .field("client_certificate", &self.client.as_ref().map(|(certificate, _)| certificate))
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verification_can_be_turned_off_and_on() {
        let options = ConsulOptions::new().accept_invalid_certificates(true);
        assert!(!options.verify);
        assert!(options.accept_invalid_certificates(false).verify);
    }

    #[test]
    fn a_server_name_is_a_name_and_may_carry_a_port() {
        let name = |given: &str| ConsulOptions::new().tls_server_name(given).map(|options| options.certificates.server_name);
        assert_eq!(name("server.dc1.consul").unwrap().as_deref(), Some("server.dc1.consul"));
        assert_eq!(name("Server.dc1.consul:8501").unwrap().as_deref(), Some("server.dc1.consul"));
        for refused in ["", "127.0.0.1", "[::1]:8501", "a b", "a/b", "user@a"] {
            let error = name(refused).unwrap_err().to_string();
            assert!(error.contains("server.dc1.consul"), "{refused:?}: {error}");
        }
    }

    #[test]
    fn the_last_word_on_authorities_counts() {
        let options = ConsulOptions::new().ca_certificate("/etc/ca.pem").ca_folder("/etc/ca");
        assert_eq!(options.certificates.authorities, Authorities::Folder("/etc/ca".into()));
        let options = options.ca_certificate("/etc/ca.pem");
        assert_eq!(options.certificates.authorities, Authorities::File("/etc/ca.pem".into()));
    }
}
