//! What stands in the value of a key, whoever put it there.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dlock_core::{ClaimId, Holder, LockBackend, Metadata, Place, Published, SessionId};
use serde_json::json;

use super::consul::{Told, at_once, claim, ok};

/// The bytes as the value of a held key, as that value in base64, and as entries to publish: lines `name=value`.
pub fn metadata(bytes: &[u8]) {
    let holder = shown(&STANDARD.encode(bytes));
    match &holder.published {
        Published::Metadata(metadata) => {
            let map: BTreeMap<String, String> = serde_json::from_slice(bytes).expect("metadata is a JSON object of strings");
            assert!(metadata.iter().eq(map.iter().map(|(name, value)| (name.as_str(), value.as_str()))), "nothing is lost");
        }
        Published::Raw(raw) => {
            assert_eq!(raw, bytes, "what is not ours is shown as it was found");
            assert!(serde_json::from_slice::<BTreeMap<String, String>>(bytes).is_err());
        }
    }
    written_and_read(&holder.published);
    if let Some(id) = holder.claim() {
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(ClaimId::from_bits(id.bits()), id);
    }

    let text = String::from_utf8_lossy(bytes);
    written_and_read(&shown(&text).published);
    publish(&text);
}

/// The holder of a key with this value.
fn shown(value: &str) -> Holder {
    let entry = json!([{ "Key": "locks/a", "Flags": FLAGS, "ModifyIndex": 9, "Session": "s", "Value": value }]);
    let (consul, _) = Told::backend([ok(entry.to_string())]);
    let mut seen = at_once(consul.inspect(&claim(None).key)).expect("an entry can be read whatever its value is");
    let holder = seen.holders.pop().expect("it is held");
    assert_eq!(holder.session, Some(SessionId::new("s")));
    holder
}

fn written_and_read(published: &Published) {
    let text = serde_json::to_string(published).expect("it can be written");
    assert_eq!(serde_json::from_str::<Published>(&text).expect("and read"), *published, "{text}");
}

/// What a claim publishes comes back to whoever looks.
fn publish(text: &str) {
    let mut metadata = Metadata::new();
    for line in text.lines() {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        match metadata.insert(name, value) {
            Ok(()) => assert_eq!(metadata.get(name), Some(value)),
            Err(reserved) => {
                assert!(Metadata::RESERVED.contains(&name));
                assert!(reserved.to_string().contains(name), "{reserved}");
            }
        }
    }
    let claim = claim(Some(metadata.clone()));
    let absent = dlock_consul::Answer { status: 404, index: Some(3), body: String::new() };
    let granted = json!({ "Results": [{ "KV": { "Key": "locks/a", "ModifyIndex": 9 } }], "Errors": null });
    let (consul, told) = Told::backend([absent, ok(granted.to_string())]);
    at_once(consul.claim(&SessionId::new("s"), &claim, Place::Try)).expect("it is granted");
    let ops: serde_json::Value = serde_json::from_slice(&told.sent()[1].body).expect("a transaction is JSON");
    let holder = shown(ops[1]["KV"]["Value"].as_str().expect("a lock carries a value"));
    assert_eq!(holder.published, Published::Metadata(claim.published()));
    let written = |what: serde_json::Result<String>| what.expect("strings by name are JSON");
    assert_eq!(written(serde_json::to_string(&claim.publication())), written(serde_json::to_string(&claim.published())));
    assert_eq!(holder.claim(), Some(claim.id));
    assert_eq!(holder.owner(), Some(&*claim.owner));
    assert_eq!(holder.acquired_at(), Some(&*claim.acquired_at));
    assert!(metadata.iter().all(|(name, value)| claim.published().get(name) == Some(value)));
}

/// Those of Go's locks.
const FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;
