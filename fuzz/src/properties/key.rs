//! The names of locks.

use dlock_core::{InvalidKey, Key, LockBackend};

use super::consul::{Told, at_once};

/// The bytes as the name of a lock.
pub fn key(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    match Key::new(&name) {
        Ok(key) => {
            assert_eq!(key.as_str(), name, "a key is kept verbatim");
            assert_eq!(name.parse(), Ok(key.clone()));
            assert_eq!(key.as_str(), cleaned(&name), "a store that cleans paths takes another key");
            reaches_consul_verbatim(&key);
        }
        Err(refused) => {
            assert_eq!(name.parse::<Key>(), Err(refused.clone()));
            says_why(&name, &refused);
        }
    }
}

/// As Go's `path.Clean` does to the path of a request.
fn cleaned(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => _ = segments.pop(),
            _ => segments.push(segment),
        }
    }
    segments.join("/")
}

fn reaches_consul_verbatim(key: &Key) {
    let (consul, told) = Told::backend([]);
    assert!(at_once(consul.inspect(key)).is_err(), "nobody answered");
    let target = told.sent().remove(0).target;
    let path = target.strip_prefix("/v1/kv/").and_then(|target| target.strip_suffix("?consistent")).expect("the key is read");
    assert_eq!(decoded(path), key.as_str().as_bytes(), "{target}");
    assert_eq!(path.matches('/').count(), key.as_str().matches('/').count(), "{target}");
}

fn decoded(path: &str) -> Vec<u8> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16)).expect("two digits follow");
        decoded.push((digit() * 16 + digit()) as u8);
    }
    decoded
}

fn says_why(name: &str, refused: &InvalidKey) {
    let message = refused.to_string();
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
    match refused {
        InvalidKey::Empty => assert!(name.is_empty()),
        InvalidKey::TooLong { bytes } => {
            assert!(name.len() > Key::MAX_BYTES && *bytes == name.len());
            assert!(message.contains(&bytes.to_string()), "{message}");
        }
        InvalidKey::ControlCharacter { character } => {
            assert!(character.is_control() && name.contains(*character));
            assert!(message.contains(&format!("{character:?}")), "{message}");
        }
        InvalidKey::EmptySegment { key } => assert!(key == name && name.split('/').any(str::is_empty)),
        InvalidKey::DotSegment { key } => assert!(key == name && name.split('/').any(|segment| matches!(segment, "." | ".."))),
        other => panic!("a reason that is not checked here: {other:?}"),
    }
}
