//! The conformance suite on a real etcd.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{LockBackend, TtlRange};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_testkit::conformance::{AsPermits, OnEtcd};

fn connect(address: SocketAddr) -> Arc<dyn LockBackend> {
    let ttl = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };
    let options = EtcdOptions::new().endpoints([address.to_string()]).unwrap().ttl_range(ttl);
    Arc::new(Etcd::new(options).unwrap())
}

mod exclusive {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test] OnEtcd::start(connect).await }
}

/// A permit is an exclusive lock where all others are taken.
mod last_permit {
    use super::*;

    dlock_testkit::conformance! { #[tokio::test] AsPermits::new(OnEtcd::start(connect).await, 5) }
}
