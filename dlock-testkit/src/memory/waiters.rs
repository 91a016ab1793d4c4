//! Who waits for the store to change: only those are asked whom a change may concern.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dlock_core::{ClaimId, Key, SessionId};

use super::store::{News, Store};

/// Looks at the store after a change; whether it found what it waits for.
type Look = Box<dyn FnMut(&Store) -> bool + Send>;

/// What a change must be about to concern a waiter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// Anything about a key.
    Key(Key),
    /// That a claim in a line has room, or left it.
    Claim(SessionId, ClaimId),
    /// That a session ended.
    Session(SessionId),
}

/// By numbers, in the order they came.
#[derive(Default)]
pub(crate) struct Waiters {
    came: u64,
    looks: BTreeMap<u64, (Vec<Subject>, Look)>,
    concerned: HashMap<Subject, BTreeSet<u64>>,
}

impl Waiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.looks.is_empty()
    }

    /// Adds one; by what number it is known.
    pub(crate) fn add(&mut self, subjects: Vec<Subject>, look: Look) -> u64 {
        self.came += 1;
        for subject in &subjects {
            self.concerned.entry(subject.clone()).or_default().insert(self.came);
        }
        self.looks.insert(self.came, (subjects, look));
        self.came
    }

    /// Removes one that may have found what it waited for.
    pub(crate) fn remove(&mut self, number: u64) {
        let Some((subjects, _)) = self.looks.remove(&number) else { return };
        for subject in subjects {
            if let Some(numbers) = self.concerned.get_mut(&subject) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.concerned.remove(&subject);
                }
            }
        }
    }

    /// Lets those look whom this concerns, in the order they came.
    pub(crate) fn hear(&mut self, news: &News, store: &Store) {
        let keys = news.keys.iter().cloned().map(Subject::Key);
        let claims = news.claims.iter().map(|(session, claim)| Subject::Claim(session.clone(), *claim));
        let subjects = keys.chain(claims).chain(news.sessions.iter().cloned().map(Subject::Session));
        let numbers: BTreeSet<u64> = subjects.filter_map(|subject| self.concerned.get(&subject)).flatten().copied().collect();
        for number in numbers {
            let found = self.looks.get_mut(&number).is_some_and(|(_, look)| look(store));
            if found {
                self.remove(number);
            }
        }
    }
}
