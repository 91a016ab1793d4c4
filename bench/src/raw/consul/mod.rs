//! Bare clients of Consul: a session that nobody renews, and requests by the HTTP client that dlock uses, or over the connections and the pool alone that
//! this client is made of.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::value;
use crate::Outcome;

pub mod guarded;
pub mod key;
pub mod line;

/// A client with a session of its own.
pub struct Agent {
    /// Where the keys are.
    keys: Url,
    txn: Url,
    session: String,
    /// What ends the session.
    destroy: Url,
    /// In base64, which Consul demands.
    value: String,
    short: Http,
    waiting: Http,
    room: Semaphore,
}

/// By what requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `reqwest`, as dlock does.
    Reqwest,
    /// What `reqwest` stands on.
    Pool,
}

enum Http {
    Reqwest(reqwest::Client),
    Pool(Box<Client<HttpConnector, Full<Bytes>>>),
}

/// What Consul answered.
struct Answer {
    status: StatusCode,
    /// At which index that was so.
    index: Option<u64>,
    body: Bytes,
}

/// A key as Consul shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    #[serde(default)]
    flags: u64,
    create_index: u64,
    modify_index: u64,
    session: Option<String>,
}

/// What a transaction brought.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Results {
    results: Vec<Shown>,
}

#[derive(Deserialize)]
struct Shown {
    #[serde(rename = "KV")]
    entry: Entry,
}

/// As many connections for requests that are answered at once as dlock uses by default, whatever the concurrency.
const CONNECTIONS: usize = 15;
/// How long an idle connection is kept, as in dlock's client.
const IDLE: Duration = Duration::from_secs(8);

/// What marks a key as a lock.
const FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

fn check_index(key: &str, index: u64) -> String {
    format!(r#"{{"KV":{{"Verb":"check-index","Key":"{key}","Index":{index}}}}}"#)
}

fn check_not_exists(key: &str) -> String {
    format!(r#"{{"KV":{{"Verb":"check-not-exists","Key":"{key}"}}}}"#)
}

/// How many keys are locked whose names begin so.
pub async fn held(address: &str, prefix: &str) -> Outcome<usize> {
    let shown = format!("http://{address}/v1/kv/{prefix}?recurse").parse()?;
    let answer = client(By::Pool)?.ask(Method::GET, shown, String::new()).await?;
    Ok(answer.entries()?.iter().filter(|entry| entry.session.is_some()).count())
}

fn client(by: By) -> Outcome<Http> {
    const CONNECT: Duration = Duration::from_secs(1);
    const KEEPALIVE: Duration = Duration::from_secs(10);
    if by == By::Reqwest {
        let builder = reqwest::Client::builder().connect_timeout(CONNECT).tcp_keepalive(KEEPALIVE).pool_idle_timeout(IDLE);
        return Ok(Http::Reqwest(builder.retry(reqwest::retry::never()).no_proxy().build()?));
    }
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    let mut builder = Client::builder(TokioExecutor::new());
    Ok(Http::Pool(Box::new(builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector))))
}

impl Agent {
    /// Opens the session at an agent.
    pub async fn connect(address: &str, by: By) -> Outcome<Self> {
        let short = client(by)?;
        let session = json!({ "TTL": "3600s", "NodeChecks": [], "LockDelay": "0s", "Behavior": "delete" }).to_string();
        let create = format!("http://{address}/v1/session/create").parse()?;
        let opened: Value = serde_json::from_slice(&short.ask(Method::PUT, create, session).await?.body)?;
        let session = opened["ID"].as_str().ok_or("Consul opened no session")?.to_owned();
        let destroy = format!("http://{address}/v1/session/destroy/{session}").parse()?;
        let (keys, txn) = (format!("http://{address}/v1/kv/").parse()?, format!("http://{address}/v1/txn").parse()?);
        let room = Semaphore::new(CONNECTIONS);
        Ok(Self { keys, txn, session, destroy, value: BASE64.encode(value()), short, waiting: client(by)?, room })
    }

    /// Ends the session, and with it all keys that it locks, which answers the requests that wait for one of them. An agent would keep those, and count their
    /// connections, also when the client has gone.
    async fn end(&self) -> Outcome<()> {
        let answer = self.short.ask(Method::PUT, self.destroy.clone(), String::new()).await?;
        if answer.status == StatusCode::OK { Ok(()) } else { Err(answer.unexpected()) }
    }

    /// One operation on a key that concerns the session, as a transaction has it.
    fn operation(&self, verb: &str, key: &str, value: &str) -> String {
        format!(r#"{{"KV":{{"Verb":"{verb}","Key":"{key}","Value":"{value}","Session":"{}"}}}}"#, self.session)
    }

    /// The same with the mark of a lock, and with what stands in a key that is held.
    fn flagged(&self, verb: &str, key: &str) -> String {
        let Self { session, value, .. } = self;
        format!(r#"{{"KV":{{"Verb":"{verb}","Key":"{key}","Value":"{value}","Flags":{FLAGS},"Session":"{session}"}}}}"#)
    }

    /// A transaction; `None` when it was refused.
    async fn txn(&self, operations: String) -> Outcome<Option<Bytes>> {
        let _room = self.room.acquire().await?;
        let answer = self.short.ask(Method::PUT, self.txn.clone(), operations).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer.body)),
            StatusCode::CONFLICT => Ok(None),
            _ => Err(answer.unexpected()),
        }
    }

    /// A request that is answered at once.
    async fn get(&self, target: &str) -> Outcome<Answer> {
        let _room = self.room.acquire().await?;
        self.short.ask(Method::GET, self.url(target), String::new()).await
    }

    /// A request that may wait.
    async fn wait(&self, target: &str) -> Outcome<Answer> {
        self.waiting.ask(Method::GET, self.url(target), String::new()).await
    }

    fn url(&self, target: &str) -> Url {
        let (key, query) = target.split_once('?').map_or((target, None), |(key, query)| (key, Some(query)));
        let mut url = self.keys.clone();
        url.set_path(&format!("{}{key}", self.keys.path()));
        url.set_query(query);
        url
    }
}

impl Answer {
    /// The keys that were asked for; none where there are none.
    fn entries(&self) -> Outcome<Vec<Entry>> {
        match self.status {
            StatusCode::OK => Ok(serde_json::from_slice(&self.body)?),
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> Box<dyn std::error::Error + Send + Sync> {
        format!("Consul answered {}: {}", self.status, String::from_utf8_lossy(&self.body)).into()
    }
}

impl Http {
    async fn ask(&self, method: Method, url: Url, body: String) -> Outcome<Answer> {
        let index = |headers: &HeaderMap| headers.get("x-consul-index").and_then(|index| index.to_str().ok()?.parse().ok());
        match self {
            Self::Reqwest(client) => {
                let answer = client.request(method, url).body(body).send().await?;
                let (status, index) = (answer.status(), index(answer.headers()));
                Ok(Answer { status, index, body: answer.bytes().await? })
            }
            Self::Pool(client) => {
                let request = Request::builder().method(method).uri(url.as_str()).body(Full::from(body))?;
                let answer = client.request(request).await?;
                let (status, index) = (answer.status(), index(answer.headers()));
                Ok(Answer { status, index, body: answer.into_body().collect().await?.to_bytes() })
            }
        }
    }
}
