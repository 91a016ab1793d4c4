//! docs/conformance.md says what the suites show: every id of the peers' lists, every case, every store.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dlock_consul::{Consul, ConsulOptions};
use dlock_core::LockBackend;
use dlock_etcd::{Etcd, EtcdOptions};
use dlock_sqlite::{Sqlite, SqliteOptions};
use dlock_testkit::conformance::{Ability, Case, Hook, InMemory, Ledger, NotShown, Outcome};
use dlock_testkit::memory::Memory;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of every table, cell by cell, without headings.
fn rows() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let table = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    table.map(|row| row.split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn cases() -> Vec<Case> {
    dlock_testkit::conformance::CASES.iter().chain(dlock_sim::suite::CASES).copied().collect()
}

/// The rows of the mapping: id, what it asks, what shows it.
fn mapping() -> BTreeMap<String, String> {
    let mut mapping = BTreeMap::new();
    for row in rows() {
        let [id, _, shown] = row.as_slice() else { continue };
        if id == "id" {
            continue;
        }
        assert!(mapping.insert(id.clone(), shown.clone()).is_none(), "{id} stands twice");
    }
    mapping
}

fn numbered(prefix: &str, width: usize, count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(move |n| format!("{prefix}{n:0width$}"))
}

#[test]
fn every_id_of_the_peers_is_shown_by_a_case_or_refused_with_a_reason() {
    let mapping = mapping();
    let mut ids: BTreeSet<String> = numbered("DL-", 2, 58).collect();
    ids.extend(numbered("SL-", 2, 22).chain(numbered("TZ-", 2, 23)).chain(numbered("N", 1, 20)));
    for id in &ids {
        assert!(mapping.contains_key(id), "{id} is missing");
    }
    for (id, shown) in &mapping {
        let refused = shown.strip_prefix("refused: ").is_some_and(|reason| reason.len() > 10);
        assert!(refused || !quoted(shown).is_empty(), "{id} is neither shown nor refused with a reason: {shown}");
    }
    // The lists of HashiCorp and etcd have names instead of numbers.
    let named = mapping.keys().filter(|id| !ids.contains(*id)).count();
    assert!(named >= 80, "{named}");
}

#[test]
fn what_is_named_as_shown_exists() {
    let cases: BTreeSet<_> = cases().iter().map(|case| case.name).collect();
    for (id, shown) in mapping() {
        for name in quoted(&shown) {
            match name.split_once(".rs::") {
                None => assert!(cases.contains(name.as_str()), "{id}: there is no case {name}"),
                Some((file, test)) => {
                    let source = std::fs::read_to_string(root().join(format!("{file}.rs"))).unwrap();
                    assert!(source.contains(&format!("fn {test}(")), "{id}: there is no test {name}");
                }
            }
        }
    }
}

fn cell(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "shown".to_owned(),
        Outcome::NotShown(NotShown::NotClaimed(ability)) => format!("not claimed: {ability}"),
        Outcome::NotShown(NotShown::HookMissing { hook, .. }) => format!("no hook: {hook}"),
        Outcome::Failed(message) => panic!("{message}"),
    }
}

/// As a real server answers that declares the same: its harness lacks no hook.
fn on_server(outcome: &Outcome) -> &Outcome {
    if matches!(outcome, Outcome::NotShown(NotShown::HookMissing { .. })) { &Outcome::Passed } else { outcome }
}

/// As a file answers that declares what the queue does: nothing else than locks stands in it, and there is no server to start again.
fn in_file(name: &str, outcome: &Outcome) -> String {
    match outcome {
        _ if FOREIGN.contains(&name) => format!("no hook: {}", Hook::PutForeign),
        Outcome::NotShown(NotShown::HookMissing { hook: Hook::Restart, .. }) => cell(outcome),
        outcome => cell(on_server(outcome)),
    }
}

/// Cases in which something stands under a key that is no lock.
const FOREIGN: [&str; 4] = [
    "claim::a_key_used_for_something_else_is_a_conflict_and_left_alone",
    "release::what_was_put_over_a_held_key_is_let_go",
    "look::what_is_no_lock_is_shown_raw",
    "leftovers::a_key_used_for_something_else_is_told",
];

/// As a store in memory answers each case.
async fn column(place: usize, harness: fn() -> InMemory) -> Vec<(&'static str, Outcome)> {
    static BACKEND: [Ledger; 3] = [const { Ledger::new(dlock_testkit::conformance::CASES) }; 3];
    static LOCKER: [Ledger; 3] = [const { Ledger::new(dlock_sim::suite::CASES) }; 3];
    let backend = BACKEND[place].report(async || harness()).await;
    let locker = LOCKER[place].report(async || harness()).await;
    backend.outcomes().iter().chain(locker.outcomes()).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn the_table_says_of_every_case_how_each_store_answers() {
    let (queue, line, slot) = (column(0, InMemory::queue).await, column(1, InMemory::line).await, column(2, InMemory::slot).await);
    // Consul declares what the slot declares, in fair mode what the line does, and etcd and SQLite what the queue does; the
    // harnesses of the servers have every hook.
    let (consul, etcd) = (Consul::new(ConsulOptions::new()).unwrap(), Etcd::new(EtcdOptions::new()).unwrap());
    let fair = Consul::new(ConsulOptions::new().fair(true)).unwrap();
    let sqlite = Sqlite::new(SqliteOptions::new("/nowhere/locks.db").unwrap()).unwrap();
    for ability in Ability::ALL {
        for (real, like) in [
            (consul.capabilities(), Memory::slot()),
            (fair.capabilities(), Memory::line()),
            (etcd.capabilities(), Memory::queue()),
            (sqlite.capabilities(), Memory::queue()),
        ] {
            assert_eq!(ability.is_declared(real), ability.is_declared(like.capabilities()), "{ability} {like:?}");
        }
    }
    let mut expected = Vec::new();
    for (((name, queue), (_, line)), (_, slot)) in queue.iter().zip(&line).zip(&slot) {
        let servers = [slot, line, queue].map(|outcome| cell(on_server(outcome)));
        let memory = vec![format!("`{name}`"), cell(queue), cell(line), cell(slot)];
        expected.push([memory, servers.to_vec(), vec![in_file(name, queue)]].concat());
    }
    let told: Vec<_> = rows().into_iter().filter(|row| row.len() == 8 && row[0].starts_with('`')).collect();
    if told != expected {
        let lines: Vec<_> = expected.iter().map(|row| format!("| {} |", row.join(" | "))).collect();
        panic!("the table of docs/conformance.md is to be:\n{}", lines.join("\n"));
    }
}
