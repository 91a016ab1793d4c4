//! The Consul backend of [dlock](https://docs.rs/dlock-rs): locks as sessions and guarded keys, on Consul's HTTP API.
//!
//! [`Consul`] is the backend, [`ConsulOptions`] says where Consul is and how to speak to it. Programs in Go that use `api.Lock` or
//! `sameervitian/dlock` on the same key, and `consul lock`, are excluded by it and exclude it.

mod api;
mod backend;
mod classify;
mod config;
mod connector;
mod fair;
mod guarded;
mod http;
mod notes;
mod probe;
mod session;
mod several;
mod tls;
mod transport;
mod waits;
mod watch;
mod wire;

pub use backend::Consul;
pub use config::{Behavior, ConfigError, ConsulOptions};
pub use several::consul_operations;
pub use transport::{Answer, Lane, Method, Request, Transport, TransportError, TransportErrorKind};
