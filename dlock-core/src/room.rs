//! Who may hold a key together, and what a claim waits for that may not yet.

use crate::Mode;
#[cfg(dlock_planted)]
use crate::planted::Bug;

/// Whether the claims ahead of one leave room for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room<T> {
    /// They do: the claim holds its key.
    Enough,
    /// They do not, and will not before one of these has ended.
    Wanting(Vec<T>),
}

impl Mode {
    /// The one rule of every store with a queue: a claim is held when the claims ahead of it leave room for it.
    ///
    /// `ahead` names those in line before the claim, the nearest first, and is read no further than needed. An exclusive claim needs all
    /// of them gone, a shared one all that are not shared, and one of `n` permits all that ask for no permit of as many, and all but `n - 1` of
    /// the others. Room once there stays: claims only ever leave from ahead of another.
    ///
    /// Who waits has to look after what [`Room::Wanting`] names and nothing else: one claim, or for a permit the `n` nearest, at least one
    /// of which is gone once no more than `n - 1` of those ahead are left. Claims further ahead come and go without waking it.
    pub fn room<T>(self, ahead: impl IntoIterator<Item = (T, Mode)>) -> Room<T> {
        let mut taken = Vec::new();
        for (claim, mode) in ahead {
            #[cfg(dlock_planted)]
            if Bug::ReaderBesideWriter.is_on() && self == Self::Shared {
                continue;
            }
            match self {
                Self::Shared if mode == Self::Shared => {}
                Self::Permits(all) if mode == self => {
                    taken.push(claim);
                    #[cfg(dlock_planted)]
                    let all = if Bug::PermitOverGrant.is_on() { all.saturating_add(1) } else { all };
                    if u32::try_from(taken.len()).is_ok_and(|taken| taken >= all.get()) {
                        return Room::Wanting(taken);
                    }
                }
                _ => return Room::Wanting(vec![claim]),
            }
        }
        Room::Enough
    }

    /// How many of a line hold their key, the first come first: the first, and those right after it that share with it.
    pub fn holders(line: impl IntoIterator<Item = Mode>) -> usize {
        let mut line = line.into_iter().peekable();
        let most = match line.peek() {
            None => 0,
            Some(Self::Exclusive) => 1,
            Some(Self::Shared) => usize::MAX,
            Some(Self::Permits(all)) => usize::try_from(all.get()).unwrap_or(usize::MAX),
        };
        let first = line.peek().copied();
        line.take(most).take_while(|mode| Some(*mode) == first).count()
    }

    /// Whether a claim contradicts the first in line, which holds: both ask for permits, and of different numbers in all.
    pub fn contradicts(self, first: Self) -> bool {
        matches!((self, first), (Self::Permits(ours), Self::Permits(theirs)) if ours != theirs)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const EXCLUSIVE: Mode = Mode::Exclusive;
    const SHARED: Mode = Mode::Shared;

    fn permits(all: u32) -> Mode {
        Mode::Permits(NonZeroU32::new(all).unwrap())
    }

    /// The places of those that a claim behind this line waits for, the first in line being 0.
    fn waits_for(mode: Mode, line: &[Mode]) -> Vec<usize> {
        match mode.room(line.iter().copied().enumerate().rev()) {
            Room::Enough => Vec::new(),
            Room::Wanting(places) => places,
        }
    }

    #[test]
    fn an_exclusive_claim_waits_for_the_one_right_before_it() {
        assert_eq!(waits_for(EXCLUSIVE, &[]), []);
        for ahead in [EXCLUSIVE, SHARED, permits(3)] {
            assert_eq!(waits_for(EXCLUSIVE, &[SHARED, ahead]), [1], "{ahead:?}");
        }
    }

    #[test]
    fn a_shared_claim_waits_for_the_nearest_that_does_not_share() {
        assert_eq!(waits_for(SHARED, &[]), []);
        assert_eq!(waits_for(SHARED, &[SHARED, SHARED]), []);
        assert_eq!(waits_for(SHARED, &[SHARED, EXCLUSIVE, EXCLUSIVE, SHARED]), [2], "one that waits stops those that come later");
        assert_eq!(waits_for(SHARED, &[permits(2)]), [0]);
    }

    #[test]
    fn a_permit_waits_for_as_many_of_the_nearest_as_there_are_permits() {
        assert_eq!(waits_for(permits(1), &[]), []);
        assert_eq!(waits_for(permits(1), &[permits(1)]), [0]);
        assert_eq!(waits_for(permits(3), &[permits(3); 2]), []);
        assert_eq!(waits_for(permits(3), &[permits(3); 3]), [2, 1, 0]);
        assert_eq!(waits_for(permits(3), &[permits(3); 7]), [6, 5, 4]);
        assert_eq!(waits_for(permits(3), &[permits(3), EXCLUSIVE, permits(3)]), [1]);
        assert_eq!(waits_for(permits(3), &[permits(4)]), [0], "permits of another number are not shared");
    }

    #[test]
    fn whoever_has_room_had_one_of_those_it_waited_for_leave() {
        let modes = [EXCLUSIVE, SHARED, permits(2), permits(3)];
        for mode in modes {
            for line in 0..4_usize.pow(5) {
                let line: Vec<Mode> = (0..5).map(|place| modes[line / 4_usize.pow(place) % 4]).collect();
                let awaited = waits_for(mode, &line);
                for gone in 0..32_usize {
                    let left: Vec<Mode> = (0..5).filter(|place| gone >> place & 1 == 0).map(|place| line[place]).collect();
                    let has_room = waits_for(mode, &left).is_empty();
                    let woken = awaited.iter().any(|place| gone >> place & 1 == 1);
                    assert!(!has_room || awaited.is_empty() || woken, "{mode:?} behind {line:?}, of which {left:?} are left");
                }
            }
        }
    }

    #[test]
    fn holders_are_those_with_room() {
        let modes = [EXCLUSIVE, SHARED, permits(2), permits(3)];
        for line in 0..4_usize.pow(5) {
            let line: Vec<Mode> = (0..5).map(|place| modes[line / 4_usize.pow(place) % 4]).collect();
            let with_room = (0..5).filter(|place| waits_for(line[*place], &line[..*place]).is_empty());
            assert_eq!(with_room.collect::<Vec<_>>(), (0..Mode::holders(line.iter().copied())).collect::<Vec<_>>(), "{line:?}");
        }
        assert_eq!(Mode::holders([]), 0);
    }

    #[test]
    fn permits_of_another_number_contradict_and_nothing_else_does() {
        assert!(permits(3).contradicts(permits(5)));
        for (one, other) in [(permits(3), permits(3)), (permits(3), EXCLUSIVE), (EXCLUSIVE, permits(3)), (SHARED, permits(3))] {
            assert!(!one.contradicts(other), "{one:?} {other:?}");
        }
    }
}
