//! Which claims of this process are still under way to the file, so that only a release that needs one leaves a tombstone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::{ClaimId, SessionId};

/// What is known of the claims that were sent from here and not released since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes(Arc<Mutex<HashMap<ClaimId, Note>>>);

#[derive(Debug)]
struct Note {
    session: SessionId,
    /// Copies that were sent and have not arrived.
    under_way: usize,
}

impl Notes {
    fn all(&self) -> MutexGuard<'_, HashMap<ClaimId, Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of this claim leaves; it is under way until what is returned is dropped.
    pub(crate) fn sending(&self, session: &SessionId, claim: ClaimId) -> OnItsWay {
        let mut all = self.all();
        all.entry(claim).or_insert_with(|| Note { session: session.clone(), under_way: 0 }).under_way += 1;
        drop(all);
        OnItsWay { notes: self.clone(), claim }
    }

    /// Whether a copy of the claim may still be under way. One of which nothing is known may.
    pub(crate) fn may_be_under_way(&self, claim: ClaimId) -> bool {
        self.all().get(&claim).is_none_or(|note| note.under_way > 0)
    }

    /// The claim was released.
    pub(crate) fn forget(&self, claim: ClaimId) {
        self.all().remove(&claim);
    }

    /// The claim has nothing, and leaves nothing to be released.
    pub(crate) fn left_nothing(&self, claim: ClaimId) {
        let mut all = self.all();
        if all.get(&claim).is_some_and(|note| note.under_way <= 1) {
            all.remove(&claim);
        }
    }

    /// The session is over, and all copies of its claims have no effect.
    pub(crate) fn ended(&self, session: &SessionId) {
        self.all().retain(|_, note| note.session != *session);
    }
}

/// A copy of a claim that has not arrived.
#[derive(Debug)]
pub(crate) struct OnItsWay {
    notes: Notes,
    claim: ClaimId,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(note) = self.notes.all().get_mut(&self.claim) {
            note.under_way = note.under_way.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_may_be_under_way_until_it_arrived_or_nothing_is_known_of_it() {
        let (notes, session, claim) = (Notes::default(), SessionId::new("s"), ClaimId::from_bits(1));
        assert!(notes.may_be_under_way(claim), "never sent from here");
        let copy = notes.sending(&session, claim);
        drop(notes.sending(&session, claim));
        assert!(notes.may_be_under_way(claim), "one copy has not arrived");
        drop(copy);
        assert!(!notes.may_be_under_way(claim), "all have arrived");
        notes.forget(claim);
        assert!(notes.may_be_under_way(claim), "nothing is known any more");
    }

    #[test]
    fn nothing_is_kept_of_what_is_over() {
        let (notes, session) = (Notes::default(), SessionId::new("s"));
        let refused = ClaimId::from_bits(1);
        let copy = notes.sending(&session, refused);
        notes.left_nothing(refused);
        drop(copy);
        drop(notes.sending(&session, ClaimId::from_bits(2)));
        notes.ended(&session);
        assert!(notes.all().is_empty());
    }
}
