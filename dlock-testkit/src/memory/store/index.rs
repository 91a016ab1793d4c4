//! What is known of the store twice, so that a request does not take longer the more sessions, claims and waiters there are.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::mem;

use dlock_core::{Claim, ClaimId, Key, Moment, SessionId};

use super::line::{Entry, KeyState};
use crate::memory::request::GrantRecord;

/// Finds what the rest of the store says, and tells what has changed of it; no part of what stores are compared by.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    lapsing: BTreeSet<(Moment, SessionId)>,
    /// The claims in all lines.
    placed: BTreeMap<SessionId, BTreeSet<(Key, ClaimId)>>,
    /// `None` until somebody asks.
    news: Option<News>,
}

/// What happened that others may wait for.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// The keys that changed.
    pub(crate) keys: Vec<Key>,
    /// The claims that left a line, or came to have room in it.
    pub(crate) claims: Vec<(SessionId, ClaimId)>,
    /// The sessions that ended.
    pub(crate) sessions: Vec<SessionId>,
}

impl Index {
    /// The sessions whose time is over, in the order of their ids.
    pub(super) fn lapsed(&self, now: Moment) -> BTreeSet<SessionId> {
        self.lapsing.iter().take_while(|(lapses_at, _)| now >= *lapses_at).map(|(_, id)| id.clone()).collect()
    }

    pub(super) fn next_lapse(&self) -> Option<Moment> {
        self.lapsing.first().map(|(lapses_at, _)| *lapses_at)
    }

    /// Sessions lapse then, and no others do.
    pub(super) fn lapse(&mut self, sessions: impl Iterator<Item = (Moment, SessionId)>) {
        self.lapsing = sessions.collect();
    }

    /// A session lapses at another moment, or is over.
    pub(super) fn lapses(&mut self, id: &SessionId, before: Option<Moment>, after: Option<Moment>) {
        if let Some(before) = before {
            self.lapsing.remove(&(before, id.clone()));
        }
        self.lapsing.extend(after.map(|after| (after, id.clone())));
    }

    /// Whether a claim is in the line of its key.
    pub(super) fn has(&self, session: &SessionId, claim: &Claim) -> bool {
        self.placed.get(session).is_some_and(|claims| claims.contains(&(claim.key.clone(), claim.id)))
    }

    /// The keys in whose lines a session has claims, in their order.
    pub(super) fn keys_of(&self, session: &SessionId) -> BTreeSet<Key> {
        self.placed.get(session).into_iter().flatten().map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn came(&mut self, session: &SessionId, claim: &Claim) {
        self.placed.entry(session.clone()).or_default().insert((claim.key.clone(), claim.id));
    }

    pub(super) fn left(&mut self, key: &Key, Entry { session, claim, .. }: &Entry) {
        if let Some(claims) = self.placed.get_mut(session) {
            claims.remove(&(key.clone(), claim.id));
        }
        if let Some(news) = &mut self.news {
            news.claims.push((session.clone(), claim.id));
        }
    }

    /// A session that is over has nothing any more.
    pub(super) fn forget(&mut self, session: &SessionId) {
        self.placed.remove(session);
    }

    pub(super) fn changed(&mut self, key: &Key, state: &KeyState, granted: &[GrantRecord]) {
        let Some(news) = &mut self.news else { return };
        news.keys.push(key.clone());
        news.claims.extend(granted.iter().map(|grant| (grant.session.clone(), grant.claim)));
        // Where nobody is granted anything unasked.
        let waiting = (0..state.line.len()).filter(|place| !state.line[*place].granted);
        let room = waiting.take_while(|place| state.has_room_at(*place)).map(|place| &state.line[place]);
        news.claims.extend(room.map(|entry| (entry.session.clone(), entry.claim.id)));
    }

    pub(super) fn ended(&mut self, session: &SessionId) {
        if let Some(news) = &mut self.news {
            news.sessions.push(session.clone());
        }
    }

    pub(super) fn tell_nobody(&mut self) {
        self.news = None;
    }

    pub(super) fn news(&mut self) -> News {
        mem::take(self.news.get_or_insert_default())
    }
}

impl PartialEq for Index {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Index {}

impl Hash for Index {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::time::Duration;

    use dlock_core::{Cursor, Mode, Place};
    use fastrand::Rng;

    use super::*;
    use crate::memory::request::{Profile, Request, Rules};
    use crate::memory::store::Store;

    /// A few sessions with a few claims each, on few keys.
    fn claims(rng: &mut Rng, profile: Profile) -> Vec<(SessionId, Arc<Claim>)> {
        let named = |n: u32| if profile == Profile::Queue { format!("s{n}") } else { format!("session-{n}") };
        let modes = [Mode::Exclusive, Mode::Exclusive, Mode::Shared, Mode::Permits(NonZeroU32::new(2).unwrap())];
        let mut claim = |id: u32| {
            let mode = if profile == Profile::Slot { Mode::Exclusive } else { modes[rng.usize(..modes.len())] };
            let key = Key::new(format!("k{}", rng.u32(..2))).unwrap();
            let (owner, acquired_at) = ("host/1/test".into(), "2026-01-01T00:00:00Z".into());
            let claim = Claim { id: ClaimId::from_bits(id.into()), key, mode, owner, acquired_at, metadata: None };
            (SessionId::new(named(1 + id % 5)), Arc::new(claim))
        };
        (0..20).map(&mut claim).collect()
    }

    /// Something happens to the store.
    fn act(store: &mut Store, rng: &mut Rng, claims: &[(SessionId, Arc<Claim>)], now: Moment) {
        let (session, claim) = claims[rng.usize(..claims.len())].clone();
        let place = if rng.bool() { Place::Queue } else { Place::Try };
        let request = match rng.u32(..14) {
            0 => Request::Open { id: session, ttl: Duration::from_millis(rng.u64(1..200)) },
            1 => Request::Renew(session),
            2 => Request::Close(session),
            3..9 => Request::Claim { guard: store.guard(&claim.key), session, claim, place },
            9 => Request::Confirm { session, claim },
            10..12 => Request::Release { session, claim },
            12 => return store.spare(now.plus(Duration::from_millis(1))),
            _ => match rng.u32(..4) {
                0 => return store.delete(&claim.key),
                1 => return store.put_foreign(&claim.key, Vec::new()),
                2 => return store.resume(now),
                _ => {
                    store.evict(&claim.key);
                    return;
                }
            },
        };
        store.apply(&request, now);
    }

    /// Lets much happen to a store, and looks at it before and after each thing.
    fn live(profile: Profile, mut look: impl FnMut(&[(SessionId, Arc<Claim>)], &Store, &mut Store)) {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let claims = claims(&mut rng, profile);
            let lock_delay = Duration::from_millis(rng.u64(..20));
            let mut store = Store::new(Rules { profile, lapses_after_percent: 200, lock_delay });
            store.news();
            let mut now = Moment::ORIGIN;
            for _ in 0..200 {
                now = now.plus(Duration::from_millis(rng.u64(..10)));
                let before = store.clone();
                act(&mut store, &mut rng, &claims, now);
                look(&claims, &before, &mut store);
            }
        }
    }

    const PROFILES: [Profile; 3] = [Profile::Queue, Profile::Line, Profile::Slot];

    #[test]
    fn what_is_known_twice_is_the_same_after_every_change() {
        for profile in PROFILES {
            live(profile, |_, _, store| {
                let lapsing = store.sessions.iter().map(|(id, session)| (session.lapses_at, id.clone())).collect();
                assert_eq!(store.index.lapsing, lapsing, "{profile:?}");
                let placed = |(session, claims): (&SessionId, &BTreeSet<(Key, ClaimId)>)| {
                    claims.iter().map(|(key, claim)| (key.clone(), session.clone(), *claim)).collect::<Vec<_>>()
                };
                let placed: BTreeSet<_> = store.index.placed.iter().flat_map(placed).collect();
                assert_eq!(placed, store.claims().into_iter().collect(), "{profile:?}");
            });
        }
    }

    #[test]
    fn whoever_has_to_be_woken_is_in_the_news() {
        for profile in PROFILES {
            let mut woken = 0;
            live(profile, |claims, before, store| {
                let news = store.news();
                for (session, claim) in claims {
                    let cursor = Cursor(before.index(&claim.key));
                    if before.woken(session, claim, cursor).is_some() || store.woken(session, claim, cursor).is_none() {
                        continue;
                    }
                    woken += 1;
                    let in_line = profile != Profile::Slot && news.claims.contains(&(session.clone(), claim.id));
                    let by_key = profile == Profile::Slot && news.keys.contains(&claim.key);
                    assert!(in_line || by_key || news.sessions.contains(session), "{profile:?}: {claim:?}, {news:?}");
                }
            });
            assert!(woken > 200, "{profile:?}: {woken} were to be woken");
        }
    }
}
