//! The watches that share one stream: which are still to be asked for, by what number each is known there, and what its owner has yet to hear.
//!
//! Nothing is sent here. One of the owners has the turn: it sends what [`Roll::request`] says, and hands what comes to [`Roll::hear`], which
//! says whom to wake. No waker is woken or dropped in here, since either may end another owner's task and with that a watch: they come out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::{Poll, Waker};

use etcd_client::Error;

use crate::watch::{Change, Watched};

/// The watches, by ids that grow: what is done for all of them is done in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    watches: BTreeMap<u64, Box<Watch>>,
    drawn: u64,
    /// Not asked for on the stream.
    wanted: BTreeSet<u64>,
    /// Asked for, and not answered. etcd answers in the order of the requests.
    asked: VecDeque<u64>,
    /// By their numbers on the stream.
    made: BTreeMap<i64, u64>,
    /// The numbers of those that nobody wants any more.
    unwanted: VecDeque<i64>,
    /// Somebody has the turn.
    driven: bool,
    /// Was woken to take it, if nobody has: whoever waits then waits for this one.
    called: Option<u64>,
    /// Of whoever has it, while there is nothing to send.
    driver: Option<Waker>,
}

/// A watch of one key. Small, since there is one for each held lock.
#[derive(Debug)]
pub(crate) struct Watch {
    key: Box<[u8]>,
    /// Whether only deletions are told.
    deletions: bool,
    /// The first revision that its owner has not heard of.
    from: i64,
    place: Place,
    /// What its owner has yet to hear.
    news: Option<Box<News>>,
    /// Of its owner, while that waits for another to drive.
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct News {
    changes: Vec<Change>,
    ended: Option<Ended>,
}

/// Where a watch stands on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Wanted,
    Asked,
    Made(i64),
    /// etcd ended it.
    Ended,
}

/// Why etcd ended a watch, or did not make it.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It goes on from a revision that is not kept any more.
    Compacted,
    /// As the status that it would have as a call of its own.
    Refused(Box<Error>),
}

/// What the owner of a watch hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Never none.
    Changes(Vec<Change>),
    /// The watch is over.
    Ended(Ended),
    /// Nothing, and the turn is its own: it drives until it hears something, or passes the turn on.
    Turn,
}

/// What is to be sent next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Watch { id: u64, watched: Watched, from: i64 },
    Cancel(i64),
}

/// What came on the stream.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The number of the watch there.
    pub(crate) number: i64,
    /// It answers a request for a watch.
    pub(crate) made: bool,
    pub(crate) ended: Option<Ended>,
    pub(crate) changes: Vec<Change>,
}

/// A watch that nobody wants any more, and whom to wake about it.
#[derive(Debug)]
pub(crate) struct Removed {
    pub(crate) watch: Option<Box<Watch>>,
    pub(crate) wakes: Option<Waker>,
}

impl Roll {
    pub(crate) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Adds a watch of what happens to a key from a revision on, or of its deletions alone; its id, and whom to wake.
    pub(crate) fn add(&mut self, key: Vec<u8>, deletions: bool, from: i64) -> (u64, Option<Waker>) {
        let id = self.drawn;
        self.drawn += 1;
        let watch = Watch { key: key.into(), deletions, from, place: Place::Wanted, news: None, waker: None };
        self.watches.insert(id, Box::new(watch));
        self.wanted.insert(id);
        (id, self.driver.take())
    }

    pub(crate) fn remove(&mut self, id: u64) -> Removed {
        let Some(watch) = self.watches.remove(&id) else { return Removed { watch: None, wakes: None } };
        self.wanted.remove(&id);
        if let Place::Made(number) = watch.place {
            self.made.remove(&number);
            self.unwanted.push_back(number);
        }
        let wakes = if self.called == Some(id) { self.call() } else { self.driver.take() };
        Removed { watch: Some(watch), wakes }
    }

    /// The key of a watch.
    pub(crate) fn key(&self, id: u64) -> Option<&[u8]> {
        self.watches.get(&id).map(|watch| &*watch.key)
    }

    /// What the owner of a watch hears now. The waker is kept where that is nothing; the one from before comes out.
    pub(crate) fn poll(&mut self, id: u64, waker: &mut Option<Waker>) -> Poll<Heard> {
        let Some(watch) = self.watches.get_mut(&id) else { return Poll::Pending };
        let own = std::mem::replace(waker, watch.waker.take());
        if let Some(News { changes, ended }) = watch.news.take().map(|news| *news) {
            match ended {
                Some(ended) if changes.is_empty() => return Poll::Ready(Heard::Ended(ended)),
                ended => {
                    watch.news = ended.map(|ended| Box::new(News { changes: Vec::new(), ended: Some(ended) }));
                    return Poll::Ready(Heard::Changes(changes));
                }
            }
        }
        if !self.driven {
            (self.driven, self.called) = (true, None);
            return Poll::Ready(Heard::Turn);
        }
        watch.waker = own;
        Poll::Pending
    }

    /// Whether the owner of a watch has something to hear.
    pub(crate) fn has_news(&self, id: u64) -> bool {
        self.watches.get(&id).is_none_or(|watch| watch.news.is_some() || watch.place == Place::Ended)
    }

    /// Gives the turn up; whom to wake to take it.
    pub(crate) fn pass(&mut self, waker: &mut Option<Waker>) -> Option<Waker> {
        self.driven = false;
        *waker = self.driver.take();
        self.call()
    }

    fn call(&mut self) -> Option<Waker> {
        let waiting = self.watches.iter_mut().find_map(|(id, watch)| Some((*id, watch.waker.take()?)));
        self.called = waiting.as_ref().map(|(id, _)| *id);
        waiting.map(|(_, waker)| waker)
    }

    /// A new stream knows of no watch: all are to be asked for, from where each of them was.
    pub(crate) fn begin(&mut self) {
        self.asked.clear();
        self.made.clear();
        self.unwanted.clear();
        for (id, watch) in &mut self.watches {
            if watch.place != Place::Ended {
                watch.place = Place::Wanted;
                self.wanted.insert(*id);
            }
        }
    }

    /// What is to be sent next. Once it is, [`sent`](Self::sent) must be told.
    pub(crate) fn request(&self) -> Option<Request> {
        if let Some(number) = self.unwanted.front() {
            return Some(Request::Cancel(*number));
        }
        let id = *self.wanted.first()?;
        let watch = self.watches.get(&id)?;
        let watched = Watched { key: watch.key.to_vec(), end: None, deletions: watch.deletions };
        Some(Request::Watch { id, watched, from: watch.from })
    }

    /// The same for whoever has the turn, whose waker is kept where there is nothing; the one from before comes out.
    pub(crate) fn poll_request(&mut self, waker: &mut Option<Waker>) -> Poll<Request> {
        if let Some(request) = self.request() {
            return Poll::Ready(request);
        }
        std::mem::swap(&mut self.driver, waker);
        Poll::Pending
    }

    pub(crate) fn sent(&mut self, request: &Request) {
        match request {
            Request::Cancel(number) => self.unwanted.retain(|unwanted| unwanted != number),
            // It may have been removed meanwhile: the answer comes all the same.
            Request::Watch { id, .. } => {
                self.asked.push_back(*id);
                self.wanted.remove(id);
                if let Some(watch) = self.watches.get_mut(id) {
                    watch.place = Place::Asked;
                }
            }
        }
    }

    /// Whether an answer to a request for a watch is still to come.
    pub(crate) fn awaits(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Takes in what came; whom to wake.
    pub(crate) fn hear(&mut self, answer: Answer) -> Option<Waker> {
        let Answer { number, made, ended, changes } = answer;
        let id = if made { self.asked.pop_front() } else { self.made.get(&number).copied() }?;
        let Some(watch) = self.watches.get_mut(&id) else {
            if ended.is_none() {
                self.unwanted.push_back(number);
            }
            return None;
        };
        if made && ended.is_none() {
            watch.place = Place::Made(number);
            self.made.insert(number, id);
        }
        if ended.is_some() {
            watch.place = Place::Ended;
            // etcd forgets a watch that it ended for a compaction once it is cancelled all the same. What it refuses has no number of its own.
            if !made && self.made.remove(&number).is_some() {
                self.unwanted.push_back(number);
            }
        }
        if changes.is_empty() && ended.is_none() {
            return None;
        }
        watch.from = changes.iter().map(|change| change.revision + 1).fold(watch.from, i64::max);
        let news = watch.news.get_or_insert_default();
        news.changes.extend(changes);
        news.ended = ended;
        watch.waker.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An owner of a watch.
    struct Owner {
        id: u64,
        woken: Arc<Counted>,
    }

    impl Owner {
        fn of(roll: &mut Roll, key: &str, from: i64) -> Self {
            Self { id: roll.add(key.into(), false, from).0, woken: Arc::default() }
        }

        fn poll(&self, roll: &mut Roll) -> Poll<Heard> {
            roll.poll(self.id, &mut Some(Waker::from(Arc::clone(&self.woken))))
        }

        fn drives(&self, roll: &mut Roll) -> bool {
            matches!(self.poll(roll), Poll::Ready(Heard::Turn))
        }

        fn waits(&self, roll: &mut Roll) -> bool {
            self.poll(roll).is_pending()
        }

        fn hears(&self, roll: &mut Roll) -> Vec<i64> {
            match self.poll(roll) {
                Poll::Ready(Heard::Changes(changes)) => changes.iter().map(|change| change.revision).collect(),
                heard => panic!("{heard:?}"),
            }
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    fn wake(waker: Option<Waker>) {
        waker.into_iter().for_each(Waker::wake);
    }

    /// Sends all there is to send: keys and revisions, or numbers.
    fn send(roll: &mut Roll) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(request) = roll.request() {
            roll.sent(&request);
            all.push(match request {
                Request::Watch { watched, from, .. } => format!("{} from {from}", String::from_utf8(watched.key).unwrap()),
                Request::Cancel(number) => format!("cancel {number}"),
            });
        }
        all
    }

    fn made(number: i64) -> Answer {
        Answer { number, made: true, ended: None, changes: Vec::new() }
    }

    fn changed(number: i64, revision: i64) -> Answer {
        let change = Change { key: Vec::new(), revision, entry: None };
        Answer { number, made: false, ended: None, changes: vec![change] }
    }

    fn compacted(number: i64) -> Answer {
        Answer { number, made: false, ended: Some(Ended::Compacted), changes: Vec::new() }
    }

    #[test]
    fn one_drives_and_each_hears_its_own() {
        let mut roll = Roll::default();
        let [one, other] = ["a", "b"].map(|key| Owner::of(&mut roll, key, 5));
        assert!(one.drives(&mut roll));
        assert!(other.waits(&mut roll));
        assert_eq!(send(&mut roll), ["a from 5", "b from 5"]);
        // The numbers are etcd's, the order is that of the requests.
        wake(roll.hear(made(7)));
        wake(roll.hear(made(3)));
        assert!(!roll.awaits());
        wake(roll.hear(changed(3, 9)));
        assert_eq!((one.woken(), other.woken()), (0, 1));
        assert!(!roll.has_news(one.id));
        assert_eq!(other.hears(&mut roll), [9]);
        assert!(other.waits(&mut roll));
    }

    #[test]
    fn two_watches_of_one_key_are_two() {
        let mut roll = Roll::default();
        let [earlier, later] = [5, 8].map(|from| Owner::of(&mut roll, "k", from));
        assert!(earlier.drives(&mut roll) && later.waits(&mut roll));
        assert_eq!(send(&mut roll), ["k from 5", "k from 8"]);
        wake(roll.hear(made(0)));
        wake(roll.hear(made(1)));
        drop(roll.remove(earlier.id));
        assert_eq!(send(&mut roll), ["cancel 0"]);
        // Came before it was cancelled.
        assert!(roll.hear(changed(0, 6)).is_none());
        wake(roll.hear(changed(1, 9)));
        assert_eq!(later.hears(&mut roll), [9]);
    }

    #[test]
    fn whoever_waits_first_takes_the_turn_that_is_given_up() {
        let mut roll = Roll::default();
        let owners = ["a", "b", "c"].map(|key| Owner::of(&mut roll, key, 1));
        let [first, second, third] = &owners;
        assert!(first.drives(&mut roll) && second.waits(&mut roll) && third.waits(&mut roll));
        wake(roll.pass(&mut None));
        wake(roll.remove(first.id).wakes);
        assert_eq!((second.woken(), third.woken()), (1, 0));
        // Dropped before it came to it.
        wake(roll.remove(second.id).wakes);
        assert_eq!(third.woken(), 1);
        assert!(third.drives(&mut roll));
    }

    #[test]
    fn whoever_has_the_turn_is_woken_for_what_is_to_be_sent() {
        let mut roll = Roll::default();
        let driver = Owner::of(&mut roll, "a", 1);
        assert!(driver.drives(&mut roll));
        send(&mut roll);
        wake(roll.hear(made(0)));
        let poll = |roll: &mut Roll| roll.poll_request(&mut Some(Waker::from(Arc::clone(&driver.woken))));
        assert!(poll(&mut roll).is_pending());
        let (late, waker) = roll.add("b".into(), true, 4);
        wake(waker);
        assert_eq!(driver.woken(), 1);
        assert_eq!(send(&mut roll), ["b from 4"]);
        wake(roll.hear(made(1)));
        assert!(poll(&mut roll).is_pending());
        wake(roll.remove(late).wakes);
        assert_eq!(driver.woken(), 2);
        assert_eq!(poll(&mut roll), Poll::Ready(Request::Cancel(1)));
    }

    #[test]
    fn one_that_is_dropped_before_it_is_made_is_cancelled_once_it_is() {
        let mut roll = Roll::default();
        let [one, other] = ["a", "b"].map(|key| Owner::of(&mut roll, key, 1));
        assert!(one.drives(&mut roll));
        send(&mut roll);
        drop(roll.remove(other.id));
        wake(roll.hear(made(0)));
        wake(roll.hear(made(1)));
        assert_eq!(send(&mut roll), ["cancel 1"]);
        let unsent = Owner::of(&mut roll, "c", 1);
        drop(roll.remove(unsent.id));
        assert_eq!(send(&mut roll), [""; 0]);
    }

    #[test]
    fn a_new_stream_goes_on_where_each_was() {
        let mut roll = Roll::default();
        let [one, other] = ["a", "b"].map(|key| Owner::of(&mut roll, key, 5));
        assert!(one.drives(&mut roll) && other.waits(&mut roll));
        send(&mut roll);
        wake(roll.hear(made(0)));
        wake(roll.hear(made(1)));
        wake(roll.hear(changed(1, 9)));
        let dropped = Owner::of(&mut roll, "c", 1);
        drop(roll.remove(dropped.id));
        roll.begin();
        assert_eq!(send(&mut roll), ["a from 5", "b from 10"]);
        // Nothing that came before is lost with the stream.
        assert_eq!(other.hears(&mut roll), [9]);
    }

    #[test]
    fn what_ends_one_watch_ends_no_other() {
        let mut roll = Roll::default();
        let owners = ["a", "b", "c"].map(|key| Owner::of(&mut roll, key, 5));
        let [behind, refused, well] = &owners;
        assert!(well.drives(&mut roll) && behind.waits(&mut roll) && refused.waits(&mut roll));
        send(&mut roll);
        wake(roll.hear(made(0)));
        let denied = Ended::Refused(Box::new(Error::WatchError("denied".to_owned())));
        // As etcd numbers what it refuses, some versions with -1.
        wake(roll.hear(Answer { ended: Some(denied), ..made(0) }));
        wake(roll.hear(made(1)));
        wake(roll.hear(compacted(0)));
        assert_eq!((behind.woken(), refused.woken()), (1, 1));
        assert!(matches!(behind.poll(&mut roll), Poll::Ready(Heard::Ended(Ended::Compacted))));
        assert!(matches!(refused.poll(&mut roll), Poll::Ready(Heard::Ended(Ended::Refused(_)))));
        assert!(!roll.has_news(well.id));
        // etcd keeps the one that it had made until it is told.
        assert_eq!(send(&mut roll), ["cancel 0"]);
        roll.begin();
        assert_eq!(send(&mut roll), ["c from 5"]);
        drop(roll.remove(behind.id));
        assert_eq!(send(&mut roll), [""; 0]);
    }
}
