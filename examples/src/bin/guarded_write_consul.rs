//! How do I let Consul itself refuse the write of a holder that stood still for too long?
//!
//! `cargo run -p dlock-examples --bin guarded_write_consul -- [ADDRESS]` with the address of an agent, `127.0.0.1:8500` by default; takes some
//! 20 seconds, since the first holder stands still until its session has lapsed.

use std::error::Error;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dlock::{ConsulOptions, Locker, Ownership, consul_operations};
use serde_json::{Value, json};

type Failure = Box<dyn Error + Send + Sync>;

const LOCK: &str = "guarded/balance-lock";
const DATA: &str = "guarded/balance";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8500".to_owned());
    let ((holds, held), (go_on, goes_on)) = (channel(), channel());
    let first = {
        let address = address.clone();
        // A thread of its own, with a runtime that stands still when it does.
        std::thread::spawn(move || first_holder(&address, move || holds.send(()), &goes_on))
    };
    tokio::task::spawn_blocking(move || held.recv()).await??;

    let locker = locker(&address)?;
    let second = locker.lock(LOCK).await?;
    println!("second: holds the lock");
    println!("second: its write is {}", told(write(&address, &second.ownership()?, "250").await?));
    go_on.send(())?;
    let refused = tokio::task::spawn_blocking(move || first.join()).await?;
    refused.map_err(|_| "the first holder panicked")??;
    second.release().await?;
    locker.shutdown(Duration::from_secs(3)).await;
    Ok(())
}

/// Takes the lock, stands still until it is told to go on, and writes as if nothing had happened.
fn first_holder<E: Error + Send + Sync + 'static>(
    address: &str,
    holds: impl FnOnce() -> Result<(), E>,
    goes_on: &Receiver<()>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let locker = locker(address)?;
        let guard = locker.lock(LOCK).await?;
        let ownership = guard.ownership()?;
        println!("first: holds the lock; its write is {}", told(write(address, &ownership, "100").await?));
        holds()?;
        goes_on.recv()?;
        println!("first: goes on; its write is {}", told(write(address, &ownership, "90").await?));
        Ok(())
    })
}

fn locker(address: &str) -> Result<Locker, Failure> {
    let options = ConsulOptions::new().address(address)?;
    Ok(Locker::builder(dlock::Consul::new(options)?).ttl(Duration::from_secs(10)).build()?)
}

/// Whether Consul took the write: in one transaction with the question whether the lock is still held by this grant.
async fn write(address: &str, ownership: &Ownership, value: &str) -> Result<bool, Failure> {
    let set = json!({"KV": {"Verb": "set", "Key": DATA, "Value": base64(value)}});
    let operations: Vec<Value> = consul_operations(ownership).into_iter().chain([set]).collect();
    let request = reqwest::Client::new().put(format!("http://{address}/v1/txn")).body(Value::from(operations).to_string());
    let answer = request.send().await?;
    match answer.status().as_u16() {
        200 => Ok(true),
        409 => Ok(false),
        status => Err(format!("Consul answered {status}: {}", answer.text().await?).into()),
    }
}

fn base64(value: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(value)
}

fn told(taken: bool) -> &'static str {
    if taken { "taken" } else { "refused" }
}
