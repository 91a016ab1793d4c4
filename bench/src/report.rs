//! What people read: a table for each question, what must hold and whether it does, and pictures.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::Outcome;
use crate::arm::{Arm, Server};
use crate::machine::Machine;
use crate::scenario::handover::{Handover, Placement};
use crate::scenario::idle::Idle;
use crate::scenario::throughput::Throughput;
use crate::scenario::uncontended::Uncontended;
use crate::stats::{Samples, Summary};
use crate::svg::{Bars, Lines, Scale};
use crate::target::verdicts;

/// All that was measured; what was not wanted is empty.
#[derive(Default)]
pub struct Findings {
    /// Lock and release of a free key.
    pub uncontended: Vec<Uncontended>,
    /// From a release to the next grant.
    pub handover: Vec<Handover>,
    /// Locks that are just held.
    pub idle: Vec<Idle>,
    /// Many keys at once.
    pub throughput: Vec<Throughput>,
}

const HEAD: &str = "# What dlock costs

Written by `cargo run --release -p dlock-bench`. Times hold for the machine below alone; ratios and counts travel. \"Raw\" is a bare client that sends the
fewest requests that can do the work over the same kind of connection, with no session upkeep, no token and no notice of loss. Everything is measured in
turns; a ratio is the median over the rounds of one round's median by the other's, with the range from the 10th to the 90th percentile of the rounds.
";
const UNCONTENDED: &str = "
## Lock and release of a free key, session open

![lock and release beside raw](pair.svg)

| | requests | p50 | p10 to p90 | p99 | times raw |
|---|---|---|---|---|---|
";
const HANDOVER: &str = "
## Handover: from the release call to the return of the next lock call

![handover on etcd by waiters](handover-etcd.svg)
![handover on Consul by waiters](handover-consul.svg)

In several processes, up to ten, each contender has a session of its own; in one process the contenders of dlock share a locker, which hands on within the
process. On Consul without a line it leaves the key alone for 25 ms after eight of its own had it, for those elsewhere.

Raw contenders stand as those they are compared with: in line, each watching the one before it, or all before one key. They wake up and send one request. A
handover is compared with that of the raw pair of one that holds and one that waits, in the same place.

Tenures last 8 ms. Those of etcd's lock service last 150 ms if one waits and 15 ms if ten do, because it hears up to 100 ms late of a release if it has not
waited for so long; those of the commands last 100 ms, until the next process waits, and their handover goes from the end of what one runs to the start of
what the next one runs. Requests are counted in a round of their own, through a proxy: those of all contenders, from one grant to the next.

| | waiting | where | p50 | p10 to p90 | p99 | handovers | times the raw pair | requests per tenure |
|---|---|---|---|---|---|---|---|---|
";
const IDLE: &str = "
## Idle: locks that are just held

![requests of idle locks](idle.svg)

With the default ttl, which is 15 s, and 10 s for rs-consul, each of whose locks has a session of its own that it never renews. Heap is that of the holding
process for each lock beyond the first, watches and idle connections included.

| | locks | held at the end | renewals/s | other requests/s | connections | bytes of heap per lock |
|---|---|---|---|---|---|---|
";
const THROUGHPUT: &str = "
## Throughput: independent keys at once through one client

The raw client of Consul uses as many connections as dlock does for requests that are answered at once; that of etcd has 1000 requests under way at most, for
etcd refuses some thousands.

| | keys | pairs/s, p50 | p10 to p90 | times raw |
|---|---|---|---|---|
";
const DEMANDS: &str = "
## What must hold

| demand | measured | |
|---|---|---|
";
const LEFT_OUT: &str = "
Not measured: the command `dlock`, clusters of several members, and etcd on a disk that is forced.
";

/// Writes the report and its pictures into a [prepared](prepare) folder; the report.
pub fn write(folder: &Path, machine: &Machine, findings: &Findings) -> Outcome<String> {
    let report = told(&machine.told(), findings);
    fs::write(folder.join("report.md"), &report)?;
    for (name, svg) in pictures(findings) {
        fs::write(folder.join(name), svg)?;
    }
    Ok(report)
}

/// Makes the folder, and finds out whether files can be written there.
pub fn prepare(folder: &Path) -> Outcome<()> {
    let prepared = fs::create_dir_all(folder).and_then(|()| tempfile::NamedTempFile::new_in(folder).map(drop));
    prepared.map_err(|error| format!("nothing can be written to {}: {error}", folder.display()).into())
}

/// The report as Markdown.
fn told(machine: &str, findings: &Findings) -> String {
    let mut text = format!("{HEAD}\n{machine}");
    let verdicts = verdicts(findings);
    if !verdicts.is_empty() {
        text += DEMANDS;
    }
    for verdict in verdicts {
        let held = if verdict.held { "held" } else { "**missed**" };
        _ = writeln!(text, "| {} | {} | {held} |", verdict.demand, verdict.measured);
    }
    if !findings.uncontended.is_empty() {
        text += UNCONTENDED;
    }
    for Uncontended { arm, requests, samples } in &findings.uncontended {
        let Some(Summary { p10, p50, p90, p99, .. }) = samples.summary() else { continue };
        let requests = requests.map_or("–".to_owned(), |requests| format!("{requests:.2}"));
        let floor = pair_floor(findings, *arm);
        let (p10, p50, p90, p99, times) = (time(p10), time(p50), time(p90), time(p99), times(samples, floor));
        _ = writeln!(text, "| {} | {requests} | {p50} | {p10} to {p90} | {p99} | {times} |", arm.name());
    }
    if !findings.handover.is_empty() {
        text += HANDOVER;
    }
    for one in &findings.handover {
        let (arm, waiters, placement) = (one.arm.name(), one.waiters, one.placement.name());
        if let Some(why) = &one.failure {
            _ = writeln!(text, "| {arm} | {waiters} | {placement} | did not get through: {why} | | | | | |");
        }
        let Some(Summary { count, p10, p50, p90, p99 }) = one.samples.summary() else { continue };
        let (p10, p50, p90, p99) = (time(p10), time(p50), time(p90), time(p99));
        let times = times(&one.samples, handover_floor(findings, one));
        let requests = one.requests.map_or("–".to_owned(), |requests| format!("{requests:.1}"));
        _ = writeln!(text, "| {arm} | {waiters} | {placement} | {p50} | {p10} to {p90} | {p99} | {count} | {times} | {requests} |");
    }
    if !findings.idle.is_empty() {
        text += IDLE;
    }
    for one in &findings.idle {
        let second = |count: usize| count as f64 / one.watched.as_secs_f64();
        let heap = one.heap.map_or("–".to_owned(), |heap| format!("{heap:.0}"));
        let Idle { arm, locks, held, connections, .. } = one;
        let (arm, renewals, others) = (arm.name(), second(one.renewals), second(one.others));
        _ = writeln!(text, "| {arm} | {locks} | {held} | {renewals:.2} | {others:.2} | {connections} | {heap} |");
    }
    if !findings.throughput.is_empty() {
        text += THROUGHPUT;
    }
    for one in &findings.throughput {
        if let Some(why) = &one.failure {
            _ = writeln!(text, "| {} | {} | did not get through: {why} | | |", one.arm.name(), one.keys);
        }
        let Some(Summary { p10, p50, p90, .. }) = one.samples.summary() else { continue };
        let floor = findings.throughput.iter().find(|other| Some(other.arm) == one.arm.floor() && other.keys == one.keys);
        let times = times(&one.samples, floor.map(|floor| &floor.samples));
        _ = writeln!(text, "| {} | {} | {p50:.0} | {p10:.0} to {p90:.0} | {times} |", one.arm.name(), one.keys);
    }
    text + LEFT_OUT
}

fn pictures(findings: &Findings) -> Vec<(&'static str, String)> {
    let mut pictures = Vec::new();
    let bar = |one: &Uncontended| {
        let ratio = one.samples.ratio_to(pair_floor(findings, one.arm)?)?;
        Some((one.arm.name().to_owned(), ratio.p50))
    };
    let shown =
        [Arm::Etcd, Arm::RawEtcdLine, Arm::LockService, Arm::Consul, Arm::RawConsulLine, Arm::Fair, Arm::RsConsul, Arm::Sqlite];
    let bars: Vec<_> = findings.uncontended.iter().filter(|one| shown.contains(&one.arm)).filter_map(bar).collect();
    if !bars.is_empty() {
        let (title, unit) = ("Lock and release of a free key".into(), "times the raw client (dashed line: raw)".into());
        pictures.push(("pair.svg", Bars { title, unit, mark: 1.0, values: bars }.drawn()));
    }
    for (file, title, server) in [
        ("handover-etcd.svg", "Handover between processes on etcd, median", Server::Etcd),
        ("handover-consul.svg", "Handover between processes on Consul, median", Server::Consul),
    ] {
        let mut lines = Vec::new();
        // Who hands on within a process stands in the table; here it would hide the others. Commands are far above all others.
        let shown =
            |one: &&Handover| one.arm.server() == Some(server) && one.placement == Placement::Spread && !one.arm.is_command();
        for one in findings.handover.iter().filter(shown) {
            let Some(summary) = one.samples.summary() else { continue };
            point(&mut lines, one.arm.name().to_owned(), one.waiters as f64, summary.p50 / 1e3);
        }
        if !lines.is_empty() {
            let (across, upwards) = ("waiting for the lock".into(), "milliseconds".into());
            pictures.push((file, Lines { title: title.into(), across, upwards, scale: Scale::Factors, series: lines }.drawn()));
        }
    }
    let mut lines = Vec::new();
    // What is not upkept has nothing to show.
    for one in findings.idle.iter().filter(|one| one.arm.is_dlock()) {
        let second = |count: usize| count as f64 / one.watched.as_secs_f64();
        point(&mut lines, format!("{}, renewals", one.arm.name()), one.locks as f64, second(one.renewals));
        point(&mut lines, format!("{}, all requests", one.arm.name()), one.locks as f64, second(one.renewals + one.others));
    }
    if !lines.is_empty() {
        let title = "Requests of locks that are just held".into();
        let (across, upwards) = ("held locks".into(), "requests per second".into());
        pictures.push(("idle.svg", Lines { title, across, upwards, scale: Scale::Sums, series: lines }.drawn()));
    }
    pictures
}

fn point(lines: &mut Vec<(String, Vec<(f64, f64)>)>, name: String, across: f64, up: f64) {
    match lines.iter_mut().find(|line| line.0 == name) {
        Some(line) => line.1.push((across, up)),
        None => lines.push((name, vec![(across, up)])),
    }
}

fn pair_floor(findings: &Findings, arm: Arm) -> Option<&Samples> {
    findings.uncontended.iter().find(|one| Some(one.arm) == arm.floor()).map(|one| &one.samples)
}

/// The pair of bare clients in the same place, however many wait for ours; `None` for that pair itself.
fn handover_floor<'a>(findings: &'a Findings, of: &Handover) -> Option<&'a Samples> {
    if of.arm.handover_floor() == of.arm && of.waiters == 1 {
        return None;
    }
    let in_place = findings.handover.iter().filter(|one| one.placement == of.placement && one.waiters == 1);
    in_place.into_iter().find(|one| one.arm == of.arm.handover_floor()).map(|one| &one.samples)
}

fn times(samples: &Samples, floor: Option<&Samples>) -> String {
    let ratio = floor.and_then(|floor| samples.ratio_to(floor));
    ratio.map_or("–".to_owned(), |Summary { p10, p50, p90, .. }| format!("{p50:.2} ({p10:.2} to {p90:.2})"))
}

fn time(micros: f64) -> String {
    if micros.abs() < 100.0 { format!("{micros:.1} µs") } else { format!("{:.2} ms", micros / 1e3) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn findings() -> Findings {
        let samples = |values: &[f64]| {
            let mut samples = Samples::default();
            for value in values {
                samples.add(vec![*value]);
            }
            samples
        };
        let pair = |arm, values: &[f64]| Uncontended { arm, requests: Some(2.0), samples: samples(values) };
        let handover = |arm, waiters, value| Handover {
            arm,
            placement: Placement::Spread,
            waiters,
            samples: samples(&[value]),
            requests: Some(4.0),
            failure: None,
        };
        let idle = |locks, heap| {
            let watched = Duration::from_secs(10);
            Idle { arm: Arm::Etcd, locks, held: locks, watched, renewals: 2, others: locks, connections: 1, heap }
        };
        let flood = |arm, value| Throughput { arm, keys: 10, samples: samples(&[value]), failure: None };
        Findings {
            uncontended: vec![pair(Arm::RawEtcd, &[500.0, 500.0]), pair(Arm::Etcd, &[550.0, 600.0])],
            handover: vec![
                handover(Arm::RawEtcdLine, 1, 1_000.0),
                handover(Arm::Etcd, 1, 1_100.0),
                handover(Arm::Etcd, 10, 3_000.0),
            ],
            idle: vec![idle(1, None), idle(100, Some(800.0))],
            throughput: vec![flood(Arm::RawEtcd, 2_000.0), flood(Arm::Etcd, 1_000.0)],
        }
    }

    #[test]
    fn the_report_tells_what_was_measured_and_what_was_missed() {
        let text = told("- a machine\n", &findings());
        for line in [
            "| dlock on etcd | 2.00 | 0.60 ms | 0.55 ms to 0.60 ms | 0.60 ms | 1.20 (1.10 to 1.20) |",
            "| dlock on etcd | 10 | several processes | 3.00 ms | 3.00 ms to 3.00 ms | 3.00 ms | 1 | 3.00 (3.00 to 3.00) | 4.0 |",
            "| dlock on etcd | 100 | 100 | 0.20 | 10.00 | 1 | 800 |",
            "| dlock on etcd | 10 | 1000 | 1000 to 1000 | 0.50 (0.50 to 0.50) |",
            "| handover to the other of two processes, dlock on etcd: at most 1.2 times raw | 1.10 | held |",
            "| throughput with 10 keys, dlock on etcd: at least 0.8 times raw | 0.50 | **missed** |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_was_not_measured_has_no_table_and_no_picture() {
        let text = told("- a machine\n", &Findings::default());
        assert!(!text.contains('|') && text.contains("- a machine"), "{text}");
        assert!(pictures(&Findings::default()).is_empty());
    }

    #[test]
    fn report_and_pictures_are_written_into_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("results");
        prepare(&results).unwrap();
        write(&results, &Machine::default(), &findings()).unwrap();
        for name in ["report.md", "pair.svg", "handover-etcd.svg", "idle.svg"] {
            assert!(fs::read_to_string(results.join(name)).is_ok_and(|text| !text.is_empty()), "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_told_with_its_name() {
        let error = prepare(Path::new("/dev/null/results")).unwrap_err().to_string();
        assert!(error.starts_with("nothing can be written to /dev/null/results: "), "{error}");
    }
}
