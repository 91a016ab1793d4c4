//! The `Locker` on a real etcd, in real time.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{LockBackend, TtlRange};
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_testkit::conformance::OnEtcd;

fn connect(address: SocketAddr) -> Arc<dyn LockBackend> {
    let ttl = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };
    let options = EtcdOptions::new().endpoints([address.to_string()]).unwrap().ttl_range(ttl);
    Arc::new(Etcd::new(options).unwrap())
}

dlock_sim::locker_suite! {
    #[tokio::test]
    OnEtcd::start(connect).await.with_second_process(env!("CARGO_BIN_EXE_holder"))
}
