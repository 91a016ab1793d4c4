//! Requests that wait at Consul, each in a place of its own among the connections.
//!
//! An agent keeps a request that waits, and counts its connection, until it is answered or its time is over, also when the client has gone (Consul 1.8.7). So a request
//! that nobody waits for any more keeps its place here for as long, and whoever waits for the same meanwhile goes on with it.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use dlock_core::BackendError;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::api::{Api, Shown, Since, WAIT};
use crate::wire::Entry;

/// The places of waiting requests, and the requests under way that nobody waits for any more.
#[derive(Debug)]
pub(crate) struct Waits {
    places: Arc<Semaphore>,
    unheard: Mutex<Vec<UnderWay>>,
}

/// One who waits for news of the same again and again.
#[derive(Debug)]
pub(crate) struct Watching<'a> {
    waits: &'a Waits,
    api: &'a Arc<Api>,
    watched: Watched,
    /// For how long the next request waits.
    wait: Duration,
    /// Kept between two requests, or whoever comes later would have it when it matters.
    place: Option<Place>,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// A key.
    Key(String),
    /// All keys whose names begin so.
    Below(String),
    /// The same, told by its index alone: the answer is short.
    NamesBelow(String),
}

/// The keys that are there, unless none are told, and as of which index.
pub(crate) type Told = (Vec<Entry>, u64);

/// A place for one request at a time.
pub(crate) type Place = OwnedSemaphorePermit;

/// A request under way. It borrows nothing, so that it outlives who asked.
struct UnderWay {
    watched: Watched,
    since: Since,
    began: Instant,
    answer: Answer,
    place: Place,
}

/// What will be told.
struct Answer {
    coming: BoxFuture<'static, Result<Told, BackendError>>,
    /// Where its timers are, and what drives its connection. Elsewhere it is not polled.
    runtime: Option<Handle>,
}

/// Waits for the answer of a request. If it is dropped before, the request stays, unheard.
struct Asking<'a> {
    waits: &'a Waits,
    request: Option<UnderWay>,
}

/// How long the first request waits at Consul. Each that brought no news is followed by one that waits for twice as long, and after [`WAIT`] in all each waits for as
/// long as that: what is given up early does not stay for long.
const FIRST: Duration = Duration::from_secs(5);
/// Between two looks whether a request that nobody waits for has been answered, where somebody needs its place.
const PACE: Duration = Duration::from_millis(500);

impl Waits {
    pub(crate) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), unheard: Mutex::default() }
    }

    /// Nothing is asked yet.
    pub(crate) fn watching<'a>(&'a self, api: &'a Arc<Api>, watched: Watched) -> Watching<'a> {
        Watching { waits: self, api, watched, wait: FIRST, place: None }
    }

    /// How many places are left.
    pub(crate) fn left(&self) -> usize {
        self.sweep();
        self.places.available_permits()
    }

    /// A place, if one is free.
    pub(crate) fn try_place(&self) -> Option<Place> {
        self.sweep();
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place once one is free.
    pub(crate) async fn place(&self) -> Place {
        loop {
            if let Some(place) = self.place_soon().await {
                return place;
            }
        }
    }

    /// The same, if one is free before the next look.
    async fn place_soon(&self) -> Option<Place> {
        if let Some(place) = self.try_place() {
            return Some(place);
        }
        timeout(PACE, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok()
    }

    /// Given up; some may be answered by now.
    fn unheard(&self) -> MutexGuard<'_, Vec<UnderWay>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the places of those that are answered by now, and gives their connections back.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let is_over = |one: &mut UnderWay| {
            now >= one.began + one.since.limit()
                || one.answer.is_of_this_runtime() && (&mut one.answer.coming).now_or_never().is_some()
        };
        let over: Vec<_> = self.unheard().extract_if(.., |one| is_over(one)).collect();
        // Whoever that wakes finds the list free.
        drop(over);
    }

    /// A request that tells of the next change after `since`, or of an earlier one if that has not reached us yet.
    fn take(&self, watched: &Watched, since: u64) -> Option<UnderWay> {
        let mut unheard = self.unheard();
        let same = |one: &UnderWay| one.watched == *watched && one.since.index <= since && one.answer.is_of_this_runtime();
        let found = unheard.iter().position(same)?;
        Some(unheard.swap_remove(found))
    }
}

impl Watching<'_> {
    /// What is told once that is as of an index greater than `since`, or after [`WAIT`]; `None` without a place. At once where something stands between that lets
    /// nobody wait: pacing is left to the caller. An index that went back is told, too.
    ///
    /// Free to drop: the request stays, and the next who asks goes on with it.
    pub(crate) async fn news(&mut self, since: u64) -> Option<Result<Told, BackendError>> {
        while let Some(request) = self.waits.take(&self.watched, since) {
            let earlier = request.since.index;
            // It has one.
            self.place = None;
            // What was on its way before this wait began is no news, nor that its time was up, and an error speaks of another time.
            if let (Ok(told), in_vain) = self.answer(request).await
                && (told.1 > since || told.1 < earlier && !in_vain)
            {
                return Some(Ok(told));
            }
        }
        let mut left = WAIT;
        loop {
            let wait = self.wait.min(left);
            left -= wait;
            let place = self.place.take().or_else(|| self.waits.try_place())?;
            let request = UnderWay::new(self.api, &self.watched, Since { index: since, wait }, place);
            let (told, in_vain) = self.answer(request).await;
            self.wait = match (in_vain, left.is_zero()) {
                (true, false) => wait * 2,
                (true, true) => WAIT,
                (false, _) => FIRST,
            };
            match told {
                // Its time was up. That the index is a lower one says nothing: who watches several keys knows the latest of theirs.
                Ok((_, index)) if index <= since && in_vain && !left.is_zero() => {}
                told => return Some(told),
            }
        }
    }

    /// [`news`](Self::news) once there is a place.
    pub(crate) async fn news_in_turn(&mut self, since: u64) -> Result<Told, BackendError> {
        loop {
            if let Some(told) = self.news(since).await {
                return told;
            }
            self.place = self.waits.place_soon().await;
        }
    }

    /// Waits for it, and keeps its place; also whether its time was up.
    async fn answer(&mut self, request: UnderWay) -> (Result<Told, BackendError>, bool) {
        let (began, wait) = (request.began, request.since.wait);
        let (told, place) = Asking { waits: self.waits, request: Some(request) }.await;
        self.place = Some(place);
        (told, began.elapsed() >= wait)
    }

    /// Lets others have it until the next request.
    pub(crate) fn leave_place(&mut self) {
        self.place = None;
    }
}

impl UnderWay {
    /// Nothing is sent before it is polled.
    fn new(api: &Arc<Api>, watched: &Watched, since: Since, place: Place) -> Self {
        let coming = ask(Arc::clone(api), watched.clone(), since).boxed();
        let answer = Answer { coming, runtime: Handle::try_current().ok() };
        Self { watched: watched.clone(), since, began: Instant::now(), answer, place }
    }
}

impl Answer {
    fn is_of_this_runtime(&self) -> bool {
        self.runtime.as_ref().map(Handle::id) == Handle::try_current().ok().map(|here| here.id())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let coming = mem::replace(&mut self.coming, pending().boxed());
        if Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed()) {
            // The thread ends, and no runtime can be entered any more.
            mem::forget(coming);
            return;
        }
        // A connection that has answered goes back to its pool, which may spawn a task that looks after it.
        let _there = self.runtime.as_ref().map(Handle::enter);
        drop(coming);
    }
}

async fn ask(api: Arc<Api>, watched: Watched, since: Since) -> Result<Told, BackendError> {
    match &watched {
        Watched::Key(key) => api.wait_key(key, Some(since)).await.map(|(entry, index)| (entry.into_iter().collect(), index)),
        Watched::Below(prefix) => api.wait_below::<Entry>(prefix, Shown::Entries, Some(since)).await,
        Watched::NamesBelow(prefix) => {
            api.wait_below::<String>(prefix, Shown::Names, Some(since)).await.map(|(_, index)| (Vec::new(), index))
        }
    }
}

impl Future for Asking<'_> {
    /// With the place that is free now.
    type Output = (Result<Told, BackendError>, Place);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut request = self.request.take().expect("it is not polled once it is answered");
        match request.answer.coming.as_mut().poll(cx) {
            Poll::Ready(told) => Poll::Ready((told, request.place)),
            Poll::Pending => {
                self.request = Some(request);
                Poll::Pending
            }
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.waits.unheard().push(request);
        }
    }
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnderWay").field("watched", &self.watched).field("since", &self.since).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use tokio::runtime::{Builder, Id};
    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;
    use crate::ConsulOptions;
    use crate::transport::{Answer, Request, Transport, TransportError, TransportErrorKind};

    /// Consul with keys that all stand at the same index, which tells how it was asked.
    #[derive(Debug)]
    struct Store {
        index: watch::Sender<u64>,
        /// Nobody can wait.
        hurried: bool,
        /// The next answer is lost.
        breaks: AtomicBool,
        /// On which runtimes requests ended.
        ended: Mutex<Vec<Option<Id>>>,
        asked: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Transport for Store {
        async fn send(&self, request: Request) -> Result<Answer, TransportError> {
            let (_, asked) = request.target.split_once("/v1/kv/").expect("it is about a key");
            self.asked.lock().unwrap().push(asked.to_owned());
            let _ended = Ended(self);
            let (_, query) = asked.split_once("?index=").expect("it waits");
            let (since, wait) = query.split_once("&wait=").expect("it says how long");
            let (since, wait): (u64, _) = (since.parse().unwrap(), wait.trim_end_matches('s').parse().unwrap());
            let (mut index, wait) = (self.index.subscribe(), if self.hurried { 0 } else { wait });
            // Consul answers also when the index went back.
            _ = timeout(Duration::from_secs(wait), index.wait_for(|index| *index > since || *index == RESTORED)).await;
            let now = *self.index.borrow();
            if self.breaks.swap(false, Ordering::Relaxed) {
                return Err(TransportError::new(TransportErrorKind::Broken, "broken"));
            }
            let body = format!(r#"[{{"Key":"k","Flags":0,"Value":null,"CreateIndex":1,"ModifyIndex":{now}}}]"#);
            Ok(Answer { status: 200, index: Some(now), body })
        }
    }

    struct Ended<'a>(&'a Store);

    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.ended.lock().unwrap().push(Handle::try_current().ok().map(|runtime| runtime.id()));
        }
    }

    /// At which index everything stands after a restore.
    const RESTORED: u64 = 2;

    struct Process {
        consul: Arc<Store>,
        api: Arc<Api>,
        waits: Waits,
    }

    impl Process {
        fn beside(index: u64, places: usize) -> Self {
            Self::beside_one(index, places, false)
        }

        fn beside_one(index: u64, places: usize, hurried: bool) -> Self {
            let consul = Arc::new(Store {
                index: watch::Sender::new(index),
                hurried,
                breaks: AtomicBool::new(false),
                ended: Mutex::default(),
                asked: Mutex::default(),
            });
            let transport = Arc::clone(&consul) as Arc<dyn Transport>;
            let api = Arc::new(Api::new(transport, &ConsulOptions::new()));
            Self { consul, api, waits: Waits::new(places) }
        }

        /// The index that is told of a key; `None` without a place.
        async fn wait_for(&self, key: &str, since: u64) -> Option<u64> {
            let told = self.waits.watching(&self.api, Watched::Key(key.into())).news(since).await;
            told.map(|told| told.unwrap().1)
        }

        async fn wait(&self, since: u64) -> Option<u64> {
            self.wait_for("k", since).await
        }

        async fn give_up(&self, since: u64) {
            let waited = timeout(Duration::from_millis(100), self.wait(since)).await;
            assert!(waited.is_err(), "{waited:?}");
        }

        fn changes(&self, index: u64) {
            _ = self.consul.index.send_replace(index);
        }

        fn asked(&self) -> Vec<String> {
            self.consul.asked.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_back_goes_on_with_the_request_that_is_there() {
        let process = Process::beside(7, 1);
        for _ in 0..20 {
            process.give_up(7).await;
        }
        let (told, ()) = tokio::join!(process.wait(7), async { process.changes(8) });
        assert_eq!(told, Some(8));
        assert_eq!(process.asked(), ["k?index=7&wait=5s"]);
        assert_eq!(process.waits.left(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_for_another_key_is_not_gone_on_with() {
        let process = Process::beside(7, 2);
        process.give_up(7).await;
        let (told, ()) = tokio::join!(process.wait_for("other", 7), async { process.changes(8) });
        assert_eq!(told, Some(8));
        assert_eq!(process.asked(), ["k?index=7&wait=5s", "other?index=7&wait=5s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_on_its_way_before_is_no_news() {
        let process = Process::beside(7, 1);
        process.give_up(7).await;
        let waiting = process.wait(9);
        process.changes(9);
        let waited = timeout(Duration::from_millis(100), waiting).await;
        assert!(waited.is_err(), "{waited:?}");
        process.changes(10);
        assert_eq!(process.wait(9).await, Some(10));
        assert_eq!(process.asked(), ["k?index=7&wait=5s", "k?index=9&wait=5s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_the_request_that_is_there_is_asked_for() {
        let process = Process::beside(9, 2);
        process.give_up(9).await;
        assert_eq!(process.wait(7).await, Some(9));
        assert_eq!(process.asked(), ["k?index=9&wait=5s", "k?index=7&wait=5s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_that_went_back_is_told_also_to_whoever_goes_on() {
        let process = Process::beside(7, 1);
        process.give_up(7).await;
        process.changes(RESTORED);
        assert_eq!(process.wait(9).await, Some(RESTORED));
        assert_eq!(process.wait(9).await, Some(RESTORED));
        assert_eq!(process.asked(), ["k?index=7&wait=5s", "k?index=9&wait=5s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_in_turn_goes_on_with_its_own_request_although_there_is_no_other_place() {
        let process = Process::beside(7, 1);
        let mut watching = process.waits.watching(&process.api, Watched::Key("k".into()));
        let waited = timeout(Duration::from_millis(100), watching.news_in_turn(7)).await;
        assert!(waited.is_err(), "{waited:?}");
        process.changes(8);
        let mut other = process.waits.watching(&process.api, Watched::Key("other".into()));
        let began = Instant::now();
        assert_eq!(watching.news_in_turn(7).await.unwrap().1, 8);
        assert_eq!(began.elapsed(), Duration::ZERO);
        watching.leave_place();
        assert_eq!(other.news_in_turn(7).await.unwrap().1, 8);
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_of_a_request_that_nobody_heard_is_not_told() {
        let process = Process::beside(7, 1);
        process.give_up(7).await;
        process.consul.breaks.store(true, Ordering::Relaxed);
        process.changes(8);
        assert_eq!(process.wait(7).await, Some(8));
        assert_eq!(process.asked().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_keeps_its_place_until_it_is_answered() {
        let process = Process::beside(7, 1);
        process.give_up(7).await;
        sleep(Duration::from_millis(4_850)).await;
        assert_eq!(process.waits.left(), 0);
        assert!(process.waits.try_place().is_none());
        let place = timeout(Duration::from_millis(600), process.waits.place()).await;
        assert!(place.is_ok(), "it is looked at twice a second");
        assert!(process.waits.unheard().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_kept_between_two_requests() {
        let process = Process::beside(7, 1);
        let mut watching = process.waits.watching(&process.api, Watched::Key("k".into()));
        assert_eq!(watching.news(6).await.unwrap().unwrap().1, 7);
        assert_eq!(process.wait(6).await, None);
        assert_eq!(watching.news(6).await.unwrap().unwrap().1, 7);
        watching.leave_place();
        assert_eq!(process.wait(6).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_long_asks_ever_more_seldom_and_is_told_after_a_while() {
        // One who watches several keys may know a later index than that of this one.
        for since in [7, 9] {
            let process = Process::beside(7, 1);
            let mut watching = process.waits.watching(&process.api, Watched::Key("k".into()));
            for _ in 0..3 {
                let began = Instant::now();
                assert_eq!(watching.news(since).await.unwrap().unwrap().1, 7);
                assert_eq!(began.elapsed(), WAIT);
            }
            assert_eq!(process.asked(), [5, 10, 20, 20, 55, 55].map(|wait| format!("k?index={since}&wait={wait}s")));
            assert_eq!(watching.news(6).await.unwrap().unwrap().1, 7);
            assert_eq!(watching.news(since).await.unwrap().unwrap().1, 7);
            assert!(process.asked().last().unwrap().ends_with("wait=20s"), "it began anew");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_can_wait_one_request_is_sent() {
        let process = Process::beside_one(7, 1, true);
        assert_eq!(process.wait(7).await, Some(7));
        assert_eq!(process.asked(), ["k?index=7&wait=5s"]);
    }

    #[test]
    fn what_waits_on_a_runtime_that_stands_still_keeps_its_place_until_its_time_is_over() {
        let process = Process::beside(7, 1);
        let [first, second] = [(); 2].map(|()| Builder::new_current_thread().enable_time().start_paused(true).build().unwrap());
        first.block_on(process.give_up(7));
        process.changes(8);
        second.block_on(async {
            assert_eq!(process.wait(7).await, None, "its place is taken");
            sleep(Duration::from_secs(11)).await;
            assert_eq!(process.wait(7).await, Some(8));
        });
        assert_eq!(*process.consul.ended.lock().unwrap(), [first, second].map(|runtime| Some(runtime.handle().id())));
        assert_eq!(process.asked(), ["k?index=7&wait=5s", "k?index=7&wait=5s"]);
    }

    #[test]
    fn what_goes_with_the_backend_ends_on_its_own_runtime() {
        let process = Process::beside(7, 1);
        let consul = Arc::clone(&process.consul);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(process.give_up(7));
        drop(process);
        assert_eq!(*consul.ended.lock().unwrap(), [Some(runtime.handle().id())]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_on_without_the_backend() {
        let process = Process::beside(7, 1);
        let consul = Arc::clone(&process.consul);
        process.give_up(7).await;
        assert_eq!(consul.index.receiver_count(), 1);
        drop(process);
        assert_eq!(consul.index.receiver_count(), 0);
    }
}
