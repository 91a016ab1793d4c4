//! What this process knows of its sessions and claims. Forgetting costs a request and is always safe.

use std::collections::HashMap;
use std::time::Duration;

use dlock_core::ClaimId;

use crate::wire::Lease;

/// The knowledge of one process.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// What each lease was granted for; a renewal does not say it.
    ttls: HashMap<Lease, Duration>,
    claims: HashMap<ClaimId, ClaimNote>,
}

/// What is known of a claim of ours.
#[derive(Clone, Debug)]
pub(crate) struct ClaimNote {
    pub(crate) lease: Lease,
    /// How many copies of it are under way.
    under_way: usize,
    /// A copy of it was never answered and may arrive later.
    unanswered: bool,
    /// The revision of its entry, once that is known.
    pub(crate) created: Option<i64>,
    /// The entries ahead of it one of which must go before it can hold, when it was last looked; none of a holder.
    pub(crate) awaited: Vec<Vec<u8>>,
    /// Its entry, once it was granted.
    pub(crate) held: Option<Vec<u8>>,
    /// Its withdrawal was sent: what comes late of that takes the entry away, whatever became of the claim since.
    withdrawn: bool,
}

impl Notes {
    pub(crate) fn opened(&mut self, lease: Lease, ttl: Duration) {
        self.ttls.insert(lease, ttl);
    }

    pub(crate) fn ttl(&self, lease: Lease) -> Option<Duration> {
        self.ttls.get(&lease).copied()
    }

    /// The lease is gone, and all that hung on it.
    pub(crate) fn drop_lease(&mut self, lease: Lease) {
        self.ttls.remove(&lease);
        self.claims.retain(|_, note| note.lease != lease);
    }

    /// A copy of the claim is about to be sent.
    pub(crate) fn sent(&mut self, lease: Lease, claim: ClaimId) {
        let fresh =
            ClaimNote { lease, under_way: 0, unanswered: false, created: None, awaited: Vec::new(), held: None, withdrawn: false };
        self.claims.entry(claim).or_insert(fresh).under_way += 1;
    }

    /// That copy was answered, or will never be.
    pub(crate) fn done(&mut self, claim: ClaimId, answered: bool) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.under_way -= 1;
            note.unanswered |= !answered;
        }
    }

    pub(crate) fn claim(&self, claim: ClaimId) -> Option<&ClaimNote> {
        self.claims.get(&claim)
    }

    /// The claim has an entry of this revision, and waits for one of these to go.
    pub(crate) fn placed(&mut self, claim: ClaimId, created: i64, awaited: Vec<Vec<u8>>) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.created, note.awaited) = (Some(created), awaited);
        }
    }

    /// The claim was granted.
    pub(crate) fn granted(&mut self, claim: ClaimId, created: i64, entry: Vec<u8>) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.created, note.awaited, note.held) = (Some(created), Vec::new(), Some(entry));
        }
    }

    /// The claim has nothing, and nothing of it is under way.
    pub(crate) fn forget(&mut self, claim: ClaimId) {
        self.claims.remove(&claim);
    }

    /// A copy of the claim left nothing at the store. It is remembered if another has an entry there, or may still arrive.
    pub(crate) fn left_nothing(&mut self, claim: ClaimId) {
        if !self.may_arrive(claim) && self.claims.get(&claim).is_some_and(|note| note.created.is_none()) {
            self.forget(claim);
        }
    }

    /// Whether a copy of the claim may arrive later. Of a claim of which nothing is known, one may.
    pub(crate) fn may_arrive(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_none_or(|note| note.unanswered || note.under_way > 0)
    }

    /// An entry that the session holds, of all that it holds, and its revision.
    pub(crate) fn held_by(&self, lease: Lease) -> Option<(Vec<u8>, i64)> {
        let held = self.claims.values().filter(|note| note.lease == lease);
        held.filter_map(|note| Some((note.held.clone()?, note.created?))).min()
    }

    /// Whether the session holds this entry, as far as we know.
    pub(crate) fn is_held(&self, lease: Lease, entry: &[u8]) -> bool {
        self.claims.values().any(|note| note.lease == lease && note.held.as_deref() == Some(entry))
    }

    /// The release of a claim is about to be sent: what becomes of its entry from now on is our own doing.
    pub(crate) fn releasing(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.held, note.withdrawn) = (None, true);
        }
    }

    /// Whether nothing may be granted to the claim any more.
    pub(crate) fn is_withdrawn(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_some_and(|note| note.withdrawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Lease = Lease(7);
    const CLAIM: ClaimId = ClaimId::from_bits(1);

    #[test]
    fn a_claim_that_was_answered_every_time_cannot_arrive_later() {
        let mut notes = Notes::default();
        notes.sent(LEASE, CLAIM);
        assert!(notes.may_arrive(CLAIM), "it is under way");
        notes.done(CLAIM, true);
        assert!(!notes.may_arrive(CLAIM));
    }

    #[test]
    fn a_claim_that_was_once_not_answered_can_arrive_for_ever() {
        let mut notes = Notes::default();
        for answered in [false, true] {
            notes.sent(LEASE, CLAIM);
            notes.done(CLAIM, answered);
        }
        assert!(notes.may_arrive(CLAIM));
        notes.left_nothing(CLAIM);
        assert!(notes.claim(CLAIM).is_some(), "it is remembered");
    }

    #[test]
    fn a_claim_of_which_nothing_is_known_may_arrive() {
        assert!(Notes::default().may_arrive(CLAIM));
    }

    #[test]
    fn a_claim_that_was_withdrawn_stays_so_until_it_is_forgotten() {
        let mut notes = Notes::default();
        notes.sent(LEASE, CLAIM);
        notes.done(CLAIM, true);
        notes.placed(CLAIM, 9, vec![b"k/7.0".to_vec()]);
        assert!(!notes.is_withdrawn(CLAIM));
        notes.releasing(CLAIM);
        notes.granted(CLAIM, 9, b"k/7.1".to_vec());
        assert!(notes.is_withdrawn(CLAIM), "its withdrawal may still arrive");
        notes.forget(CLAIM);
        assert!(!notes.is_withdrawn(CLAIM));
    }

    #[test]
    fn a_lease_takes_its_claims_along() {
        let mut notes = Notes::default();
        notes.opened(LEASE, Duration::from_secs(2));
        notes.sent(LEASE, CLAIM);
        notes.done(CLAIM, true);
        notes.granted(CLAIM, 9, b"k/7.1".to_vec());
        assert_eq!((notes.held_by(LEASE), notes.ttl(LEASE)), (Some((b"k/7.1".to_vec(), 9)), Some(Duration::from_secs(2))));
        notes.drop_lease(LEASE);
        assert_eq!((notes.held_by(LEASE), notes.ttl(LEASE)), (None, None));
        assert!(notes.claim(CLAIM).is_none());
    }
}
