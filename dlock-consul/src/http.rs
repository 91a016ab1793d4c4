//! The transport that production uses: reqwest, with a client for each lane.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, ClientBuilder};

use crate::config::{Address, ConfigError, ConsulOptions};
use crate::transport::{Answer, Lane, Method, Request, Transport, TransportError, TransportErrorKind};

/// HTTP to one agent, over connections of their own for what must not queue behind anything else.
pub(crate) struct Http {
    base: String,
    /// Requests that are answered at once.
    short: Client,
    /// Requests that wait.
    waiting: Client,
    /// Sessions: one warm connection.
    sessions: Client,
    /// Sessions, after a request that was not answered: a new connection for each request. The one that hangs is closed with its request.
    fresh: Client,
}

impl Http {
    pub(crate) fn new(options: &ConsulOptions) -> Result<Self, ConfigError> {
        let base = match &options.address {
            Address::Http(url) => url.as_str().trim_end_matches('/').to_owned(),
            Address::Unix(_) => "http://localhost".to_owned(),
        };
        let build = |builder: ClientBuilder| builder.build().map_err(|error| ConfigError::Client(error.into()));
        let warm = || build(client(options)?);
        let (short, waiting, sessions) = (warm()?, warm()?, warm()?);
        let fresh = build(client(options)?.pool_max_idle_per_host(0))?;
        Ok(Self { base, short, waiting, sessions, fresh })
    }

    fn client(&self, lane: Lane) -> &Client {
        match lane {
            Lane::Short => &self.short,
            Lane::Waiting => &self.waiting,
            Lane::Session { fresh: false } => &self.sessions,
            Lane::Session { fresh: true } => &self.fresh,
        }
    }
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        let client = self.client(request.lane);
        let url = format!("{}{}", self.base, request.target);
        let sending = match request.method {
            Method::Get => client.get(url),
            // A body in memory has a length.
            Method::Put => client.put(url).body(request.body),
        };
        let answer = sending.timeout(request.limit).send().await.map_err(unanswered)?;
        let (status, headers) = (answer.status().as_u16(), answer.headers());
        let index = headers.get("x-consul-index").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = answer.text().await.map_err(unanswered)?;
        Ok(Answer { status, index, body })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("base", &self.base).finish_non_exhaustive()
    }
}

fn unanswered(error: reqwest::Error) -> TransportError {
    let error = error.without_url();
    let kind = if error.is_connect() {
        TransportErrorKind::NotConnected
    } else if error.is_builder() {
        TransportErrorKind::Unusable
    } else if error.is_timeout() {
        TransportErrorKind::TimedOut
    } else {
        TransportErrorKind::Broken
    };
    TransportError::new(kind, error)
}

fn client(options: &ConsulOptions) -> Result<ClientBuilder, ConfigError> {
    let mut headers = HeaderMap::new();
    let mut secret = |name: HeaderName, value: Option<String>, what| -> Result<(), ConfigError> {
        let Some(value) = value else { return Ok(()) };
        let mut value = HeaderValue::from_str(&value).map_err(|_| ConfigError::Secret { what })?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    };
    secret(HeaderName::from_static("x-consul-token"), options.token.clone(), "token")?;
    secret(AUTHORIZATION, options.authorization(), "user and password")?;
    let mut builder = Client::builder()
        .default_headers(headers)
        .connect_timeout(Duration::from_secs(1))
        .tcp_keepalive(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy();
    if let Address::Unix(path) = &options.address {
        builder = builder.unix_socket(path.clone());
    }
    if let Some(path) = &options.ca_certificate {
        builder = builder.tls_certs_only(certificates(path)?);
    }
    if !options.verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    Ok(builder)
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, ConfigError> {
    let refuse = |source| ConfigError::File { path: path.to_owned(), what: "certificates", source };
    let pem = std::fs::read(path).map_err(refuse)?;
    let unusable = |error: reqwest::Error| ConfigError::Certificate { path: path.to_owned(), source: error.into() };
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(unusable)?;
    if certificates.is_empty() {
        return Err(refuse(std::io::Error::new(std::io::ErrorKind::InvalidData, "no certificate in PEM")));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_being_shown() {
        let error = Http::new(&ConsulOptions::new().token("line\nbreak")).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("break"), "{error:?}");
    }

    #[test]
    fn a_certificate_file_that_holds_none_is_named() {
        let path = std::env::temp_dir().join(format!("dlock-no-certificate-{}", std::process::id()));
        std::fs::write(&path, "nothing").unwrap();
        let error = Http::new(&ConsulOptions::new().ca_certificate(&path)).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("dlock-no-certificate"), "{error}");
    }
}
