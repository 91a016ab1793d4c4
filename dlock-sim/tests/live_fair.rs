//! Locks on a real three-server Consul in fair mode, while servers, workers and the network between them fail.
#![allow(missing_docs)]

mod live_support;

use std::time::Duration;

use dlock_sim::live::Store;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fenced_update_is_lost_in_line_while_everything_fails() -> Result<(), Vec<String>> {
    live_support::outlive_a_storm(Store::ConsulFair, Duration::from_secs(2)).await
}
