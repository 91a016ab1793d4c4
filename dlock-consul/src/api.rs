//! Consul's HTTP API: one function per endpoint, no policy.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, Key, SessionId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;

use crate::classify::{Asked, Needs, status, transport, unreadable};
use crate::config::{Address, ConfigError, ConsulOptions};
use crate::wire::{CreateSession, CreatedSession, Entry, Op, SessionEntry, TxnError, TxnReply, TxnResult};

/// The endpoints that are used, over connections of their own for what must not queue behind anything else.
pub(crate) struct Api {
    options: ConsulOptions,
    base: String,
    /// Requests that are answered at once.
    short: Client,
    /// Requests that wait.
    waiting: Client,
    /// Sessions: one warm connection; replaced after every attempt that was not answered.
    sessions: Mutex<Client>,
}

/// Bytes that a path segment carries as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How long Consul holds a waiting request at most; it adds up to a sixteenth.
pub(crate) const WAIT: Duration = Duration::from_secs(55);

impl Api {
    pub(crate) fn new(options: ConsulOptions) -> Result<Self, ConfigError> {
        let base = match &options.address {
            Address::Http(url) => url.as_str().trim_end_matches('/').to_owned(),
            Address::Unix(_) => "http://localhost".to_owned(),
        };
        let short = client(&options, options.attempt)?;
        let waiting = client(&options, WAIT + WAIT / 16 + Duration::from_secs(5))?;
        let sessions = Mutex::new(client(&options, options.attempt)?);
        Ok(Self { options, base, short, waiting, sessions })
    }

    pub(crate) async fn create_session(&self, body: &CreateSession<'_>) -> Result<SessionId, BackendError> {
        let asked = Asked { what: "opening a session", writes: true, needs: Needs::SessionWrite };
        // A body in memory has a length; Consul ignores one that comes in chunks, and makes a session without a ttl.
        let body = serde_json::to_vec(body).map_err(|error| unreadable(asked, error))?;
        let attempt = self.session_attempt();
        let request = attempt.client.put(format!("{}/v1/session/create", self.base)).body(body);
        let created: CreatedSession = read(asked, &send(asked, request).await?)?;
        attempt.answered();
        Ok(SessionId::new(created.id))
    }

    /// `None` when Consul does not know the session.
    pub(crate) async fn renew_session(&self, id: &SessionId) -> Result<Option<SessionEntry>, BackendError> {
        let asked = Asked { what: "renewing the session", writes: true, needs: Needs::SessionWrite };
        let attempt = self.session_attempt();
        let request = attempt.client.put(format!("{}/v1/session/renew/{id}", self.base));
        let answer = send_any(asked, request).await?;
        if answer.status == StatusCode::NOT_FOUND {
            attempt.answered();
            return Ok(None);
        }
        let entries: Vec<SessionEntry> = read(asked, &answer.checked(asked)?)?;
        attempt.answered();
        Ok(entries.into_iter().next())
    }

    pub(crate) async fn destroy_session(&self, id: &SessionId) -> Result<(), BackendError> {
        let asked = Asked { what: "closing the session", writes: true, needs: Needs::SessionWrite };
        let attempt = self.session_attempt();
        send(asked, attempt.client.put(format!("{}/v1/session/destroy/{id}", self.base))).await?;
        attempt.answered();
        Ok(())
    }

    /// Whether the session is shown, and at which index; waits until that is greater than `index`.
    pub(crate) async fn session_info(&self, id: &SessionId, index: Option<u64>) -> Result<(bool, u64), BackendError> {
        let asked = Asked { what: "watching the session", writes: false, needs: Needs::SessionRead };
        let url = format!("{}/v1/session/info/{id}", self.base);
        let answer = send(asked, self.blocking(url, index)).await?;
        let index = answer.index;
        let entries: Option<Vec<SessionEntry>> = read(asked, &answer)?;
        Ok((entries.is_some_and(|entries| !entries.is_empty()), index))
    }

    /// The key as the leader has it; confirmed by a quorum.
    pub(crate) async fn read_key(&self, key: &Key) -> Result<Option<Entry>, BackendError> {
        let asked = Asked { what: "reading the key", writes: false, needs: Needs::KeyRead(key.as_str()) };
        let request = self.short.get(format!("{}?consistent", self.key_url(key)));
        entry(asked, send_any(asked, request).await?).map(|(entry, _)| entry)
    }

    /// The key once its index is greater than `index`, or as it is when the time is up.
    pub(crate) async fn wait_key(&self, key: &Key, index: Option<u64>) -> Result<(Option<Entry>, u64), BackendError> {
        let asked = Asked { what: "waiting for the key", writes: false, needs: Needs::KeyRead(key.as_str()) };
        entry(asked, send_any(asked, self.blocking(self.key_url(key), index)).await?)
    }

    /// All keys that start with `prefix`.
    pub(crate) async fn list_keys(&self, prefix: &str) -> Result<Vec<Entry>, BackendError> {
        let asked = Asked { what: "listing keys", writes: false, needs: Needs::KeyRead(prefix) };
        let url = format!("{}/v1/kv/{}?recurse&consistent", self.base, encode_path(prefix));
        let answer = send_any(asked, self.short.get(url)).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        read(asked, &answer.checked(asked)?)
    }

    /// A transaction: its results, or the errors for which it changed nothing.
    pub(crate) async fn txn(
        &self,
        asked: Asked<'_>,
        ops: &[Op<'_>],
    ) -> Result<Result<Vec<TxnResult>, Vec<TxnError>>, BackendError> {
        let body = serde_json::to_vec(ops).map_err(|error| unreadable(asked, error))?;
        // What only reads must come from a quorum too.
        let consistent = if asked.writes { "" } else { "?consistent" };
        let request = self.short.put(format!("{}/v1/txn{consistent}", self.base)).body(body);
        let answer = send_any(asked, request).await?;
        if answer.status == StatusCode::CONFLICT {
            let reply: TxnReply = read(asked, &answer)?;
            return Ok(Err(reply.errors.unwrap_or_default()));
        }
        let reply: TxnReply = read(asked, &answer.checked(asked)?)?;
        Ok(Ok(reply.results.unwrap_or_default()))
    }

    fn key_url(&self, key: &Key) -> String {
        format!("{}/v1/kv/{}", self.base, encode_path(key.as_str()))
    }

    fn blocking(&self, url: String, index: Option<u64>) -> RequestBuilder {
        match index {
            // An index of zero would not wait.
            Some(index) => self.waiting.get(format!("{url}?index={}&wait={}s", index.max(1), WAIT.as_secs())),
            None => self.waiting.get(url),
        }
    }

    fn session_attempt(&self) -> SessionAttempt<'_> {
        let client = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        SessionAttempt { api: self, client, answered: false }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A request about a session. Unless it is answered, the next one goes out on a fresh connection: a hung one stays hung.
struct SessionAttempt<'a> {
    api: &'a Api,
    client: Client,
    answered: bool,
}

impl SessionAttempt<'_> {
    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for SessionAttempt<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Ok(fresh) = client(&self.api.options, self.api.options.attempt) {
            *self.api.sessions.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }
}

fn client(options: &ConsulOptions, limit: Duration) -> Result<Client, ConfigError> {
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
        .timeout(limit)
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
    builder.build().map_err(ConfigError::Client)
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, ConfigError> {
    let refuse = |source| ConfigError::File { path: path.to_owned(), what: "certificates", source };
    let pem = std::fs::read(path).map_err(refuse)?;
    let certificates =
        reqwest::Certificate::from_pem_bundle(&pem).map_err(|source| ConfigError::Certificate { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(refuse(std::io::Error::new(std::io::ErrorKind::InvalidData, "no certificate in PEM")));
    }
    Ok(certificates)
}

fn encode_path(path: &str) -> String {
    path.split('/').map(|segment| utf8_percent_encode(segment, SEGMENT).to_string()).collect::<Vec<_>>().join("/")
}

struct Answer {
    status: StatusCode,
    index: u64,
    body: String,
}

impl Answer {
    fn checked(self, asked: Asked<'_>) -> Result<Self, BackendError> {
        if self.status.is_success() { Ok(self) } else { Err(status(asked, self.status, &self.body)) }
    }
}

async fn send(asked: Asked<'_>, request: RequestBuilder) -> Result<Answer, BackendError> {
    send_any(asked, request).await?.checked(asked)
}

async fn send_any(asked: Asked<'_>, request: RequestBuilder) -> Result<Answer, BackendError> {
    let answer = request.send().await.map_err(|error| transport(asked, error))?;
    let (status, headers) = (answer.status(), answer.headers());
    let index = headers.get("x-consul-index").and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    tracing::trace!(what = asked.what, status = status.as_u16(), index, "consul answered");
    let body = answer.text().await.map_err(|error| transport(asked, error))?;
    Ok(Answer { status, index, body })
}

fn read<T: DeserializeOwned>(asked: Asked<'_>, answer: &Answer) -> Result<T, BackendError> {
    serde_json::from_str(&answer.body).map_err(|error| unreadable(asked, error))
}

fn entry(asked: Asked<'_>, answer: Answer) -> Result<(Option<Entry>, u64), BackendError> {
    let index = answer.index;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok((None, index));
    }
    let entries: Vec<Entry> = read(asked, &answer.checked(asked)?)?;
    Ok((entries.into_iter().next(), index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_is_encoded_and_slashes_are_kept() {
        assert_eq!(encode_path("a b/c?d#e%f+g"), "a%20b/c%3Fd%23e%25f%2Bg");
        assert_eq!(encode_path("ключ/.lock"), "%D0%BA%D0%BB%D1%8E%D1%87/.lock");
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_being_shown() {
        let error = Api::new(ConsulOptions::new().token("line\nbreak")).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("break"), "{error:?}");
    }

    #[test]
    fn a_certificate_file_that_holds_none_is_named() {
        let path = std::env::temp_dir().join(format!("dlock-no-certificate-{}", std::process::id()));
        std::fs::write(&path, "nothing").unwrap();
        let error = Api::new(ConsulOptions::new().ca_certificate(&path)).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("dlock-no-certificate"), "{error}");
    }
}
