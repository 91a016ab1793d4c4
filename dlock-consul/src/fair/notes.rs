//! What this process knows of its tickets. Forgetting costs a request and is always safe.

use std::collections::HashMap;

use dlock_core::{ClaimId, Key, SessionId};
use tokio::time::Instant;

use crate::wire::Entry;

/// The knowledge of one process.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    claims: HashMap<ClaimId, ClaimNote>,
    /// Whether a key was there when it was last looked at.
    there: HashMap<Key, bool>,
}

/// What is known of a claim of ours.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is an independent yes or no
pub(crate) struct ClaimNote {
    session: SessionId,
    /// How many copies of it are under way.
    under_way: usize,
    /// A copy of it was never answered and may arrive later.
    unanswered: bool,
    /// It got a ticket.
    placed: bool,
    /// Its withdrawal was sent: what comes late of that takes the ticket away, whatever became of the claim since.
    withdrawn: bool,
    /// Something was sent that may have locked the key itself.
    pub(crate) may_lock: bool,
    /// Its ticket, when it last stood in line, and the index of that.
    pub(crate) own: Option<Awaited>,
    pub(crate) index: u64,
    /// When it was first sent.
    pub(crate) began: Instant,
    pub(crate) awaits: Awaits,
    /// Others were ahead of it.
    pub(crate) stood_behind: bool,
    /// Only one was ahead of it when it last looked, which gives back the key as it leaves. Nobody comes ahead later, so that it is first then.
    next: bool,
    /// The one that it waits for is marked as the first in line, so that only that one is ahead of it.
    behind_first: bool,
    /// The index at which that one left, whichever of both it is known from.
    pub(crate) left_at: Option<u64>,
}

/// What a claim in line waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Awaits {
    #[default]
    Nothing,
    /// It is first, and somebody without a ticket has the key.
    Key,
    /// One of these tickets must go.
    Tickets(Vec<Awaited>),
}

/// A ticket by its name and the index at which it was made: one that was taken away comes again under its name, further behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub(crate) ticket: String,
    pub(crate) created: u64,
}

impl Awaited {
    /// Whether it is the ticket of this claim, an exclusive one.
    pub(crate) fn is_of(&self, claim: ClaimId) -> bool {
        self.ticket.ends_with(&format!(".{claim}/"))
    }

    /// Whether this is still there, with its session.
    pub(crate) fn is(&self, entry: &Entry) -> bool {
        entry.key == self.ticket && entry.create_index == self.created && entry.holder_session().is_some()
    }
}

impl Notes {
    /// How many keys are remembered.
    const MOST_KEYS: usize = 10_000;

    pub(crate) fn there(&self, key: &Key) -> Option<bool> {
        self.there.get(key).copied()
    }

    pub(crate) fn learn(&mut self, key: &Key, there: bool) {
        if self.there.len() >= Self::MOST_KEYS && !self.there.contains_key(key) {
            self.there.clear();
        }
        self.there.insert(key.clone(), there);
    }

    /// A copy of the claim is about to be sent.
    pub(crate) fn sent(&mut self, session: &SessionId, claim: ClaimId) {
        let fresh = || ClaimNote {
            session: session.clone(),
            under_way: 0,
            unanswered: false,
            placed: false,
            withdrawn: false,
            may_lock: false,
            own: None,
            index: 0,
            began: Instant::now(),
            awaits: Awaits::Nothing,
            stood_behind: false,
            next: false,
            behind_first: false,
            left_at: None,
        };
        self.claims.entry(claim).or_insert_with(fresh).under_way += 1;
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

    /// The claim has a ticket.
    pub(crate) fn placed(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.placed = true;
        }
    }

    /// The claim waits in line, with a ticket of this index; `next` says that only one is ahead, which gives back the key as it leaves.
    pub(crate) fn waits(&mut self, claim: ClaimId, own: Awaited, index: u64, awaits: Awaits, behind: bool, next: bool) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.own, note.index, note.awaits) = (Some(own), index, awaits);
            (note.next, note.behind_first, note.left_at) = (next, false, None);
            note.stood_behind |= behind;
        }
    }

    /// Whether the one that the claim waits for was last seen with the mark that it came to the key, as all who were ahead of that one have left.
    pub(crate) fn before(&mut self, claim: ClaimId, before: &Awaited, is_first: bool) {
        if let Some(note) = self.claims.get_mut(&claim) {
            let waits_for_it =
                matches!(&note.awaits, Awaits::Tickets(awaited) if awaited.as_slice() == std::slice::from_ref(before));
            note.behind_first = is_first && waits_for_it;
        }
    }

    /// Who asked for the key as of what it knew was refused: it looks before it asks again.
    pub(crate) fn guessed_wrong(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.left_at = None;
        }
    }

    /// The one that the claim waits for was deleted at this index.
    pub(crate) fn left_before(&mut self, claim: ClaimId, index: u64) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.left_at = Some(index).filter(|_| note.next || note.behind_first);
        }
    }

    /// The claim does not wait any more.
    pub(crate) fn granted(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.placed, note.awaits) = (true, Awaits::Nothing);
        }
    }

    /// The claim is about to ask for the key itself.
    pub(crate) fn locking(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.may_lock = true;
        }
    }

    /// The claim is about to be withdrawn.
    pub(crate) fn withdrawing(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.withdrawn = true;
        }
    }

    /// Whether nothing may be granted to the claim any more.
    pub(crate) fn is_withdrawn(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_some_and(|note| note.withdrawn)
    }

    /// Whether the claim may have the key itself. Of a claim of which nothing is known, it may.
    pub(crate) fn may_lock(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_none_or(|note| note.may_lock)
    }

    /// Whether a copy of the claim may arrive later. Of a claim of which nothing is known, one may.
    pub(crate) fn may_arrive(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_none_or(|note| note.unanswered || note.under_way > 0)
    }

    /// The claim has nothing, and nothing of it is under way.
    pub(crate) fn forget(&mut self, claim: ClaimId) {
        self.claims.remove(&claim);
    }

    /// A copy of the claim left nothing at the store. It is remembered if another has a ticket there, or may still arrive.
    pub(crate) fn left_nothing(&mut self, claim: ClaimId) {
        if !self.may_arrive(claim) && self.claims.get(&claim).is_some_and(|note| !note.placed) {
            self.forget(claim);
        }
    }

    /// The session is over, and all its claims with it.
    pub(crate) fn drop_session(&mut self, session: &SessionId) {
        self.claims.retain(|_, note| note.session != *session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: ClaimId = ClaimId::from_bits(1);

    #[test]
    fn a_claim_that_was_once_not_answered_can_arrive_for_ever() {
        let (mut notes, session) = (Notes::default(), SessionId::new("one"));
        assert!(notes.may_arrive(CLAIM) && notes.may_lock(CLAIM), "nothing is known of it");
        notes.sent(&session, CLAIM);
        assert!(notes.may_arrive(CLAIM), "it is under way");
        notes.done(CLAIM, true);
        assert!(!notes.may_arrive(CLAIM) && !notes.may_lock(CLAIM));
        for answered in [false, true] {
            notes.sent(&session, CLAIM);
            notes.done(CLAIM, answered);
        }
        notes.left_nothing(CLAIM);
        assert!(notes.may_arrive(CLAIM) && notes.claim(CLAIM).is_some(), "it is remembered");
    }

    #[test]
    fn only_who_had_one_ahead_is_first_once_that_one_left() {
        let (mut notes, session) = (Notes::default(), SessionId::new("one"));
        notes.sent(&session, CLAIM);
        let ticket = |of: &str| Awaited { ticket: format!("k/.dlock/{of}/"), created: 7 };
        let mut left_at = |ahead| {
            notes.waits(CLAIM, ticket("own"), 8, Awaits::Tickets(vec![ticket("before")]), true, ahead == 1);
            notes.left_before(CLAIM, 9);
            notes.claim(CLAIM).and_then(|note| note.left_at)
        };
        assert_eq!([left_at(1), left_at(2)], [Some(9), None], "of the other ahead, the one that left says nothing");
    }

    #[test]
    fn whoever_waits_for_the_first_alone_is_next() {
        let (mut notes, session) = (Notes::default(), SessionId::new("one"));
        notes.sent(&session, CLAIM);
        let ticket = |of: &str, created| Awaited { ticket: format!("k/.dlock/{of}/"), created };
        let before = ticket("before", 7);
        let mut left_at = |first: &Awaited, awaited: &[Awaited]| {
            notes.waits(CLAIM, ticket("own", 8), 8, Awaits::Tickets(awaited.to_vec()), true, false);
            notes.before(CLAIM, first, true);
            notes.left_before(CLAIM, 9);
            notes.claim(CLAIM).and_then(|note| note.left_at)
        };
        assert_eq!(left_at(&before, std::slice::from_ref(&before)), Some(9));
        assert_eq!(left_at(&ticket("before", 6), std::slice::from_ref(&before)), None, "it was made anew since, further behind");
        assert_eq!(left_at(&before, &[before.clone(), ticket("another", 6)]), None, "there is one more to wait for");
        assert_eq!(left_at(&before, &[ticket("another", 6)]), None);
    }

    #[test]
    fn a_claim_that_was_withdrawn_stays_so_until_it_is_forgotten() {
        let (mut notes, session) = (Notes::default(), SessionId::new("one"));
        notes.sent(&session, CLAIM);
        notes.done(CLAIM, true);
        assert!(!notes.is_withdrawn(CLAIM));
        notes.withdrawing(CLAIM);
        notes.granted(CLAIM);
        assert!(notes.is_withdrawn(CLAIM), "its withdrawal may still arrive");
        notes.forget(CLAIM);
        assert!(!notes.is_withdrawn(CLAIM));
    }

    #[test]
    fn a_session_takes_its_claims_along() {
        let (mut notes, session) = (Notes::default(), SessionId::new("one"));
        notes.sent(&session, CLAIM);
        notes.drop_session(&SessionId::new("two"));
        assert!(notes.claim(CLAIM).is_some());
        notes.drop_session(&session);
        assert!(notes.claim(CLAIM).is_none());
    }
}
