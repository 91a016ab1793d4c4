//! Everything that fuzzing found worth keeping still keeps its properties; see `fuzz/`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

#[path = "../../fuzz/src/properties/mod.rs"]
mod properties;

#[test]
fn consul_answers() {
    replay("consul_answers", properties::consul_answers);
}

#[test]
fn consul_config() {
    replay("consul_config", properties::consul_config);
}

#[test]
fn durations() {
    replay("durations", properties::durations);
}

#[test]
fn etcd_config() {
    replay("etcd_config", properties::etcd_config);
}

#[test]
fn keys() {
    replay("key", properties::key);
}

#[test]
fn metadata() {
    replay("metadata", properties::metadata);
}

#[test]
fn plans() {
    replay("plan", properties::plan);
}

#[test]
fn store_urls() {
    replay("store_url", properties::store_url);
}

/// Runs every input of a target, and says so; fails when there is none.
fn replay(target: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} holds no input", folder.display());
    for input in &inputs {
        let bytes = fs::read(input).unwrap();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| property(&bytes))) {
            eprintln!("broken by {}", input.display());
            resume_unwind(panic);
        }
    }
    println!("proof: fuzz corpus, {target}: {} inputs, every property kept", inputs.len());
}
