//! One leader among many candidates, by the lock of a key.

use std::future::Future;
use std::ops::{ControlFlow, Deref};
use std::time::Duration;

use dlock_core::{Chance, Loss, Metadata, RetryPolicy};
use tokio_util::sync::CancellationToken;

use crate::amend::AmendError;
use crate::error::{LockError, ReleaseUnknown};
use crate::guard::{LockGuard, ReleaseOutcome};
use crate::held::Held;
use crate::observe::Observation;
use crate::options::InvalidOptions;
use crate::request::{LockRequest, Wanted, common_options};

/// An election: candidates campaign, one leads, the others wait.
///
/// ```no_run
/// # async fn example(locker: dlock::Locker) -> Result<(), dlock::LockError> {
/// use std::ops::ControlFlow;
///
/// locker
///     .election("scheduler")
///     .lead(|term| async move {
///         while term.check().is_ok() {
///             // what only the leader does
///             # return ControlFlow::Break(());
///         }
///         ControlFlow::Continue(())
///     })
///     .await
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens until a campaign is awaited"]
pub struct Election {
    wanted: Wanted,
}

impl Election {
    /// How long a leader that continued, or lost its term, pauses before it campaigns again, at the least.
    pub const PAUSE: Duration = Duration::from_millis(100);

    pub(crate) fn new(wanted: Wanted) -> Self {
        Self { wanted }
    }

    common_options!();

    /// Ends campaigns with [`LockError::TimedOut`] after so long. Defaults to no limit.
    pub fn wait_at_most(mut self, most: Duration) -> Self {
        self.wanted.options.wait_at_most = Some(most);
        self
    }

    /// Who leads, from now on; no candidate itself. A bad name or option is told here, nothing is sent yet. Of the options only
    /// [`retry`](Self::retry) counts. To ask once, there is [`Locker::inspect`](crate::Locker::inspect).
    ///
    /// ```no_run
    /// # async fn example(locker: dlock::Locker) -> Result<(), dlock::LockError> {
    /// use dlock::Leader;
    ///
    /// let mut leaders = locker.election("scheduler").observe()?;
    /// while let Some(leader) = leaders.next().await {
    ///     match leader {
    ///         Leader::Elected(holder) => println!("{} leads", holder.owner().unwrap_or("somebody")),
    ///         Leader::Vacant => println!("nobody leads"),
    ///         _ => println!("the store is out of reach"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn observe(&self) -> Result<Observation, LockError> {
        let engine = self.wanted.locker.engine();
        let key = self.wanted.key.clone()?;
        self.wanted.options.validate(engine.options.ttl)?;
        Ok(Observation::new(engine, key, self.wanted.options.retry))
    }

    /// Waits to be elected. Free to drop: the candidacy is withdrawn.
    pub async fn campaign(&self) -> Result<Leadership, LockError> {
        let guard = LockRequest { wanted: self.wanted.clone() }.await?;
        tracing::info!(key = %guard.key(), token = guard.token().map(dlock_core::FencingToken::get), "elected");
        Ok(Leadership { guard })
    }

    /// Campaigns, works while it leads, and campaigns again when the term was lost, until the work breaks.
    ///
    /// The work is dropped when the term is lost. [`ControlFlow::Break`] resigns and ends with its value;
    /// [`ControlFlow::Continue`] resigns and campaigns again after a pause by the retry policy, so that others get a chance. Ends with an error
    /// when a campaign fails. Free to drop: work and term are given up.
    pub async fn lead<F, Fut, B>(self, mut work: F) -> Result<B, LockError>
    where
        F: FnMut(Held) -> Fut,
        Fut: Future<Output = ControlFlow<B>>,
    {
        loop {
            let leadership = self.campaign().await?;
            let outcome = leadership.guarded(work(leadership.held())).await;
            match &outcome {
                Err(lost) if lost.reason == Loss::Shutdown => return Err(LockError::ShutDown),
                Err(lost) => {
                    tracing::warn!(error = %lost, "term lost, campaigning again");
                    // Nothing runs under it any more, and it may have been told ahead of its end.
                    drop(leadership);
                }
                Ok(_) => {
                    if let Err(unknown) = leadership.resign().await {
                        tracing::warn!(error = %unknown, "resignation not answered yet");
                    }
                }
            }
            if let Ok(ControlFlow::Break(value)) = outcome {
                return Ok(value);
            }
            self.pause().await?;
        }
    }

    async fn pause(&self) -> Result<(), LockError> {
        let engine = self.wanted.locker.engine();
        let chance = Chance(fastrand::u32(..));
        let pause = self.wanted.options.retry.pause(1, chance).unwrap_or(Self::PAUSE).max(Self::PAUSE);
        let key = self.wanted.key.clone()?;
        tokio::select! {
            biased;
            () = self.wanted.options.cancelled() => Err(LockError::Cancelled { key }),
            () = engine.stopping.cancelled() => Err(LockError::ShutDown),
            () = engine.clock.sleep_until(engine.clock.now().plus(pause)) => Ok(()),
        }
    }
}

/// One term of a leader; given up when it is [resigned](Self::resign) or dropped.
///
/// Dereferences to [`Held`].
#[derive(Debug)]
#[must_use = "the term ends at once if it is not kept"]
pub struct Leadership {
    guard: LockGuard,
}

impl Leadership {
    /// An owned witness of this term.
    pub fn held(&self) -> Held {
        self.guard.held()
    }

    /// Publishes other metadata in place of all that the candidate campaigned with; term and token stay. As [`Held::amend`].
    ///
    /// Observers hear of it. Within [`lead`](Election::lead) the term's [`amend`](Held::amend) does the same.
    pub async fn proclaim(&self, metadata: Metadata) -> Result<(), AmendError> {
        self.guard.amend(metadata).await
    }

    /// Gives the term up, so that another is elected at once. As [`LockGuard::release`].
    pub async fn resign(self) -> Result<ReleaseOutcome, ReleaseUnknown> {
        self.guard.release().await
    }
}

impl Deref for Leadership {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.guard
    }
}
