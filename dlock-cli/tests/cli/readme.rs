//! The first command of README.md, as a new user types it; what it builds is built already.

use std::process::Command;

use crate::support::{Folder, program};

#[test]
fn the_first_command_of_the_readme_shows_a_job_and_one_that_waits_for_it() {
    let folder = Folder::new();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let first = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(first.starts_with("cargo build -p dlock-cli") && first.contains("run demo"), "{first}");
    std::fs::create_dir(folder.path("bin")).unwrap();
    // `cargo run -qp dlock-cli -- ARGUMENTS`
    program(&folder.path("bin/cargo"), &format!("[ $1 = build ] || {{ shift 4; exec {} \"$@\"; }}", env!("CARGO_BIN_EXE_dlock")));
    let path = format!("{}:{}", folder.path("bin").display(), std::env::var("PATH").unwrap());
    let home = folder.path("home");
    let mut shell = Command::new("sh");
    // No server and no configuration: a home is all there is.
    shell.env_clear().env("PATH", path).env("HOME", &home).arg("-c").arg(first);
    let output = shell.output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(out, "the first is at work\nthe first is done\nnow it is mine\n", "{err}");
    assert!(err.contains("waiting for demo: held by "), "{err}");
}
