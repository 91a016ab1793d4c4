//! Certificates and keys from files, in the forms that the HTTP client takes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client, Identity};

use crate::config::{Authorities, ConfigError};

/// Who may sign the agent's certificate; `None` for whom the system trusts.
pub(crate) fn authorities(from: &Authorities) -> Result<Option<Vec<Certificate>>, ConfigError> {
    match from {
        Authorities::System => Ok(None),
        Authorities::File(path) => trusted(path).map(Some),
        Authorities::Folder(path) => {
            let files = files(path)?;
            if files.is_empty() {
                return Err(ConfigError::NoAuthority { path: path.clone() });
            }
            let mut all = Vec::new();
            for file in files {
                all.extend(trusted(&file)?);
            }
            Ok(Some(all))
        }
    }
}

/// As whom to speak.
pub(crate) fn identity(certificate: &Path, key: &Path) -> Result<Identity, ConfigError> {
    let no_certificate = || ConfigError::Pem { path: certificate.to_owned(), what: CERTIFICATE, source: None };
    let no_key = || ConfigError::Pem { path: key.to_owned(), what: KEY, source: None };
    let certificates = blocks(&read(certificate, "the client certificate")?, |label| label == "CERTIFICATE");
    if certificates.is_empty() {
        return Err(no_certificate());
    }
    let keys = blocks(&read(key, "the key of the client certificate")?, |label| KEYS.contains(&label));
    let first = keys.first().ok_or_else(no_key)?;
    // Both may stand in one file, so only what is wanted of each is passed on.
    let pem = certificates.concat() + first;
    let foreign = |error: reqwest::Error| ConfigError::ForeignKey {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source: error.into(),
    };
    let identity = Identity::from_pem(pem.as_bytes()).map_err(foreign)?;
    // What the client would say of it later names no file.
    Client::builder().tls_certs_only([]).identity(identity.clone()).build().map_err(foreign)?;
    Ok(identity)
}

const CERTIFICATE: &str = "certificate";
const KEY: &str = "private key";
/// The labels of keys that can be used; an encrypted one cannot.
const KEYS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

/// The certificates of a file, of which there is at least one.
fn trusted(path: &Path) -> Result<Vec<Certificate>, ConfigError> {
    let refuse = |source| ConfigError::Pem { path: path.to_owned(), what: CERTIFICATE, source };
    let unusable = |error: reqwest::Error| refuse(Some(error.into()));
    let pem = read(path, "certificates")?;
    let certificates = Certificate::from_pem_bundle(pem.as_bytes()).map_err(unusable)?;
    if certificates.is_empty() {
        return Err(refuse(None));
    }
    Client::builder().tls_certs_only(certificates.clone()).build().map_err(unusable)?;
    Ok(certificates)
}

/// The files of a folder and of the folders within, in order; links to folders are not followed.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let refuse = |path: &Path, source| ConfigError::File { path: path.to_owned(), what: "certificates", source };
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| refuse(&folder, error))? {
            let entry = entry.map_err(|error| refuse(&folder, error))?;
            let path = entry.path();
            if entry.file_type().map_err(|error| refuse(&path, error))?.is_dir() {
                folders.push(path);
            } else if !fs::metadata(&path).map_err(|error| refuse(&path, error))?.is_dir() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The text of a file; what is no text is no PEM.
fn read(path: &Path, what: &'static str) -> Result<String, ConfigError> {
    let bytes = fs::read(path).map_err(|source: io::Error| ConfigError::File { path: path.to_owned(), what, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The blocks of a PEM file with such a label, whole.
fn blocks(pem: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = pem.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|line| line.strip_suffix("-----")) else { continue };
        let end = format!("-----END {label}-----");
        let mut block = format!("{line}\n");
        for line in lines.by_ref() {
            block += line;
            block.push('\n');
            if line == end {
                break;
            }
        }
        if wanted(label) {
            blocks.push(block);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_file_with_both_only_what_is_wanted_is_taken() {
        let pem = "text\n-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\r\n-----BEGIN EC PARAMETERS-----\nBB\n\
                   -----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nCC\n-----END EC PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        assert_eq!(blocks(pem, |label| label == "CERTIFICATE"), [certificate]);
        let key = "-----BEGIN EC PRIVATE KEY-----\nCC\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(blocks(pem, |label| KEYS.contains(&label)), [key]);
    }
}
