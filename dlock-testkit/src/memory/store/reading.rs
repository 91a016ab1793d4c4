//! What can be seen of the store without changing it.

use dlock_core::{Claim, ClaimId, Cursor, FencingToken, Hint, Holder, Key, Ownership, SessionId, Woken};

use super::Store;
use super::line::{Entry, KeyState};
use crate::memory::request::{GrantRecord, Profile};

impl Store {
    /// Why a wait that began at `cursor` should return now, if it should.
    pub fn woken(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Option<Woken> {
        let free = KeyState::default();
        let state = self.keys.get(&claim.key).unwrap_or(&free);
        let woken = |hint| Some(Woken { cursor: Cursor(state.index), hint });
        let place = self.place(session, claim);
        if !self.sessions.contains_key(session) || state.line.is_empty() && self.rules.profile == Profile::Slot {
            return woken(Hint::MaybeFree);
        }
        match (self.rules.profile, place) {
            (Profile::Queue | Profile::Line, None) => woken(Hint::ClaimGone),
            (_, Some(place)) if state.has_room_at(place) => woken(Hint::MaybeFree),
            (Profile::Slot, None) if state.index > cursor.0 => woken(Hint::StillHeld { holder: state.holder() }),
            _ => None,
        }
    }

    /// Whether the session is alive.
    pub fn is_alive(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// The index of a key.
    pub fn index(&self, key: &Key) -> u64 {
        self.keys.get(key).map_or(0, |state| state.index)
    }

    /// The index of a key that is there; zero for any other.
    pub(crate) fn index_if_exists(&self, key: &Key) -> u64 {
        self.keys.get(key).filter(|state| state.exists).map_or(0, |state| state.index)
    }

    /// Whether a key is there at all.
    pub fn exists(&self, key: &Key) -> bool {
        self.keys.get(key).is_some_and(|state| state.exists)
    }

    /// Whether a claim holds its key.
    pub fn holds(&self, session: &SessionId, claim: &Claim) -> bool {
        self.place(session, claim).is_some_and(|place| self.keys[&claim.key].line[place].granted)
    }

    /// Whether this is the condition of a present grant.
    pub fn owns(&self, ownership: &Ownership) -> bool {
        let held = |state: &KeyState| {
            state.holders().any(|entry| entry.session == ownership.session && entry.token.get() == ownership.revision)
        };
        Key::new(&ownership.key).is_ok_and(|key| self.keys.get(&key).is_some_and(held))
    }

    /// How many are ahead of a claim that is in line.
    pub fn ahead_of(&self, session: &SessionId, claim: &Claim) -> Option<usize> {
        self.place(session, claim)
    }

    /// The session and claim that hold a key; the first of several.
    pub fn holder_of(&self, key: &Key) -> Option<(&SessionId, ClaimId, FencingToken)> {
        let entry = self.keys.get(key)?.holders().next()?;
        Some((&entry.session, entry.claim.id, entry.token))
    }

    /// The claims that hold a key.
    pub fn holders_of(&self, key: &Key) -> impl Iterator<Item = ClaimId> {
        self.keys.get(key).into_iter().flat_map(KeyState::holders).map(|entry| entry.claim.id)
    }

    /// Who holds a key, who waits, first come first, and what stands there that is no lock.
    pub fn line(&self, key: &Key) -> (Vec<Holder>, Vec<Holder>, Option<Vec<u8>>) {
        let Some(state) = self.keys.get(key) else { return (Vec::new(), Vec::new(), None) };
        let waiters = state.line.iter().filter(|entry| !entry.granted);
        (state.holders().map(Entry::holder).collect(), waiters.map(Entry::holder).collect(), state.foreign.clone())
    }

    /// All held keys with their holders, in the order of the keys.
    pub fn held(&self) -> impl Iterator<Item = (&Key, Holder)> {
        self.keys.iter().flat_map(|(key, state)| state.holders().map(move |entry| (key, entry.holder())))
    }

    /// Every claim that has anything at the store.
    pub fn claims(&self) -> Vec<(Key, SessionId, ClaimId)> {
        let line = |(key, state): (&Key, &KeyState)| {
            state.line.iter().map(|entry| (key.clone(), entry.session.clone(), entry.claim.id)).collect::<Vec<_>>()
        };
        self.keys.iter().flat_map(line).collect()
    }

    /// The sessions that are alive.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.sessions.keys().cloned().collect()
    }

    /// Every grant of a key so far, in order.
    pub fn grants(&self, key: &Key) -> &[GrantRecord] {
        self.keys.get(key).map_or(&[], |state| &state.grants)
    }

    /// How often what a claim published was changed.
    pub fn amendments(&self, claim: &Claim) -> u32 {
        let line = self.keys.get(&claim.key).map_or(&[][..], |state| &state.line);
        line.iter().find(|entry| entry.claim.id == claim.id).map_or(0, |entry| entry.amendments)
    }
}
