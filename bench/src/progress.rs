//! What people see while it runs: what begins now, and about how long the rest takes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far a run is, by how long its parts take on an idle machine.
#[derive(Clone, Copy, Debug)]
struct Run {
    began: Instant,
    /// All of it.
    total: Duration,
    /// What is behind those parts that are done.
    done: Duration,
    /// The part that is under way.
    part: Duration,
}

static RUN: Mutex<Option<Run>> = Mutex::new(None);
/// Before so much is done, its pace says little of the rest.
const PACE_AFTER: Duration = Duration::from_secs(15);

/// Says that everything takes so long.
pub fn expect(total: Duration) {
    *run() = Some(Run { began: Instant::now(), total, done: Duration::ZERO, part: Duration::ZERO });
}

/// Says that a part begins that takes so long.
pub fn begin(part: Duration) {
    if let Some(run) = run().as_mut() {
        (run.done, run.part) = (run.done + run.part, part);
    }
}

/// Says what begins now.
pub fn say(what: &str) {
    eprintln!("  {what}");
}

/// Says which of several steps of a part begins now.
pub fn step(what: &str, step: usize, steps: usize) {
    let rest = run().map_or(String::new(), |run| {
        let done = run.done + run.part.mul_f64(step as f64 / steps.max(1) as f64);
        format!(", {} left", about(rest(done, run.total, run.began.elapsed())))
    });
    eprintln!("  {what} ({}/{steps}){rest}", step + 1);
}

fn run() -> MutexGuard<'static, Option<Run>> {
    RUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of the whole, at the pace so far.
fn rest(done: Duration, total: Duration, elapsed: Duration) -> Duration {
    let pace = if done < PACE_AFTER { 1.0 } else { elapsed.div_duration_f64(done) };
    total.saturating_sub(done).mul_f64(pace)
}

fn about(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("about {} s", seconds.div_ceil(5).max(1) * 5),
        seconds => format!("about {} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_rest_goes_by_the_pace_so_far_once_that_says_something() {
        assert_eq!(rest(seconds(1), seconds(100), seconds(5)), seconds(99));
        assert_eq!(rest(seconds(20), seconds(100), seconds(30)), seconds(120));
        assert_eq!(rest(seconds(120), seconds(100), seconds(130)), seconds(0));
    }

    #[test]
    fn what_is_left_is_told_in_round_numbers() {
        let told = [0, 3, 61, 100, 580].map(|rest| about(seconds(rest)));
        assert_eq!(told, ["about 5 s", "about 5 s", "about 65 s", "about 2 min", "about 10 min"]);
    }
}
