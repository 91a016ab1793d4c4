//! What was recorded, and how what is counted now differs from it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use dlock_counts::Heap;

/// What one operation of each subject took, by the subjects' names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Whatever the toolchain.
    pub heap: BTreeMap<String, Heap>,
    /// By the toolchain.
    pub instructions: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What one operation of each subject takes now.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Of the heap.
    pub heap: BTreeMap<String, Heap>,
    /// Instructions.
    pub instructions: BTreeMap<String, u64>,
}

/// By so many hundredths instructions may differ: the C library and valgrind are not part of the toolchain.
const TOLERANCE: u64 = 5;

impl Baseline {
    /// As it was recorded; an empty one if nothing was.
    pub fn read(path: &Path) -> io::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(serde_json::from_str(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Takes in what was counted with a toolchain. What others counted stays.
    pub fn record(&mut self, toolchain: &str, counted: Counted) {
        self.heap = counted.heap;
        self.instructions.insert(toolchain.to_owned(), counted.instructions);
    }

    /// For [`read`](Self::read).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }

    /// Whether there are instructions of a toolchain.
    pub fn knows(&self, toolchain: &str) -> bool {
        self.instructions.contains_key(toolchain)
    }

    /// Everything in which what is counted now differs, in words. Instructions of a toolchain that is not known are not compared.
    pub fn differences(&self, toolchain: &str, counted: &Counted) -> Vec<String> {
        let mut differences = Vec::new();
        for subject in names(&self.heap, &counted.heap) {
            let (recorded, now) = (self.heap.get(subject), counted.heap.get(subject));
            if recorded.map(counts) != now.map(counts) {
                differences.push(format!("{subject}: {}, and {} recorded", told(now), told(recorded)));
            }
        }
        let Some(recorded) = self.instructions.get(toolchain) else { return differences };
        for subject in names(recorded, &counted.instructions) {
            let (Some(&recorded), Some(&now)) = (recorded.get(subject), counted.instructions.get(subject)) else {
                differences.push(format!("{subject}: its instructions are counted only here, or only in what is recorded"));
                continue;
            };
            if recorded.abs_diff(now) * 100 > recorded * TOLERANCE {
                let change = (now as f64 / recorded as f64 - 1.0) * 100.0;
                differences.push(format!("{subject}: {now} instructions, {change:+.1} % of the {recorded} recorded"));
            }
        }
        differences
    }
}

/// What must stay as it is.
fn counts(heap: &Heap) -> (usize, usize) {
    (heap.allocations, heap.reallocations)
}

fn told(heap: Option<&Heap>) -> String {
    heap.map_or("none".to_owned(), |heap| format!("{} allocations that grow {} times", heap.allocations, heap.reallocations))
}

fn names<'a, A, B>(one: &'a BTreeMap<String, A>, other: &'a BTreeMap<String, B>) -> impl Iterator<Item = &'a str> {
    one.keys().chain(other.keys().filter(|name| !one.contains_key(*name))).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "rustc 1.95.0, x86_64";

    fn counted(allocations: usize, instructions: u64) -> Counted {
        let heap = Heap { allocations, reallocations: 2, bytes: 100 };
        let by_name = |name: &str| name.to_owned();
        Counted { heap: [(by_name("locker"), heap)].into(), instructions: [(by_name("locker"), instructions)].into() }
    }

    fn recorded() -> Baseline {
        let mut baseline = Baseline::default();
        baseline.record(HERE, counted(20, 1_000));
        baseline
    }

    #[test]
    fn a_twentieth_more_or_less_is_no_difference() {
        for instructions in [950, 1_000, 1_050] {
            assert_eq!(recorded().differences(HERE, &counted(20, instructions)), Vec::<String>::new());
        }
    }

    #[test]
    fn more_than_that_is_told_in_either_direction() {
        let told = |instructions| recorded().differences(HERE, &counted(20, instructions)).concat();
        assert_eq!(told(1_051), "locker: 1051 instructions, +5.1 % of the 1000 recorded");
        assert_eq!(told(949), "locker: 949 instructions, -5.1 % of the 1000 recorded");
    }

    #[test]
    fn one_allocation_is_told_whatever_the_toolchain() {
        let told = recorded().differences("another", &counted(21, 5_000));
        assert_eq!(told, ["locker: 21 allocations that grow 2 times, and 20 allocations that grow 2 times recorded"]);
    }

    #[test]
    fn what_is_counted_and_not_recorded_is_told_and_so_is_the_reverse() {
        let none = Counted::default();
        assert_eq!(recorded().differences(HERE, &none).len(), 2);
        let baseline = Baseline { instructions: [(HERE.to_owned(), BTreeMap::new())].into(), ..Baseline::default() };
        assert_eq!(baseline.differences(HERE, &counted(20, 1_000)).len(), 2);
    }

    #[test]
    fn recording_leaves_other_toolchains_as_they_are() {
        let mut baseline = recorded();
        baseline.record("another", counted(20, 3_000));
        assert_eq!(baseline.instructions[HERE]["locker"], 1_000);
        assert!(baseline.knows("another") && !baseline.knows("a third"));
    }
}
