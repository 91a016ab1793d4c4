//! What is asked of the heap.

use serde::{Deserialize, Serialize};
use stats_alloc::{Region, Stats};

use crate::Subject;
use crate::allocator::{HEAP, count};

/// What one operation asks of the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heap {
    /// How often something new is asked for.
    pub allocations: usize,
    /// How often something is to grow or shrink.
    pub reallocations: usize,
    /// How many bytes in all. It is not recorded: names of machines and numbers of processes are among them.
    #[serde(skip)]
    pub bytes: usize,
}

/// So many operations are counted, each by itself.
const OPERATIONS: usize = 1_001;

/// What an operation of a subject asks of the heap, once everything is warm: the median, since now and then a table of the store grows.
pub fn heap_of(subject: Subject) -> Heap {
    let counted = count(true);
    let mut operate = subject.start();
    let mut each = Vec::with_capacity(OPERATIONS);
    for _ in 0..OPERATIONS {
        let region = Region::new(&HEAP);
        operate(1);
        each.push(region.change());
    }
    count(counted);
    let median = |of: fn(&Stats) -> usize| {
        let mut values: Vec<_> = each.iter().map(of).collect();
        values.sort_unstable();
        values[OPERATIONS / 2]
    };
    Heap {
        allocations: median(|change| change.allocations),
        reallocations: median(|change| change.reallocations),
        bytes: median(|change| change.bytes_allocated),
    }
}

/// How many bytes of heap this process has asked for beyond what it has given back, as far as that was [counted](count): what two of these differ by
/// is what was kept in between, if all of that was.
pub fn heap_in_use() -> isize {
    let stats = HEAP.stats();
    stats.bytes_allocated.cast_signed() - stats.bytes_deallocated.cast_signed()
}
