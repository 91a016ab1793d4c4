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

/// Names of tests are sentences; other names in code type have fewer words.
fn is_sentence(name: &str) -> bool {
    name.matches('_').count() >= 4 && name.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// The tests that a guide names, with the file in parentheses after them; one such file goes for all the names before it.
fn named_tests(text: &str) -> Vec<(&str, Option<&str>)> {
    // Outside and inside of code type take turns.
    let parts: Vec<&str> = text.split('`').collect();
    let (mut named, mut of_this_file) = (Vec::new(), 0);
    for inside in (1..parts.len()).step_by(2) {
        if !is_sentence(parts[inside]) {
            continue;
        }
        named.push((parts[inside], None));
        let after = parts.get(inside + 1).copied().unwrap_or_default();
        let file = parts
            .get(inside + 2)
            .filter(|file| after == " (" && Path::new(file).extension().is_some_and(|extension| extension == "rs"));
        if let Some(file) = file {
            named[of_this_file..].iter_mut().for_each(|(_, of)| *of = Some(*file));
        }
        if file.is_some() || !matches!(after, ", " | " and ") {
            of_this_file = named.len();
        }
    }
    named
}

#[test]
fn every_test_that_a_guide_names_exists_where_it_says() {
    let mut code = String::new();
    sources(&root(), &mut code);
    let mut guides: Vec<PathBuf> = fs::read_dir(root().join("docs")).unwrap().map(|guide| guide.unwrap().path()).collect();
    guides.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|guide| root().join(guide)));
    let (mut count, mut count_with_file) = (0, 0);
    for guide in guides {
        let (text, guide) = (fs::read_to_string(&guide).unwrap(), guide.display());
        for (name, file) in named_tests(&text) {
            count += 1;
            let function = format!("fn {name}(");
            assert!(code.contains(&function), "{guide} names {name}, which is no function");
            if let Some(file) = file {
                count_with_file += 1;
                let source = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{guide} names {file}: {error}"));
                assert!(source.contains(&function), "{guide} names {name}, which is not in {file}");
            }
        }
    }
    assert!(count > 20 && count_with_file > 10, "only {count} names were found, {count_with_file} with a file");
}
