//! Bare clients of etcd: a lease that nobody renews, and requests over a connection like that of dlock.

use std::time::Duration;

use etcd_client::{
    Channel, Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, Txn, TxnOp, TxnResponse, WatchFilterType,
    WatchOptions,
};
use tokio::sync::Semaphore;
use tonic::transport::Endpoint;

use super::value;
use crate::Outcome;

pub mod key;
pub mod line;

/// A client with a lease of its own.
pub struct Member {
    client: Client,
    lease: i64,
    value: String,
    room: Semaphore,
}

/// How long a lease lives that nobody renews.
const LEASE_SECONDS: i64 = 3_600;
/// So many transactions are under way at most: etcd refuses more than some thousands.
const AT_ONCE: usize = 1_000;

/// A connection like that of dlock.
pub async fn connect(address: &str) -> Outcome<Client> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true);
    let options = ConnectOptions::new().with_require_leader(true);
    Ok(Client::from_channel(Channel::Tonic(endpoint.connect().await?), Some(options)).await?)
}

/// A lease on that connection that lives long enough without renewals.
pub async fn lease(client: &Client) -> Outcome<i64> {
    Ok(client.lease_client().grant(LEASE_SECONDS, None).await?.id())
}

/// Ends a lease, and with it all its keys.
pub async fn revoke(client: &Client, lease: i64) -> Outcome<()> {
    client.lease_client().revoke(lease).await?;
    Ok(())
}

/// How many keys there are whose names begin so.
pub async fn held(address: &str, prefix: &str) -> Outcome<usize> {
    let counted = GetOptions::new().with_prefix().with_count_only();
    let shown = connect(address).await?.kv_client().get(prefix, Some(counted)).await?;
    Ok(usize::try_from(shown.count())?)
}

impl Member {
    /// Opens the lease at a member.
    async fn connect(address: &str) -> Outcome<Self> {
        let client = connect(address).await?;
        let lease = lease(&client).await?;
        Ok(Self { client, lease, value: value(), room: Semaphore::new(AT_ONCE) })
    }

    async fn end(&self) -> Outcome<()> {
        revoke(&self.client, self.lease).await
    }

    /// Looks, and writes the key, if all these are absent.
    async fn put(&self, key: &str, absent: &[&str], look: Option<TxnOp>) -> Outcome<TxnResponse> {
        let absent: Vec<_> = absent.iter().map(|key| Compare::create_revision(*key, CompareOp::Equal, 0)).collect();
        let put = TxnOp::put(key, self.value.as_str(), Some(PutOptions::new().with_lease(self.lease)));
        let operations: Vec<_> = look.into_iter().chain([put]).collect();
        let _room = self.room.acquire().await?;
        Ok(self.client.kv_client().txn(Txn::new().when(absent).and_then(operations)).await?)
    }

    async fn delete(&self, key: &str) -> Outcome<()> {
        let _room = self.room.acquire().await?;
        self.client.kv_client().delete(key, None).await?;
        Ok(())
    }

    /// Deletes the key that was made at this revision, and no later one.
    async fn delete_made(&self, key: &str, created: i64) -> Outcome<()> {
        let same = Compare::create_revision(key, CompareOp::Equal, created);
        let _room = self.room.acquire().await?;
        let answer = self.client.kv_client().txn(Txn::new().when([same]).and_then([TxnOp::delete(key, None)])).await?;
        if answer.succeeded() { Ok(()) } else { Err("a raw client of etcd lost its entry".into()) }
    }

    /// Returns when the key was deleted after this revision.
    async fn gone(&self, key: &[u8], seen: i64) -> Outcome<()> {
        let options = WatchOptions::new().with_start_revision(seen + 1).with_filters([WatchFilterType::NoPut]);
        let mut news = self.client.watch_client().watch(key, Some(options)).await?;
        while let Some(told) = news.message().await? {
            if !told.events().is_empty() {
                return Ok(());
            }
        }
        Err("etcd ended the watch".into())
    }
}

/// At which revision something was so.
fn revision(header: Option<&etcd_client::ResponseHeader>) -> Outcome<i64> {
    Ok(header.ok_or("etcd told no revision")?.revision())
}
