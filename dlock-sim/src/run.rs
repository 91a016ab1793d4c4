//! A plan, run: what struck, what happened, and what of it was wrong.

use crate::check::{Violation, check};
use crate::history::History;
use crate::plan::{Plan, Struck, Tier};
use crate::{locker, machines, wire};

/// What a simulator brings back.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What struck, in order.
    pub struck: Vec<Struck>,
    /// What happened.
    pub history: History,
}

/// A plan that was run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The plan, with exactly the faults that struck: it replays by itself.
    pub plan: Plan,
    /// What happened.
    pub history: History,
    /// The first thing that was wrong.
    pub violation: Option<Violation>,
}

/// Runs a plan on its simulator and checks its history. The same plan gives the same history.
pub fn run(plan: &Plan) -> Run {
    let Ran { struck, history } = match plan.tier {
        Tier::Machines => machines::run(plan),
        Tier::Locker | Tier::Beside => locker::run(plan),
        Tier::Wire | Tier::WireFair | Tier::WireEtcd => wire::run(plan),
    };
    let violation = check(plan, &history);
    Run { plan: plan.with_faults(struck), history, violation }
}
