//! Real servers as child processes, for tests that must not believe a fake.
//!
//! Each server has free ports and a data folder of its own, and is killed when its handle is dropped, or when the thread that started it
//! ends, with or without its process. A missing binary is an error that names the command which installs it; nothing is ever skipped.

mod binary;
mod cluster;
mod consul;
mod etcd;
mod etcd_cluster;
mod etcd_gateway;
mod http;
mod process;
mod shared;
mod start;
mod tls;

pub use binary::MissingBinary;
pub use cluster::ConsulCluster;
pub use consul::{ConsulAgent, ConsulBuilder};
pub use etcd::{EtcdBuilder, EtcdServer};
pub use etcd_cluster::EtcdCluster;
pub use etcd_gateway::{EtcdEntry, EtcdGateway};
pub use http::{HttpReply, http};
pub use process::{Process, mortal};
pub use shared::{shared_consul, shared_etcd};
pub use start::StartError;
