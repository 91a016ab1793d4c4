//! The processes that come from this one, also those that left their group or whose parents are gone.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, waitpid};

/// From here on, processes whose parents end become children of this one, where the system has that: Linux.
pub fn adopt_orphans() {
    // Without it only those that stay in the group are found.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_child_subreaper(Some(getpid()));
}

/// The processes that come from this one and have not ended. Adopted ones that have are waited for, but for the `leader`, whose number must
/// stay its own. Nothing where there is no `/proc`.
pub fn descendants(leader: Option<Pid>) -> Vec<Pid> {
    let me = getpid();
    let processes = processes();
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for (pid, process) in &processes {
        children.entry(process.parent).or_default().push(*pid);
    }
    let (mut found, mut seen, mut next) = (Vec::new(), HashSet::new(), vec![me]);
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if !seen.insert(*child) {
                continue;
            }
            next.push(*child);
            if !processes[child].ended {
                found.push(*child);
            } else if parent == me && leader != Some(*child) {
                // Adopted, and nobody else will.
                let _ = waitpid(Some(*child), WaitOptions::NOHANG);
            }
        }
    }
    found
}

/// Sends a signal to a process group, and to those processes that left it. The group's leader must not have been waited for yet, so that
/// its number is still its own.
pub fn signal_all(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
    for pid in descendants(Some(group)) {
        if group_of(pid) != Some(group) {
            let _ = kill_process(pid, signal);
        }
    }
}

fn group_of(pid: Pid) -> Option<Pid> {
    rustix::process::getpgid(Some(pid)).ok()
}

struct Process {
    parent: Pid,
    ended: bool,
}

fn processes() -> HashMap<Pid, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let numbered = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    numbered.filter_map(|pid| Some((pid, parse(&fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?)?))).collect()
}

/// State and parent, behind the name in parentheses, which may hold anything. See `proc_pid_stat(5)`.
fn parse(stat: &[u8]) -> Option<Process> {
    let behind_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[behind_name..]).ok()?.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    // The first process of all has the parent 0.
    let parent = Pid::from_raw(fields.next()?.parse().ok()?)?;
    Some(Process { parent, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_is_no_field() {
        let process = parse(b"42 (evil) Z 1) S 7 42 42 0").unwrap();
        assert_eq!((process.parent.as_raw_nonzero().get(), process.ended), (7, false));
        assert!(parse(b"42 (ended) Z 7 42").unwrap().ended);
        assert!(parse(b"1 (init) S 0 1").is_none());
        assert!(parse(b"").is_none());
    }

    #[test]
    fn a_child_of_a_child_is_found() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 100 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The line comes once the sleeper is there.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let found = descendants(None);
        assert!(found.len() >= 2, "{found:?}");
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        child.wait().unwrap();
    }
}
