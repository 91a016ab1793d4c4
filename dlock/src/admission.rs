//! How many calls are under way at the store. The others queue here, where their time does not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dlock_core::{BackendError, Capabilities};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

/// Lets as many calls at a time to the store as its backend sends, releases before claims.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    limited: Option<Arc<Limited>>,
}

#[derive(Debug)]
struct Limited {
    /// For whatever is sent.
    all: Semaphore,
    /// For claims: no more of them than are sent at a time are in the way of a release.
    claims: Semaphore,
    /// How often the store answered.
    answers: AtomicU64,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Claim,
    Release,
}

/// The right to send one call; another has it when this is dropped. By default one that nobody has to wait for.
#[derive(Debug, Default)]
pub(crate) struct Turn(Option<(Arc<Limited>, Call)>);

/// A place in the queue for a turn; given up when dropped.
pub(crate) struct Queued {
    turn: BoxFuture<'static, Turn>,
    limited: Arc<Limited>,
    answers: u64,
}

impl Admission {
    pub(crate) fn new(capabilities: &Capabilities) -> Self {
        let limited = capabilities.calls_at_once.map(|most| {
            let most = most.get().min(Semaphore::MAX_PERMITS);
            Arc::new(Limited { all: Semaphore::new(most), claims: Semaphore::new(most), answers: AtomicU64::new(0) })
        });
        Self { limited }
    }

    /// A turn, or a place in the queue where nobody has one to spare.
    pub(crate) fn enter(&self, call: Call) -> Result<Turn, Queued> {
        let Some(limited) = &self.limited else { return Ok(Turn::default()) };
        limited.try_enter(call).ok_or_else(|| Queued {
            turn: Arc::clone(limited).enter(call).boxed(),
            limited: Arc::clone(limited),
            answers: limited.answers.load(Ordering::Relaxed),
        })
    }
}

impl Limited {
    fn try_enter(self: &Arc<Self>, call: Call) -> Option<Turn> {
        let among_claims = (call == Call::Claim).then(|| self.claims.try_acquire()).transpose().ok()?;
        self.all.try_acquire().ok()?.forget();
        if let Some(permit) = among_claims {
            permit.forget();
        }
        Some(Turn(Some((Arc::clone(self), call))))
    }

    async fn enter(self: Arc<Self>, call: Call) -> Turn {
        let among_claims = match call {
            Call::Claim => self.claims.acquire().await.ok(),
            Call::Release => None,
        };
        if let Ok(permit) = self.all.acquire().await {
            permit.forget();
        }
        if let Some(permit) = among_claims {
            permit.forget();
        }
        Turn(Some((Arc::clone(&self), call)))
    }
}

impl Turn {
    /// Takes note of what the call brought: whoever is queued waits as long as the store answers.
    pub(crate) fn heard<T>(&self, answer: &Result<T, BackendError>) {
        let Some((limited, _)) = &self.0 else { return };
        if answer.as_ref().err().is_none_or(|error| !error.kind().is_passing()) {
            limited.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((limited, call)) = &self.0 else { return };
        limited.all.add_permits(1);
        if *call == Call::Claim {
            limited.claims.add_permits(1);
        }
    }
}

impl Queued {
    /// Free to drop: the place is kept.
    pub(crate) async fn turn(&mut self) -> Turn {
        (&mut self.turn).await
    }

    /// Whether the store answered others since this was asked last.
    pub(crate) fn moves(&mut self) -> bool {
        let answers = self.limited.answers.load(Ordering::Relaxed);
        std::mem::replace(&mut self.answers, answers) != answers
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use dlock_core::{ClockSource, ErrorKind, TtlRange};

    use super::*;

    fn admission(most: usize) -> Admission {
        let ttl = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(60) };
        let mut capabilities = Capabilities::minimal(ClockSource::Runtime, ttl);
        capabilities.calls_at_once = NonZeroUsize::new(most);
        Admission::new(&capabilities)
    }

    fn queued(admission: &Admission, call: Call) -> Queued {
        admission.enter(call).expect_err("nobody has a turn to spare")
    }

    fn has_turn(queued: &mut Queued) -> Option<Turn> {
        queued.turn().now_or_never()
    }

    #[test]
    fn without_a_limit_everybody_has_a_turn() {
        let admission = admission(0);
        let turns: Vec<_> = (0..1_000).map(|_| admission.enter(Call::Claim).ok()).collect();
        assert!(turns.iter().all(Option::is_some));
    }

    #[test]
    fn a_release_waits_for_no_claim_that_is_not_next() {
        let admission = admission(2);
        let mut turns: Vec<_> = (0..2).map(|_| admission.enter(Call::Claim).ok().expect("two are sent at a time")).collect();
        let mut claims: Vec<_> = (0..10).map(|_| queued(&admission, Call::Claim)).collect();
        assert!(claims.iter_mut().all(|claim| has_turn(claim).is_none()));
        let mut release = queued(&admission, Call::Release);
        assert!(has_turn(&mut release).is_none());
        turns.pop();
        assert!(has_turn(&mut claims[0]).is_none(), "the release is before it");
        let turn = has_turn(&mut release).expect("it is next");
        assert!(has_turn(&mut claims[0]).is_none());
        drop(turn);
        assert!(has_turn(&mut claims[0]).is_some());
    }

    #[test]
    fn a_place_that_is_given_up_is_in_nobodys_way() {
        for call in [Call::Claim, Call::Release] {
            let admission = admission(1);
            let turn = admission.enter(Call::Claim).ok().expect("the first");
            let (mut first, mut second) = (queued(&admission, call), queued(&admission, call));
            assert!(has_turn(&mut first).is_none() && has_turn(&mut second).is_none());
            drop(turn);
            // It has the turn already, and never takes it.
            drop(first);
            drop(has_turn(&mut second).expect("its turn"));
            let again: Vec<_> = (0..2).map(|_| admission.enter(call)).collect();
            assert!(again[0].is_ok() && again[1].is_err(), "one turn, for {call:?}");
        }
    }

    #[test]
    fn a_queue_moves_while_the_store_answers() {
        let admission = admission(1);
        let turn = admission.enter(Call::Claim).ok().expect("the first");
        let mut queued = queued(&admission, Call::Release);
        let failed = |kind| Err::<(), _>(BackendError::new(kind, "so it is"));
        for (answer, moves) in [
            (Ok(()), true),
            (failed(ErrorKind::Transient), false),
            (failed(ErrorKind::Ambiguous), false),
            (failed(ErrorKind::Conflict), true),
        ] {
            turn.heard(&answer);
            assert_eq!((queued.moves(), queued.moves()), (moves, false), "{answer:?}");
        }
    }
}
