//! Several keys that are held together.

use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Key, RetryPolicy};
use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::acquisition::acquire_all;
use crate::error::{CheckError, LockError, Lost, ReleaseUnknown, RunError};
use crate::guard::{LockGuard, ReleaseOutcome};
use crate::held::Held;
use crate::locker::Locker;
use crate::measure::Wait;
use crate::options::{InvalidOptions, RequestOptions};
use crate::request::{check_request, common_options};

/// Several keys that are wanted together; await it to wait for all of them, or [`run`](Self::run) work under them.
///
/// Where the store takes as many at once, and all are free, they are taken in one request. Otherwise they are taken one after the other in the
/// order of their names, so that any number of programs with overlapping sets never wait in a circle, as long as none asks for more while it
/// holds. If one is not got, those that were are given back, and the error names it. Dropping the future at any point leaves nothing behind.
#[derive(Clone, Debug)]
#[must_use = "nothing happens until the request is awaited or run"]
pub struct LockAllRequest {
    pub(crate) wanted: WantedAll,
}

#[derive(Clone, Debug)]
pub(crate) struct WantedAll {
    pub(crate) locker: Locker,
    /// Sorted, and each once.
    pub(crate) keys: Result<BTreeSet<Key>, LockError>,
    pub(crate) options: RequestOptions,
}

impl LockAllRequest {
    common_options!();

    /// Gives up with [`LockError::TimedOut`] after so long, for all keys together. Defaults to no limit.
    pub fn wait_at_most(mut self, most: Duration) -> Self {
        self.wanted.options.wait_at_most = Some(most);
        self
    }

    /// Takes all keys, runs `work` under them, and gives them back; drops the work when any of them is lost.
    ///
    /// A release that fails after the work has finished never hides its value: it is logged and goes on in the background. Free to drop: work and
    /// locks are given up.
    pub async fn run<F, Fut>(self, work: F) -> Result<Fut::Output, RunError>
    where
        F: FnOnce(AllHeld) -> Fut,
        Fut: Future,
    {
        let guard = self.await?;
        let value = guard.guarded(work(guard.held())).await?;
        for (_, outcome) in guard.release().await {
            if let Err(unknown) = outcome {
                tracing::warn!(error = %unknown, "the work under the locks is done, a release is not answered yet");
            }
        }
        Ok(value)
    }
}

impl WantedAll {
    /// Borrows the locker, which so lives at least as long as the acquisition, and its sessions are not closed under it.
    async fn acquire(&self) -> Result<AllGuard, LockError> {
        let keys = self.keys.as_ref().map_err(LockError::clone)?;
        if keys.is_empty() {
            return Err(InvalidOptions::NoKeys.into());
        }
        let engine = self.locker.engine();
        for key in keys {
            check_request(&engine, key, &self.options)?;
        }
        let span = tracing::debug_span!("lock all", keys = keys.len());
        let wait = Wait::begin(engine.clock, self.options.mode);
        let guards = acquire_all(&engine, keys, &self.options).instrument(span).await;
        wait.end(guards.as_ref().map(|_| true));
        Ok(AllGuard::new(guards?))
    }
}

impl IntoFuture for LockAllRequest {
    type Output = Result<AllGuard, LockError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.wanted.acquire().await })
    }
}

/// Several keys that are held; given back when it is [released](Self::release) or dropped, as a [`LockGuard`] is.
///
/// Dereferences to [`AllHeld`], the witness to pass on. Its loss is the loss of any of them.
#[must_use = "the locks are given back at once if the guard is not kept"]
pub struct AllGuard {
    held: AllHeld,
    guards: Vec<LockGuard>,
}

/// A witness that several keys are held: what inner functions take that must only run under all of them.
///
/// Cheap to clone and to send; cannot release.
#[derive(Clone)]
pub struct AllHeld {
    locks: Arc<[Held]>,
    cancellation: CancellationToken,
}

impl AllGuard {
    fn new(guards: Vec<LockGuard>) -> Self {
        let cancellation = CancellationToken::new();
        let locks: Arc<[Held]> = guards.iter().map(LockGuard::held).collect();
        // The loss of each cancels what is common to all.
        locks.iter().for_each(|held| held.grant.cancels(&cancellation));
        Self { held: AllHeld { locks, cancellation }, guards }
    }

    /// An owned witness of these locks.
    pub fn held(&self) -> AllHeld {
        self.held.clone()
    }

    /// Gives all of them back, and says of each what the store answered, as [`LockGuard::release`] does. Free to drop.
    pub async fn release(self) -> Vec<(Key, Result<ReleaseOutcome, ReleaseUnknown>)> {
        let release = |guard: LockGuard| async move { (guard.key().clone(), guard.release().await) };
        future::join_all(self.guards.into_iter().map(release)).await
    }
}

impl Deref for AllGuard {
    type Target = AllHeld;

    fn deref(&self) -> &AllHeld {
        &self.held
    }
}

impl AllHeld {
    /// The locks, in the order of their keys; each with its token.
    pub fn locks(&self) -> &[Held] {
        &self.locks
    }

    /// The lock of this key, if it is among them.
    pub fn get(&self, key: &str) -> Option<&Held> {
        self.locks.iter().find(|held| held.key().as_str() == key)
    }

    /// Until when all are surely held, see [`Held::valid_until`].
    pub fn valid_until(&self) -> Option<Instant> {
        self.locks.iter().map(Held::valid_until).min()
    }

    /// Whether all are held at this moment, and which one is not: looks at the clock, sends nothing.
    pub fn check(&self) -> Result<(), Lost> {
        self.locks.iter().try_for_each(Held::check)
    }

    /// Whether all are surely held for another `needed`, see [`Held::check_for`].
    pub fn check_for(&self, needed: Duration) -> Result<(), CheckError> {
        self.locks.iter().try_for_each(|held| held.check_for(needed))
    }

    /// Returns when one of them is lost, and says which and why; otherwise as [`Held::lost`].
    pub async fn lost(&self) -> Lost {
        let lost = self.locks.iter().map(|held| held.lost().map(|reason| held.lost_for(reason)).boxed());
        future::select_all(lost).await.0
    }

    /// A token that is cancelled when one of them is lost, see [`Held::cancellation`].
    pub fn cancellation(&self) -> CancellationToken {
        // Each looks whether that was so already.
        self.locks.iter().for_each(|held| held.grant.cancels(&self.cancellation));
        self.cancellation.clone()
    }

    /// Runs `work` for as long as all are held; drops it at the first deadline at the latest, see [`Held::guarded`].
    pub async fn guarded<F: Future>(&self, work: F) -> Result<F::Output, Lost> {
        let lost = self.lost();
        tokio::pin!(work, lost);
        future::poll_fn(|cx| {
            if let std::task::Poll::Ready(lost) = lost.as_mut().poll(cx) {
                return std::task::Poll::Ready(Err(lost));
            }
            // As with one lock: the work must not run a poll too far.
            if let Err(lost) = self.check() {
                return std::task::Poll::Ready(Err(lost));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }
}

impl fmt::Debug for AllHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.locks.iter()).finish()
    }
}

impl fmt::Debug for AllGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AllGuard").field(&self.held).finish()
    }
}
