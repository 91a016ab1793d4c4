//! What a store can do, said by its backend.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::{BackendError, Claim, ClockSource, ErrorKind, Mode};

/// What a backend declares of its store.
///
/// What is declared is exercised by the conformance suite; what is not declared must be refused with
/// [`Unsupported`](crate::ErrorKind::Unsupported). Start from [`Capabilities::minimal`] and set what the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools)] // each is an independent yes or no
pub struct Capabilities {
    /// The clock on which deadlines live.
    pub clock: ClockSource,
    /// The session lifetimes that the store accepts.
    pub ttl: TtlRange,
    /// A session that nobody renews has lapsed at the latest after this many of its ttl.
    pub lapses_within_ttls: u32,
    /// In which order waiting claims are granted.
    pub order: Order,
    /// How many claims of one session one key can carry.
    pub claims_per_key: ClaimsPerKey,
    /// Who chooses session ids.
    pub session_ids: ChosenBy,
    /// The store grants [`Mode::Shared`].
    pub shared: bool,
    /// The store grants [`Mode::Permits`].
    pub permits: bool,
    /// What fits into the store.
    pub limits: Limits,
    /// A release keeps every copy of its claim that is still under way from taking effect.
    pub fences: bool,
    /// [`audit`](crate::LockBackend::audit) finds claims that were ended from outside.
    pub audits: bool,
    /// [`disturbed`](crate::LockBackend::disturbed) tells of an ended session, and of interference with so many claims at a time;
    /// `None` where it cannot be called at all.
    pub watched_claims: Option<usize>,
    /// [`amend`](crate::LockBackend::amend) works.
    pub amends: bool,
    /// [`list`](crate::LockBackend::list) works.
    pub lists: bool,
    /// [`changed`](crate::LockBackend::changed) works.
    pub tells_changes: bool,
    /// [`evict`](crate::LockBackend::evict) works.
    pub evicts: bool,
    /// [`claim_all`](crate::LockBackend::claim_all) takes so many keys at once; `None` where it cannot be called at all.
    pub claims_at_once: Option<usize>,
    /// So many calls that claim, confirm or release are sent at a time; `None` where it is as many as there are. `dlock` queues the others,
    /// and does not count that time as one of an attempt as long as the store answers those that are in flight. All but one may be
    /// claims: declare two or more, or a release waits for the claim in flight.
    pub calls_in_flight: Option<NonZeroUsize>,
    /// [`ownership`](crate::LockBackend::ownership) works.
    pub guards_writes: bool,
}

impl Capabilities {
    /// A store that can do no more than every store must: unordered exclusive locks, nothing optional.
    pub fn minimal(clock: ClockSource, ttl: TtlRange) -> Self {
        Self {
            clock,
            ttl,
            lapses_within_ttls: 1,
            order: Order::Unordered,
            claims_per_key: ClaimsPerKey::One,
            session_ids: ChosenBy::Store,
            shared: false,
            permits: false,
            limits: Limits::default(),
            fences: false,
            audits: false,
            watched_claims: None,
            amends: false,
            lists: false,
            tells_changes: false,
            evicts: false,
            claims_at_once: None,
            calls_in_flight: None,
            guards_writes: false,
        }
    }

    /// Whether the store grants claims of this mode.
    pub fn grants(&self, mode: Mode) -> bool {
        match mode {
            Mode::Exclusive => true,
            Mode::Shared => self.shared,
            Mode::Permits(_) => self.permits,
        }
    }

    /// Refuses claims that the store cannot take at once; every backend asks before it sends them.
    pub fn check_together(&self, claims: &[Claim]) -> Result<(), BackendError> {
        let invalid = |message| Err(BackendError::new(ErrorKind::Invalid, message));
        let Some(most) = self.claims_at_once else { return Err(BackendError::unsupported("claim_all")) };
        if claims.len() > most {
            return invalid(format!("{} keys are too many at once, this backend takes {most}", claims.len()));
        }
        for (place, claim) in claims.iter().enumerate() {
            if claim.mode != Mode::Exclusive {
                return invalid(format!("{} was asked for by {}; at once only exclusive claims are taken", claim.key, claim.mode));
            }
            if claims[..place].iter().any(|other| other.key == claim.key) {
                return invalid(format!("{} stands twice among the keys to take at once", claim.key));
            }
        }
        Ok(())
    }

    /// Refuses a claim in a mode that is not declared; every backend asks before it sends one.
    pub fn check_mode(&self, mode: Mode) -> Result<(), BackendError> {
        if self.grants(mode) {
            return Ok(());
        }
        Err(BackendError::new(ErrorKind::Unsupported, format!("this backend does not declare that it grants {mode}")))
    }
}

/// The session lifetimes that a store accepts, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlRange {
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

impl TtlRange {
    /// Whether a store with this range takes `ttl` as it is.
    pub fn contains(&self, ttl: Duration) -> bool {
        (self.min..=self.max).contains(&ttl)
    }
}

/// In which order a store grants waiting claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First come, first served: a claim keeps a place in a queue.
    Fifo,
    /// Whoever asks first once the key is free; no place is kept.
    Unordered,
}

/// How many claims of one session one key can carry at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimsPerKey {
    /// One: the store knows a lock by its session, so a second claim looks granted.
    One,
    /// Any number: every claim has an entry of its own.
    Many,
}

/// Who chooses an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// The client, before it sends the request.
    Client,
    /// The store, in its answer.
    Store,
}

/// What fits into a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest key, in bytes.
    pub key_bytes: usize,
    /// The largest published metadata, in bytes of JSON.
    pub metadata_bytes: usize,
}

impl Default for Limits {
    /// Keys of [`Key::MAX_BYTES`](crate::Key::MAX_BYTES), metadata of 64 KiB.
    fn default() -> Self {
        Self { key_bytes: crate::Key::MAX_BYTES, metadata_bytes: 64 * 1024 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_both_its_ends_and_nothing_beyond() {
        let range = TtlRange { min: Duration::from_secs(10), max: Duration::from_secs(20) };
        let held = [9, 10, 20, 21].map(|secs| range.contains(Duration::from_secs(secs)));
        assert_eq!(held, [false, true, true, false]);
    }
}
