//! The etcd backend of [dlock](https://docs.rs/dlock-rs): locks as queues of entries under leases, on etcd's v3 API.
//!
//! [`Etcd`] is the backend, [`EtcdOptions`] says where etcd is and how to speak to it. Programs in Go that use `concurrency.Mutex` or
//! `concurrency.Election` on the same name, and `etcdctl lock` and `etcdctl elect`, wait in one line with it, first come, first served.
//!
//! # Building
//! Needs `protoc`, the protocol buffers compiler: `apt-get install protobuf-compiler libprotobuf-dev` on Debian and Ubuntu, or `PROTOC` set to its path.

mod ahead;
mod api;
mod backend;
mod calls;
mod classify;
mod config;
mod dialer;
mod endpoints;
mod line;
mod notes;
mod probe;
mod roll;
mod several;
mod stream;
mod watch;
mod wire;

pub use backend::Etcd;
pub use config::{ConfigError, EtcdOptions};
pub use dialer::{Connection, Dialer};
