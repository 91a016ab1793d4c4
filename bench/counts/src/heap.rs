//! What is asked of the heap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use stats_alloc::{Region, Stats, StatsAlloc};

use crate::Subject;

/// The system's allocator, whose counts cost every program that is timed some percent.
#[global_allocator]
static ALLOCATOR: Switched = Switched;
static HEAP: StatsAlloc<System> = StatsAlloc::system();
static COUNTED: AtomicBool = AtomicBool::new(true);

struct Switched;

// SAFETY: every call is handed on as it is, to `HEAP` or to `System`. `HEAP` hands on to `System` as it is, too, and only counts, so that all memory is
// of `System`, whichever way it was asked for and is given back; what the caller promises of a layout and a pointer is what `System` demands.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Switched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        if is_counted() { unsafe { HEAP.alloc(layout) } } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: see above.
        if is_counted() { unsafe { HEAP.dealloc(memory, layout) } } else { unsafe { System.dealloc(memory, layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        if is_counted() { unsafe { HEAP.alloc_zeroed(layout) } } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        if is_counted() { unsafe { HEAP.realloc(memory, layout, size) } } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

fn is_counted() -> bool {
    COUNTED.load(Ordering::Relaxed)
}

/// Counts nothing from now on but what [`heap_of`] is asked for: for a program that is timed.
pub fn leave_uncounted() {
    COUNTED.store(false, Ordering::Relaxed);
}

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
    let counted = COUNTED.swap(true, Ordering::Relaxed);
    let mut operate = subject.start();
    let mut each = Vec::with_capacity(OPERATIONS);
    for _ in 0..OPERATIONS {
        let region = Region::new(&HEAP);
        operate(1);
        each.push(region.change());
    }
    COUNTED.store(counted, Ordering::Relaxed);
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

/// Bytes of heap that this process uses now, if all was counted.
pub fn heap_in_use() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
}
