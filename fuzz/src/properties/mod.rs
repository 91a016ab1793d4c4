//! What must hold for whatever is read from outside, whichever bytes it is.
//!
//! One function for each fuzz target; it panics when a property is broken. `dlock-sim/tests/fuzz_corpus.rs` includes this folder and replays
//! the corpus on a stable compiler.

// Included, so that what reads the environment need not be public.
#[allow(dead_code, unused_imports)]
#[path = "../../../dlock-consul/src/config/mod.rs"]
mod config;
mod consul;
mod consul_answers;
mod consul_config;
mod durations;
mod etcd_config;
mod key;
mod metadata;
mod plan;
mod store_url;

pub use consul_answers::consul_answers;
pub use consul_config::consul_config;
pub use durations::durations;
pub use etcd_config::etcd_config;
pub use key::key;
pub use metadata::metadata;
pub use plan::plan;
pub use store_url::store_url;
