//! A lock that is wanted: what can be said about it before it is awaited.

use std::future::{Future, IntoFuture};
use std::num::NonZeroU32;
use std::time::Duration;

use dlock_core::{Key, Mode, Place, RetryPolicy};
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::acquisition::acquire;
use crate::engine::Engine;
use crate::error::{LockError, RunError};
use crate::guard::LockGuard;
use crate::held::Held;
use crate::locker::Locker;
use crate::measure::Wait;
use crate::options::{InvalidOptions, RequestOptions, validate_metadata};

/// A lock that is wanted; await it to wait for it, or [`run`](Self::run) work under it.
///
/// Nothing is sent before it is awaited. Dropping the future at any point leaves nothing behind: what was begun is undone in the
/// background.
#[derive(Clone, Debug)]
#[must_use = "nothing happens until the request is awaited or run"]
pub struct LockRequest {
    pub(crate) wanted: Wanted,
}

/// A lock that is wanted only if it is free now; await it for the guard, or for `None` when another holds it.
///
/// Goes on for at most five seconds if the store does not answer, or is still busy with what this process asked before, and ends with
/// [`LockError::TimedOut`] then.
#[derive(Clone, Debug)]
#[must_use = "nothing happens until the request is awaited"]
pub struct TryRequest {
    pub(crate) wanted: Wanted,
}

/// What both kinds of request say.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) locker: Locker,
    pub(crate) key: Result<Key, LockError>,
    pub(crate) options: RequestOptions,
}

macro_rules! common_options {
    () => {
        /// Adds an entry for others to read while the lock is held. Names that dlock writes itself are refused.
        pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            if let Err(reserved) = self.wanted.options.metadata.insert(name, value) {
                self.wanted.options.mistake.get_or_insert(InvalidOptions::from(reserved));
            }
            self
        }

        /// The longest the lock may be held. Belief ends and guarded work is dropped then, and the lock is given back even if
        /// the guard lives. Defaults to no limit.
        pub fn hold_at_most(mut self, most: Duration) -> Self {
            self.wanted.options.hold_at_most = Some(most);
            self
        }

        /// The lock stays taken for so long even if it is released earlier, so that a short job is not run again by a
        /// machine whose clock is behind. Holds for as long as the locker lives. Defaults to zero.
        pub fn hold_at_least(mut self, least: Duration) -> Self {
            self.wanted.options.hold_at_least = least;
            self
        }

        /// Tells of loss so much ahead of the deadline, for work that needs time to stop. At most about half of the
        /// ttl. Defaults to zero.
        pub fn stop_before(mut self, stop_before: Duration) -> Self {
            self.wanted.options.stop_before = stop_before;
            self
        }

        /// The pauses between attempts that failed, and between the terms of an election. Defaults to [`RetryPolicy::default`].
        pub fn retry(mut self, retry: RetryPolicy) -> Self {
            self.wanted.options.retry = retry;
            self
        }

        /// Gives up with [`LockError::Cancelled`] when this token is cancelled. Has no effect once the lock is held.
        pub fn cancel_on(mut self, token: CancellationToken) -> Self {
            self.wanted.options.cancel_on = Some(token);
            self
        }
    };
}

pub(crate) use common_options;

impl LockRequest {
    common_options!();

    /// Gives up with [`LockError::TimedOut`] after so long, time in this process's own queue included. Defaults to no limit.
    pub fn wait_at_most(mut self, most: Duration) -> Self {
        self.wanted.options.wait_at_most = Some(most);
        self
    }

    /// Takes the lock, runs `work` under it, and gives it back; drops the work when the lock is lost.
    ///
    /// A release that fails after the work has finished never hides its value: it is logged and goes on in the background. Free to
    /// drop: work and lock are given up.
    pub async fn run<F, Fut>(self, work: F) -> Result<Fut::Output, RunError>
    where
        F: FnOnce(Held) -> Fut,
        Fut: Future,
    {
        let guard = self.await?;
        run_under(guard, work).await
    }
}

impl TryRequest {
    common_options!();

    /// Tries; runs `work` under the lock if it is free, gives it back, and drops the work when the lock is lost.
    ///
    /// `None` when another holds it. Otherwise as [`LockRequest::run`].
    pub async fn run<F, Fut>(self, work: F) -> Result<Option<Fut::Output>, RunError>
    where
        F: FnOnce(Held) -> Fut,
        Fut: Future,
    {
        let Some(guard) = self.await? else { return Ok(None) };
        run_under(guard, work).await.map(Some)
    }
}

async fn run_under<F, Fut>(guard: LockGuard, work: F) -> Result<Fut::Output, RunError>
where
    F: FnOnce(Held) -> Fut,
    Fut: Future,
{
    let value = guard.guarded(work(guard.held())).await?;
    if let Err(unknown) = guard.release().await {
        tracing::warn!(error = %unknown, "the work under the lock is done, its release is not answered yet");
    }
    Ok(value)
}

impl Wanted {
    pub(crate) fn in_mode(mut self, mode: Mode) -> Self {
        self.options.mode = mode;
        self
    }

    pub(crate) fn with_permits(mut self, all: u32) -> Self {
        match NonZeroU32::new(all) {
            Some(all) => return self.in_mode(Mode::Permits(all)),
            None => _ = self.options.mistake.get_or_insert(InvalidOptions::NoPermits),
        }
        self
    }

    /// Borrows the locker, which so lives at least as long as the acquisition, and its sessions are not closed under it.
    async fn acquire(&self, place: Place) -> Result<Option<LockGuard>, LockError> {
        let key = self.key.as_ref().map_err(LockError::clone)?;
        let engine = self.locker.engine();
        check_request(&engine, key, &self.options)?;
        let mode = self.options.mode;
        let span = tracing::debug_span!("lock", %key, ?mode, ?place);
        let wait = Wait::begin(engine.clock, mode);
        let grant = acquire(&engine, key, place, &self.options).instrument(span).await;
        wait.end(grant.as_ref().map(Option::is_some));
        Ok(grant?.map(|grant| LockGuard::new(grant, engine)))
    }
}

/// Refuses what cannot be followed, before anything is sent.
pub(crate) fn check_request(engine: &Engine, key: &Key, options: &RequestOptions) -> Result<(), InvalidOptions> {
    let (capabilities, mode) = (engine.backend.capabilities(), options.mode);
    let limits = capabilities.limits;
    options.validate(engine.options.ttl)?;
    if !capabilities.grants(mode) {
        return Err(InvalidOptions::NotGranted { mode });
    }
    if key.as_str().len() > limits.key_bytes {
        return Err(InvalidOptions::KeyTooLong { bytes: key.as_str().len(), limit: limits.key_bytes });
    }
    validate_metadata(&options.metadata, &engine.options.owner, limits)
}

impl IntoFuture for LockRequest {
    type Output = Result<LockGuard, LockError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let guard = self.wanted.acquire(Place::Queue).await?;
            // A queue place is only given up for a guard or an error, never for `None`.
            guard.ok_or(LockError::ShutDown)
        })
    }
}

impl IntoFuture for TryRequest {
    type Output = Result<Option<LockGuard>, LockError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.wanted.acquire(Place::Try).await })
    }
}
