//! What the numbers were measured on.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::Outcome;

/// The machine, and how the program was started.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    rustc: String,
    /// Runnable processes over the minute before.
    load: f64,
    date: String,
    arguments: String,
    /// Of the servers.
    pub versions: Vec<String>,
    /// How long everything took.
    pub took: Duration,
}

/// With more than this share of its cores in use before the start, a machine is called loaded.
const LOADED: f64 = 0.25;

impl Machine {
    /// Looks at this one; what it does not tell is left out.
    pub fn look() -> Outcome<Self> {
        let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor =
            told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name.to_owned());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Self {
            processor: processor.unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            rustc: rustc(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            arguments: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            ..Self::default()
        })
    }

    /// As lines of Markdown.
    pub fn told(&self) -> String {
        let mut text = String::new();
        let command = format!("cargo run --release -p dlock-bench -- {}", self.arguments);
        let command = command.trim_end_matches([' ', '-']);
        _ = writeln!(text, "- {}: `{command}`, {:.0?} in all", self.date, self.took);
        _ = writeln!(text, "- {}, {} cores, Linux {}, {}", self.processor, self.cores, self.kernel, self.rustc);
        _ = writeln!(text, "- {}, servers, client and load on the same machine", self.versions.join(", "));
        let cores = self.load / self.cores.max(1) as f64;
        let loaded = if cores > LOADED { "**the machine was busy with something else**" } else { "the machine was idle" };
        _ = writeln!(text, "- load over the minute before: {:.2}; {loaded}", self.load);
        text
    }
}

fn rustc() -> String {
    let told = Command::new("rustc").arg("--version").output();
    told.map_or_else(|_| "rustc unknown".to_owned(), |told| String::from_utf8_lossy(&told.stdout).trim().to_owned())
}
