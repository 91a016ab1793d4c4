//! Tier A: the pure machines under an event queue, thousands of schedules a second.
//!
//! Up to five [`Client`]s run the real `Lease`, `Acquire` and `Undo` against the real in-memory store. Between them lies a network with
//! latencies, in which the plan's faults strike; each client has a clock of its own that runs slower than true time, as far as the plan
//! allows. Once the faults are over everything must end well: every acquisition is answered, every lock given back, every session closed.

mod around;
mod client;
mod clock;
mod network;
mod queue;
mod resource;
mod simulation;
mod surroundings;
mod workload;
mod world;

pub use client::{Client, op_of};
pub use surroundings::{Answer, CallId, News, Question, Surroundings, Terms, Want};

use crate::plan::Plan;
use crate::run::Ran;

/// Runs a plan.
pub fn run(plan: &Plan) -> Ran {
    simulation::Simulation::new(plan).run()
}
