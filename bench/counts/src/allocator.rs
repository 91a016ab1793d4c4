//! The allocator of every program that links this: the system's, whose calls are counted unless that would disturb what is timed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use stats_alloc::StatsAlloc;

#[global_allocator]
static ALLOCATOR: Switched = Switched;

/// Counts, and hands on to the system's.
pub(crate) static HEAP: StatsAlloc<System> = StatsAlloc::system();

static COUNTED: AtomicBool = AtomicBool::new(true);

/// Whether from now on all calls are counted, as they are at first; whether they were until now.
pub fn count(counted: bool) -> bool {
    COUNTED.swap(counted, Ordering::Relaxed)
}

struct Switched;

fn is_counted() -> bool {
    COUNTED.load(Ordering::Relaxed)
}

// SAFETY: every call is handed on as it is, to `HEAP` or to `System`. `HEAP` hands on to `System` as it is, too, and only counts, so that all memory is
// of `System`, whichever way it was asked for and is given back; what the caller promises of a layout and a pointer is what `System` demands.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Switched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        if is_counted() { unsafe { HEAP.alloc(layout) } } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised, of memory of `System`.
        if is_counted() { unsafe { HEAP.dealloc(memory, layout) } } else { unsafe { System.dealloc(memory, layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        if is_counted() { unsafe { HEAP.alloc_zeroed(layout) } } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promised, of memory of `System`.
        if is_counted() { unsafe { HEAP.realloc(memory, layout, size) } } else { unsafe { System.realloc(memory, layout, size) } }
    }
}
