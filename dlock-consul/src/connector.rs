//! Keeps a pool from opening connections that no request waits for.

use std::future::{self, Future};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task;
use tower::BoxError;

/// The connections that one pool may go on opening although their requests have others.
#[derive(Clone, Debug)]
pub(crate) struct Spare(Arc<Semaphore>);

impl Spare {
    /// One at a time, so that a pool whose requests are answered sooner than a connection opens still grows to their number.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Opens a connection, for as long as the request that began it waits for it, or in the place of the spare one.
    ///
    /// hyper's pool opens one for every request that finds none idle. If another is given back before that one is open, the request takes that, and the
    /// pool goes on opening in a task of its own, and keeps what comes of it: one too many for each answer that was on its way back meanwhile. What
    /// is open by then, and only not in the pool yet, stays.
    ///
    /// What no request began is opened whoever waits for it. Were one begun by its request and polled by another task while that request still waits, all but
    /// one would fail as not connected: the tests in `http.rs` would tell.
    pub(crate) async fn open<T>(self, opening: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let begun_by_request = is_in_request();
        let is_unwanted = || begun_by_request && !is_in_request();
        // A chance, and no promise, for the tasks of other connections: to give back what was answered, and to close what was given up.
        task::yield_now().await;
        if is_unwanted() {
            return Err(Unwanted.into());
        }
        let mut opening = pin!(opening);
        let mut spare = None;
        future::poll_fn(|cx| {
            if is_unwanted() && spare.is_none() {
                spare = self.0.try_acquire().ok();
                if spare.is_none() {
                    return Poll::Ready(Err(Unwanted.into()));
                }
            }
            opening.as_mut().poll(cx)
        })
        .await
    }
}

/// Marks what is polled as a request, for [`Spare::open`].
pub(crate) fn for_request<F: Future>(request: F) -> impl Future<Output = F::Output> {
    REQUEST.scope((), request)
}

tokio::task_local! {
    /// Set while a request is polled.
    static REQUEST: ();
}

fn is_in_request() -> bool {
    REQUEST.try_with(|()| ()).is_ok()
}

/// What the pool is told of a connection that it opens for nobody.
#[derive(Debug, Error)]
#[error("the request has another connection")]
struct Unwanted;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tokio::sync::Notify;

    use super::*;

    /// A connection that a request begins to open.
    struct Opening {
        future: BoxFuture<'static, Result<(), BoxError>>,
        begun: Arc<AtomicBool>,
        opens: Arc<Notify>,
    }

    impl Opening {
        fn new(spare: &Spare) -> Self {
            let (begun, opens) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
            let (begins, opened) = (Arc::clone(&begun), Arc::clone(&opens));
            let opening = async move {
                begins.store(true, Ordering::Relaxed);
                opened.notified().await;
                Ok(())
            };
            Self { future: spare.clone().open(opening).boxed(), begun, opens }
        }

        /// Polls it for its request.
        fn wanted(&mut self) -> Option<Result<(), BoxError>> {
            for_request(&mut self.future).now_or_never()
        }

        /// Polls it for nobody, once its request has another connection.
        fn unwanted(&mut self) -> Option<Result<(), BoxError>> {
            (&mut self.future).now_or_never()
        }

        /// One that has begun for its request.
        fn begun(spare: &Spare) -> Self {
            let mut opening = Self::new(spare);
            assert!(opening.wanted().is_none() && opening.wanted().is_none());
            assert!(opening.has_begun());
            opening
        }

        fn has_begun(&self) -> bool {
            self.begun.load(Ordering::Relaxed)
        }
    }

    fn is_given_up(opening: Option<Result<(), BoxError>>) -> bool {
        opening.is_some_and(|ended| ended.is_err_and(|error| error.is::<Unwanted>()))
    }

    #[test]
    fn a_request_that_waits_gets_its_connection() {
        let mut opening = Opening::begun(&Spare::new());
        opening.opens.notify_one();
        assert!(opening.wanted().unwrap().is_ok());
    }

    #[test]
    fn a_connection_is_not_begun_when_another_comes_back_first() {
        let mut opening = Opening::new(&Spare::new());
        assert!(opening.wanted().is_none());
        assert!(is_given_up(opening.unwanted()));
        assert!(!opening.has_begun());
    }

    #[test]
    fn one_at_a_time_is_opened_for_nobody_and_others_are_given_up() {
        let spare = Spare::new();
        let mut openings = [(); 3].map(|()| Opening::begun(&spare));
        assert!(openings[0].unwanted().is_none());
        assert!(is_given_up(openings[1].unwanted()));
        openings[0].opens.notify_one();
        assert!(openings[0].unwanted().unwrap().is_ok());
        assert!(openings[2].unwanted().is_none());
    }

    #[test]
    fn a_connection_that_no_request_began_is_opened_whoever_waits() {
        let spare = Spare::new();
        let mut openings = [(); 2].map(|()| Opening::new(&spare));
        for opening in &mut openings {
            opening.opens.notify_one();
            assert!(opening.unwanted().is_none());
            assert!(opening.unwanted().unwrap().is_ok());
        }
    }
}
