//! The thread that waits for all who wait: it asks whether the file changed, and looks for those whom the change concerns.
//!
//! SQLite tells nobody of a change. Of the ways to hear of one, a message of the kernel's about the log (inotify) comes before the change can be
//! seen, and not on every file system; so the file's version is asked for, which costs some microseconds and no lock.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind, Key};
use tokio::sync::oneshot;

use crate::classify::Failed;
use crate::file::{File, Touched};
use crate::line::Change;
use crate::worker::Place;

/// Where those who wait are handed in.
#[derive(Default)]
pub(crate) struct Watcher {
    state: Mutex<State>,
    nudged: Condvar,
    polls: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Those who came since the last look.
    fresh: Vec<Box<dyn Waits>>,
    /// The keys for which somebody waits, and whether somebody waits for anything else.
    keys: HashSet<Key>,
    awaits_others: bool,
    nudged: bool,
    ended: bool,
}

impl State {
    fn await_also(&mut self, key: Option<&Key>) {
        match key {
            Some(key) => _ = self.keys.insert(key.clone()),
            None => self.awaits_others = true,
        }
    }

    /// Forgets what nobody waits for any more.
    fn await_only(&mut self, all: &[Box<dyn Waits>]) {
        self.keys.clear();
        self.awaits_others = false;
        let fresh = std::mem::take(&mut self.fresh);
        for waits in all.iter().chain(&fresh) {
            self.await_also(waits.key());
        }
        self.fresh = fresh;
    }
}

impl Watcher {
    /// Starts the thread, which ends when it is told to.
    pub(crate) fn start(place: Place) -> std::io::Result<Arc<Self>> {
        let watcher = Arc::new(Self::default());
        let watching = Watching {
            watcher: Arc::clone(&watcher),
            place,
            file: None,
            all: Vec::new(),
            some_went: false,
            seen: None,
            pace: Pace::default(),
        };
        std::thread::Builder::new().name("dlock-sqlite-wait".to_owned()).spawn(move || watching.work())?;
        Ok(watcher)
    }

    /// Waits until `look` finds something; asked first at once, then after every change of the key, or of anything if there is no key.
    pub(crate) async fn until<T: Send + 'static>(
        &self,
        key: Option<Key>,
        look: impl FnMut(&Change<'_>) -> Result<Option<T>, Failed> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (tell, told) = oneshot::channel();
        self.hand_in(Box::new(Waiter { key, look, tell: Some(tell) }));
        told.await.map_err(|_| BackendError::new(ErrorKind::Transient, "the thread that watches the file of locks has ended"))?
    }

    fn hand_in(&self, waits: Box<dyn Waits>) {
        let mut state = self.state();
        if state.ended {
            // With the answer that it has ended.
            return;
        }
        state.await_also(waits.key());
        state.fresh.push(waits);
        drop(state);
        self.nudged.notify_one();
    }

    /// This process changed the file; heard if it concerns somebody.
    pub(crate) fn nudge(&self, touched: &Touched) {
        let mut state = self.state();
        let is_awaited = match touched {
            Touched::Key(key) => state.keys.contains(key),
            Touched::Anything => state.awaits_others || !state.keys.is_empty(),
        };
        if is_awaited && !state.nudged {
            state.nudged = true;
            drop(state);
            self.nudged.notify_one();
        }
    }

    /// The last of the callers is gone.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.nudged.notify_one();
    }

    /// How often the file's version was asked for.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of who is `left` if anybody went. Sleeps until somebody comes, this process changes the file, or it is time for another look; `None` at the end.
    fn sleep(&self, left: Option<&[Box<dyn Waits>]>, at_most: Option<Duration>) -> Option<Vec<Box<dyn Waits>>> {
        let mut state = self.state();
        if let Some(left) = left {
            state.await_only(left);
        }
        while !state.ended && !state.nudged && state.fresh.is_empty() {
            match at_most {
                None => state = self.nudged.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at_most) => {
                    let (woken, slept) = self.nudged.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner);
                    state = woken;
                    if slept.timed_out() {
                        break;
                    }
                }
            }
        }
        state.nudged = false;
        (!state.ended).then(|| std::mem::take(&mut state.fresh))
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("polls", &self.polls()).finish_non_exhaustive()
    }
}

/// One who waits.
trait Waits: Send {
    /// The key that it waits for, if for one.
    fn key(&self) -> Option<&Key>;
    /// Whether a change of these keys concerns it.
    fn is_concerned(&self, keys: &HashSet<String>) -> bool;
    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
    /// Looks, and tells what it found.
    fn look(&mut self, seen: &Change<'_>);
    /// Tells that nothing can be found.
    fn fail(&mut self, error: &BackendError);
}

struct Waiter<T, F> {
    key: Option<Key>,
    look: F,
    tell: Option<oneshot::Sender<Result<T, BackendError>>>,
}

impl<T: Send, F: FnMut(&Change<'_>) -> Result<Option<T>, Failed> + Send> Waits for Waiter<T, F> {
    fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    fn is_concerned(&self, keys: &HashSet<String>) -> bool {
        self.key.as_ref().is_none_or(|key| keys.contains(key.as_str()))
    }

    fn is_gone(&self) -> bool {
        self.tell.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn look(&mut self, seen: &Change<'_>) {
        let Some(found) = (self.look)(seen).transpose() else { return };
        if let Some(tell) = self.tell.take() {
            // A caller that gives up at this moment hears nothing.
            _ = tell.send(found.map_err(BackendError::from));
        }
    }

    fn fail(&mut self, error: &BackendError) {
        if let Some(tell) = self.tell.take() {
            _ = tell.send(Err(BackendError::new(error.kind(), error.message().to_owned())));
        }
    }
}

/// How long to sleep between two looks: short after a change, for one is often followed by another, and longer while nothing happens.
#[derive(Debug)]
struct Pace(Duration);

impl Pace {
    const QUICK: Duration = Duration::from_millis(1);
    /// Forty looks a second take well under a hundredth of a core.
    const IDLE: Duration = Duration::from_millis(25);

    fn something_happened(&mut self) {
        self.0 = Self::QUICK;
    }

    fn nothing_happened(&mut self) {
        self.0 = (self.0 * 5 / 4).min(Self::IDLE);
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self(Self::QUICK)
    }
}

/// What the thread has.
struct Watching {
    watcher: Arc<Watcher>,
    place: Place,
    file: Option<File>,
    all: Vec<Box<dyn Waits>>,
    /// Whether some of them went since the others were last noted.
    some_went: bool,
    seen: Option<Seen>,
    pace: Pace,
}

/// The state of the file at the last look.
#[derive(Clone, Copy)]
struct Seen {
    version: i64,
    revision: i64,
    next_lapse: Option<i64>,
}

/// However the thread ends, nobody waits for it.
impl Drop for Watching {
    fn drop(&mut self) {
        let mut state = self.watcher.state();
        state.ended = true;
        state.fresh.clear();
    }
}

impl Watching {
    fn work(mut self) {
        loop {
            let pause = (!self.all.is_empty()).then_some(self.pace.0);
            let left = std::mem::take(&mut self.some_went).then_some(&self.all[..]);
            let Some(mut fresh) = self.watcher.sleep(left, pause) else { return };
            self.let_go();
            if self.all.is_empty() && fresh.is_empty() {
                continue;
            }
            let looked = self.look(&mut fresh);
            self.all.append(&mut fresh);
            if let Err(error) = looked {
                // Whoever asks again finds it mended, or hears the same.
                for waits in &mut self.all {
                    waits.fail(&error);
                }
                self.seen = None;
            }
            self.let_go();
        }
    }

    /// Lets those go who wait no more.
    fn let_go(&mut self) {
        let before = self.all.len();
        self.all.retain(|waits| !waits.is_gone());
        self.some_went |= self.all.len() < before;
    }

    fn look(&mut self, fresh: &mut [Box<dyn Waits>]) -> Result<(), BackendError> {
        self.watcher.polls.fetch_add(1, Ordering::Relaxed);
        let (file, is_another) = self.place.at_hand(&mut self.file)?;
        if is_another {
            self.seen = None;
        }
        // A change after this is found by the next look.
        let version = file.data_version()?;
        let known = self.seen.filter(|seen| seen.version == version);
        let now = self.place.host.now();
        if let Some(seen) = known.filter(|seen| seen.next_lapse.is_none_or(|lapses| now < lapses)) {
            self.pace.nothing_happened();
            if fresh.is_empty() {
                return Ok(());
            }
            self.seen = Some(seen);
            return file.look(|seen| {
                for waits in fresh.iter_mut() {
                    waits.look(seen);
                }
                Ok(())
            });
        }
        let mut next_lapse = file.next_lapse()?;
        if next_lapse.is_some_and(|lapses| lapses <= now) {
            match file.change(|_| Ok(())) {
                // Others are at it; the next look finds what they did.
                Err(error) if error.kind() == ErrorKind::Overloaded => {}
                ended => ended?,
            }
            next_lapse = file.next_lapse()?;
        }
        let (before, all) = (self.seen.map(|seen| seen.revision), &mut self.all);
        let (revision, concerned) = file.look(|seen| {
            let (revision, keys) = match before {
                Some(before) => seen.changes_since(before)?,
                None => (seen.changes_since(i64::MAX)?.0, None),
            };
            let keys: Option<HashSet<String>> = keys.map(HashSet::from_iter);
            let mut is_any_concerned = false;
            for waits in all.iter_mut() {
                if keys.as_ref().is_none_or(|keys| waits.is_concerned(keys)) {
                    waits.look(seen);
                    is_any_concerned |= waits.key().is_some();
                }
            }
            for waits in fresh.iter_mut() {
                waits.look(seen);
            }
            Ok((revision, is_any_concerned))
        })?;
        self.seen = Some(Seen { version, revision, next_lapse });
        if concerned {
            self.pace.something_happened();
        } else {
            self.pace.nothing_happened();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_while_nothing_happens_is_looked_for_forty_times_a_second() {
        let mut pace = Pace::default();
        let mut looks = 0;
        while pace.0 < Pace::IDLE {
            pace.nothing_happened();
            looks += 1;
        }
        assert!(looks < 20, "after {looks} looks");
        pace.nothing_happened();
        assert_eq!(pace.0, Duration::from_millis(25), "a release is heard of within 50 ms, with room for the looking");
        pace.something_happened();
        assert_eq!(pace.0, Pace::QUICK);
    }
}
