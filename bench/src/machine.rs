//! What the numbers were measured on.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::Duration;

use procfs::process::{Stat, all_processes};
use procfs::{CpuTime, CurrentSI, KernelStats};

use crate::Outcome;

/// The machine, and how the program was started.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    rustc: String,
    /// What the processors had done when the run began.
    before: Option<Usage>,
    /// Which share of them others had meanwhile.
    others: Option<f64>,
    date: String,
    arguments: String,
    /// Of the servers.
    pub versions: Vec<String>,
    /// How long everything took.
    pub took: Duration,
}

/// What the processors did until now, in their ticks.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// For this process, and for those that it started.
    own: u64,
    /// For any; not for packets on their way, which are for the most part ours.
    any: u64,
    /// Including idleness.
    all: u64,
}

/// With more than this share of its processors used by others, a machine is called busy.
const BUSY: f64 = 0.1;

impl Machine {
    /// Looks at this one; what it does not tell is left out.
    pub fn look(arguments: &str) -> Outcome<Self> {
        let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor =
            told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name.to_owned());
        Ok(Self {
            processor: processor.unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            rustc: rustc(),
            before: Usage::look().ok(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            arguments: arguments.to_owned(),
            ..Self::default()
        })
    }

    /// Notes what others did meanwhile; to be called while the servers still run.
    pub fn watched(&mut self) {
        self.others = self.before.zip(Usage::look().ok()).map(|(before, now)| now.of_others_since(before));
    }

    /// As lines of Markdown.
    pub fn told(&self) -> String {
        let mut text = String::new();
        let command = format!("cargo run --release -p dlock-bench -- {}", self.arguments);
        let command = command.trim_end_matches([' ', '-']);
        _ = writeln!(text, "- {}: `{command}`, {:.0?} in all", self.date, self.took);
        _ = writeln!(text, "- {}, {} cores, Linux {}, {}", self.processor, self.cores, self.kernel, self.rustc);
        if !self.versions.is_empty() {
            _ = writeln!(text, "- {}, servers, client and load on the same machine", self.versions.join(", "));
        }
        if let Some(others) = self.others {
            let busy = if others > BUSY { "**the machine was busy with something else**" } else { "the machine was ours" };
            _ = writeln!(text, "- others had {:.0} % of the processors while this ran; {busy}", others * 100.0);
        }
        text
    }
}

impl Usage {
    fn look() -> Outcome<Self> {
        let CpuTime { user, nice, system, idle, iowait, irq, softirq, steal, .. } = KernelStats::current()?.total;
        // What another machine of the same host takes is taken by others, too.
        let any = user + nice + system + steal.unwrap_or_default();
        let all = any + idle + [iowait, irq, softirq].into_iter().flatten().sum::<u64>();
        // Whoever ends in between is counted by its parent.
        let processes: Vec<_> = all_processes()?.flatten().filter_map(|process| process.stat().ok()).collect();
        let mut family = HashSet::from([std::process::id().cast_signed()]);
        let mut known = 0;
        while known < family.len() {
            known = family.len();
            family.extend(
                processes.iter().filter(|process| family.contains(&process.ppid)).map(|process| process.pid).collect::<Vec<_>>(),
            );
        }
        let ticks = |process: &Stat| {
            let ended = process.cutime.saturating_add(process.cstime);
            process.utime + process.stime + u64::try_from(ended).unwrap_or_default()
        };
        let own = processes.iter().filter(|process| family.contains(&process.pid)).map(ticks).sum();
        Ok(Self { own, any, all })
    }

    /// Which share of the processors others had since then.
    fn of_others_since(self, before: Self) -> f64 {
        let others = (self.any - before.any).saturating_sub(self.own - before.own);
        others as f64 / (self.all - before.all).max(1) as f64
    }
}

fn rustc() -> String {
    let told = Command::new("rustc").arg("--version").output();
    told.map_or_else(|_| "rustc unknown".to_owned(), |told| String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_our_own_processes_took_is_not_that_of_others() {
        let before = Usage { own: 10, any: 100, all: 1_000 };
        assert!((Usage { own: 60, any: 200, all: 1_200 }.of_others_since(before) - 0.25).abs() < 1e-9);
        assert!(Usage { own: 200, any: 200, all: 1_200 }.of_others_since(before).abs() < 1e-9);
    }

    #[test]
    fn this_process_is_one_of_ours() {
        let process = procfs::process::Process::myself().unwrap().stat().unwrap();
        assert!(Usage::look().unwrap().own >= process.utime + process.stime);
    }
}
