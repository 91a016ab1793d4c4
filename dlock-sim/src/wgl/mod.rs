//! Whether a history of a lock is linearizable, with operations of which nobody knows whether they took effect.
//!
//! The algorithm is Wing and Gong's with Lowe's memory of configurations: try to put one operation after another, go back when an answer cannot
//! be explained, and never visit a set of done operations with the same state of the lock twice. Tokens order acquisitions, so that
//! there is little to try.
//!
//! An operation without an answer may take effect at any time after it was asked for, or never. What the store itself ended or granted
//! unheard has happened at the very instant that the history names.

use std::collections::HashSet;
use std::fmt;

use crate::history::Op;

mod reading;

pub use reading::operations;

/// Something that was asked of the lock, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does if it takes effect.
    pub does: Does,
    /// It takes effect no earlier.
    pub from: u64,
    /// It has taken effect by then; `None` for those of which nobody knows whether they ever do.
    pub by: Option<u64>,
    /// The line that asks for it.
    pub asked: usize,
    /// The line that answers it.
    pub answered: Option<usize>,
}

/// What an operation does, with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// The lock goes to an acquisition; the token where it is known.
    Acquire {
        /// Which.
        op: Op,
        /// Above every other that is known.
        token: Option<u64>,
    },
    /// A try finds that another holds the lock.
    FindBusy {
        /// Which.
        op: Op,
    },
    /// An acquisition gives the lock back.
    Release {
        /// Which.
        op: Op,
        /// Its grant had ended otherwise before the release arrived, which is answered so all the same: it was held when that was asked for.
        lapsed: bool,
    },
    /// A release finds that the acquisition has nothing.
    FindNotHeld {
        /// Which.
        op: Op,
    },
    /// The store ends a grant, by itself or for an operator.
    End {
        /// To which acquisition.
        op: Op,
        /// Which of its grants; any where it is not known.
        token: Option<u64>,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.does {
            Does::Acquire { op, token: Some(token) } => write!(f, "acquisition {op} to hold token {token}"),
            Does::Acquire { op, token: None } => write!(f, "acquisition {op} to hold the lock"),
            Does::FindBusy { op } => write!(f, "acquisition {op} to find the lock held by another"),
            Does::Release { op, .. } => write!(f, "acquisition {op} to give the lock back"),
            Does::FindNotHeld { op } => write!(f, "acquisition {op} not to hold the lock when it is released"),
            Does::End { op, .. } => write!(f, "the grant of acquisition {op} to end"),
        }
    }
}

/// Whether there is an order that explains every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is one.
    Linearizable,
    /// There is none; the search got stuck at this operation when it had come furthest.
    Illegal {
        /// Its place among the operations.
        stuck: usize,
    },
    /// The search was given up.
    Undecided,
}

/// The lock between two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    holder: Option<(Op, Option<u64>)>,
    highest: u64,
    /// A grant has ended otherwise than by its holder: the store may grant to nobody for a while, also after the next in line had it.
    delayed: bool,
}

/// When a try may find a key taken that nobody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheld {
    /// Never.
    Never,
    /// Once a grant has ended otherwise than by its holder: the store grants the key to nobody for a while.
    Delayed,
    /// While somebody is in line who has not come to the key yet, which no operation tells of.
    InLine,
}

/// Looks for an order of the operations that explains every answer, in at most so many steps.
pub fn order(operations: &[Operation], unheld: Unheld, steps: usize) -> Verdict {
    Search::new(operations, unheld).run(steps)
}

/// The operations in the order of their askings and answers, as a list from which what is done is taken out and into which it is put back.
struct Search<'a> {
    operations: &'a [Operation],
    unheld: Unheld,
    /// Operations with a known answer and token, lowest token first: they can only be done in this order.
    by_token: Vec<usize>,
    granted: usize,
    entries: Vec<Entry>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the answer of an operation stands among the entries.
    answer: Vec<Option<usize>>,
    done: Vec<u64>,
    seen: HashSet<(Box<[u64]>, State)>,
}

#[derive(Clone, Copy)]
struct Entry {
    operation: usize,
    asks: bool,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation], unheld: Unheld) -> Self {
        let mut ends: Vec<(u64, bool, usize)> = Vec::with_capacity(operations.len() * 2);
        for (n, operation) in operations.iter().enumerate() {
            ends.push((operation.from, false, n));
            ends.extend(operation.by.map(|by| (by, true, n)));
        }
        // What is asked and answered at one instant overlaps.
        ends.sort_unstable();
        let mut answer = vec![None; operations.len()];
        let mut entries = Vec::with_capacity(ends.len());
        for (n, (_, answers, operation)) in ends.into_iter().enumerate() {
            entries.push(Entry { operation, asks: !answers });
            if answers {
                answer[operation] = Some(n + 1);
            }
        }
        let token = |n: usize| match operations[n] {
            Operation { does: Does::Acquire { token, .. }, by: Some(_), .. } => token,
            _ => None,
        };
        let mut by_token: Vec<_> = (0..operations.len()).filter(|n| token(*n).is_some()).collect();
        by_token.sort_by_key(|n| token(*n));
        // Entry n stands at n + 1; zero is the head, the last place the end.
        let places = entries.len() + 2;
        Self {
            operations,
            unheld,
            by_token,
            granted: 0,
            entries,
            next: (1..=places).collect(),
            previous: (0..places).map(|n| n.saturating_sub(1)).collect(),
            answer,
            done: vec![0; operations.len().div_ceil(64)],
            seen: HashSet::new(),
        }
    }

    fn run(mut self, steps: usize) -> Verdict {
        let end = self.entries.len() + 1;
        let mut unanswered = self.answer.iter().flatten().count();
        let mut state = State { holder: None, highest: 0, delayed: self.unheld == Unheld::InLine };
        let mut path: Vec<(usize, State)> = Vec::new();
        let (mut furthest, mut stuck) = (usize::MAX, 0);
        let mut place = self.next[0];
        for _ in 0..steps {
            if unanswered == 0 {
                return Verdict::Linearizable;
            }
            let entry = (place < end).then(|| self.entries[place - 1]);
            if let Some(Entry { operation, asks: true }) = entry {
                match self.apply(operation, state) {
                    Some(after) if self.is_new(operation, after) => {
                        path.push((place, state));
                        state = after;
                        self.lift(place, operation);
                        unanswered -= usize::from(self.answer[operation].is_some());
                        place = self.next[0];
                    }
                    _ => place = self.next[place],
                }
                continue;
            }
            if let Some(Entry { operation, .. }) = entry
                && unanswered < furthest
            {
                (furthest, stuck) = (unanswered, operation);
            }
            let Some((lifted, before)) = path.pop() else { return Verdict::Illegal { stuck } };
            let operation = self.entries[lifted - 1].operation;
            self.put_back(lifted, operation);
            unanswered += usize::from(self.answer[operation].is_some());
            state = before;
            place = self.next[lifted];
        }
        Verdict::Undecided
    }

    /// The lock after an operation; `None` if it cannot take effect now.
    fn apply(&self, n: usize, state: State) -> Option<State> {
        match self.operations[n].does {
            Does::Acquire { op, token } => {
                let in_turn = self.by_token.get(self.granted).is_none_or(|next| *next == n) || self.operations[n].by.is_none();
                let grows = token.is_none_or(|token| token > state.highest);
                let free = state.holder.is_none() && in_turn && grows;
                free.then_some(State { holder: Some((op, token)), highest: token.unwrap_or(state.highest), ..state })
            }
            Does::FindBusy { op } => match state.holder {
                Some((holder, _)) => (holder != op).then_some(state),
                None => state.delayed.then_some(state),
            },
            Does::FindNotHeld { op } => state.holder.is_none_or(|(holder, _)| holder != op).then_some(state),
            Does::Release { op, lapsed } => {
                let delayed = state.delayed || lapsed && self.unheld == Unheld::Delayed;
                state.holder.filter(|(holder, _)| *holder == op).map(|_| State { holder: None, delayed, ..state })
            }
            Does::End { op, token } => {
                let ends =
                    |(holder, held): &(Op, Option<u64>)| *holder == op && (token.is_none() || held.is_none() || token == *held);
                state.holder.filter(ends).map(|_| State { holder: None, delayed: self.unheld != Unheld::Never, ..state })
            }
        }
    }

    /// Whether this operation leads to a configuration that was not visited yet.
    fn is_new(&mut self, n: usize, state: State) -> bool {
        let mut done: Box<[u64]> = self.done.as_slice().into();
        done[n / 64] |= 1 << (n % 64);
        self.seen.insert((done, state))
    }

    fn lift(&mut self, place: usize, n: usize) {
        self.done[n / 64] |= 1 << (n % 64);
        self.granted += usize::from(self.by_token.get(self.granted) == Some(&n));
        self.unlink(place);
        if let Some(answer) = self.answer[n] {
            self.unlink(answer);
        }
    }

    fn put_back(&mut self, place: usize, n: usize) {
        self.done[n / 64] &= !(1 << (n % 64));
        if self.granted > 0 && self.by_token[self.granted - 1] == n {
            self.granted -= 1;
        }
        if let Some(answer) = self.answer[n] {
            self.relink(answer);
        }
        self.relink(place);
    }

    fn unlink(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = place;
        self.previous[next] = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sketch;

    fn verdict(sketch: &str) -> Verdict {
        order(&operations(&sketch::history(sketch)), Unheld::Never, 1_000_000)
    }

    fn is_illegal(sketch: &str) -> bool {
        matches!(verdict(sketch), Verdict::Illegal { .. })
    }

    #[test]
    fn one_after_the_other_is_an_order() {
        let history = "0 a wants 1
                       5 a holds 1 3
                       6 b tries 2
                       8 b busy 2
                       9 a releasing 1
                      12 b wants 3
                      14 b holds 3 4
                      15 a released 1";
        assert_eq!(verdict(history), Verdict::Linearizable);
    }

    #[test]
    fn two_holders_at_once_have_no_order() {
        let history = "0 a wants 1
                       5 a holds 1 3
                       6 b wants 2
                       8 b holds 2 4
                       9 a releasing 1
                      10 a released 1";
        assert!(is_illegal(history));
    }

    #[test]
    fn a_try_finds_a_lock_busy_only_while_another_has_it() {
        let history = "0 a wants 1
                       5 a holds 1 3
                       6 a releasing 1
                       7 a released 1
                       8 b tries 2
                       9 b busy 2";
        assert!(is_illegal(history));
    }

    #[test]
    fn tokens_that_shrink_have_no_order() {
        let history = "0 a wants 1
                       5 a holds 1 3
                       6 a releasing 1
                       7 a released 1
                       8 b wants 2
                       9 b holds 2 2";
        assert!(is_illegal(history));
    }

    #[test]
    fn overlapping_operations_take_effect_in_either_order() {
        let history = "0 b wants 1
                       0 a wants 2
                       7 a holds 2 3
                       7 a releasing 2
                       8 a released 2
                       9 b holds 1 4";
        assert_eq!(verdict(history), Verdict::Linearizable);
    }

    #[test]
    fn a_cancelled_acquisition_may_have_taken_the_lock() {
        // Nobody was told that it is held; the cancelled one explains the busy answer.
        let history = "0 a wants 1
                       2 a cancels 1
                       4 b tries 2
                       6 b busy 2";
        assert_eq!(verdict(history), Verdict::Linearizable);
    }

    #[test]
    fn a_cancelled_acquisition_may_have_taken_nothing() {
        let history = "0 a wants 1
                       2 a cancels 1
                       4 b tries 2
                       6 b holds 2 1";
        assert_eq!(verdict(history), Verdict::Linearizable);
    }

    #[test]
    fn an_unanswered_release_may_have_freed_the_lock_or_not() {
        let begin = "0 a wants 1
                     2 a holds 1 1
                     3 a releasing 1
                     4 a unknown 1
                     5 b tries 2\n";
        assert_eq!(verdict(&format!("{begin} 6 b holds 2 2")), Verdict::Linearizable);
        assert_eq!(verdict(&format!("{begin} 6 b busy 2")), Verdict::Linearizable);
    }

    #[test]
    fn what_the_store_ended_explains_the_next_holder() {
        let begin = "0 a wants 1
                     1 - grants 1 1
                     2 a holds 1 1\n";
        let end = "\n8 b wants 2
                     9 - grants 2 2
                    10 b holds 2 2";
        assert_eq!(verdict(&format!("{begin} 5 - lapses 1 1 {end}")), Verdict::Linearizable);
        assert!(is_illegal(&format!("{begin} {end}")));
    }

    #[test]
    fn a_grant_that_nobody_heard_of_is_an_operation_of_the_store() {
        let history = "0 a wants 1
                       2 - grants 1 1
                       3 a cancels 1
                       4 b tries 2
                       5 b busy 2
                       6 - takes-back 1 1
                       7 b tries 3
                       8 - grants 3 2
                       9 b holds 3 2";
        assert_eq!(verdict(history), Verdict::Linearizable);
        assert!(is_illegal(&history.replace("4 b tries 2", "6.1 b tries 2").replace("5 b busy 2", "6.2 b busy 2")));
    }

    #[test]
    fn a_grant_that_a_late_copy_renewed_is_given_back_once() {
        let begin = "0 a wants 1
                     1 - grants 1 1
                     2 a holds 1 1
                     4 - interferes 1 1
                     5 - grants 1 2
                     6 a releasing 1
                     7 - takes-back 1 2\n";
        let end = "\n8 a released 1
                      9 b wants 2
                     10 - grants 2 3
                     11 b holds 2 3";
        assert_eq!(verdict(&format!("{begin}{end}")), Verdict::Linearizable);
        assert!(is_illegal(&format!("{begin} 7.5 - takes-back 1 2 {end}")));
    }

    #[test]
    fn a_try_may_find_the_lock_delayed_for_the_next_but_one() {
        let history = sketch::history(
            "0 a wants 1\n1 - grants 1 1\n2 a holds 1 1\n3 b wants 2\n4 a loses 1\n5 - lapses 1 1\n5 - grants 2 2\n6 b holds 2 2
             7 b releasing 2\n8 - takes-back 2 2\n9 b released 2\n10 c tries 3\n11 c busy 3",
        );
        assert_eq!(order(&operations(&history), Unheld::Delayed, 1_000), Verdict::Linearizable);
        assert!(matches!(order(&operations(&history), Unheld::Never, 1_000), Verdict::Illegal { .. }));
    }

    #[test]
    fn a_try_may_find_the_lock_delayed_after_a_release_that_came_too_late() {
        let history = sketch::history(
            "0 a wants 1\n1 - grants 1 1\n2 a holds 1 1\n3 a releasing 1\n5 - lapses 1 1\n9 a released 1\n10 c tries 3\n11 c busy 3",
        );
        assert_eq!(order(&operations(&history), Unheld::Delayed, 1_000), Verdict::Linearizable);
        assert!(matches!(order(&operations(&history), Unheld::Never, 1_000), Verdict::Illegal { .. }));
    }

    #[test]
    fn a_try_may_find_somebody_in_line_whom_nothing_is_granted_to() {
        let history = sketch::history("0 a tries 1\n1 b tries 2\n1 b busy 2\n5 a times-out 1\n6 c wants 3\n7 - grants 3 1");
        assert_eq!(order(&operations(&history), Unheld::InLine, 1_000), Verdict::Linearizable);
        assert!(matches!(order(&operations(&history), Unheld::Delayed, 1_000), Verdict::Illegal { .. }));
    }

    #[test]
    fn a_try_that_its_own_client_answers_says_nothing_of_the_store() {
        let history = "0 a tries 1
                       1 a tries 2
                       1 a busy 2
                       5 a times-out 1
                       6 c wants 3
                       7 - grants 3 1";
        assert_eq!(verdict(history), Verdict::Linearizable);
        assert!(is_illegal(&history.replace("a tries 2", "b tries 2").replace("a busy", "b busy")));
    }

    #[test]
    fn what_is_given_back_may_be_the_place_of_a_late_copy() {
        let history = "0 a wants 1
                       1 - grants 1 1
                       2 a holds 1 1
                       3 b wants 2
                       4 - interferes 1 1
                       4 - grants 2 2
                       5 b holds 2 2
                       6 a releasing 1
                       8 a released 1";
        assert_eq!(verdict(history), Verdict::Linearizable);
        assert!(is_illegal(&history.replace("interferes", "lapses")));
    }

    /// Five clients in turn, everybody waiting for the one before; every `lost`-th release is not answered.
    fn long(acquisitions: u64, lost: u64) -> Vec<Operation> {
        use std::fmt::Write as _;
        let mut sketch = String::new();
        let name = |n: u64| char::from(b'a' + (n % 5) as u8);
        for n in 0..acquisitions {
            let at = n * 10;
            let _ = writeln!(sketch, "{} {} wants {n}", at.saturating_sub(35), name(n));
            let _ = writeln!(sketch, "{} {} holds {n} {}", at + 1, name(n), n + 1);
            let _ = writeln!(sketch, "{} {} releasing {n}", at + 6, name(n));
            let outcome = if n % lost == lost - 1 { "unknown" } else { "released" };
            let _ = writeln!(sketch, "{} {} {outcome} {n}", at + 12, name(n));
        }
        operations(&sketch::history(&sketch))
    }

    #[test]
    fn a_thousand_operations_are_put_in_order() {
        let operations = long(500, 50);
        assert_eq!(operations.len(), 1_000);
        let begun = std::time::Instant::now();
        assert_eq!(order(&operations, Unheld::Never, 100_000), Verdict::Linearizable);
        println!("{} operations in {:?}", operations.len(), begun.elapsed());
    }

    #[test]
    fn one_wrong_answer_among_a_thousand_is_found() {
        let mut operations = long(500, 1_000);
        let found = operations.iter().position(|operation| operation.does == Does::Release { op: 450, lapsed: false }).unwrap();
        operations[found].does = Does::FindNotHeld { op: 450 };
        let begun = std::time::Instant::now();
        assert!(matches!(order(&operations, Unheld::Never, 1_000_000), Verdict::Illegal { .. }));
        println!("{} operations in {:?}", operations.len(), begun.elapsed());
    }
}
