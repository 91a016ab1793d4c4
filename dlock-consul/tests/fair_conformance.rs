//! The conformance suite on a real Consul, with clients in fair mode.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{LockBackend, TtlRange};
use dlock_testkit::conformance::OnConsul;

fn connect(address: SocketAddr) -> Arc<dyn LockBackend> {
    let ttl = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    let options = ConsulOptions::new().address(&address.to_string()).unwrap().ttl_range(ttl);
    Arc::new(Consul::new(options.fair(true)).unwrap())
}

dlock_testkit::conformance! { #[tokio::test] OnConsul::start(connect).await.fair() }
