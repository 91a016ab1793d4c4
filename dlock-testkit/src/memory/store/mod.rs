//! The store itself: pure, so that a model checker can walk it and a test can apply a request late, twice or never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    Claim, ClaimId, Cursor, FencingToken, Key, Metadata, Mode, Moment, Place, Release, SessionId, Standing, Together,
};

use super::request::{Guard, Profile, Reply, Request, Rules};
use index::Index;
use line::{Entry, KeyState};

pub(crate) use index::News;

mod index;
mod line;
mod reading;

/// A store of locks as a value: no clock, no randomness; every operation takes the present moment.
///
/// Never weaker than the real stores it stands for: a session that holds a key in the slot profile is granted it again whatever
/// claim asks, requests carry guards and may arrive late or twice, sessions lapse only after their ttl. The line profile stands for tickets and the
/// key beside them as one thing: it does not show what comes of it when somebody takes one of the two away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    rules: Rules,
    revision: u64,
    opened: u64,
    sessions: BTreeMap<SessionId, Liveness>,
    keys: BTreeMap<Key, KeyState>,
    delays: BTreeMap<Key, Moment>,
    index: Index,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Liveness {
    ttl: Duration,
    lapses_at: Moment,
    /// Its claims that are over, released or refused, of which no copy takes effect any more.
    tombstones: BTreeSet<ClaimId>,
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
            index: Index::default(),
        }
    }

    /// The rules it follows.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// The guard that a claim sent now would carry.
    pub fn guard(&self, key: &Key) -> Guard {
        self.rules.profile.guard(|| self.index_if_exists(key))
    }

    /// Applies one request, whenever it arrives.
    pub fn apply(&mut self, request: &Request, now: Moment) -> Reply {
        self.pass(now);
        self.answer(request, now)
    }

    /// Applies a request at a moment up to which time has passed.
    pub(crate) fn answer(&mut self, request: &Request, now: Moment) -> Reply {
        match request {
            Request::Open { id, ttl } => self.open(id, *ttl, now),
            Request::Renew(id) => self.renew(id, now),
            Request::Close(id) => {
                self.end_session(id, now);
                Reply::Closed
            }
            Request::Claim { session, claim, place, guard } => self.claim(session, claim, *place, *guard, now),
            Request::ClaimAll { session, claims } => self.claim_all(session, claims, now),
            Request::Confirm { session, claim } => self.confirm(session, claim, now),
            Request::Amend { session, claim, published, amendments } => self.amend(session, claim, published, *amendments),
            Request::Release { session, claim } => Reply::Released(self.release(session, claim)),
        }
    }

    /// Lets sessions and delays whose time is over end.
    pub fn pass(&mut self, now: Moment) {
        if self.next_change().is_none_or(|next| now < next) {
            return;
        }
        for id in self.index.lapsed(now) {
            self.end_session(&id, now);
        }
        self.delays.retain(|_, until| now < *until);
    }

    /// The next moment at which something happens by itself.
    pub fn next_change(&self) -> Option<Moment> {
        self.index.next_lapse().into_iter().chain(self.delays.values().copied()).min()
    }

    /// Gives every session its whole ttl again as of a moment that may lie ahead, as stores do once they are back from an outage.
    pub fn spare(&mut self, from: Moment) {
        let percent = self.rules.lapses_after_percent;
        for session in self.sessions.values_mut() {
            session.lapses_at = session.lapses_at.max(from.plus(session.ttl * percent / 100));
        }
        self.index.lapse(self.sessions.iter().map(|(id, session)| (session.lapses_at, id.clone())));
    }

    /// Another value after every change that others can see.
    pub(crate) fn stamp(&self) -> (u64, u64, usize) {
        (self.revision, self.opened, self.sessions.len())
    }

    /// What others may wait for and has happened since this was last asked; kept from the first time on.
    pub(crate) fn news(&mut self) -> News {
        self.index.news()
    }

    /// Nobody waits: no news are kept until they are asked for again.
    pub(crate) fn tell_nobody(&mut self) {
        self.index.tell_nobody();
    }

    fn open(&mut self, id: &SessionId, ttl: Duration, now: Moment) -> Reply {
        self.opened += 1;
        let id = match self.rules.profile {
            Profile::Queue => id.clone(),
            Profile::Slot | Profile::Line => SessionId::new(format!("session-{}", self.opened)),
        };
        self.keep(&id, ttl, now);
        Reply::Opened(id)
    }

    /// Lets a session live for its ttl from now on.
    fn keep(&mut self, id: &SessionId, ttl: Duration, now: Moment) {
        let lapses_at = now.plus(ttl * self.rules.lapses_after_percent / 100);
        let before = self.sessions.get(id).map(|session| session.lapses_at);
        // A copy of the request may have opened it, and claims been released since.
        let liveness = self.sessions.entry(id.clone()).or_default();
        (liveness.ttl, liveness.lapses_at) = (ttl, lapses_at);
        self.index.lapses(id, before, Some(lapses_at));
    }

    fn renew(&mut self, id: &SessionId, now: Moment) -> Reply {
        let Some(ttl) = self.sessions.get(id).map(|session| session.ttl) else { return Reply::Gone };
        #[cfg(dlock_planted)]
        if Bug::SessionLapsesEarly.is_on() {
            return Reply::Renewed(ttl);
        }
        self.keep(id, ttl, now);
        Reply::Renewed(ttl)
    }

    /// Ends a session and all it has, as an operator or its ttl would.
    pub fn end_session(&mut self, id: &SessionId, now: Moment) {
        let Some(session) = self.sessions.remove(id) else { return };
        self.index.lapses(id, Some(session.lapses_at), None);
        self.index.ended(id);
        // A line delays whoever comes to its key, not whoever holds a ticket.
        let line = self.rules.profile == Profile::Line;
        let delays = |entry: &Entry| !line || entry.claim.mode == Mode::Exclusive;
        let held = |state: &KeyState| state.holders().any(|holder| holder.session == *id && delays(holder));
        for key in self.index.keys_of(id) {
            let held = self.keys.get(&key).is_some_and(held);
            self.take_out(&key, |entry| entry.session == *id);
            if held && !self.rules.lock_delay.is_zero() {
                self.delays.insert(key, now.plus(self.rules.lock_delay));
            }
        }
        self.index.forget(id);
    }

    /// The store answers again after a time in which it answered nobody: every session has its whole ttl from now on.
    pub fn resume(&mut self, now: Moment) {
        for session in self.sessions.values_mut() {
            session.lapses_at = now.plus(session.ttl * self.rules.lapses_after_percent / 100);
        }
        self.index.lapse(self.sessions.iter().map(|(id, session)| (session.lapses_at, id.clone())));
    }

    fn claim(&mut self, session: &SessionId, claim: &Arc<Claim>, place: Place, guard: Guard, now: Moment) -> Reply {
        let Some(liveness) = self.sessions.get(session) else { return Reply::Standing(Standing::SessionGone) };
        #[cfg(dlock_planted)]
        let guard = if Bug::LateClaimLands.is_on() { self.guard(&claim.key) } else { guard };
        if liveness.tombstones.contains(&claim.id) {
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
        if self.index.has(session, claim) {
            return Reply::Standing(self.stand(session, claim, now));
        }
        match (self.rules.profile, state.line.first()) {
            (Profile::Slot, _) if guard != self.guard(&claim.key) => Reply::GuardFailed,
            // The real store knows a lock by its session alone, so a second claim of the same session is granted.
            (Profile::Slot, Some(holder)) if holder.session != *session => Reply::Standing(state.busy()),
            (Profile::Queue | Profile::Line, Some(_)) if place == Place::Try && !state.has_room(claim.mode, state.line.len()) => {
                Reply::Standing(state.busy())
            }
            (profile, _) => {
                // In a line a place is kept meanwhile, but not for who only tries.
                if (profile != Profile::Line || place == Place::Try)
                    && let Some(delayed) = self.delayed(&claim.key, now)
                {
                    return Reply::Standing(delayed);
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
                if slot {
                    self.clear(&claim.key);
                }
                self.index.came(session, claim);
                self.change(&claim.key, |state| {
                    #[cfg(dlock_planted)]
                    {
                        state.lock_index += 1;
                    }
                    #[cfg(dlock_planted)]
                    if Bug::LastComeFirstServed.is_on() {
                        state.line.insert(state.line.len().min(1), entry);
                        return;
                    }
                    state.line.push(entry);
                });
                Reply::Standing(self.stand(session, claim, now))
            }
        }
    }

    fn delayed(&self, key: &Key, now: Moment) -> Option<Standing> {
        self.delays.get(key).map(|until| Standing::Delayed { at_most: until.saturating_since(now) })
    }

    /// Grants all of these, or none.
    fn claim_all(&mut self, session: &SessionId, claims: &[(Arc<Claim>, Guard)], now: Moment) -> Reply {
        let Some(liveness) = self.sessions.get(session) else { return Reply::Together(Together::SessionGone) };
        if claims.iter().all(|(claim, _)| self.holds(session, claim)) {
            return Reply::Together(Together::Held { tokens: self.tokens(session, claims) });
        }
        if claims.iter().any(|(claim, _)| self.index.has(session, claim)) {
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
            let over = liveness.tombstones.contains(&claim.id);
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
            Some(state.line[self.place(session, claim)?].token)
        };
        claims.iter().filter_map(|(claim, _)| token(claim)).collect()
    }

    fn confirm(&mut self, session: &SessionId, claim: &Claim, now: Moment) -> Reply {
        if !self.sessions.contains_key(session) {
            return Reply::Standing(Standing::SessionGone);
        }
        let Some(state) = self.keys.get(&claim.key) else { return Reply::Standing(Standing::ClaimGone) };
        if !self.index.has(session, claim) {
            return Reply::Standing(Standing::ClaimGone);
        }
        match state.line.first() {
            Some(first) if claim.mode.contradicts(first.claim.mode) => Reply::Conflict(Some(first.claim.mode)),
            _ => Reply::Standing(self.stand(session, claim, now)),
        }
    }

    /// How a claim that is in line stands: held when those ahead leave room for it. In the line profile it comes to its key by asking.
    fn stand(&mut self, session: &SessionId, claim: &Claim, now: Moment) -> Standing {
        let key = &claim.key;
        let Some(state) = self.keys.get(key) else { return Standing::ClaimGone };
        let Some(place) = self.place(session, claim) else { return Standing::ClaimGone };
        if self.rules.profile == Profile::Line && !state.line[place].granted && state.has_room_at(place) {
            if let Some(delayed) = self.delayed(key, now) {
                return delayed;
            }
            let token = FencingToken::new(self.revision + 1);
            self.change_and_grant(key, |state| {
                let entry = &mut state.line[place];
                entry.token = token.unwrap_or(entry.token);
                state.grants.push(entry.grant());
            });
        }
        let state = &self.keys[key];
        if state.line[place].granted {
            return Standing::Held { token: state.line[place].token };
        }
        Standing::Waiting { cursor: Cursor(state.index), ahead: Some(place as u32), holder: state.holder() }
    }

    fn release(&mut self, session: &SessionId, claim: &Claim) -> Release {
        let slot = self.rules.profile == Profile::Slot;
        #[cfg(dlock_planted)]
        if Bug::ReleaseByName.is_on() {
            return if self.evict(&claim.key) { Release::Released } else { Release::NotHeld };
        }
        let state = self.keys.get(&claim.key);
        let had = self.index.has(session, claim);
        let free = state.is_none_or(|state| state.line.is_empty() && state.foreign.is_none());
        if had {
            self.take_out(&claim.key, |entry| entry.claim.id == claim.id);
        } else if slot && free && self.sessions.contains_key(session) {
            // Moves the index of a free key, so that a copy of the claim that is guarded by it can never apply.
            self.change(&claim.key, |_| {});
        }
        #[cfg(dlock_planted)]
        let slot = slot || Bug::LateClaimLands.is_on();
        if !slot && let Some(liveness) = self.sessions.get_mut(session) {
            liveness.tombstones.insert(claim.id);
        }
        if had { Release::Released } else { Release::NotHeld }
    }

    /// Where a claim stands in the line of its key.
    fn place(&self, session: &SessionId, claim: &Claim) -> Option<usize> {
        let state = self.keys.get(&claim.key).filter(|_| self.index.has(session, claim))?;
        state.place(session, claim.id)
    }

    /// Changes a key by taking these out of its line.
    fn take_out(&mut self, key: &Key, gone: impl Fn(&Entry) -> bool) {
        let line = self.keys.get(key).map_or(&[][..], |state| &state.line);
        line.iter().filter(|entry| gone(entry)).for_each(|entry| self.index.left(key, entry));
        self.change(key, |state| state.line.retain(|entry| !gone(entry)));
    }

    /// Takes everybody out of the line of a key that is about to be changed.
    fn clear(&mut self, key: &Key) {
        let Some(state) = self.keys.get_mut(key) else { return };
        state.line.drain(..).for_each(|entry| self.index.left(key, &entry));
    }

    /// Changes a key, moves its index, and grants it to whoever has room for it now; in the line profile nobody is granted anything unasked.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut KeyState)) {
        let unasked = self.rules.profile != Profile::Line;
        self.change_and_grant(key, |state| {
            change(state);
            if unasked {
                state.grant();
            }
        });
    }

    /// Changes a key, and moves its index.
    fn change_and_grant(&mut self, key: &Key, change: impl FnOnce(&mut KeyState)) {
        self.revision += 1;
        let state = self.keys.entry(key.clone()).or_default();
        state.index = self.revision;
        state.exists = true;
        let before = state.grants.len();
        change(state);
        self.index.changed(key, state, &state.grants[before..]);
    }

    /// Replaces what the holder published; `false` when the claim does not hold the key.
    fn amend(&mut self, session: &SessionId, claim: &Claim, published: &Metadata, amendments: u32) -> Reply {
        let Some(state) = self.keys.get(&claim.key) else { return Reply::Amended(false) };
        let Some(place) = self.place(session, claim).filter(|place| state.line[*place].granted) else {
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

    /// Deletes a key with everything on it, as an operator would.
    pub fn delete(&mut self, key: &Key) {
        self.clear(key);
        self.change(key, |state| {
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
        let held = self.keys.get(key).is_some_and(|state| state.holders().any(|entry| entry.token == token));
        if held {
            self.take_out(key, |entry| entry.token == token);
        }
        held
    }

    /// Puts something that is no lock under a key.
    pub fn put_foreign(&mut self, key: &Key, value: Vec<u8>) {
        self.clear(key);
        self.change(key, |state| {
            state.foreign = Some(value);
        });
    }
}
