//! What this process knows of its sessions and claims. Forgetting a session costs a request and is always safe; a claim is forgotten once it has
//! nothing, and its entry's name goes to another only if no copy of it counts as under way ([`Copy`](crate::line::Copy)).

use std::collections::{BTreeMap, HashMap};
use std::num::{NonZeroI64, NonZeroU32};
use std::time::Duration;

use dlock_core::{Claim, ClaimId, Key, Mode};

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
    free: Vec<NonZeroU32>,
}

impl Seats {
    /// None where there are no more numbers.
    fn take(&mut self) -> Option<NonZeroU32> {
        self.free.pop().or_else(|| {
            self.drawn = self.drawn.checked_add(1)?;
            NonZeroU32::new(self.drawn)
        })
    }
}

/// What is known of a claim of ours. Small, since there is one for each held lock: the name of its entry is put together whenever it is asked for.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is an independent yes or no
pub(crate) struct ClaimNote {
    pub(crate) lease: Lease,
    key: Key,
    mode: Mode,
    /// The seat that its entry is named after. Without one it is named after the claim, unless it was found.
    seat: Option<NonZeroU32>,
    /// Under which name it was found.
    #[allow(clippy::box_collection)] // hardly one is, and those that are held are many
    found: Option<Box<Vec<u8>>>,
    /// Something sent about its entry may still arrive when the claim is done: no other claim may ever have its name.
    spent: bool,
    /// A copy of it was never answered and may arrive later.
    unanswered: bool,
    /// A copy of it was refused for want of room, which may have been applied all the same.
    perhaps: bool,
    /// It was granted, and nobody released it.
    held: bool,
    /// Its withdrawal was sent: what comes late of that takes the entry away, whatever became of the claim since.
    withdrawn: bool,
    /// How many copies of it are under way.
    under_way: u32,
    /// The revision of its entry, once that is known. No entry has the revision zero.
    created: Option<NonZeroI64>,
    /// Where it waits.
    #[allow(clippy::box_collection)] // a holder has none, and those who hold are many
    awaited: Option<Box<Vec<Vec<u8>>>>,
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
        let note = self.claims.entry(claim.id).or_insert_with(|| {
            let seats = self.leases.get_mut(&lease).and_then(|note| note.seats.as_mut());
            ClaimNote::new(lease, claim, seats.and_then(Seats::take))
        });
        note.entry(layout, claim.id)
    }

    /// The name of the claim's entry, if it has one. A name that is not known is never that of another claim.
    pub(crate) fn entry(&self, layout: &Layout, lease: Lease, claim: &Claim) -> Vec<u8> {
        let note = self.claims.get(&claim.id).filter(|note| note.lease == lease);
        note.map_or_else(|| layout.entry(lease, &claim.key, claim.mode, &claim.id), |note| note.entry(layout, claim.id))
    }

    /// The claim was found under this name; nothing else is known of it.
    pub(crate) fn found(&mut self, lease: Lease, claim: &Claim, entry: Vec<u8>) {
        let note = ClaimNote { unanswered: true, found: Some(Box::new(entry)), ..ClaimNote::new(lease, claim, None) };
        self.claims.entry(claim.id).or_insert(note);
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
            // Another may have been noted since under the same id.
            note.under_way = note.under_way.saturating_sub(1);
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
            note.created = NonZeroI64::new(created);
        }
    }

    /// The claim has an entry of this revision, and waits for one of these to go.
    pub(crate) fn placed(&mut self, claim: ClaimId, created: i64, awaited: Vec<Vec<u8>>) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.created, note.awaited) = (NonZeroI64::new(created), Some(Box::new(awaited)));
        }
    }

    /// The claim was granted.
    pub(crate) fn granted(&mut self, claim: ClaimId, created: i64) {
        if let Some(note) = self.claims.get_mut(&claim) {
            (note.created, note.awaited, note.held) = (NonZeroI64::new(created), None, true);
        }
    }

    /// The claim has nothing, and nothing of it is under way.
    pub(crate) fn forget(&mut self, claim: ClaimId) {
        let note = self.claims.remove(&claim);
        let Some(note @ ClaimNote { seat: Some(seat), spent: false, under_way: 0, unanswered: false, .. }) = note else {
            return;
        };
        let ClaimNote { lease, perhaps, created, .. } = note;
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

    /// The entry that the session holds for the longest, and its revision.
    pub(crate) fn held_by(&self, layout: &Layout, lease: Lease) -> Option<(Vec<u8>, i64)> {
        let held = self.claims.iter().filter(|(_, note)| note.lease == lease && note.held && note.created.is_some());
        let (id, oldest) = held.min_by_key(|(_, note)| note.created)?;
        Some((oldest.entry(layout, *id), oldest.created()?))
    }

    /// Whether the session holds this entry since that revision, as far as we know.
    pub(crate) fn is_held(&self, layout: &Layout, lease: Lease, entry: &[u8], created: i64) -> bool {
        let held = |note: &ClaimNote| note.held && note.lease == lease && note.created() == Some(created);
        // Those of one revision were taken together.
        self.claims.iter().any(|(id, note)| held(note) && note.entry(layout, *id) == entry)
    }

    /// The release of a claim is about to be sent: what becomes of its entry from now on is our own doing. The revision of the entry that is to be
    /// deleted, where that is known for sure.
    pub(crate) fn releasing(&mut self, claim: ClaimId) -> Option<i64> {
        let may_arrive = self.may_arrive(claim);
        let note = self.claims.get_mut(&claim)?;
        (note.held, note.withdrawn) = (false, true);
        note.created().filter(|_| !may_arrive)
    }

    /// Whatever has the name of the claim's entry is about to be deleted, perhaps late: no other claim may ever have it. Whether the claim is known,
    /// so that its name is its own.
    pub(crate) fn spend(&mut self, claim: ClaimId) -> bool {
        let note = self.claims.get_mut(&claim);
        note.map(|note| note.spent = true).is_some()
    }

    /// Whether nothing may be granted to the claim any more.
    pub(crate) fn is_withdrawn(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_some_and(|note| note.withdrawn)
    }
}

impl ClaimNote {
    fn new(lease: Lease, claim: &Claim, seat: Option<NonZeroU32>) -> Self {
        Self {
            lease,
            key: claim.key.clone(),
            mode: claim.mode,
            seat,
            found: None,
            spent: false,
            unanswered: false,
            perhaps: false,
            held: false,
            withdrawn: false,
            under_way: 0,
            created: None,
            awaited: None,
        }
    }

    /// The name of its entry.
    fn entry(&self, layout: &Layout, id: ClaimId) -> Vec<u8> {
        match (&self.found, &self.seat) {
            (Some(found), _) => found.to_vec(),
            (None, Some(seat)) => layout.entry(self.lease, &self.key, self.mode, seat),
            (None, None) => layout.entry(self.lease, &self.key, self.mode, &id),
        }
    }

    /// The revision of its entry, once that is known.
    pub(crate) fn created(&self) -> Option<i64> {
        self.created.map(NonZeroI64::get)
    }

    /// The entries ahead of it one of which must go before it can hold, when it was last looked; none of a holder.
    pub(crate) fn awaited(&self) -> &[Vec<u8>] {
        self.awaited.as_deref().map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
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
    fn what_is_known_of_a_held_lock_is_small_and_in_one_piece() {
        assert!(size_of::<ClaimNote>() <= 72, "{} bytes", size_of::<ClaimNote>());
        let note = ClaimNote::new(LEASE, &claim(1), NonZeroU32::new(1));
        assert!(note.found.is_none() && note.awaited.is_none());
    }

    #[test]
    fn the_oldest_of_the_held_entries_tells_of_the_session() {
        let mut notes = Notes::default();
        notes.opened(LEASE, LONG);
        for (bits, created) in [(1, 12), (2, 9), (3, 10)] {
            begin(&mut notes, bits);
            notes.granted(ClaimId::from_bits(bits), created);
        }
        assert_eq!(notes.held_by(&layout(), LEASE), Some((b"k/7.2".to_vec(), 9)));
        notes.releasing(ClaimId::from_bits(2));
        assert_eq!(notes.held_by(&layout(), LEASE), Some((b"k/7.3".to_vec(), 10)));
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
        assert!(
            notes.is_held(&layout(), LEASE, &entry, 9) && !notes.is_held(&layout(), LEASE, &entry, 8),
            "another of the same name is not it"
        );
        assert_eq!((notes.held_by(&layout(), LEASE), notes.ttl(LEASE)), (Some((entry, 9)), Some(LONG)));
        notes.drop_lease(LEASE);
        assert_eq!((notes.held_by(&layout(), LEASE), notes.ttl(LEASE)), (None, None));
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
