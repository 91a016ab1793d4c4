//! Admits calls to the store, as many at a time as its backend sends. The others queue here, which counts as no attempt.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dlock_core::{BackendError, Capabilities, ErrorKind};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::measure::InQueue;

/// Lets as many calls at a time to the store as its backend sends.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    limit: Option<Arc<Limit>>,
}

#[derive(Debug)]
struct Limit {
    /// By priority: whatever is sent passes its own and all after it.
    lanes: [Semaphore; 3],
    /// How often the store answered.
    answers: AtomicU64,
}

/// Which calls come first, from the last to the first, and so the number of their lane. A call waits for no more of those before it in this list
/// than are sent at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A claim that nobody waits for yet.
    Fresh,
    /// A claim or a confirm that others may wait for.
    Awaited,
    /// A release. What it needs is never all in the hands of claims, whose tasks may not be polled before the release is done.
    Release,
}

/// When it is a call's turn to be sent.
pub(crate) enum Turn {
    Now(InFlight),
    Later(Box<Queued>),
}

/// The right to send one call; another has it once this is dropped. By default one that is not limited.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Option<Passed>);

/// The lanes that a call has passed, until it is dropped.
#[derive(Debug)]
struct Passed {
    limit: Arc<Limit>,
    lanes: Range<u8>,
}

/// A call that waits to be sent, in line from when it is first waited for; given up when dropped.
pub(crate) struct Queued {
    admitted: BoxFuture<'static, InFlight>,
    limit: Arc<Limit>,
    answers: u64,
    _in_queue: InQueue,
}

impl Admission {
    pub(crate) fn new(capabilities: &Capabilities) -> Self {
        let limit = capabilities.calls_in_flight.map(|most| {
            let most = most.get().min(Semaphore::MAX_PERMITS);
            let claims = (most - 1).max(1);
            Arc::new(Limit { lanes: [claims, claims, most].map(Semaphore::new), answers: AtomicU64::new(0) })
        });
        Self { limit }
    }

    /// Admits the call if not as many are in flight as may be.
    #[inline]
    pub(crate) fn enter(&self, priority: Priority) -> Turn {
        self.limit.as_ref().map_or_else(|| Turn::Now(InFlight::default()), |limit| limit.enter(priority))
    }
}

impl Limit {
    fn enter(self: &Arc<Self>, priority: Priority) -> Turn {
        self.try_enter(priority).map_or_else(|| Turn::Later(Box::new(self.queue(priority))), Turn::Now)
    }

    fn try_enter(self: &Arc<Self>, priority: Priority) -> Option<InFlight> {
        let mut passed = Passed::none_of(self, priority);
        while let Some(lane) = passed.next() {
            let permit = lane.try_acquire().ok()?;
            permit.forget();
            passed.lanes.end += 1;
        }
        Some(InFlight(Some(passed)))
    }

    fn queue(self: &Arc<Self>, priority: Priority) -> Queued {
        let mut passed = Passed::none_of(self, priority);
        let admitted = async move {
            while let Some(lane) = passed.next() {
                // Never closed.
                if let Ok(permit) = lane.acquire().await {
                    permit.forget();
                }
                passed.lanes.end += 1;
            }
            InFlight(Some(passed))
        };
        let answers = self.answers.load(Ordering::Relaxed);
        Queued { admitted: admitted.boxed(), limit: Arc::clone(self), answers, _in_queue: InQueue::begin() }
    }
}

impl Passed {
    fn none_of(limit: &Arc<Limit>, priority: Priority) -> Self {
        let first = priority as u8;
        Self { limit: Arc::clone(limit), lanes: first..first }
    }

    /// The lane that is next, if one is left.
    fn next(&self) -> Option<&Semaphore> {
        self.limit.lanes.get(usize::from(self.lanes.end))
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        for lane in self.lanes.clone() {
            self.limit.lanes[usize::from(lane)].add_permits(1);
        }
    }
}

impl InFlight {
    /// The call is over: another is sent, and if the store answered, those in the queue wait on.
    pub(crate) fn answered<T>(self, answer: Result<T, BackendError>) -> Result<T, BackendError> {
        let silent = |error: &BackendError| matches!(error.kind(), ErrorKind::Transient | ErrorKind::Ambiguous);
        if let Some(Passed { limit, .. }) = &self.0
            && !answer.as_ref().is_err_and(silent)
        {
            limit.answers.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

impl Queued {
    /// Returns when the call may be sent, and is not to be asked again then. Free to drop: the place is kept.
    pub(crate) async fn admitted(&mut self) -> InFlight {
        (&mut self.admitted).await
    }

    /// Whether the store answered others since this was asked last.
    pub(crate) fn moved(&mut self) -> bool {
        let answers = self.limit.answers.load(Ordering::Relaxed);
        std::mem::replace(&mut self.answers, answers) != answers
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use dlock_core::{ClockSource, TtlRange};

    use super::*;

    fn admission(most: usize) -> Admission {
        let ttl = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(60) };
        let mut capabilities = Capabilities::minimal(ClockSource::Runtime, ttl);
        capabilities.calls_in_flight = NonZeroUsize::new(most);
        Admission::new(&capabilities)
    }

    fn now(admission: &Admission, priority: Priority) -> InFlight {
        match admission.enter(priority) {
            Turn::Now(in_flight) => in_flight,
            Turn::Later(_) => panic!("as many are in flight as may be"),
        }
    }

    fn later(admission: &Admission, priority: Priority) -> Queued {
        match admission.enter(priority) {
            Turn::Now(_) => panic!("not as many are in flight as may be"),
            Turn::Later(mut queued) => {
                assert!(admitted(&mut queued).is_none());
                *queued
            }
        }
    }

    fn admitted(queued: &mut Queued) -> Option<InFlight> {
        queued.admitted().now_or_never()
    }

    #[test]
    fn without_a_limit_whatever_comes_is_sent() {
        let admission = admission(0);
        let in_flight: Vec<_> = (0..1_000).map(|_| now(&admission, Priority::Fresh)).collect();
        assert_eq!(in_flight.len(), 1_000);
    }

    #[test]
    fn a_call_has_no_more_of_those_below_it_ahead_than_are_sent_at_a_time() {
        for (mine, most) in [(Priority::Awaited, 3), (Priority::Release, 3)] {
            let admission = admission(4);
            let mut in_flight: VecDeque<_> = (0..4).map(|_| now(&admission, Priority::Release)).collect();
            let mut claims: VecDeque<_> = (0..10).map(|_| later(&admission, Priority::Fresh)).collect();
            let mut mine = later(&admission, mine);
            let mut ahead = 0;
            while admitted(&mut mine).is_none() {
                in_flight.pop_front();
                let next = claims.iter_mut().position(|claim| admitted(claim).map(|claim| in_flight.push_back(claim)).is_some());
                if let Some(next) = next {
                    assert_eq!(next, 0, "claims are sent in the order in which they came");
                    claims.pop_front();
                    ahead += 1;
                }
            }
            assert_eq!(ahead, most);
        }
    }

    #[test]
    fn claims_leave_one_place_to_releases() {
        let admission = admission(3);
        let claims = [now(&admission, Priority::Fresh), now(&admission, Priority::Awaited)];
        let (mut fresh, mut woken) = (later(&admission, Priority::Fresh), later(&admission, Priority::Awaited));
        drop(now(&admission, Priority::Release));
        assert!(admitted(&mut fresh).is_none() && admitted(&mut woken).is_none());
        drop(claims);
        assert!(admitted(&mut woken).is_some() && admitted(&mut fresh).is_some());
    }

    #[test]
    fn a_place_that_is_given_up_is_in_nobodys_way() {
        for priority in [Priority::Fresh, Priority::Awaited, Priority::Release] {
            let admission = admission(1);
            let in_flight = now(&admission, Priority::Fresh);
            let (first, mut second) = (later(&admission, priority), later(&admission, priority));
            // It is the first's turn, which never takes it.
            drop(in_flight);
            drop(first);
            drop(admitted(&mut second).expect("its turn"));
            let again = now(&admission, priority);
            drop((later(&admission, priority), again));
        }
    }

    #[test]
    fn a_queue_moves_while_the_store_answers() {
        let admission = admission(1);
        let failed = |kind| Err::<(), _>(BackendError::new(kind, "so it is"));
        for (answer, moves) in [
            (Ok(()), true),
            (failed(ErrorKind::Transient), false),
            (failed(ErrorKind::Ambiguous), false),
            (failed(ErrorKind::Overloaded), true),
            (failed(ErrorKind::Conflict), true),
        ] {
            let in_flight = now(&admission, Priority::Fresh);
            let mut queued = later(&admission, Priority::Release);
            let answer = in_flight.answered(answer);
            assert_eq!((queued.moved(), queued.moved()), (moves, false), "{answer:?}");
        }
    }
}
