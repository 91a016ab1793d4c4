//! What this process knows of keys and of its claims on them. Forgetting a key costs a request and is always safe.

use std::collections::{BTreeMap, HashMap};

use dlock_core::{ClaimId, FencingToken, Key, Metadata, SessionId};

/// The knowledge of one process.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    keys: HashMap<Key, Known>,
    /// In a tree, which leaves less room unused than a table that doubles: many may be held.
    claims: BTreeMap<ClaimId, ClaimNote>,
    /// Claims of which a copy that was guarded by the key's absence was never answered, with their sessions. If somebody deletes the
    /// key, that copy can still apply.
    unfenced: HashMap<ClaimId, SessionId>,
    /// By the part before its last segment: whether the key that was met last for the first time did not exist. The next is then claimed
    /// without looking first.
    absent: HashMap<String, bool>,
}

/// The last known state of a key that was free, or that we held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Absent,
    At(u64),
}

/// What is known of a claim of ours.
#[derive(Clone, Debug)]
pub(crate) struct ClaimNote {
    pub(crate) session: SessionId,
    pub(crate) state: ClaimState,
    /// What it published since it was granted, if that changed.
    pub(crate) amended: Option<Box<Metadata>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimState {
    /// Sent with this guard, and not answered.
    Sent(Known),
    /// Granted with this token; the key stood at this index when last heard of.
    Held { token: FencingToken, index: u64 },
    /// Its release was sent.
    Releasing,
}

impl Notes {
    /// How many keys are remembered.
    const MOST_KEYS: usize = 10_000;

    pub(crate) fn key(&self, key: &Key) -> Option<Known> {
        self.keys.get(key).copied()
    }

    /// What to expect of a key that was never met.
    pub(crate) fn guess(&self, key: &Key) -> Option<Known> {
        self.absent.get(parent(key)).copied().unwrap_or(false).then_some(Known::Absent)
    }

    /// A key that was never met turned out to exist, or not to.
    pub(crate) fn met(&mut self, key: &Key, exists: bool) {
        if self.absent.len() >= Self::MOST_KEYS {
            self.absent.clear();
        }
        self.absent.insert(parent(key).to_owned(), !exists);
    }

    pub(crate) fn learn(&mut self, key: &Key, known: Known) {
        if self.keys.len() >= Self::MOST_KEYS && !self.keys.contains_key(key) {
            self.keys.clear();
        }
        self.keys.insert(key.clone(), known);
    }

    pub(crate) fn forget(&mut self, key: &Key) {
        self.keys.remove(key);
    }

    pub(crate) fn claim(&self, id: ClaimId) -> Option<ClaimNote> {
        self.claims.get(&id).cloned()
    }

    pub(crate) fn note(&mut self, id: ClaimId, session: &SessionId, state: ClaimState) {
        match self.claims.get_mut(&id) {
            Some(note) => note.state = state,
            None => {
                self.claims.insert(id, ClaimNote { session: session.clone(), state, amended: None });
            }
        }
    }

    /// The token that a claim was granted with.
    pub(crate) fn token(&self, id: ClaimId) -> Option<FencingToken> {
        match self.claims.get(&id)?.state {
            ClaimState::Held { token, .. } => Some(token),
            ClaimState::Sent(_) | ClaimState::Releasing => None,
        }
    }

    pub(crate) fn amended(&mut self, id: ClaimId, metadata: Metadata, index: u64) {
        if let Some(note) = self.claims.get_mut(&id)
            && let ClaimState::Held { index: known, .. } = &mut note.state
        {
            *known = index;
            note.amended = Some(Box::new(metadata));
        }
    }

    pub(crate) fn drop_claim(&mut self, id: ClaimId) {
        self.claims.remove(&id);
    }

    /// A copy of the claim goes out, guarded by absence; whether one did before that was never answered.
    pub(crate) fn sent_unfenced(&mut self, id: ClaimId, session: &SessionId) -> bool {
        self.unfenced.insert(id, session.clone()).is_some()
    }

    /// Every copy of the claim is accounted for, or the claim is over; whether one was not.
    pub(crate) fn take_unfenced(&mut self, id: ClaimId) -> bool {
        self.unfenced.remove(&id).is_some()
    }

    /// The session is over, and all its claims with it.
    pub(crate) fn drop_session(&mut self, session: &SessionId) {
        self.unfenced.retain(|_, of| of != session);
        self.claims.retain(|_, note| note.session != *session);
    }
}

/// All but the last segment: keys beside one another are mostly made alike.
fn parent(key: &Key) -> &str {
    key.as_str().rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_met_last_is_expected_next_beside_it() {
        let mut notes = Notes::default();
        let (order, cron) = (Key::new("orders/42").unwrap(), Key::new("cron/nightly").unwrap());
        assert_eq!(notes.guess(&order), None);
        notes.met(&order, false);
        assert_eq!(notes.guess(&Key::new("orders/43").unwrap()), Some(Known::Absent));
        assert_eq!(notes.guess(&cron), None);
        notes.met(&order, true);
        assert_eq!(notes.guess(&order), None);
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut notes = Notes::default();
        for n in 0..=Notes::MOST_KEYS {
            notes.learn(&Key::new(format!("k{n}")).unwrap(), Known::At(1));
        }
        assert!(notes.keys.len() <= Notes::MOST_KEYS);
    }

    #[test]
    fn a_session_takes_its_claims_along() {
        let mut notes = Notes::default();
        let (one, two) = (SessionId::new("one"), SessionId::new("two"));
        notes.note(ClaimId::from_bits(1), &one, ClaimState::Releasing);
        notes.note(ClaimId::from_bits(2), &two, ClaimState::Releasing);
        notes.drop_session(&one);
        assert!(notes.claim(ClaimId::from_bits(1)).is_none());
        assert!(notes.claim(ClaimId::from_bits(2)).is_some());
    }
}
