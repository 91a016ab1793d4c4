//! What is written of a claim is what it publishes.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlock_core::{Claim, ClaimId, Key, Metadata, Mode};

/// Before, between, behind and beside the names that dlock writes itself, and those too: metadata may come from what another published.
const NAMES: [&str; 12] = [
    "",
    "a",
    "claim",
    "claima",
    "clain",
    "fencingToken",
    "lock",
    "lockAcquisitionTime",
    "lockAcquisitionTimes",
    "owner",
    "zo\u{eb}",
    "\"\\\t",
];

fn claim(metadata: Option<Metadata>) -> Claim {
    Claim {
        id: ClaimId::from_bits(0x5eed),
        key: Key::new("orders/42").unwrap(),
        mode: Mode::Exclusive,
        owner: "host/7/\"worker\"\n\u{1}".into(),
        acquired_at: "2026-01-02T03:04:05Z".into(),
        metadata: metadata.map(Arc::new),
    }
}

fn metadata(entries: &BTreeMap<&str, String>) -> Metadata {
    serde_json::from_str(&serde_json::to_string(entries).unwrap()).unwrap()
}

#[test]
fn it_is_the_same_to_the_byte_as_the_map_of_it() {
    assert!(Metadata::RESERVED.iter().all(|name| NAMES.contains(name)), "{:?}", Metadata::RESERVED);
    let mut claims = vec![claim(None)];
    for chosen in 0..1_u32 << NAMES.len() {
        let chosen = NAMES.into_iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1);
        let entries = chosen.map(|(bit, name)| (name, format!("{bit}\0\u{1f512}\r\"{name}"))).collect();
        claims.push(claim(Some(metadata(&entries))));
    }
    for claim in claims {
        let (written, map) = (claim.publication(), claim.published());
        assert_eq!(serde_json::to_string(&written).unwrap(), serde_json::to_string(&map).unwrap());
    }
}
