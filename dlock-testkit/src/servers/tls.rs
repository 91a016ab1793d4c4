//! Certificates for a test server.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

/// Files of a fresh authority, and of certificates that it signed for a server on this machine and for a client.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_certificate: PathBuf,
    pub(crate) client_key: PathBuf,
}

pub(crate) fn make(folder: &Path) -> Result<TlsFiles, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1", "server.dc1.consul"].map(String::from);
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let client_key = KeyPair::generate()?;
    let mut client = CertificateParams::new(Vec::new())?;
    client.distinguished_name.push(DnType::CommonName, CLIENT);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client = client.signed_by(&client_key, &issuer)?;
    let file = |name: &str, pem: String| {
        let path = folder.join(name);
        std::fs::write(&path, pem).map(|()| path)
    };
    Ok(TlsFiles {
        ca: file("ca.pem", issuer.pem())?,
        certificate: file("server.pem", certificate.pem())?,
        key: file("server.key", key.serialize_pem())?,
        client_certificate: file("client.pem", client.pem())?,
        client_key: file("client.key", client_key.serialize_pem())?,
    })
}

/// Whom the client's certificate names.
const CLIENT: &str = "client";
