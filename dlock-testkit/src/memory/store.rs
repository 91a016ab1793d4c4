//! The store itself: pure, so that a model checker can walk it and a test can apply a request late, twice or never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    Claim, ClaimId, Cursor, FencingToken, Hint, Holder, Key, Metadata, Mode, Moment, Ownership, Place, Published, Release, Room,
    SessionId, Standing, Together, Woken,
};

use super::request::{GrantRecord, Guard, Profile, Reply, Request, Rules};

/// A store of locks as a value: no clock, no randomness; every operation takes the present moment.
///
/// Never weaker than the real stores it stands for: a session that holds a key in the slot profile is granted it again whatever
/// claim asks, requests carry guards and may arrive late or twice, sessions lapse only after their ttl.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    rules: Rules,
    revision: u64,
    opened: u64,
    sessions: BTreeMap<SessionId, Liveness>,
    keys: BTreeMap<Key, KeyState>,
    delays: BTreeMap<Key, Moment>,
    /// Claims that are over, released or refused, of which no copy takes effect any more; forgotten with their session.
    tombstones: BTreeSet<(SessionId, ClaimId)>,
    grants: BTreeMap<Key, Vec<GrantRecord>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Liveness {
    ttl: Duration,
    lapses_at: Moment,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct KeyState {
    /// Moves with every change of the key, never back.
    index: u64,
    /// The key exists at the store; in the slot profile it stays when it is released.
    exists: bool,
    /// First come first; a claim holds when those ahead of it leave room for it.
    line: Vec<Entry>,
    /// How often it was locked since it was created.
    #[cfg(dlock_planted)]
    lock_index: u64,
    foreign: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    session: SessionId,
    claim: Arc<Claim>,
    token: FencingToken,
    /// What the holder published since, in place of what its claim says.
    amended: Option<Metadata>,
    /// How often.
    amendments: u32,
    granted: bool,
}

impl Store {
    /// An empty store.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            revision: 0,
            opened: 0,
            sessions: BTreeMap::new(),
            keys: BTreeMap::new(),
            delays: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            grants: BTreeMap::new(),
        }
    }

    /// The rules it follows.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// The guard that a claim sent now would carry.
    pub fn guard(&self, key: &Key) -> Guard {
        match self.rules.profile {
            Profile::Queue => Guard::Tombstone,
            Profile::Slot => Guard::Index(self.keys.get(key).filter(|state| state.exists).map_or(0, |state| state.index)),
        }
    }

    /// Applies one request, whenever it arrives.
    pub fn apply(&mut self, request: &Request, now: Moment) -> Reply {
        self.pass(now);
        match request {
            Request::Open { id, ttl } => self.open(id, *ttl, now),
            Request::Renew(id) => self.renew(id, now),
            Request::Close(id) => {
                self.end_session(id, now);
                Reply::Closed
            }
            Request::Claim { session, claim, place, guard } => self.claim(session, claim, *place, *guard, now),
            Request::ClaimAll { session, claims } => self.claim_all(session, claims, now),
            Request::Confirm { session, claim } => self.confirm(session, claim),
            Request::Amend { session, claim, published, amendments } => self.amend(session, claim, published, *amendments),
            Request::Release { session, claim } => Reply::Released(self.release(session, claim)),
        }
    }

    /// Lets sessions and delays whose time is over end.
    pub fn pass(&mut self, now: Moment) {
        let lapsed: Vec<_> =
            self.sessions.iter().filter(|(_, session)| now >= session.lapses_at).map(|(id, _)| id.clone()).collect();
        for id in lapsed {
            self.end_session(&id, now);
        }
        self.delays.retain(|_, until| now < *until);
    }

    /// The next moment at which something happens by itself.
    pub fn next_change(&self) -> Option<Moment> {
        self.sessions.values().map(|session| session.lapses_at).chain(self.delays.values().copied()).min()
    }

    /// Gives every session its whole ttl again as of a moment that may lie ahead, as stores do once they are back from an outage.
    pub fn spare(&mut self, from: Moment) {
        let percent = self.rules.lapses_after_percent;
        for session in self.sessions.values_mut() {
            session.lapses_at = session.lapses_at.max(from.plus(session.ttl * percent / 100));
        }
    }

    /// Another value after every change that others can see.
    pub(crate) fn stamp(&self) -> (u64, u64, usize) {
        (self.revision, self.opened, self.sessions.len())
    }

    fn open(&mut self, id: &SessionId, ttl: Duration, now: Moment) -> Reply {
        self.opened += 1;
        let id = match self.rules.profile {
            Profile::Queue => id.clone(),
            Profile::Slot => SessionId::new(format!("session-{}", self.opened)),
        };
        let lapses_at = now.plus(ttl * self.rules.lapses_after_percent / 100);
        self.sessions.insert(id.clone(), Liveness { ttl, lapses_at });
        Reply::Opened(id)
    }

    fn renew(&mut self, id: &SessionId, now: Moment) -> Reply {
        let percent = self.rules.lapses_after_percent;
        let Some(session) = self.sessions.get_mut(id) else { return Reply::Gone };
        #[cfg(dlock_planted)]
        if Bug::SessionLapsesEarly.is_on() {
            return Reply::Renewed(session.ttl);
        }
        session.lapses_at = now.plus(session.ttl * percent / 100);
        Reply::Renewed(session.ttl)
    }

    /// Ends a session and all it has, as an operator or its ttl would.
    pub fn end_session(&mut self, id: &SessionId, now: Moment) {
        if self.sessions.remove(id).is_none() {
            return;
        }
        self.tombstones.retain(|(session, _)| session != id);
        let keys: Vec<_> = self.keys.iter().filter(|(_, state)| state.line.iter().any(|entry| entry.session == *id)).collect();
        let held = |state: &KeyState| state.holders().iter().any(|holder| holder.session == *id);
        let keys: Vec<_> = keys.into_iter().map(|(key, state)| (key.clone(), held(state))).collect();
        for (key, held) in keys {
            self.change(&key, |state| state.line.retain(|entry| entry.session != *id));
            if held && !self.rules.lock_delay.is_zero() {
                self.delays.insert(key, now.plus(self.rules.lock_delay));
            }
        }
    }

    /// The store answers again after a time in which it answered nobody: every session has its whole ttl from now on.
    pub fn resume(&mut self, now: Moment) {
        for session in self.sessions.values_mut() {
            session.lapses_at = now.plus(session.ttl * self.rules.lapses_after_percent / 100);
        }
    }

    fn claim(&mut self, session: &SessionId, claim: &Arc<Claim>, place: Place, guard: Guard, now: Moment) -> Reply {
        if !self.sessions.contains_key(session) {
            return Reply::Standing(Standing::SessionGone);
        }
        #[cfg(dlock_planted)]
        let guard = if Bug::LateClaimLands.is_on() { self.guard(&claim.key) } else { guard };
        if self.tombstones.contains(&(session.clone(), claim.id)) {
            return Reply::Standing(Standing::ClaimGone);
        }
        let free = KeyState::default();
        let state = self.keys.get(&claim.key).unwrap_or(&free);
        if state.foreign.is_some() {
            return Reply::Conflict(None);
        }
        if let Some(first) = state.line.first().filter(|first| claim.mode.contradicts(first.claim.mode)) {
            return Reply::Conflict(Some(first.claim.mode));
        }
        if state.line.iter().any(|entry| entry.is(session, claim.id)) {
            return Reply::Standing(self.standing(&claim.key, claim.id));
        }
        match (self.rules.profile, state.line.first()) {
            (Profile::Slot, _) if guard != self.guard(&claim.key) => Reply::GuardFailed,
            // The real store knows a lock by its session alone, so a second claim of the same session is granted.
            (Profile::Slot, Some(holder)) if holder.session != *session => Reply::Standing(busy(state)),
            (Profile::Queue, Some(_)) if place == Place::Try && !state.has_room(claim.mode, state.line.len()) => {
                Reply::Standing(busy(state))
            }
            _ => {
                if let Some(until) = self.delays.get(&claim.key) {
                    return Reply::Standing(Standing::Delayed { at_most: until.saturating_since(now) });
                }
                let Some(token) = FencingToken::new(self.revision + 1) else { return Reply::GuardFailed };
                #[cfg(dlock_planted)]
                let token = match FencingToken::new(state.lock_index + 1) {
                    Some(lock_index) if Bug::TokenFromLockIndex.is_on() => lock_index,
                    _ => token,
                };
                let claimed = Arc::clone(claim);
                let entry = Entry { session: session.clone(), claim: claimed, token, amended: None, amendments: 0, granted: false };
                let slot = self.rules.profile == Profile::Slot;
                self.change(&claim.key, |state| {
                    #[cfg(dlock_planted)]
                    {
                        state.lock_index += 1;
                    }
                    if slot {
                        state.line.clear();
                    }
                    #[cfg(dlock_planted)]
                    if Bug::LastComeFirstServed.is_on() {
                        state.line.insert(state.line.len().min(1), entry);
                        return;
                    }
                    state.line.push(entry);
                });
                Reply::Standing(self.standing(&claim.key, claim.id))
            }
        }
    }

    /// Grants all of these, or none.
    fn claim_all(&mut self, session: &SessionId, claims: &[(Arc<Claim>, Guard)], now: Moment) -> Reply {
        if !self.sessions.contains_key(session) {
            return Reply::Together(Together::SessionGone);
        }
        if claims.iter().all(|(claim, _)| self.holds(session, claim)) {
            return Reply::Together(Together::Held { tokens: self.tokens(session, claims) });
        }
        let placed = |claim: &Claim| self.keys.get(&claim.key).is_some_and(|state| state.place(session, claim.id).is_some());
        if claims.iter().any(|(claim, _)| placed(claim)) {
            // An earlier copy was applied, and something was taken away since.
            return Reply::GuardFailed;
        }
        let free = KeyState::default();
        for (refused, (claim, guard)) in claims.iter().enumerate() {
            let state = self.keys.get(&claim.key).unwrap_or(&free);
            if state.foreign.is_some() {
                return Reply::Conflict(None);
            }
            let slot = self.rules.profile == Profile::Slot;
            let holder = state.line.first().filter(|holder| !slot || holder.session != *session);
            let over = self.tombstones.contains(&(session.clone(), claim.id));
            if holder.is_some() || over || self.delays.contains_key(&claim.key) {
                return Reply::Together(Together::Busy { claim: refused, holder: holder.map(Entry::holder) });
            }
            if slot && *guard != self.guard(&claim.key) {
                return Reply::GuardFailed;
            }
        }
        for (claim, guard) in claims {
            self.claim(session, claim, Place::Try, *guard, now);
        }
        Reply::Together(Together::Held { tokens: self.tokens(session, claims) })
    }

    /// The tokens of claims that hold.
    fn tokens(&self, session: &SessionId, claims: &[(Arc<Claim>, Guard)]) -> Vec<FencingToken> {
        let token = |claim: &Claim| {
            let state = self.keys.get(&claim.key)?;
            Some(state.line[state.place(session, claim.id)?].token)
        };
        claims.iter().filter_map(|(claim, _)| token(claim)).collect()
    }

    fn confirm(&self, session: &SessionId, claim: &Claim) -> Reply {
        if !self.sessions.contains_key(session) {
            return Reply::Standing(Standing::SessionGone);
        }
        let Some(state) = self.keys.get(&claim.key) else { return Reply::Standing(Standing::ClaimGone) };
        if state.place(session, claim.id).is_none() {
            return Reply::Standing(Standing::ClaimGone);
        }
        match state.line.first() {
            Some(first) if claim.mode.contradicts(first.claim.mode) => Reply::Conflict(Some(first.claim.mode)),
            _ => Reply::Standing(self.standing(&claim.key, claim.id)),
        }
    }

    /// How an entry that is in line stands: held when those ahead leave room for it.
    fn standing(&self, key: &Key, claim: ClaimId) -> Standing {
        let Some(state) = self.keys.get(key) else { return Standing::ClaimGone };
        match state.line.iter().position(|entry| entry.claim.id == claim) {
            None => Standing::ClaimGone,
            Some(place) if state.is_held(place) => Standing::Held { token: state.line[place].token },
            Some(ahead) => Standing::Waiting {
                cursor: Cursor(state.index),
                ahead: Some(ahead as u32),
                holder: state.line.first().map(Entry::holder),
            },
        }
    }

    fn release(&mut self, session: &SessionId, claim: &Claim) -> Release {
        let slot = self.rules.profile == Profile::Slot;
        #[cfg(dlock_planted)]
        if Bug::ReleaseByName.is_on() {
            return if self.evict(&claim.key) { Release::Released } else { Release::NotHeld };
        }
        let state = self.keys.get(&claim.key);
        let had = state.is_some_and(|state| state.line.iter().any(|entry| entry.is(session, claim.id)));
        let free = state.is_none_or(|state| state.line.is_empty() && state.foreign.is_none());
        if had {
            self.change(&claim.key, |state| state.line.retain(|entry| entry.claim.id != claim.id));
        } else if slot && free && self.sessions.contains_key(session) {
            // Moves the index of a free key, so that a copy of the claim that is guarded by it can never apply.
            self.change(&claim.key, |_| {});
        }
        #[cfg(dlock_planted)]
        let slot = slot || Bug::LateClaimLands.is_on();
        if !slot && self.sessions.contains_key(session) {
            self.tombstones.insert((session.clone(), claim.id));
        }
        if had { Release::Released } else { Release::NotHeld }
    }

    /// Changes a key, moves its index, and records whoever holds it now.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut KeyState)) {
        self.revision += 1;
        let state = self.keys.entry(key.clone()).or_default();
        state.index = self.revision;
        state.exists = true;
        change(state);
        let holders = state.holders().len();
        for entry in state.line[..holders].iter_mut().filter(|entry| !entry.granted) {
            entry.granted = true;
            let record = GrantRecord { token: entry.token, claim: entry.claim.id, session: entry.session.clone() };
            self.grants.entry(key.clone()).or_default().push(record);
        }
    }

    /// Why a wait that began at `cursor` should return now, if it should.
    pub fn woken(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Option<Woken> {
        let free = KeyState::default();
        let state = self.keys.get(&claim.key).unwrap_or(&free);
        let woken = |hint| Some(Woken { cursor: Cursor(state.index), hint });
        let place = state.place(session, claim.id);
        if !self.sessions.contains_key(session) || state.line.is_empty() && self.rules.profile == Profile::Slot {
            return woken(Hint::MaybeFree);
        }
        match (self.rules.profile, place) {
            (Profile::Queue, None) => woken(Hint::ClaimGone),
            (_, Some(place)) if state.is_held(place) => woken(Hint::MaybeFree),
            (Profile::Slot, None) if state.index > cursor.0 => {
                woken(Hint::StillHeld { holder: state.line.first().map(Entry::holder) })
            }
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

    /// Whether a key is there at all.
    pub fn exists(&self, key: &Key) -> bool {
        self.keys.get(key).is_some_and(|state| state.exists)
    }

    /// Whether a claim holds its key.
    pub fn holds(&self, session: &SessionId, claim: &Claim) -> bool {
        let held = |state: &KeyState| state.place(session, claim.id).is_some_and(|place| state.is_held(place));
        self.keys.get(&claim.key).is_some_and(held)
    }

    /// Whether this is the condition of a present grant.
    pub fn owns(&self, ownership: &Ownership) -> bool {
        let held = |state: &KeyState| {
            let mut holders = state.holders().iter();
            holders.any(|entry| entry.session == ownership.session && entry.token.get() == ownership.revision)
        };
        Key::new(&ownership.key).is_ok_and(|key| self.keys.get(&key).is_some_and(held))
    }

    /// The session and claim that hold a key; the first of several.
    pub fn holder_of(&self, key: &Key) -> Option<(&SessionId, ClaimId, FencingToken)> {
        let entry = self.keys.get(key)?.line.first()?;
        Some((&entry.session, entry.claim.id, entry.token))
    }

    /// The claims that hold a key.
    pub fn holders_of(&self, key: &Key) -> impl Iterator<Item = ClaimId> {
        let holders = self.keys.get(key).map_or(&[][..], KeyState::holders);
        holders.iter().map(|entry| entry.claim.id)
    }

    /// Who holds a key, who waits, first come first, and what stands there that is no lock.
    pub fn line(&self, key: &Key) -> (Vec<Holder>, Vec<Holder>, Option<Vec<u8>>) {
        let Some(state) = self.keys.get(key) else { return (Vec::new(), Vec::new(), None) };
        let (holders, waiters) = state.line.split_at(state.holders().len());
        let shown = |entries: &[Entry]| entries.iter().map(Entry::holder).collect();
        (shown(holders), shown(waiters), state.foreign.clone())
    }

    /// All held keys with their holders, in the order of the keys.
    pub fn held(&self) -> impl Iterator<Item = (&Key, Holder)> {
        self.keys.iter().flat_map(|(key, state)| state.holders().iter().map(move |entry| (key, entry.holder())))
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
        self.grants.get(key).map_or(&[], Vec::as_slice)
    }

    /// Replaces what the holder published; `false` when the claim does not hold the key.
    fn amend(&mut self, session: &SessionId, claim: &Claim, published: &Metadata, amendments: u32) -> Reply {
        let Some(state) = self.keys.get(&claim.key) else { return Reply::Amended(false) };
        let Some(place) = state.place(session, claim.id).filter(|place| state.is_held(*place)) else {
            return Reply::Amended(false);
        };
        if state.line[place].amendments != amendments {
            return Reply::GuardFailed;
        }
        self.change(&claim.key, |state| {
            let held = &mut state.line[place];
            (held.amended, held.amendments) = (Some(published.clone()), amendments + 1);
        });
        Reply::Amended(true)
    }

    /// How often what a claim published was changed.
    pub fn amendments(&self, claim: &Claim) -> u32 {
        let line = self.keys.get(&claim.key).map_or(&[][..], |state| &state.line);
        line.iter().find(|entry| entry.claim.id == claim.id).map_or(0, |entry| entry.amendments)
    }

    /// Deletes a key with everything on it, as an operator would.
    pub fn delete(&mut self, key: &Key) {
        self.change(key, |state| {
            state.line.clear();
            state.foreign = None;
            state.exists = false;
            #[cfg(dlock_planted)]
            {
                state.lock_index = 0;
            }
        });
    }

    /// Ends the present grant of a key by force; the first of several.
    pub fn evict(&mut self, key: &Key) -> bool {
        self.holder_of(key).map(|(_, _, token)| token).is_some_and(|token| self.evict_grant(key, token))
    }

    /// Ends the grant with this token by force; `false` when it is not a present one.
    pub fn evict_grant(&mut self, key: &Key, token: FencingToken) -> bool {
        let held = self.keys.get(key).is_some_and(|state| state.holders().iter().any(|entry| entry.token == token));
        if held {
            self.change(key, |state| state.line.retain(|entry| entry.token != token));
        }
        held
    }

    /// Puts something that is no lock under a key.
    pub fn put_foreign(&mut self, key: &Key, value: Vec<u8>) {
        self.change(key, |state| {
            state.line.clear();
            state.foreign = Some(value);
        });
    }
}

fn busy(state: &KeyState) -> Standing {
    Standing::Busy { holder: state.line.first().map(Entry::holder), cursor: Cursor(state.index) }
}

impl KeyState {
    fn place(&self, session: &SessionId, claim: ClaimId) -> Option<usize> {
        self.line.iter().position(|entry| entry.is(session, claim))
    }

    /// Whether the first `ahead` in line leave room for a claim of this mode.
    fn has_room(&self, mode: Mode, ahead: usize) -> bool {
        let ahead = self.line[..ahead].iter().rev().map(|entry| ((), entry.claim.mode));
        mode.room(ahead) == Room::Enough
    }

    fn is_held(&self, place: usize) -> bool {
        self.has_room(self.line[place].claim.mode, place)
    }

    /// Those that hold: the first in line, and those after it that share.
    fn holders(&self) -> &[Entry] {
        &self.line[..Mode::holders(self.line.iter().map(|entry| entry.claim.mode))]
    }
}

impl Entry {
    fn is(&self, session: &SessionId, claim: ClaimId) -> bool {
        self.claim.id == claim && self.session == *session
    }

    fn holder(&self) -> Holder {
        let published = Published::Metadata(self.amended.clone().unwrap_or_else(|| self.claim.published()));
        let mut holder = Holder::new(published);
        holder.session = Some(self.session.clone());
        holder.token = Some(self.token);
        holder
    }
}
