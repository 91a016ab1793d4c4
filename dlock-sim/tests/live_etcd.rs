//! Locks on a real etcd of three members with users, while members, workers and the network between them fail.
#![allow(missing_docs)]

mod live_support;

use std::time::Duration;

use dlock_sim::live::Store;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fenced_update_is_lost_while_everything_fails() -> Result<(), Vec<String>> {
    // The least that etcd grants: some elections are over within it, others cost the lock.
    live_support::outlive_a_storm(Store::Etcd, Duration::from_secs(2)).await
}
