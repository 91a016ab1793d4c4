//! Certificates for a test server.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Files of a fresh authority and a certificate that it signed for this machine.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

pub(crate) fn make(folder: &Path) -> Result<TlsFiles, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1", "server.dc1.consul"].map(String::from);
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let files = TlsFiles { ca: folder.join("ca.pem"), certificate: folder.join("server.pem"), key: folder.join("server.key") };
    std::fs::write(&files.ca, issuer.pem())?;
    std::fs::write(&files.certificate, certificate.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}
