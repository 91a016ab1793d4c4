//! Certificates on a real agent: whom it is trusted by, whom it lets in, and under which name.
#![allow(missing_docs)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dlock_consul::{ConfigError, Consul, ConsulOptions};
use dlock_core::{BackendError, ErrorKind, LockBackend, SessionId, SessionRequest};
use dlock_testkit::servers::ConsulAgent;

/// Options for its HTTPS port, trusting nobody yet.
fn options(agent: &ConsulAgent) -> ConsulOptions {
    ConsulOptions::new().address(&agent.tls_url().replace("consul+https", "https")).unwrap()
}

fn trusting(agent: &ConsulAgent) -> ConsulOptions {
    options(agent).ca_certificate(agent.ca_certificate().unwrap())
}

async fn open(options: ConsulOptions) -> Result<(), BackendError> {
    let request = SessionRequest { id: SessionId::new("x"), ttl: Duration::from_secs(60), owner: "o".into() };
    Consul::new(options).unwrap().open(&request).await.map(drop)
}

/// An error with all its causes.
fn told(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    told
}

/// A folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dlock-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn the_given_authority_is_trusted_and_no_other() {
    let agent = ConsulAgent::builder().tls().start().await.unwrap();
    open(trusting(&agent)).await.unwrap();
    assert_eq!(open(options(&agent)).await.unwrap_err().kind(), ErrorKind::Transient);
}

#[tokio::test]
async fn any_certificate_will_do_for_whoever_says_so() {
    let agent = ConsulAgent::builder().tls().start().await.unwrap();
    open(options(&agent).accept_invalid_certificates(true)).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_asks_for_a_certificate_gets_one() {
    let agent = ConsulAgent::builder().client_certificates().start().await.unwrap();
    let (certificate, key) = agent.client_certificate().unwrap();
    open(trusting(&agent).client_certificate(certificate, key)).await.unwrap();
    let refused = open(trusting(&agent)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Transient);
    assert!(told(&refused).contains("set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"), "{}", told(&refused));
    // Both in one file, as some tools write them.
    let folder = Folder::new("both");
    let both = folder.file("both.pem", fs::read_to_string(certificate).unwrap() + &fs::read_to_string(key).unwrap());
    open(trusting(&agent).client_certificate(&both, &both)).await.unwrap();
}

#[tokio::test]
async fn every_file_of_a_folder_of_authorities_is_trusted() {
    let agent = ConsulAgent::builder().tls().start().await.unwrap();
    let other = ConsulAgent::builder().tls().start().await.unwrap();
    let folder = Folder::new("authorities");
    fs::copy(other.ca_certificate().unwrap(), folder.0.join("other.pem")).unwrap();
    assert_eq!(open(options(&agent).ca_folder(&folder.0)).await.unwrap_err().kind(), ErrorKind::Transient);
    fs::create_dir(folder.0.join("more")).unwrap();
    fs::copy(agent.ca_certificate().unwrap(), folder.0.join("more/this.pem")).unwrap();
    open(options(&agent).ca_folder(&folder.0)).await.unwrap();
    open(options(&other).ca_folder(&folder.0)).await.unwrap();
}

#[tokio::test]
async fn the_certificate_is_checked_against_the_given_name_at_the_same_address() {
    let agent = ConsulAgent::builder().tls().start().await.unwrap();
    let by_ip = trusting(&agent).address(&format!("https://{}", agent.tls_address())).unwrap();
    for options in [trusting(&agent), by_ip] {
        // Nothing resolves these names.
        open(options.clone().tls_server_name("server.dc1.consul").unwrap()).await.unwrap();
        let refused = open(options.tls_server_name("server.dc2.consul").unwrap()).await.unwrap_err();
        assert!(told(&refused).contains("not valid for name"), "{}", told(&refused));
    }
}

#[tokio::test]
async fn what_is_no_use_as_a_certificate_or_key_is_named() {
    let agent = ConsulAgent::builder().client_certificates().start().await.unwrap();
    let (certificate, key) = agent.client_certificate().unwrap();
    let folder = Folder::new("useless");
    let empty = folder.0.join("empty");
    fs::create_dir(&empty).unwrap();
    let nothing = folder.file("nothing.pem", "nothing");
    let binary = folder.file("binary.pem", [0x30, 0x82, 0xFF]);
    let garbled = folder.file("garbled.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let cut = folder.file("cut.key", fs::read_to_string(key).unwrap().lines().next().unwrap());
    let missing = folder.0.join("missing.pem");
    let with = |certificate: &Path, key: &Path| ConsulOptions::new().client_certificate(certificate, key);
    for (options, hint, file) in [
        (ConsulOptions::new().ca_certificate(&missing), "cannot read certificates from", &missing),
        (ConsulOptions::new().ca_certificate(&nothing), "no certificate in PEM", &nothing),
        (ConsulOptions::new().ca_certificate(&binary), "no certificate in PEM", &binary),
        (ConsulOptions::new().ca_certificate(&garbled), "no certificate in PEM", &garbled),
        (ConsulOptions::new().ca_folder(&missing), "cannot read certificates from", &missing),
        (ConsulOptions::new().ca_folder(&empty), "holds no file", &empty),
        (ConsulOptions::new().ca_folder(&folder.0), "no certificate in PEM", &binary),
        (with(&missing, key), "cannot read the client certificate", &missing),
        (with(certificate, &missing), "cannot read the key of the client certificate", &missing),
        (with(&nothing, key), "no certificate in PEM", &nothing),
        (with(certificate, &nothing), "no private key in PEM", &nothing),
        (with(certificate, &cut), "is no key of the certificate in", &cut),
    ] {
        let error = Consul::new(options).unwrap_err();
        assert!(error.to_string().contains(hint) && error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    let of_another = ConsulAgent::builder().tls().start().await.unwrap();
    let error = Consul::new(with(certificate, of_another.client_certificate().unwrap().1)).unwrap_err();
    assert!(matches!(error, ConfigError::ForeignKey { .. }), "{error:?}");
    let secret = fs::read_to_string(key).unwrap().lines().nth(1).unwrap().to_owned();
    assert!(!format!("{error:?} {}", told(&error)).contains(&secret));
}
