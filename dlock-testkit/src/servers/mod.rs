//! Real servers as child processes, for tests that must not believe a fake.
//!
//! Each server has free ports and a data folder of its own, and is killed when its handle is dropped, or when the thread that started it
//! ends, with or without its process. A missing binary is an error that names the command which installs it; nothing is ever skipped.

mod binary;
mod cluster;
mod consul;
mod http;
mod process;
mod shared;
mod tls;

pub use binary::MissingBinary;
pub use cluster::ConsulCluster;
pub use consul::{ConsulAgent, ConsulBuilder, StartError};
pub use http::{HttpReply, http};
pub use process::{Process, mortal};
pub use shared::shared_consul;
