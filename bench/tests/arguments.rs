//! What cannot be measured or written is told before anything is measured.

use std::process::{Command, Output};

fn told(arguments: &[&str], without_servers: bool) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlock-bench"));
    if without_servers {
        command.env("PATH", "/nonexistent").env("CARGO_TARGET_DIR", "/nonexistent").env_remove("CONSUL_BIN").env_remove("ETCD_BIN");
    }
    let Output { status, stderr, stdout } = command.args(arguments).output().unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[test]
fn a_name_that_is_no_question_is_told_with_those_that_are() {
    let (code, told) = told(&["--only", "latency"], false);
    assert_eq!(code, Some(2));
    assert!(
        ["uncontended", "handover", "idle", "throughput", "overhead", "scale"].iter().all(|name| told.contains(name)),
        "{told}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_before_servers_start() {
    let (code, told) = told(&["--out", "/dev/null/results"], false);
    assert_eq!(code, Some(1));
    assert!(told.starts_with("error: nothing can be written to /dev/null/results: "), "{told}");
}

#[test]
fn a_missing_server_is_told_with_what_installs_it() {
    let folder = tempfile::tempdir().unwrap();
    let (code, told) = told(&["--quick", "--out", folder.path().to_str().unwrap()], true);
    assert_eq!(code, Some(1));
    assert!(told.contains("error: no ") && told.contains("./scripts/install-servers.sh"), "{told}");
}

#[test]
fn the_help_tells_what_is_measured_how_long_it_takes_and_what_is_written() {
    let (code, told) = told(&["--help"], false);
    assert_eq!(code, Some(0));
    assert!(["minutes", "report.md", "--quick"].iter().all(|word| told.contains(word)), "{told}");
    assert!(!told.contains("tenure") && !told.contains("Commands:"), "{told}");
}
