//! A bare client of etcd, put if absent and delete; and the lock service inside etcd.

use std::time::Duration;

use etcd_client::{
    Channel, Client, Compare, CompareOp, ConnectOptions, LockOptions, PutOptions, Txn, TxnOp, TxnResponse, WatchFilterType,
    WatchOptions,
};
use tokio::sync::Semaphore;
use tonic::transport::Endpoint;

use super::value;
use crate::Outcome;

/// A client with a lease of its own.
pub struct Raw {
    client: Client,
    lease: i64,
    value: String,
    room: Semaphore,
}

/// How long a lease lives that nobody renews.
const LEASE_SECONDS: i64 = 3_600;
/// So many transactions are under way at most: etcd refuses more than some thousands.
const AT_ONCE: usize = 1_000;

impl Raw {
    /// Opens the lease at a member, over a connection like that of dlock.
    pub async fn connect(address: &str) -> Outcome<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true);
        let options = ConnectOptions::new().with_require_leader(true);
        let client = Client::from_channel(Channel::Tonic(endpoint.connect().await?), Some(options)).await?;
        let lease = client.lease_client().grant(LEASE_SECONDS, None).await?.id();
        Ok(Self { client, lease, value: value(), room: Semaphore::new(AT_ONCE) })
    }

    /// Takes a key, and waits for it while another has it.
    pub async fn lock(&self, key: &str) -> Outcome<()> {
        loop {
            let absent = Compare::create_revision(key, CompareOp::Equal, 0);
            let put = TxnOp::put(key, self.value.as_str(), Some(PutOptions::new().with_lease(self.lease)));
            let answer = self.txn(Txn::new().when([absent]).and_then([put])).await?;
            if answer.succeeded() {
                return Ok(());
            }
            let seen = answer.header().ok_or("etcd told no revision")?.revision();
            self.free(key, seen).await?;
        }
    }

    /// Gives the key back.
    pub async fn unlock(&self, key: &str) -> Outcome<()> {
        let delete = Txn::new().and_then([TxnOp::delete(key, None)]);
        self.txn(delete).await.map(drop)
    }

    async fn txn(&self, txn: Txn) -> Outcome<TxnResponse> {
        let _room = self.room.acquire().await?;
        Ok(self.client.kv_client().txn(txn).await?)
    }

    /// Returns when the key was deleted after this revision.
    async fn free(&self, key: &str, seen: i64) -> Outcome<()> {
        let options = WatchOptions::new().with_start_revision(seen + 1).with_filters([WatchFilterType::NoPut]);
        let mut news = self.client.watch_client().watch(key, Some(options)).await?;
        while let Some(told) = news.message().await? {
            if !told.events().is_empty() {
                return Ok(());
            }
        }
        Err("etcd ended the watch".into())
    }

    /// Takes a key by the lock service; what names it there.
    pub async fn service_lock(&self, key: &str) -> Outcome<Vec<u8>> {
        let options = LockOptions::new().with_lease(self.lease);
        Ok(self.client.lock_client().lock(key, Some(options)).await?.key().to_vec())
    }

    /// Gives it back.
    pub async fn service_unlock(&self, name: Vec<u8>) -> Outcome<()> {
        self.client.lock_client().unlock(name).await?;
        Ok(())
    }
}
