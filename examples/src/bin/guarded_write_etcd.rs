//! How do I let etcd itself refuse the write of a holder that stood still for too long?
//!
//! `cargo run -p dlock-examples --features etcd --bin guarded_write_etcd -- [ADDRESS]` with the address of a member, `127.0.0.1:2379` by default;
//! takes some seconds, since the first holder stands still until its session has lapsed.

use std::error::Error;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dlock::{Etcd, Locker, Ownership};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};

type Failure = Box<dyn Error + Send + Sync>;

const LOCK: &str = "guarded/balance-lock";
const DATA: &str = "guarded/balance";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_owned());
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
    Ok(Locker::builder(Etcd::from_url(&format!("etcd://{address}"))?).ttl(Duration::from_secs(3)).build()?)
}

/// Whether etcd took the write: in one transaction with the question whether the lock's entry is still that of this grant.
async fn write(address: &str, ownership: &Ownership, value: &str) -> Result<bool, Failure> {
    let held = Compare::create_revision(ownership.key.as_str(), CompareOp::Equal, i64::try_from(ownership.revision)?);
    let txn = Txn::new().when([held]).and_then([TxnOp::put(DATA, value, None)]);
    let mut client = Client::connect([address], None).await?;
    Ok(client.txn(txn).await?.succeeded())
}

fn told(taken: bool) -> &'static str {
    if taken { "taken" } else { "refused" }
}
