//! The memory of transactions under way, used again: each takes kilobytes, for which malloc looks long where thousands are at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use etcd_client::{Error, TxnResponse};
use tokio_util::sync::ReusableBoxFuture;

type Answer = Result<TxnResponse, Error>;
type Slot = ReusableBoxFuture<'static, Answer>;

/// Where calls are under way, and where some were.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    idle: Mutex<Vec<Slot>>,
}

/// So many places are kept that no call is in, of two KiB or three each: enough for those that end while others begin.
const IDLE: usize = 64;

/// A call under way. Given up when dropped: its place goes with it.
pub(crate) struct UnderWay<'a> {
    calls: &'a Calls,
    place: Option<Slot>,
}

impl Calls {
    fn idle(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call, in the place of one that is done.
    pub(crate) fn begin(&self, call: impl Future<Output = Answer> + Send + 'static) -> UnderWay<'_> {
        let idle = self.idle().pop();
        let place = match idle {
            Some(mut place) => {
                place.set(call);
                place
            }
            None => Slot::new(call),
        };
        UnderWay { calls: self, place: Some(place) }
    }
}

impl Future for UnderWay<'_> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let this = self.get_mut();
        let place = this.place.as_mut().expect("a call that is done is not polled again");
        let answer = ready!(place.poll(context));
        // What is done has let go of all it had.
        if let Some(place) = this.place.take() {
            let mut idle = this.calls.idle();
            if idle.len() < IDLE {
                idle.push(place);
            }
        }
        Poll::Ready(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;

    async fn call(token: Arc<()>, ends: bool) -> Answer {
        if !ends {
            std::future::pending::<()>().await;
        }
        drop(token);
        Err(Error::WatchError("it is done".to_owned()))
    }

    #[test]
    fn a_call_that_is_done_has_nothing_and_leaves_its_place_to_the_next() {
        let (calls, token) = (Calls::default(), Arc::new(()));
        for _ in 0..2 {
            let mut under_way = calls.begin(call(Arc::clone(&token), true));
            assert_eq!((Arc::strong_count(&token), calls.idle().len()), (2, 0));
            assert!((&mut under_way).now_or_never().is_some());
            assert_eq!((Arc::strong_count(&token), calls.idle().len()), (1, 1));
        }
    }

    #[test]
    fn a_call_that_is_given_up_is_dropped_at_once_and_its_place_too() {
        let (calls, token) = (Calls::default(), Arc::new(()));
        assert!(calls.begin(call(Arc::clone(&token), true)).now_or_never().is_some());
        let mut under_way = calls.begin(call(Arc::clone(&token), false));
        assert!((&mut under_way).now_or_never().is_none());
        drop(under_way);
        assert_eq!((Arc::strong_count(&token), calls.idle().len()), (1, 0));
    }

    #[test]
    fn so_many_places_are_kept_and_no_more() {
        let (calls, token) = (Calls::default(), Arc::new(()));
        let mut under_way: Vec<_> = (0..=IDLE).map(|_| calls.begin(call(Arc::clone(&token), true))).collect();
        for call in &mut under_way {
            assert!(call.now_or_never().is_some());
        }
        assert_eq!(calls.idle().len(), IDLE);
    }
}
