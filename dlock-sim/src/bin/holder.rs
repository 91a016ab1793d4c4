//! Another process that holds a lock: `holder ADDRESS KEY TTL-IN-MILLISECONDS`; says when it holds it, and gives it back at the end
//! of its input. The address is a Consul agent's, that of an etcd after `etcd://`,
//! or a file after `sqlite://`.

use std::sync::Arc;
use std::time::Duration;

use dlock::Locker;
use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{LockBackend, TtlRange};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_sqlite::{Sqlite, SqliteOptions};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, key, ttl] = arguments.as_slice() else { return Err("usage: holder ADDRESS KEY TTL-IN-MILLISECONDS".into()) };
    let range = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    let backend: Arc<dyn LockBackend> = match address.split_once("://") {
        Some(("etcd", endpoint)) => Arc::new(Etcd::new(EtcdOptions::new().endpoints([endpoint])?.ttl_range(range))?),
        Some(("sqlite", _)) => Arc::new(Sqlite::new(SqliteOptions::from_url(address)?.ttl_range(range)?)?),
        _ => Arc::new(Consul::new(ConsulOptions::new().address(address)?.ttl_range(range))?),
    };
    let locker = Locker::builder_from_arc(backend).ttl(Duration::from_millis(ttl.parse()?)).name("holder").build()?;
    let guard = locker.lock(key).await?;
    println!("held");
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    guard.release().await?;
    locker.shutdown(Duration::from_secs(2)).await;
    Ok(())
}
