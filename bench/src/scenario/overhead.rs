//! What dlock itself costs, apart from any store: time, heap and instructions of a lock and its release in this process.

use std::time::{Duration, Instant};

use dlock_counts::{Heap, Subject, heap_of, instructions};

use super::Plan;
use crate::Outcome;
use crate::progress;
use crate::stats::{Samples, micros};

/// What one subject showed.
pub struct Overhead {
    /// Which.
    pub subject: Subject,
    /// Microseconds of an operation.
    pub samples: Samples,
    /// What an operation asks of the heap.
    pub heap: Heap,
    /// Instructions of an operation; `None` where nobody could count them.
    pub instructions: Option<u64>,
}

/// How long all of it takes, about: valgrind runs each subject twice.
pub const EXPECTED: Duration = Duration::from_secs(8);

/// All subjects in turns, then their counts.
pub async fn measure(plan: &Plan) -> Outcome<Vec<Overhead>> {
    let (rounds, operations) = plan.overhead;
    // They run on runtimes of their own.
    let mut measured = tokio::task::spawn_blocking(move || timed(rounds, operations)).await?;
    progress::say("dlock itself: counting instructions");
    for one in &mut measured {
        let subject = one.subject;
        match tokio::task::spawn_blocking(move || instructions(subject)).await? {
            Ok(count) => one.instructions = Some(count.round() as u64),
            Err(why) => {
                progress::say(&format!("instructions are not counted: {why}"));
                break;
            }
        }
    }
    Ok(measured)
}

fn timed(rounds: usize, operations: u32) -> Vec<Overhead> {
    let mut measured = Subject::ALL.map(|subject| {
        let (samples, heap) = (Samples::default(), heap_of(subject));
        (subject.start(), Overhead { subject, samples, heap, instructions: None })
    });
    for round in 0..rounds {
        if round % 10 == 0 {
            progress::step("dlock itself", round, rounds);
        }
        for (operate, one) in &mut measured {
            let began = Instant::now();
            operate(operations);
            one.samples.add(vec![micros(began.elapsed()) / f64::from(operations)]);
        }
    }
    measured.map(|(_, one)| one).into()
}
