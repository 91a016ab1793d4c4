//! Consul's HTTP API: one function per endpoint, no policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dlock_core::{BackendError, Key, SessionId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use crate::classify::{Asked, Needs, denied, status, transport, unreadable};
use crate::config::{ConsulOptions, Scope};
use crate::transport::{Answer, Lane, Method, Request, Transport};
use crate::wire::{Agent, CreateSession, CreatedSession, Entry, Op, RegisterNode, SessionEntry, TxnError, TxnReply, TxnResult};

/// The endpoints that are used.
#[derive(Debug)]
pub(crate) struct Api {
    transport: Arc<dyn Transport>,
    /// How long a request that does not wait may take.
    attempt: Duration,
    scope: Scope,
    /// The node of sessions, unless it is the agent's.
    node: Option<String>,
    /// The last request about a session was not answered.
    unanswered: AtomicBool,
}

/// Bytes that a path segment carries as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How long Consul holds a waiting request at most; it adds up to a sixteenth.
pub(crate) const WAIT: Duration = Duration::from_secs(55);
/// What a waiting request may take beyond that, for the way.
const WAY: Duration = Duration::from_secs(5);

/// The most operations that a transaction takes.
pub(crate) const BATCH: usize = 64;

impl Api {
    pub(crate) fn new(transport: Arc<dyn Transport>, options: &ConsulOptions) -> Self {
        let (attempt, scope) = (options.attempt, options.scope.clone());
        let node = options.sessions.node.name().map(str::to_owned);
        Self { transport, attempt, scope, node, unanswered: AtomicBool::new(false) }
    }

    /// Which part of Consul is spoken to.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Where the server listens that leads; empty when none does.
    pub(crate) async fn leader(&self) -> Result<String, BackendError> {
        let asked = Asked { what: "asking who leads", writes: false, needs: Needs::Nothing };
        read(asked, &checked(asked, self.short(asked, Method::Get, "/v1/status/leader".to_owned(), Vec::new()).await?)?)
    }

    /// The version of the agent.
    pub(crate) async fn agent_version(&self) -> Result<String, BackendError> {
        let asked = Asked { what: "asking for the agent's version", writes: false, needs: Needs::AgentRead };
        let answer = self.short(asked, Method::Get, "/v1/agent/self".to_owned(), Vec::new()).await?;
        let agent: Agent = read(asked, &checked(asked, answer)?)?;
        Ok(agent.config.version)
    }

    /// `None` when Consul does not know the node that the session is to belong to.
    pub(crate) async fn create_session(&self, body: &CreateSession<'_>) -> Result<Option<SessionId>, BackendError> {
        let asked = Asked { what: "opening a session", writes: true, needs: self.session_write() };
        let body = serde_json::to_vec(body).map_err(|error| unreadable(asked, error))?;
        let attempt = self.session_attempt();
        let answer = attempt.put("/v1/session/create".to_owned(), body, asked).await?;
        if answer.status == 500 && answer.body.contains("Missing node registration") {
            attempt.answered();
            return Ok(None);
        }
        let created: CreatedSession = read(asked, &checked(asked, answer)?)?;
        // It stands in paths as it is.
        if created.id.is_empty() || !created.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(unreadable(asked, serde::de::Error::custom("the id is none of a session")));
        }
        attempt.answered();
        Ok(Some(SessionId::new(created.id)))
    }

    pub(crate) async fn register_node(&self, node: &RegisterNode<'_>) -> Result<(), BackendError> {
        let asked = Asked { what: "registering the node of the sessions", writes: true, needs: Needs::NodeWrite(node.node) };
        let body = serde_json::to_vec(node).map_err(|error| unreadable(asked, error))?;
        let attempt = self.session_attempt();
        checked(asked, attempt.put("/v1/catalog/register".to_owned(), body, asked).await?)?;
        attempt.answered();
        Ok(())
    }

    /// `None` when Consul does not know the session.
    pub(crate) async fn renew_session(&self, id: &SessionId) -> Result<Option<SessionEntry>, BackendError> {
        let asked = Asked { what: "renewing the session", writes: true, needs: self.session_write() };
        let attempt = self.session_attempt();
        let answer = attempt.put(format!("/v1/session/renew/{id}"), Vec::new(), asked).await?;
        if answer.status == NOT_FOUND && answer.body.contains("Session id") {
            attempt.answered();
            return Ok(None);
        }
        let entries: Vec<SessionEntry> = read(asked, &checked(asked, answer)?)?;
        attempt.answered();
        Ok(entries.into_iter().next())
    }

    pub(crate) async fn destroy_session(&self, id: &SessionId) -> Result<(), BackendError> {
        let asked = Asked { what: "closing the session", writes: true, needs: self.session_write() };
        let attempt = self.session_attempt();
        checked(asked, attempt.put(format!("/v1/session/destroy/{id}"), Vec::new(), asked).await?)?;
        attempt.answered();
        Ok(())
    }

    /// Whether the session is shown, and at which index; waits until that is greater than the given one.
    pub(crate) async fn session_info(&self, id: &SessionId, since: Option<Since>) -> Result<(bool, u64), BackendError> {
        let asked = Asked { what: "watching the session", writes: false, needs: Needs::SessionRead };
        let answer = checked(asked, self.blocking(asked, format!("/v1/session/info/{id}"), since).await?)?;
        let index = answer.index.unwrap_or(0);
        let entries: Option<Vec<SessionEntry>> = read(asked, &answer)?;
        Ok((entries.is_some_and(|entries| !entries.is_empty()), index))
    }

    /// The key as the leader has it; confirmed by a quorum.
    pub(crate) async fn read_key(&self, key: &Key) -> Result<Option<Entry>, BackendError> {
        let asked = Asked { what: "reading the key", writes: false, needs: Needs::KeyRead(key.as_str()) };
        let answer = self.short(asked, Method::Get, format!("{}?consistent", key_target(key)), Vec::new()).await?;
        entry(asked, answer).map(|(entry, _)| entry)
    }

    /// The key once its index is greater than the given one, or as it is when the time is up.
    pub(crate) async fn wait_key(&self, key: &str, since: Option<Since>) -> Result<(Option<Entry>, u64), BackendError> {
        let asked = Asked { what: "waiting for the key", writes: false, needs: Needs::KeyRead(key) };
        entry(asked, self.blocking(asked, format!("/v1/kv/{}", encode_path(key)), since).await?)
    }

    /// What is shown of all keys that start with `prefix`, once one of them changes, or as it is when the time is up.
    pub(crate) async fn wait_below<T: DeserializeOwned>(
        &self,
        prefix: &str,
        shown: Shown,
        since: Option<Since>,
    ) -> Result<(Vec<T>, u64), BackendError> {
        let asked = Asked { what: "waiting for the line", writes: false, needs: Needs::LineRead(prefix) };
        let shown = match shown {
            Shown::Names => "keys",
            Shown::Entries => "recurse",
        };
        let answer = self.blocking(asked, format!("/v1/kv/{}?{shown}", encode_path(prefix)), since).await?;
        let index = answer.index.unwrap_or(0);
        if is_absent(&answer) {
            return Ok((Vec::new(), index));
        }
        Ok((read(asked, &checked(asked, answer)?)?, index))
    }

    /// All keys that start with `prefix`.
    pub(crate) async fn list_keys(&self, prefix: &str) -> Result<Vec<Entry>, BackendError> {
        let asked = Asked { what: "listing keys", writes: false, needs: Needs::LineRead(prefix) };
        let target = format!("/v1/kv/{}?recurse&consistent", encode_path(prefix));
        let answer = self.short(asked, Method::Get, target, Vec::new()).await?;
        if is_absent(&answer) {
            return Ok(Vec::new());
        }
        read(asked, &checked(asked, answer)?)
    }

    /// A transaction: its results, or the errors for which it changed nothing. A missing permission fails the call.
    pub(crate) async fn txn(
        &self,
        asked: Asked<'_>,
        ops: &[Op<'_>],
    ) -> Result<Result<Vec<TxnResult>, Vec<TxnError>>, BackendError> {
        let Scope { namespace, partition, .. } = &self.scope;
        let ops: Vec<_> = ops.iter().map(|op| op.within(namespace.as_deref(), partition.as_deref())).collect();
        let body = serde_json::to_vec(&ops).map_err(|error| unreadable(asked, error))?;
        // What only reads must come from a quorum too.
        let consistent = if asked.writes { "" } else { "?consistent" };
        let answer = self.short(asked, Method::Put, format!("/v1/txn{consistent}"), body).await?;
        if answer.status == CONFLICT {
            let errors = read::<TxnReply>(asked, &answer)?.errors.unwrap_or_default();
            if errors.iter().any(|error| error.says("Permission denied")) {
                return Err(denied(asked, "Permission denied"));
            }
            return Ok(Err(errors));
        }
        let reply: TxnReply = read(asked, &checked(asked, answer)?)?;
        Ok(Ok(reply.results.unwrap_or_default()))
    }

    async fn short(&self, asked: Asked<'_>, method: Method, target: String, body: Vec<u8>) -> Result<Answer, BackendError> {
        self.send(asked, Request { method, target, body, lane: Lane::Short, limit: self.attempt }).await
    }

    async fn blocking(&self, asked: Asked<'_>, target: String, since: Option<Since>) -> Result<Answer, BackendError> {
        let (target, limit) = match since {
            // An index of zero would not wait.
            Some(since) => {
                let sign = if target.contains('?') { '&' } else { '?' };
                (format!("{target}{sign}index={}&wait={}s", since.index.max(1), since.wait.as_secs()), since.limit())
            }
            None => (target, self.attempt),
        };
        self.send(asked, Request { method: Method::Get, target, body: Vec::new(), lane: Lane::Waiting, limit }).await
    }

    fn session_write(&self) -> Needs<'_> {
        Needs::SessionWrite { node: self.node.as_deref() }
    }

    fn session_attempt(&self) -> SessionAttempt<'_> {
        SessionAttempt { api: self, fresh: self.unanswered.swap(false, Ordering::Relaxed), answered: false }
    }

    async fn send(&self, asked: Asked<'_>, mut request: Request) -> Result<Answer, BackendError> {
        let Scope { namespace, partition, datacenter } = &self.scope;
        for (name, value) in [("ns", namespace), ("partition", partition), ("dc", datacenter)] {
            if let Some(value) = value {
                let sign = if request.target.contains('?') { '&' } else { '?' };
                request.target += &format!("{sign}{name}={}", utf8_percent_encode(value, SEGMENT));
            }
        }
        let answer = self.transport.send(request).await.map_err(|error| transport(asked, error))?;
        tracing::trace!(what = asked.what, status = answer.status, index = answer.index, "consul answered");
        Ok(answer)
    }
}

/// From when, and for how long, a request waits for something new.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    /// What is new has a greater one.
    pub(crate) index: u64,
    /// In whole seconds.
    pub(crate) wait: Duration,
}

impl Since {
    /// For as long as a request may.
    pub(crate) fn long(index: u64) -> Self {
        Self { index, wait: WAIT }
    }

    /// When there must be an answer.
    pub(crate) fn limit(self) -> Duration {
        self.wait + self.wait / 16 + WAY
    }
}

/// What is shown of keys.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shown {
    /// `String`.
    Names,
    /// [`Entry`].
    Entries,
}

/// A request about a session. Unless it is answered, the next one goes out on a fresh connection: a hung one stays hung.
struct SessionAttempt<'a> {
    api: &'a Api,
    fresh: bool,
    answered: bool,
}

impl SessionAttempt<'_> {
    async fn put(&self, target: String, body: Vec<u8>, asked: Asked<'_>) -> Result<Answer, BackendError> {
        let (lane, limit) = (Lane::Session { fresh: self.fresh }, self.api.attempt);
        self.api.send(asked, Request { method: Method::Put, target, body, lane, limit }).await
    }

    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for SessionAttempt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.api.unanswered.store(true, Ordering::Relaxed);
        }
    }
}

const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

fn key_target(key: &Key) -> String {
    format!("/v1/kv/{}", encode_path(key.as_str()))
}

fn encode_path(path: &str) -> String {
    path.split('/').map(|segment| utf8_percent_encode(segment, SEGMENT).to_string()).collect::<Vec<_>>().join("/")
}

fn checked(asked: Asked<'_>, answer: Answer) -> Result<Answer, BackendError> {
    if (200..300).contains(&answer.status) { Ok(answer) } else { Err(status(asked, answer.status, &answer.body)) }
}

fn read<T: DeserializeOwned>(asked: Asked<'_>, answer: &Answer) -> Result<T, BackendError> {
    serde_json::from_str(&answer.body).map_err(|error| unreadable(asked, error))
}

/// Whether Consul says that there is no such key. It tells an index with that; a 404 without one comes from something in between.
fn is_absent(answer: &Answer) -> bool {
    answer.status == NOT_FOUND && answer.index.is_some()
}

fn entry(asked: Asked<'_>, answer: Answer) -> Result<(Option<Entry>, u64), BackendError> {
    let index = answer.index.unwrap_or(0);
    if is_absent(&answer) {
        return Ok((None, index));
    }
    let entries: Vec<Entry> = read(asked, &checked(asked, answer)?)?;
    Ok((entries.into_iter().next(), index))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use dlock_core::ErrorKind;
    use futures_util::FutureExt;

    use super::*;
    use crate::transport::TransportError;

    /// Always answers this.
    #[derive(Debug)]
    struct Says(u16, Option<u64>, &'static str);

    #[async_trait]
    impl Transport for Says {
        async fn send(&self, _: Request) -> Result<Answer, TransportError> {
            Ok(Answer { status: self.0, index: self.1, body: self.2.to_owned() })
        }
    }

    fn api(says: Says) -> Api {
        Api::new(Arc::new(says), &ConsulOptions::new())
    }

    #[test]
    fn only_consul_says_that_a_key_is_absent_or_a_session_gone() {
        let (key, session) = (Key::new("a").unwrap(), SessionId::new("s"));
        let read = |says| api(says).read_key(&key).now_or_never().expect("it is answered at once");
        let list = |says| api(says).list_keys("a").now_or_never().expect("it is answered at once");
        let renew = |says| api(says).renew_session(&session).now_or_never().expect("it is answered at once");
        assert!(read(Says(404, Some(7), "")).unwrap().is_none());
        assert!(list(Says(404, Some(7), "")).unwrap().is_empty());
        assert!(renew(Says(404, None, "Session id 's' not found")).unwrap().is_none());
        let in_between = || Says(404, None, "404 page not found");
        assert_eq!(read(in_between()).unwrap_err().kind(), ErrorKind::Transient);
        assert_eq!(list(in_between()).unwrap_err().kind(), ErrorKind::Transient);
        assert_eq!(renew(in_between()).unwrap_err().kind(), ErrorKind::Ambiguous);
    }

    #[test]
    fn a_session_id_that_would_name_another_path_is_refused() {
        for (body, accepted) in [
            (r#"{"ID":"e5bd3b5b-a98a-4b71-a4be-8bf8d5d8ef5e"}"#, true),
            (r#"{"ID":""}"#, false),
            (r#"{"ID":"../kv/a"}"#, false),
            (r#"{"ID":"a?b#c d"}"#, false),
        ] {
            let api = api(Says(200, None, body));
            let create = CreateSession {
                name: String::new(),
                ttl: "15s".into(),
                lock_delay: "0s".into(),
                behavior: "release",
                node_checks: &[],
                service_checks: Vec::new(),
                node: None,
            };
            let opened = api.create_session(&create).now_or_never().expect("it is answered at once");
            assert_eq!(opened.is_ok(), accepted, "{body}");
        }
    }

    #[test]
    fn every_segment_is_encoded_and_slashes_are_kept() {
        assert_eq!(encode_path("a b/c?d#e%f+g"), "a%20b/c%3Fd%23e%25f%2Bg");
        assert_eq!(encode_path("ключ/.lock"), "%D0%BA%D0%BB%D1%8E%D1%87/.lock");
    }
}
