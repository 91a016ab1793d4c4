//! One contender per key per process: a first-come, first-served gate in front of the store.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use dlock_core::Key;
use foldhash::quality::RandomState;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::measure::AtGate;

/// The gates of all keys in use.
///
/// The store sees one contender per key, and a session that is shared by many locks can never be granted one key twice.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    /// Hashed with a seed of its own, for users may choose the names of keys, but for less than the standard library takes.
    gates: Mutex<HashMap<Key, Arc<AsyncMutex<Turns>>, RandomState>>,
}

/// How often in a row a gate passed from one local claim to the next.
#[derive(Debug, Default)]
struct Turns(u32);

/// The right to contend for one key; the gate opens for the next when it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gates: Arc<Gates>,
    key: Key,
    turn: Option<OwnedMutexGuard<Turns>>,
    yields: bool,
}

impl Gates {
    /// After so many local turns in a row, others get a chance.
    pub(crate) const LOCAL_TURNS: u32 = 8;

    /// Passes when everyone who came earlier is through. Free to drop.
    pub(crate) async fn pass(self: &Arc<Self>, key: &Key) -> Pass {
        let gate = self.gate(key);
        let waiting = PassIntent { gates: self, key };
        let at_once = Arc::clone(&gate).try_lock_owned().ok();
        let (mut turn, local) = if let Some(turn) = at_once {
            (turn, false)
        } else {
            let _at_gate = AtGate::begin();
            (gate.lock_owned().await, true)
        };
        std::mem::forget(waiting);
        turn.0 = if local { turn.0 + 1 } else { 0 };
        let yields = turn.0 >= Self::LOCAL_TURNS;
        if yields {
            turn.0 = 0;
        }
        Pass { gates: Arc::clone(self), key: key.clone(), turn: Some(turn), yields }
    }

    /// Passes if nobody is before us.
    pub(crate) fn try_pass(self: &Arc<Self>, key: &Key) -> Option<Pass> {
        let Ok(mut turn) = self.gate(key).try_lock_owned() else {
            // The pass may have been dropped meanwhile, and could not tidy up.
            self.tidy(key);
            return None;
        };
        turn.0 = 0;
        Some(Pass { gates: Arc::clone(self), key: key.clone(), turn: Some(turn), yields: false })
    }

    fn gate(&self, key: &Key) -> Arc<AsyncMutex<Turns>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gates.entry(key.clone()).or_default())
    }

    /// Forgets a gate that nobody uses. Gates are only handed out under the lock, so a count of one cannot grow meanwhile.
    fn tidy(&self, key: &Key) {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(entry) = gates.entry(key.clone())
            && Arc::strong_count(entry.get()) == 1
        {
            entry.remove();
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.gates.lock().unwrap().len()
    }
}

/// Tidies up after a wait at the gate that was dropped.
struct PassIntent<'a> {
    gates: &'a Gates,
    key: &'a Key,
}

impl Drop for PassIntent<'_> {
    fn drop(&mut self) {
        self.gates.tidy(self.key);
    }
}

impl Pass {
    /// Whether this process had enough turns in a row and should let waiters elsewhere go first.
    pub(crate) fn yields(&self) -> bool {
        self.yields
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.turn = None;
        self.gates.tidy(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new("k").unwrap()
    }

    #[tokio::test]
    async fn a_closed_gate_refuses_a_try_and_opens_when_the_pass_is_dropped() {
        let gates = Arc::new(Gates::default());
        let pass = gates.pass(&key()).await;
        assert!(gates.try_pass(&key()).is_none());
        drop(pass);
        assert!(gates.try_pass(&key()).is_some());
    }

    #[tokio::test]
    async fn nothing_is_kept_of_gates_that_nobody_uses() {
        let gates = Arc::new(Gates::default());
        let pass = gates.pass(&key()).await;
        let key = key();
        let mut waiting = Box::pin(gates.pass(&key));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(pass);
        drop(waiting);
        assert_eq!(gates.len(), 0);
    }

    #[tokio::test]
    async fn first_come_is_first_served_and_many_local_turns_yield() {
        let gates = Arc::new(Gates::default());
        let mut pass = gates.pass(&key()).await;
        let mut yielded = Vec::new();
        for turn in 0..Gates::LOCAL_TURNS {
            let key = key();
            let mut first = Box::pin(gates.pass(&key));
            assert!(futures_util::poll!(&mut first).is_pending());
            let mut second = Box::pin(gates.pass(&key));
            assert!(futures_util::poll!(&mut second).is_pending());
            drop(pass);
            assert!(futures_util::poll!(&mut second).is_pending(), "turn {turn}");
            pass = first.await;
            yielded.push(pass.yields());
        }
        assert_eq!(yielded.iter().filter(|yields| **yields).count(), 1);
        assert_eq!(yielded.last(), Some(&true));
    }
}
