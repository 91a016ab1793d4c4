//! `consul lock` and `etcdctl lock`: a process for each lock, which runs a command while it holds it.

use std::process::Stdio;
use std::time::Duration;

use dlock_testkit::servers::mortal;
use tokio::process;
use tokio::time::{Instant, timeout_at};

use crate::Outcome;
use crate::arm::Arm;
use crate::worker::Tenure;

/// One of the two.
pub struct Command {
    arm: Arm,
    address: String,
    program: String,
}

impl Command {
    /// At a [place](crate::stores::Stores::place): the server's address and the program.
    pub fn at(arm: Arm, place: &str) -> Outcome<Self> {
        let (address, program) = place.split_once(' ').ok_or("a command is an address and a program")?;
        Ok(Self { arm, address: address.to_owned(), program: program.to_owned() })
    }

    /// Takes the key over and over until then, each time for the life of a process of ours that says when it began and ended.
    pub async fn contend(&self, key: &str, hold: Duration, until: Instant) -> Outcome<Vec<Tenure>> {
        let mut tenures = Vec::new();
        let own = std::env::current_exe()?;
        while Instant::now() < until {
            let mut command = process::Command::from(mortal(&self.program));
            match self.arm {
                Arm::ConsulLock => command.env("CONSUL_HTTP_ADDR", &self.address).args(["lock", "-shell=false", key]),
                _ => command.arg(format!("--endpoints={}", self.address)).args(["lock", key]),
            };
            command.arg(&own).args(["tenure", &hold.as_millis().to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            let Ok(ended) = timeout_at(until, command.spawn()?.wait_with_output()).await else { break };
            let ended = ended?;
            if !ended.status.success() {
                let why = String::from_utf8_lossy(&ended.stderr);
                return Err(format!("{}: {}, {}", self.arm.name(), ended.status, why.trim()).into());
            }
            tenures.push(String::from_utf8_lossy(&ended.stdout).trim().parse()?);
        }
        Ok(tenures)
    }
}
