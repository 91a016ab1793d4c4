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

/// Every file of this name in a folder and below it.
fn all_named(name: &str, folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target" && name != ".git") {
            all_named(name, &path, found);
        } else if path.file_name().is_some_and(|file| file == name) {
            found.push(path);
        }
    }
}

#[test]
fn no_manifest_knows_of_planted_bugs() {
    let mut manifests = Vec::new();
    all_named("Cargo.toml", &root(), &mut manifests);
    assert!(manifests.len() >= 8, "only {manifests:?} were found");
    for manifest in manifests {
        let text = fs::read_to_string(&manifest).unwrap();
        assert!(!text.contains("planted"), "{} would be published with it", manifest.display());
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
