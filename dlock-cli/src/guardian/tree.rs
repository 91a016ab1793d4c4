//! The processes that come from this one, also those that left their group or whose parents are gone.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, wait, waitpid};

/// From here on, processes whose parents end become children of this one, where the system has that: Linux.
pub fn adopt_orphans() {
    // Without it only those that stay in the group are found.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_child_subreaper(Some(getpid()));
}

/// The processes that come from this one and have not ended, without those `except`, which are children of this one, and without what comes from them.
/// Nothing where there is no `/proc`; one that is quick to fork may be missed.
pub fn descendants(except: &[Pid]) -> Vec<Pid> {
    let processes = processes();
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for (pid, process) in &processes {
        children.entry(process.parent).or_default().push(*pid);
    }
    let (mut found, mut seen, mut next) = (Vec::new(), HashSet::new(), vec![getpid()]);
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if except.contains(child) || !seen.insert(*child) {
                continue;
            }
            next.push(*child);
            if !processes[child].ended {
                found.push(*child);
            }
        }
    }
    found
}

/// The children of this process.
pub fn children() -> Vec<Pid> {
    let me = getpid();
    processes().into_iter().filter(|(_, process)| process.parent == me).map(|(pid, _)| pid).collect()
}

/// Waits for those adopted children that have ended, but for these.
pub fn reap_adopted(except: &[Pid]) {
    let me = getpid();
    for (pid, process) in processes() {
        if process.parent == me && process.ended && !except.contains(&pid) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Waits for all children that have ended, the leader of a group too. Whether there are no others: then, since orphans are adopted, nothing is left
/// that comes from this process.
pub fn reap_all() -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// Sends a signal to a process group, and to those that left it. The group's leader must not have been waited for yet, so that its number is
/// still its own.
pub fn signal_all(group: Option<Pid>, signal: Signal, except: &[Pid]) {
    if let Some(group) = group {
        let _ = kill_process_group(group, signal);
    }
    for pid in descendants(except) {
        if group.is_none() || rustix::process::getpgid(Some(pid)).ok() != group {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Kills what comes from this process again and again for a moment, without a pause: some fork faster than one look takes.
pub fn chase(except: &[Pid]) {
    for _ in 0..200 {
        let children = children_now(except);
        if children.is_empty() {
            return;
        }
        for pid in children {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The children of this process, as the kernel lists them by thread; one read and no more.
fn children_now(except: &[Pid]) -> Vec<Pid> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<_> =
        lists.flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect();
    pids.into_iter().filter_map(Pid::from_raw).filter(|pid| !except.contains(pid)).collect()
}

struct Process {
    parent: Pid,
    ended: bool,
}

fn processes() -> HashMap<Pid, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let numbered = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    numbered.filter_map(|pid| Some((pid, look_at(pid)?))).collect()
}

fn look_at(pid: Pid) -> Option<Process> {
    let folder = format!("/proc/{}", pid.as_raw_nonzero());
    let mut process = parse(&fs::read(format!("{folder}/stat")).ok()?)?;
    // Where only the first thread has ended, the others go on.
    if process.ended {
        process.ended = fs::read_dir(format!("{folder}/task")).map_or(true, |threads| threads.count() < 2);
    }
    Some(process)
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
        let found = descendants(&[]);
        assert!(found.len() >= 2, "{found:?}");
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        child.wait().unwrap();
    }
}
