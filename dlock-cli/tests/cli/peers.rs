//! `consul lock` and `etcdctl lock` on the same names.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use dlock_testkit::servers::{ConsulAgent, EtcdServer};

use crate::support::{Folder, program, until};

/// A peer that is ended with its test.
struct Peer(Child);

impl Peer {
    fn holds(mut command: Command, mark: &std::path::Path) -> Self {
        let peer = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("the peer's lock", || mark.exists());
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

/// Each is refused while the other has it, and gets it afterwards.
fn exclude_each_other(folder: &Folder, url: &str, key: &str, peer: impl Fn(&Path) -> Command) {
    let (mark, got) = (folder.path("mark"), folder.path("got"));
    let (holds, takes) = (folder.path("holds"), folder.path("takes"));
    program(&holds, &format!("touch {}; exec sleep 30", mark.display()));
    program(&takes, &format!("touch {}", got.display()));
    let holding = Peer::holds(peer(&holds), &mark);
    let arguments = ["--backend", url, "run", "--try", key, "--", "true"];
    let (code, said) = folder.code(&arguments);
    assert_eq!(code, 75, "{said}");
    drop(holding);
    assert_eq!(folder.code(&["--backend", url, "run", "--wait", "100s", key, "--", "true"]).0, 0);

    let ours = folder.start("ours", &["--backend", url, "hold", key]);
    ours.prints("holding");
    let mut takes = peer(&takes);
    let mut waiting = Peer(takes.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    // Another asks while ours has it, and the peer has not got it either.
    assert_eq!(folder.code(&["--backend", url, "run", "--wait", "2s", key, "--", "true"]).0, 75);
    assert!(!got.exists());
    ours.signal("INT");
    until("the peer's turn", || got.exists());
    assert!(waiting.0.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_lock_and_dlock_run_exclude_each_other() {
    let (folder, agent) = (Folder::new(), ConsulAgent::start().await.unwrap());
    exclude_each_other(&folder, &agent.url(), "jobs/nightly/.lock", |script| {
        let mut command = agent.command();
        command.args(["lock", "jobs/nightly"]).arg(script);
        command
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_lock_and_dlock_run_exclude_each_other() {
    let (folder, server) = (Folder::new(), EtcdServer::start().await.unwrap());
    exclude_each_other(&folder, &server.url(), "jobs/nightly", |script| {
        let mut command = server.command();
        command.args(["lock", "--ttl", "5", "jobs/nightly"]).arg(script);
        command
    });
}
