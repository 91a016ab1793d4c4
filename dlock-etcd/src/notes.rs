//! What this process knows of its sessions and claims. Forgetting costs a request and is always safe.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dlock_core::{Claim, ClaimId};

use crate::wire::{Layout, Lease};

/// The knowledge of one process.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    leases: HashMap<Lease, LeaseNote>,
    /// In a tree, which leaves less room unused than a table that doubles: many may be held.
    claims: BTreeMap<ClaimId, ClaimNote>,
}

/// What is known of a session.
#[derive(Debug, Default)]
struct LeaseNote {
    /// What it was granted for; a renewal does not say it.
    ttl: Option<Duration>,
    /// The seats of a session that was opened here. Of another, some may be taken.
    seats: Option<Seats>,
}

/// The numbers by which a session tells its entries apart.
///
/// etcd keeps the name of a key that was deleted until the next compaction, and walks over it whenever it looks at the line. So a claim takes the
/// place of an earlier one wherever nothing of that can be under way any more.
#[derive(Debug, Default)]
struct Seats {
    drawn: u32,
    free: Vec<u32>,
}

impl Seats {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.drawn += 1;
            self.drawn
        })
    }
}

/// What is known of a claim of ours.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is an independent yes or no
pub(crate) struct ClaimNote {
    pub(crate) lease: Lease,
    /// The name of its entry.
    pub(crate) entry: Box<[u8]>,
    /// The seat that the entry is named after, unless something sent about it may still arrive when the claim is done.
    seat: Option<u32>,
    /// How many copies of it are under way.
    under_way: u32,
    /// A copy of it was never answered and may arrive later.
    unanswered: bool,
    /// A copy of it was refused for want of room, which may have been applied all the same.
    perhaps: bool,
    /// The revision of its entry, once that is known.
    pub(crate) created: Option<i64>,
    /// The entries ahead of it one of which must go before it can hold, when it was last looked; none of a holder.
    pub(crate) awaited: Vec<Vec<u8>>,
    /// It was granted, and nobody released it.
    held: bool,
    /// Its withdrawal was sent: what comes late of that takes the entry away, whatever became of the claim since.
    withdrawn: bool,
}

impl Notes {
    /// The session was opened here.
    pub(crate) fn opened(&mut self, lease: Lease, ttl: Duration) {
        self.leases.insert(lease, LeaseNote { ttl: Some(ttl), seats: Some(Seats::default()) });
    }

    /// The session was renewed, and is granted for so long.
    pub(crate) fn renewed(&mut self, lease: Lease, ttl: Duration) {
        self.leases.entry(lease).or_default().ttl = Some(ttl);
    }

    pub(crate) fn ttl(&self, lease: Lease) -> Option<Duration> {
        self.leases.get(&lease)?.ttl
    }

    /// Whether an entry of a claim that nothing is known of may be there, under whichever name.
    pub(crate) fn may_have_forgotten(&self, lease: Lease, claim: ClaimId) -> bool {
        let opened_here = self.leases.get(&lease).is_some_and(|note| note.seats.is_some());
        !opened_here && !self.claims.contains_key(&claim)
    }

    /// The lease is gone, and all that hung on it.
    pub(crate) fn drop_lease(&mut self, lease: Lease) {
        self.leases.remove(&lease);
        self.claims.retain(|_, note| note.lease != lease);
    }

    /// The name of the claim's entry, which it keeps until it is forgotten.
    pub(crate) fn begin(&mut self, layout: &Layout, lease: Lease, claim: &Claim) -> Vec<u8> {
        if let Some(note) = self.claims.get(&claim.id) {
            return note.entry.to_vec();
        }
        let seats = self.leases.get_mut(&lease).and_then(|note| note.seats.as_mut());
        let seat = seats.map(Seats::take);
        let entry = match seat {
            Some(seat) => layout.entry(lease, claim, &seat),
            None => layout.entry(lease, claim, &claim.id),
        };
        self.claims.insert(claim.id, ClaimNote::new(lease, entry.clone(), seat));
        entry
    }

    /// The name of the claim's entry, if it has one. A name that is not known is never that of another claim.
    pub(crate) fn entry(&self, layout: &Layout, lease: Lease, claim: &Claim) -> Vec<u8> {
        let note = self.claims.get(&claim.id).filter(|note| note.lease == lease);
        note.map_or_else(|| layout.entry(lease, claim, &claim.id), |note| note.entry.to_vec())
    }

    /// The claim was found under this name; nothing else is known of it.
    pub(crate) fn found(&mut self, lease: Lease, claim: ClaimId, entry: Vec<u8>) {
        let note = ClaimNote { unanswered: true, ..ClaimNote::new(lease, entry, None) };
        self.claims.entry(claim).or_insert(note);
    }

    /// A copy of the claim is about to be sent.
    pub(crate) fn sent(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.under_way += 1;
        }
    }

    /// That copy was answered, or will never be.
    pub(crate) fn done(&mut self, claim: ClaimId, answered: bool) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.under_way -= 1;
            note.unanswered |= !answered;
        }
    }

    /// A copy of the claim was refused because the database is full. The very write that goes over the limit is applied, and answered so too.
    pub(crate) fn refused_for_room(&mut self, claim: ClaimId) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.perhaps = true;
        }
    }

    /// Whether an entry of the claim's name that is not the known one may be its own: a copy of it may have made it anew. Otherwise another claim has
    /// taken its seat.
    pub(crate) fn may_be_made_anew(&self, claim: ClaimId) -> bool {
        self.claims.contains_key(&claim) && self.may_arrive(claim)
    }

    pub(crate) fn claim(&self, claim: ClaimId) -> Option<&ClaimNote> {
        self.claims.get(&claim)
    }

    /// The claim has an entry of this revision.
    pub(crate) fn entered(&mut self, claim: ClaimId, created: i64) {
        if let Some(note) = self.claims.get_mut(&claim) {
            note.created = Some(created);
        }
    }

    /// The claim has an entry of this revision, and waits for one of these to go.
    pub(crate) fn placed(&mut self, claim: ClaimId, created: i64, awaited: Vec<Vec<u8>>) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.created, note.awaited) = (Some(created), awaited);
        }
    }

    /// The claim was granted.
    pub(crate) fn granted(&mut self, claim: ClaimId, created: i64) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.created, note.awaited, note.held) = (Some(created), Vec::new(), true);
        }
    }

    /// The claim has nothing, and nothing of it is under way.
    pub(crate) fn forget(&mut self, claim: ClaimId) {
        let note = self.claims.remove(&claim);
        let Some(ClaimNote { lease, seat: Some(seat), under_way: 0, unanswered: false, perhaps, created, .. }) = note else {
            return;
        };
        if perhaps && created.is_none() {
            return;
        }
        if let Some(seats) = self.leases.get_mut(&lease).and_then(|note| note.seats.as_mut()) {
            seats.free.push(seat);
        }
    }

    /// Whether the claim may have an entry, now or later.
    pub(crate) fn may_have_something(&self, claim: ClaimId) -> bool {
        self.may_arrive(claim) || self.claims.get(&claim).is_some_and(|note| note.created.is_some() || note.perhaps)
    }

    /// A copy of the claim left nothing at the store. It is remembered if another has an entry there, or may still arrive.
    pub(crate) fn left_nothing(&mut self, claim: ClaimId) {
        if !self.may_have_something(claim) {
            self.forget(claim);
        }
    }

    /// Whether a copy of the claim may arrive later. Of a claim of which nothing is known, one may.
    pub(crate) fn may_arrive(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_none_or(|note| note.unanswered || note.under_way > 0)
    }

    /// An entry that the session holds, of all that it holds, and its revision.
    pub(crate) fn held_by(&self, lease: Lease) -> Option<(Vec<u8>, i64)> {
        let held = self.claims.values().filter(|note| note.lease == lease && note.held);
        let (entry, created) = held.filter_map(|note| Some((&note.entry, note.created?))).min()?;
        Some((entry.to_vec(), created))
    }

    /// Whether the session holds this entry since that revision, as far as we know.
    pub(crate) fn is_held(&self, lease: Lease, entry: &[u8], created: i64) -> bool {
        let is_it = |note: &ClaimNote| note.held && note.lease == lease && note.created == Some(created) && *note.entry == *entry;
        self.claims.values().any(is_it)
    }

    /// The release of a claim is about to be sent: what becomes of its entry from now on is our own doing. The revision of the entry that is to be
    /// deleted, where that is known for sure.
    pub(crate) fn releasing(&mut self, claim: ClaimId) -> Option<i64> {
        let may_arrive = self.may_arrive(claim);
        let note = self.claims.get_mut(&claim)?;
        (note.held, note.withdrawn) = (false, true);
        note.created.filter(|_| !may_arrive)
    }

    /// Whatever has the name of the claim's entry is about to be deleted, perhaps late: no other claim may ever have it. Whether the claim is known,
    /// so that its name is its own.
    pub(crate) fn spend(&mut self, claim: ClaimId) -> bool {
        let note = self.claims.get_mut(&claim);
        note.map(|note| note.seat = None).is_some()
    }

    /// Whether nothing may be granted to the claim any more.
    pub(crate) fn is_withdrawn(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_some_and(|note| note.withdrawn)
    }
}

impl ClaimNote {
    fn new(lease: Lease, entry: Vec<u8>, seat: Option<u32>) -> Self {
        let (entry, under_way, created, awaited) = (entry.into_boxed_slice(), 0, None, Vec::new());
        Self { lease, entry, seat, under_way, unanswered: false, perhaps: false, created, awaited, held: false, withdrawn: false }
    }
}

#[cfg(test)]
mod tests {
    use dlock_core::{Key, Mode};

    use super::*;

    const LEASE: Lease = Lease(7);
    const CLAIM: ClaimId = ClaimId::from_bits(1);
    const LONG: Duration = Duration::from_secs(2);

    fn layout() -> Layout {
        Layout { namespace: String::new() }
    }

    fn claim(bits: u128) -> Claim {
        let (id, key) = (ClaimId::from_bits(bits), Key::new("k").unwrap());
        Claim { id, key, mode: Mode::Exclusive, owner: "".into(), acquired_at: "".into(), metadata: None }
    }

    fn begin(notes: &mut Notes, bits: u128) -> String {
        String::from_utf8(notes.begin(&layout(), LEASE, &claim(bits))).unwrap()
    }

    /// One whole life: sent and answered, granted, released.
    fn lives(notes: &mut Notes, bits: u128) -> String {
        let (id, entry) = (ClaimId::from_bits(bits), begin(notes, bits));
        notes.sent(id);
        notes.done(id, true);
        notes.granted(id, 9);
        assert_eq!(notes.releasing(id), Some(9));
        notes.forget(id);
        entry
    }

    #[test]
    fn a_claim_that_was_answered_every_time_cannot_arrive_later() {
        let mut notes = Notes::default();
        begin(&mut notes, 1);
        notes.sent(CLAIM);
        assert!(notes.may_arrive(CLAIM), "it is under way");
        notes.done(CLAIM, true);
        assert!(!notes.may_arrive(CLAIM));
    }

    #[test]
    fn a_claim_that_was_once_not_answered_can_arrive_for_ever() {
        let mut notes = Notes::default();
        begin(&mut notes, 1);
        for answered in [false, true] {
            notes.sent(CLAIM);
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
        begin(&mut notes, 1);
        notes.sent(CLAIM);
        notes.done(CLAIM, true);
        notes.placed(CLAIM, 9, vec![b"k/7.0".to_vec()]);
        assert!(!notes.is_withdrawn(CLAIM));
        notes.releasing(CLAIM);
        notes.granted(CLAIM, 9);
        assert!(notes.is_withdrawn(CLAIM), "its withdrawal may still arrive");
        notes.forget(CLAIM);
        assert!(!notes.is_withdrawn(CLAIM));
    }

    #[test]
    fn a_lease_takes_its_claims_along() {
        let mut notes = Notes::default();
        notes.opened(LEASE, LONG);
        let entry = begin(&mut notes, 1).into_bytes();
        notes.granted(CLAIM, 9);
        assert!(notes.is_held(LEASE, &entry, 9) && !notes.is_held(LEASE, &entry, 8), "another of the same name is not it");
        assert_eq!((notes.held_by(LEASE), notes.ttl(LEASE)), (Some((entry, 9)), Some(LONG)));
        notes.drop_lease(LEASE);
        assert_eq!((notes.held_by(LEASE), notes.ttl(LEASE)), (None, None));
        assert!(notes.claim(CLAIM).is_none());
    }

    #[test]
    fn a_claim_takes_the_place_of_one_that_is_done() {
        let mut notes = Notes::default();
        notes.opened(LEASE, LONG);
        assert_eq!((begin(&mut notes, 1), begin(&mut notes, 2)), ("k/7.1".to_owned(), "k/7.2".to_owned()));
        assert_eq!(begin(&mut notes, 1), "k/7.1", "it keeps its name");
        assert_eq!([lives(&mut notes, 3), lives(&mut notes, 4)], ["k/7.3", "k/7.3"]);
        notes.left_nothing(ClaimId::from_bits(1));
        assert_eq!(begin(&mut notes, 5), "k/7.1", "what was refused leaves its place too");
    }

    #[test]
    fn a_name_is_spent_with_whatever_of_it_may_still_arrive() {
        let mut notes = Notes::default();
        notes.opened(LEASE, LONG);
        let (copy, withdrawal, unsent) = (ClaimId::from_bits(1), ClaimId::from_bits(2), ClaimId::from_bits(3));
        begin(&mut notes, 1);
        notes.sent(copy);
        notes.done(copy, false);
        notes.granted(copy, 9);
        assert_eq!(notes.releasing(copy), None, "another entry may be made");
        begin(&mut notes, 2);
        notes.sent(withdrawal);
        notes.done(withdrawal, true);
        assert_eq!(notes.releasing(withdrawal), None, "its revision is not known");
        assert!(notes.spend(withdrawal));
        begin(&mut notes, 3);
        for id in [copy, withdrawal] {
            notes.forget(id);
        }
        assert_eq!(begin(&mut notes, 4), "k/7.4");
        notes.forget(unsent);
        assert_eq!(begin(&mut notes, 5), "k/7.3");
        assert!(!notes.spend(unsent), "its name is another's by now");
    }

    #[test]
    fn what_was_refused_for_want_of_room_may_be_there_all_the_same() {
        let mut notes = Notes::default();
        notes.opened(LEASE, LONG);
        begin(&mut notes, 1);
        notes.sent(CLAIM);
        notes.refused_for_room(CLAIM);
        notes.done(CLAIM, true);
        notes.left_nothing(CLAIM);
        assert!(notes.claim(CLAIM).is_some() && notes.may_have_something(CLAIM), "it is remembered");
        notes.forget(CLAIM);
        assert_eq!(begin(&mut notes, 2), "k/7.2", "nobody gets its name");
    }

    #[test]
    fn a_name_that_is_not_known_is_never_that_of_another_claim() {
        let mut notes = Notes::default();
        assert!(notes.may_have_forgotten(LEASE, CLAIM));
        let by_id = "k/7.00000000000000000000000000000001";
        assert_eq!(begin(&mut notes, 1), by_id, "of a session that was opened elsewhere, seats may be taken");
        assert!(!notes.may_have_forgotten(LEASE, CLAIM));
        notes.drop_lease(LEASE);
        notes.opened(LEASE, LONG);
        assert!(!notes.may_have_forgotten(LEASE, CLAIM));
        lives(&mut notes, 1);
        assert_eq!(notes.entry(&layout(), LEASE, &claim(1)), by_id.as_bytes());
    }
}
