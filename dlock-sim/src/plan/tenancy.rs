//! Who may hold what together.

use super::hash;
use crate::history::Op;

/// What clients want of the keys of a run in which it is not one lock alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// One key, to be shared or to be had alone.
    ReadWrite,
    /// One of so many permits of a key.
    Permits(u32),
    /// Some of so many keys, all at once.
    Several(u32),
}

/// What draws are for, so that no two of them are the same.
const TENANCY: u64 = 0xBE;
const NUMBER: u64 = 0xBF;
const READS: u64 = 0xC1;
const WANTS: u64 = 0xC2;

impl Tenancy {
    /// That of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let number = (hash(&[seed, NUMBER]) % 3) as u32;
        match hash(&[seed, TENANCY]) % 3 {
            0 => Self::ReadWrite,
            1 => Self::Permits(number + 1),
            _ => Self::Several(number + 2),
        }
    }

    /// Whether an acquisition of a run only reads.
    pub fn reads(self, seed: u64, op: Op) -> bool {
        self == Self::ReadWrite && !hash(&[seed, READS, op.into()]).is_multiple_of(3)
    }

    /// Which of several keys an acquisition wants, by their numbers; at least one.
    pub fn wants(self, seed: u64, op: Op) -> Vec<u32> {
        let Self::Several(keys) = self else { return vec![0] };
        let draw = hash(&[seed, WANTS, op.into()]);
        let mut wanted: Vec<u32> = (0..keys).filter(|key| draw >> key & 1 == 1).collect();
        if wanted.is_empty() {
            wanted.push((draw >> 32) as u32 % keys);
        }
        // Named in any order.
        let first = (draw >> 40) as usize % wanted.len();
        wanted.rotate_left(first);
        wanted
    }

    /// How many keys there are.
    pub fn keys(self) -> u32 {
        if let Self::Several(keys) = self { keys } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_drawn_and_something_is_always_wanted() {
        let drawn: Vec<_> = (0..100).map(Tenancy::of_seed).collect();
        for kind in [Tenancy::ReadWrite, Tenancy::Permits(1), Tenancy::Permits(3), Tenancy::Several(2), Tenancy::Several(4)] {
            assert!(drawn.contains(&kind), "{kind:?}");
        }
        for (seed, tenancy) in (0..).zip(drawn) {
            let wanted = tenancy.wants(seed, 7);
            assert!(!wanted.is_empty() && wanted.iter().all(|key| *key < tenancy.keys()), "{tenancy:?} {wanted:?}");
        }
        assert!((0..100).any(|op| Tenancy::ReadWrite.reads(1, op)) && (0..100).any(|op| !Tenancy::ReadWrite.reads(1, op)));
    }
}
