//! The lock service inside etcd, by `etcd-client`: the server stands in line for its callers.

use etcd_client::{Client, LockOptions};

use crate::Outcome;
use crate::raw::etcd;

/// A client with a lease that nobody renews.
pub struct LockService {
    client: Client,
    lease: i64,
}

impl LockService {
    /// Opens the lease at a member.
    pub async fn connect(address: &str) -> Outcome<Self> {
        let client = etcd::connect(address).await?;
        let lease = etcd::lease(&client).await?;
        Ok(Self { client, lease })
    }

    /// Leaves nothing there.
    pub async fn end(&self) -> Outcome<()> {
        etcd::revoke(&self.client, self.lease).await
    }

    /// Takes a key, and waits for it while another has it; what names it there.
    pub async fn lock(&self, key: &str) -> Outcome<Vec<u8>> {
        let options = LockOptions::new().with_lease(self.lease);
        Ok(self.client.lock_client().lock(key, Some(options)).await?.key().to_vec())
    }

    /// Gives it back.
    pub async fn unlock(&self, name: Vec<u8>) -> Outcome<()> {
        self.client.lock_client().unlock(name).await?;
        Ok(())
    }
}
