//! What dlock itself costs, apart from any store: instructions and allocations, which do not depend on the machine.
//!
//! `scripts/counts.sh` holds them against `bench/counts/baseline.json`, and with `--record` writes that; the program `dlock-bench` puts them into its
//! report. [`Subject`] is what is counted. Instructions are counted by valgrind's callgrind, which runs this program twice.
//!
//! Linking this library makes its counting allocator that of the whole program; what is timed leaves it [uncounted](count).

mod allocator;
mod callgrind;
mod heap;
mod subject;

pub use allocator::count;
pub use callgrind::{Uncounted, instructions};
pub use heap::{Heap, heap_in_use, heap_of};
pub use subject::Subject;
