//! What is to happen, in the order of true time; at one instant, first planned is first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::surroundings::{Answer, CallId, Question};
use super::workload::Step;
use crate::history::Op;

/// What is to happen.
pub(super) enum Happening {
    /// A request arrives at the store.
    Arrives(Message),
    /// An answer arrives at its client.
    Answers { client: u8, call: CallId, answer: Answer },
    /// The store answers again.
    OutageEnds,
    /// A client's pause ends.
    Resumes { client: u8 },
    /// The caller of a client goes on.
    Steps { client: u8, op: Op, step: Step },
    /// A write arrives at the resource.
    Writes { client: u8, op: Op, token: u64 },
}

/// A request under way.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) client: u8,
    pub(super) call: CallId,
    pub(super) question: Question,
    /// How long its answer takes; `None` when it is lost.
    pub(super) back: Option<u64>,
    /// The store refuses to answer it.
    pub(super) refused: bool,
    /// It is a copy that its sender knows nothing of.
    pub(super) copy: bool,
}

/// What is planned. The heap orders small entries; what they stand for stays where it is.
#[derive(Default)]
pub(super) struct Queue {
    /// When, the how many-th that was planned, and where it lies: packed, so that comparing is one step.
    order: BinaryHeap<Reverse<u128>>,
    planned: u32,
    happenings: Vec<Option<Happening>>,
    free: Vec<u32>,
}

impl Queue {
    pub(super) fn push(&mut self, at: u64, happening: Happening) {
        let place = if let Some(place) = self.free.pop() {
            self.happenings[place as usize] = Some(happening);
            place
        } else {
            self.happenings.push(Some(happening));
            self.happenings.len() as u32 - 1
        };
        self.order.push(Reverse(u128::from(at) << 64 | u128::from(self.planned) << 32 | u128::from(place)));
        self.planned += 1;
    }

    /// When the next of them happens.
    pub(super) fn next(&self) -> Option<u64> {
        self.order.peek().map(|Reverse(entry)| (entry >> 64) as u64)
    }

    pub(super) fn pop(&mut self) -> Option<Happening> {
        let Reverse(entry) = self.order.pop()?;
        let place = entry as u32;
        self.free.push(place);
        self.happenings[place as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_comes_first_and_then_the_order_of_planning() {
        let mut queue = Queue::default();
        for (at, client) in [(5, 0), (3, 1), (5, 2), (3, 3)] {
            queue.push(at, Happening::Resumes { client });
        }
        let mut order = Vec::new();
        while let Some(at) = queue.next() {
            let Some(Happening::Resumes { client }) = queue.pop() else { panic!("something else was planned") };
            order.push((at, client));
        }
        assert_eq!(order, [(3, 1), (3, 3), (5, 0), (5, 2)]);
    }
}
