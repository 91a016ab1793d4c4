//! What the guides say is there.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target" && name != ".git") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_a_guide_names_exists() {
    let mut code = String::new();
    sources(&root(), &mut code);
    let mut named = 0;
    for guide in fs::read_dir(root().join("docs")).unwrap() {
        let guide = guide.unwrap().path();
        let text = fs::read_to_string(&guide).unwrap();
        // Names of tests are sentences; other names in code type have fewer words.
        for name in text.split('`').skip(1).step_by(2) {
            let sentence =
                name.matches('_').count() >= 4 && name.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit());
            if sentence {
                named += 1;
                assert!(code.contains(&format!("fn {name}(")), "{} names {name}, which is no function", guide.display());
            }
        }
    }
    assert!(named > 20, "only {named} names were found");
}
