//! The `dlock` command, as it is run: as processes, on real stores.
#![allow(missing_docs)]

mod commands;
mod faults;
mod peers;
mod readme;
mod run;
mod support;
mod surroundings;
mod terminal;
