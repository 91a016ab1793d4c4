//! What the lock protects: a resource that looks at fencing tokens, and beside it one that does not.

use crate::history::{Event, Op};

/// Both resources; every write goes to both.
#[derive(Clone, Debug, Default)]
pub(super) struct Resource {
    highest: u64,
    /// The last write of each of the last two writers, the latest last: whose, and when.
    writers: [Option<(Op, u64)>; 2],
}

impl Resource {
    /// A write with the token of a grant that the store made at `granted` arrives.
    pub(super) fn write(&mut self, now: u64, op: Op, token: u64, granted: u64) -> [Event; 2] {
        let accepted = token >= self.highest;
        self.highest = self.highest.max(token);
        let late = self.writers.iter().flatten().any(|(other, at)| *other != op && *at >= granted);
        if self.writers[1].is_some_and(|(last, _)| last != op) {
            self.writers[0] = self.writers[1];
        }
        self.writers[1] = Some((op, now));
        [Event::Wrote { op, token, accepted }, Event::WroteUnfenced { op, token, late }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_write_is_refused_by_one_and_overwrites_the_other() {
        let mut resource = Resource::default();
        resource.write(10, 1, 5, 0);
        resource.write(30, 2, 6, 20);
        assert_eq!(
            resource.write(40, 1, 5, 0),
            [Event::Wrote { op: 1, token: 5, accepted: false }, Event::WroteUnfenced { op: 1, token: 5, late: true }]
        );
    }

    #[test]
    fn writes_in_turn_are_taken_and_none_is_late() {
        let mut resource = Resource::default();
        resource.write(10, 1, 5, 0);
        resource.write(30, 2, 6, 20);
        assert_eq!(
            resource.write(40, 2, 6, 20),
            [Event::Wrote { op: 2, token: 6, accepted: true }, Event::WroteUnfenced { op: 2, token: 6, late: false }]
        );
    }
}
