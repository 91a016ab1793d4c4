//! What people read: a table for each question, what must hold and whether it does, and pictures.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use dlock_testkit::memory::Call;

use crate::Outcome;
use crate::arm::{Arm, Server};
use crate::machine::Machine;
use crate::scenario::handover::{Handover, Placement};
use crate::scenario::idle::Idle;
use crate::scenario::overhead::Overhead;
use crate::scenario::scale::{Crowd, Fleet, Requests, profile_name};
use crate::scenario::throughput::Throughput;
use crate::scenario::uncontended::Uncontended;
use crate::stats::{Samples, Summary};
use crate::svg::{Axis, Bars, Lines};
use crate::target::verdicts;
use crate::worker::Kept;

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
    /// What dlock itself costs.
    pub overhead: Vec<Overhead>,
    /// Many clients with a lock each.
    pub fleets: Vec<Fleet>,
    /// Many clients that want one lock.
    pub crowds: Vec<Crowd>,
}

const HEAD: &str = "# What dlock costs

Written by `cargo run --release -p dlock-bench`. Times hold for the machine below alone; ratios and counts travel. \"Raw\" is a bare client that sends the
fewest requests that can do the work over the same kind of connection, with no session upkeep, no token and no notice of loss. Everything is measured in
turns, and what is judged in more rounds; a ratio is the median over the rounds that both had of one round's median by the other's, with the range from the 10th to the 90th percentile of those.

What dlock itself adds is judged beside the same requests sent bare: on etcd \"raw line\", on Consul \"raw Consul, guarded\", in fair mode \"raw line\". What those cost more than \"raw\" is the
price, paid in the store, of conditions that keep a late copy of a request from taking or freeing anything.
";
const UNCONTENDED: &str = "
## Lock and release of a free key, session open

![lock and release beside raw](pair.svg)

The raw client of Consul sends its requests by `reqwest`, as dlock does. The row without `reqwest` sends the same over the pool of connections alone that `reqwest`
stands on: the difference is the HTTP client's.

| | requests | p50 | p10 to p90 | p99 | times raw | times the same sent bare |
|---|---|---|---|---|---|---|
";
const HANDOVER: &str = "
## Handover: from the release call to the return of the next lock call

![handover on etcd by waiters](handover-etcd.svg)
![handover on Consul by waiters](handover-consul.svg)

In several processes, up to ten, each contender has a session of its own; in one process the contenders of dlock share a locker, which hands on within the
process. On Consul without a line it leaves the key alone for 25 ms after eight of its own had it, for those elsewhere.

Raw contenders stand as those they are compared with: in line, each watching the one before it, or all before one key. A handover is compared with that of a raw
pair, one that holds and one that waits, in the same place: those of dlock with \"raw line on etcd\", \"raw Consul, guarded\" and \"raw line on Consul\", which take, give
back and stand in line by the same transactions, conditions included, but watch and look at less: dlock on etcd also hears of the end of its own place, and looks at more
of the line. So it does on Consul once it has waited for 250 ms, which costs a connection; these waits are shorter where fewer than thirty wait.

Tenures last 8 ms. Those of etcd's lock service last 150 ms if one waits and 15 ms if ten do, because it hears up to 100 ms late of a release if it has not
waited for so long; those of the commands last 100 ms, until the next process waits, and their handover goes from the end of what one runs to the start of
what the next one runs. Requests are counted in a round of their own, through a proxy: those of all contenders, from one grant to the next.

| | waiting | where | p50 | p10 to p90 | p99 | handovers | times the bare pair | requests per tenure |
|---|---|---|---|---|---|---|---|---|
";
const IDLE: &str = "
## Idle: locks that are just held

![requests of idle locks](idle.svg)

With the default ttl, which is 15 s, and 10 s for rs-consul, each of whose locks has a session of its own that it never renews. Heap is that of the holding
process for each lock beyond the first, watches and idle connections included; tasks are all of its runtime, those of the stores' clients included.

| | locks | held at the end | renewals/s | other requests/s | connections | tasks | bytes of heap per lock |
|---|---|---|---|---|---|---|---|
";
const THROUGHPUT: &str = "
## Throughput: independent keys at once through one client

The raw client of Consul uses as many connections as dlock does for requests that are answered at once; that of etcd has 1000 requests under way at most, with
which it is no slower than with the 256 of dlock; etcd refuses some thousands.

| | keys | pairs/s, p50 | p10 to p90 | times raw | times the same sent bare |
|---|---|---|---|---|---|
";
const FLEETS: &str = "
## Scale: ever more clients with a lock each

![requests after all sessions were lost](loss.svg)

Simulated: each client is a process with a session of its own (ttl 15 s) on the store in memory, which answers at once, in virtual time. All start within a
minute, at random. They hold. The store refuses everything for 3 s, as while a leader is elected. It ends all sessions at once, and all take their locks again as soon
as they hear of it. Counted as the store counts; the same in every run. Heap is that of a client with its part of the store.

| clients | KiB each | holding: renewals/s | all/s | busiest second | starting: busiest second | refused: busiest second | back: busiest second | lost: first 10 ms | first second | busiest second of the rest |
|---|---|---|---|---|---|---|---|---|---|---|
";
const CROWDS: &str = "
## Scale: ever more clients that want one lock

![requests of a handover by waiters](crowd.svg)

Simulated in the same way. Each tenure lasts a second. Requests of a handover are those to release, to be woken, to ask, and to stand in line again; upkeep is all
others. A wait is asked anew after 75 s, which is longer than this was watched.

| the store | waiting | handovers | requests of each | wake-ups of each | upkeep/s | all/s | busiest second |
|---|---|---|---|---|---|---|---|
";
const DEMANDS: &str = "
## What must hold

| demand | measured | |
|---|---|---|
";
const OVERHEAD: &str = "
## What dlock itself costs: lock and release of a free key, without a server

Of the store in memory there are two: in one claims stand in line, in the other a key is free or taken. What is asked of the heap is the median over single
operations; \"grown\" is what was there and grew. Instructions are those that valgrind counts in this program; a change of them by more than 5 % fails
`scripts/counts.sh`, which counts them in a program of its own.

| | p50 | p10 to p90 | allocations | grown | bytes | instructions |
|---|---|---|---|---|---|---|
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
        let (p10, p50, p90, p99) = (time(p10), time(p50), time(p90), time(p99));
        let raw = times(samples, pair_of(findings, arm.floor()));
        let same = times(samples, pair_of(findings, arm.same_sent_bare()));
        _ = writeln!(text, "| {} | {requests} | {p50} | {p10} to {p90} | {p99} | {raw} | {same} |", arm.name());
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
        let heap = one.kept.heap.map_or("–".to_owned(), |heap| format!("{heap:.0}"));
        let Idle { arm, locks, held, connections, kept: Kept { tasks, .. }, .. } = one;
        let (arm, renewals, others) = (arm.name(), second(one.renewals), second(one.others));
        _ = writeln!(text, "| {arm} | {locks} | {held} | {renewals:.2} | {others:.2} | {connections} | {tasks} | {heap} |");
    }
    if !findings.throughput.is_empty() {
        text += THROUGHPUT;
    }
    for one in &findings.throughput {
        if let Some(why) = &one.failure {
            _ = writeln!(text, "| {} | {} | did not get through: {why} | | | |", one.arm.name(), one.keys);
        }
        let Some(Summary { p10, p50, p90, .. }) = one.samples.summary() else { continue };
        let beside = |arm| {
            let other = findings.throughput.iter().find(|other| Some(other.arm) == arm && other.keys == one.keys);
            times(&one.samples, other.map(|other| &other.samples))
        };
        let (raw, same) = (beside(one.arm.floor()), beside(one.arm.same_sent_bare()));
        _ = writeln!(text, "| {} | {} | {p50:.0} | {p10:.0} to {p90:.0} | {raw} | {same} |", one.arm.name(), one.keys);
    }
    if !findings.overhead.is_empty() {
        text += OVERHEAD;
    }
    for Overhead { subject, samples, heap, instructions } in &findings.overhead {
        let Some(Summary { p10, p50, p90, .. }) = samples.summary() else { continue };
        let (p10, p50, p90) = (time(p10), time(p50), time(p90));
        let counted = instructions.map_or("not counted".to_owned(), |instructions| instructions.to_string());
        let (told, allocations, grown, bytes) = (subject.told(), heap.allocations, heap.reallocations, heap.bytes);
        _ = writeln!(text, "| {told} | {p50} | {p10} to {p90} | {allocations} | {grown} | {bytes} | {counted} |");
    }
    scale(findings, &mut text);
    text + LEFT_OUT
}

fn scale(findings: &Findings, text: &mut String) {
    if !findings.fleets.is_empty() {
        *text += FLEETS;
    }
    for Fleet { clients, starting, idle, refused, back, burst, lost, heap } in &findings.fleets {
        let (renewals, all) = (a_second(idle, |second| second.of(Call::Renew)), a_second(idle, Requests::all));
        let busy = [idle, starting, refused, back].map(|seconds| busiest(seconds).to_string()).join(" | ");
        let (heap, burst, first, rest) = (heap / 1024.0, burst.all(), busiest(&lost[..1]), busiest(&lost[1..]));
        _ = writeln!(text, "| {clients} | {heap:.1} | {renewals:.0} | {all:.0} | {busy} | {burst} | {first} | {rest} |");
    }
    if !findings.crowds.is_empty() {
        *text += CROWDS;
    }
    for crowd in &findings.crowds {
        let Crowd { profile, waiters, seconds, handovers } = crowd;
        let (profile, all, busiest) = (profile_name(*profile), a_second(seconds, Requests::all), busiest(seconds));
        let (each, wakes) = (crowd.requests_of_each(), crowd.of_each(Call::Wait));
        let upkeep = all - each * *handovers as f64 / seconds.len() as f64;
        _ = writeln!(text, "| {profile} | {waiters} | {handovers} | {each:.1} | {wakes:.1} | {upkeep:.0} | {all:.0} | {busiest} |");
    }
}

fn busiest(seconds: &[Requests]) -> u64 {
    seconds.iter().map(|second| second.all()).max().unwrap_or_default()
}

fn a_second(seconds: &[Requests], count: impl Fn(Requests) -> u64) -> f64 {
    seconds.iter().map(|second| count(*second)).sum::<u64>() as f64 / seconds.len().max(1) as f64
}

fn pictures(findings: &Findings) -> Vec<(&'static str, String)> {
    let mut pictures = Vec::new();
    let bar = |one: &Uncontended| {
        let ratio = one.samples.ratio_to(pair_of(findings, one.arm.floor())?)?;
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
            pictures
                .push((file, Lines { title: title.into(), across, upwards, series: lines }.drawn_on(Axis::Tens, Axis::Factors)));
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
        pictures.push(("idle.svg", Lines { title, across, upwards, series: lines }.drawn()));
    }
    let mut lines = Vec::new();
    for crowd in &findings.crowds {
        point(&mut lines, profile_name(crowd.profile).to_owned(), crowd.waiters as f64, crowd.requests_of_each());
    }
    if !lines.is_empty() {
        let title = "Requests of a handover, simulated".into();
        let picture = Lines { title, across: "waiting for the lock".into(), upwards: "requests".into(), series: lines };
        pictures.push(("crowd.svg", picture.drawn_on(Axis::Tens, Axis::Tens)));
    }
    if let Some(Fleet { clients, lost, .. }) = findings.fleets.last() {
        let line = |name: &str, count: fn(Requests) -> u64| {
            let points =
                lost.iter().enumerate().map(|(second, requests)| (second as f64 + 1.0, count(*requests) as f64 / *clients as f64));
            (name.to_owned(), points.collect())
        };
        let series = vec![line("all requests", Requests::all), line("renewals", |second| second.of(Call::Renew))];
        let title = format!("After {clients} clients lost their sessions at once, simulated");
        let (across, upwards) = ("seconds since".into(), "requests per client in each second".into());
        pictures.push(("loss.svg", Lines { title, across, upwards, series }.drawn_on(Axis::Even, Axis::Even)));
    }
    pictures
}

fn point(lines: &mut Vec<(String, Vec<(f64, f64)>)>, name: String, across: f64, up: f64) {
    match lines.iter_mut().find(|line| line.0 == name) {
        Some(line) => line.1.push((across, up)),
        None => lines.push((name, vec![(across, up)])),
    }
}

fn pair_of(findings: &Findings, arm: Option<Arm>) -> Option<&Samples> {
    findings.uncontended.iter().find(|one| Some(one.arm) == arm).map(|one| &one.samples)
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
    if micros.abs() < 1.0 {
        format!("{:.0} ns", micros * 1e3)
    } else if micros.abs() < 100.0 {
        format!("{micros:.1} µs")
    } else {
        format!("{:.2} ms", micros / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dlock_counts::{Heap, Subject};
    use dlock_testkit::memory::Profile;

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
            Idle {
                arm: Arm::Etcd,
                locks,
                held: locks,
                watched,
                renewals: 2,
                others: locks,
                connections: 1,
                kept: Kept { heap, tasks: 5 },
            }
        };
        let overhead = |subject, value, instructions| {
            let heap = Heap { allocations: 20, reallocations: 1, bytes: 512 };
            Overhead { subject, samples: samples(&[value]), heap, instructions }
        };
        let flood = |arm, value| Throughput { arm, keys: 10, samples: samples(&[value]), failure: None };
        let second = |each| Requests::counted(move |kind| if kind == Call::Renew { each * 10 } else { each });
        let fleet = Fleet {
            clients: 100,
            starting: vec![second(1), second(3)],
            idle: vec![second(1), second(2)],
            refused: vec![second(4)],
            back: vec![second(5)],
            burst: second(6),
            lost: vec![second(7), second(8), second(1)],
            heap: 2_048.0,
        };
        let crowd = Crowd { profile: Profile::Queue, waiters: 99, seconds: vec![second(4), second(4)], handovers: 2 };
        Findings {
            uncontended: vec![
                pair(Arm::RawEtcd, &[500.0, 500.0]),
                pair(Arm::RawEtcdLine, &[550.0, 550.0]),
                pair(Arm::Etcd, &[550.0, 600.0]),
            ],
            handover: vec![
                handover(Arm::RawEtcdLine, 1, 1_000.0),
                handover(Arm::Etcd, 1, 1_100.0),
                handover(Arm::Etcd, 10, 3_000.0),
            ],
            idle: vec![idle(1, None), idle(100, Some(800.0))],
            throughput: vec![flood(Arm::RawEtcd, 2_000.0), flood(Arm::RawEtcdLine, 2_500.0), flood(Arm::Etcd, 1_000.0)],
            overhead: vec![overhead(Subject::Core, 0.0625, Some(600)), overhead(Subject::LockerQueue, 3.0, None)],
            fleets: vec![fleet],
            crowds: vec![crowd],
        }
    }

    #[test]
    fn the_report_tells_what_was_measured_and_what_was_missed() {
        let text = told("- a machine\n", &findings());
        for line in [
            "| dlock on etcd | 2.00 | 0.60 ms | 0.55 ms to 0.60 ms | 0.60 ms | 1.20 (1.10 to 1.20) | 1.09 (1.00 to 1.09) |",
            "| dlock on etcd | 10 | several processes | 3.00 ms | 3.00 ms to 3.00 ms | 3.00 ms | 1 | 3.00 (3.00 to 3.00) | 4.0 |",
            "| dlock on etcd | 100 | 100 | 0.20 | 10.00 | 1 | 5 | 800 |",
            "| dlock on etcd | 10 | 1000 | 1000 to 1000 | 0.50 (0.50 to 0.50) | 0.40 (0.40 to 0.40) |",
            "| lock and release, dlock on etcd: at most 1.1 times the same requests sent bare | 1.09 | held |",
            "| the pure machines alone | 62 ns | 62 ns to 62 ns | 20 | 1 | 512 | 600 |",
            "| through a `Locker` on the store in memory, queue | 3.0 µs | 3.0 µs to 3.0 µs | 20 | 1 | 512 | not counted |",
            "| handover to the other of two processes, dlock on etcd: at most 1.2 times the same requests sent bare | 1.10 | held |",
            "| throughput with 10 keys, dlock on etcd: at least 0.8 times the same requests sent bare | 0.40 | **missed** |",
            "| 100 | 2.0 | 15 | 27 | 36 | 54 | 72 | 90 | 108 | 126 | 144 |",
            "| like etcd | 99 | 2 | 16.0 | 4.0 | 56 | 72 | 72 |",
            "| handover with 99 waiting, simulated like etcd: one wake-up and one request | 4.00 and 4.00 | **missed** |",
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
        for name in ["report.md", "pair.svg", "handover-etcd.svg", "idle.svg", "crowd.svg", "loss.svg"] {
            assert!(fs::read_to_string(results.join(name)).is_ok_and(|text| !text.is_empty()), "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_told_with_its_name() {
        let error = prepare(Path::new("/dev/null/results")).unwrap_err().to_string();
        assert!(error.starts_with("nothing can be written to /dev/null/results: "), "{error}");
    }
}
