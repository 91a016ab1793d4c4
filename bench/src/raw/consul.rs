//! A bare client of Consul: `lock` and `unlock` in a transaction each.

use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::value;
use crate::Outcome;

/// A client with a session of its own.
pub struct Raw {
    base: String,
    session: String,
    value: String,
    short: Client,
    waiting: Client,
    room: Semaphore,
}

/// As many connections for requests that are answered at once as dlock uses by default, whatever the concurrency.
const CONNECTIONS: usize = 15;

impl Raw {
    /// Opens the session at an agent.
    pub async fn connect(address: &str) -> Outcome<Self> {
        let client = || {
            let builder = Client::builder().connect_timeout(Duration::from_secs(1)).tcp_keepalive(Duration::from_secs(10));
            builder.retry(reqwest::retry::never()).no_proxy().build()
        };
        let (base, short) = (format!("http://{address}"), client()?);
        let session = json!({ "TTL": "3600s", "NodeChecks": [], "LockDelay": "0s" }).to_string();
        let opened = short.put(format!("{base}/v1/session/create")).body(session).send().await?.text().await?;
        let opened: Value = serde_json::from_str(&opened)?;
        let session = opened["ID"].as_str().ok_or("Consul opened no session")?.to_owned();
        // It happens to be base64, as Consul demands.
        let value = value();
        Ok(Self { base, session, value, short, waiting: client()?, room: Semaphore::new(CONNECTIONS) })
    }

    /// Takes a key, and waits for it while another has it.
    pub async fn lock(&self, key: &str) -> Outcome<()> {
        let mut index = None;
        while !self.txn("lock", key).await? {
            index = Some(self.free(key, index).await?);
        }
        Ok(())
    }

    /// Gives the key back.
    pub async fn unlock(&self, key: &str) -> Outcome<()> {
        if self.txn("unlock", key).await? { Ok(()) } else { Err("a raw client of Consul lost its lock".into()) }
    }

    async fn txn(&self, verb: &str, key: &str) -> Outcome<bool> {
        let body = format!(r#"[{{"KV":{{"Verb":"{verb}","Key":"{key}","Value":"{}","Session":"{}"}}}}]"#, self.value, self.session);
        let _room = self.room.acquire().await?;
        let answer = self.short.put(format!("{}/v1/txn", self.base)).body(body).send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        match status {
            200 => Ok(true),
            409 => Ok(false),
            _ => Err(format!("Consul answered {status}: {text}").into()),
        }
    }

    /// Returns when nobody has the key, with the index at which that was seen.
    async fn free(&self, key: &str, mut index: Option<u64>) -> Outcome<u64> {
        loop {
            let mut url = format!("{}/v1/kv/{key}", self.base);
            if let Some(index) = index {
                url += &format!("?index={index}&wait=55s");
            }
            let answer = self.waiting.get(url).send().await?;
            let seen = answer.headers().get("x-consul-index").and_then(|seen| seen.to_str().ok()?.parse().ok());
            let entries: Value = serde_json::from_str(&answer.text().await?).unwrap_or_default();
            index = seen;
            if entries[0]["Session"].is_null() {
                return seen.ok_or_else(|| "Consul told no index".into());
            }
        }
    }
}
