//! Who leads, as everybody may know who can ask the store.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use dlock_core::{BackendError, Chance, Cursor, ErrorKind, FencingToken, Holder, Key, Moment, RetryPolicy};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::error::StoreError;
use crate::held::Held;

/// What is known of who leads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Leader {
    /// This candidate leads, with what it published and the token of its term, where the store tells them.
    Elected(Holder),
    /// Nobody leads.
    Vacant,
    /// The store is out of reach, or refuses: what was told last may not be so any more.
    Unknown {
        /// Up to when that was so, on the runtime's clock: when the last look was sent that was answered, or when the observation began.
        since: Instant,
        /// What the store last failed with, if it said anything.
        cause: Option<StoreError>,
    },
}

impl Leader {
    /// Who leads, if that is known and anybody does.
    pub fn elected(&self) -> Option<&Holder> {
        match self {
            Self::Elected(holder) => Some(holder),
            Self::Vacant | Self::Unknown { .. } => None,
        }
    }

    /// The token of the term, if it is known.
    pub fn token(&self) -> Option<FencingToken> {
        self.elected()?.token
    }

    /// Whether this is the term of which `term` is a witness.
    pub fn is(&self, term: &Held) -> bool {
        self.elected().and_then(Holder::claim) == Some(term.claim())
    }

    /// Whether telling the one after the other would be no news.
    fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Elected(one), Self::Elected(other)) => one == other,
            (Self::Vacant, Self::Vacant) | (Self::Unknown { .. }, Self::Unknown { .. }) => true,
            _ => false,
        }
    }
}

/// The leaders of an election, one after the other; made by [`Election::observe`](crate::Election::observe).
///
/// A [`Stream`] that first tells who leads now and then every change: another leader, a [proclamation](crate::Leadership::proclaim), a
/// vacancy. [`Leader::Unknown`] comes once a question has been open for five seconds, at once if the store refuses it, and only once until
/// something is known again; a store that falls silent while nothing happens is asked after a ttl, so that this is told within a ttl and
/// five seconds. What changed and changed back between two looks is not told.
///
/// Asks only while it is polled: one waiting request, and a look after every change, ten a second at most; a store that cannot tell of
/// changes is looked at every second. Goes on after the last [`Locker`](crate::Locker) is gone; ends with a
/// [`shutdown`](crate::Locker::shutdown), or, after it told that nothing is known, when the election's retry policy allows no more attempts.
#[must_use = "nothing is asked until it is polled"]
pub struct Observation {
    key: Key,
    leaders: BoxStream<'static, Leader>,
}

impl Observation {
    pub(crate) fn new(engine: Arc<Engine>, key: Key, retry: RetryPolicy) -> Self {
        let looking = Looking {
            key: key.clone(),
            retry,
            answered: engine.clock.now(),
            unanswered: None,
            looked: None,
            cursor: None,
            told: None,
            failures: 0,
            failed_waits: 0,
            engine,
        };
        let leaders = stream::unfold(looking, |mut looking| async move { Some((looking.news().await?, looking)) });
        Self { key, leaders: leaders.fuse().boxed() }
    }

    /// The name of the election.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The next news; `None` once the observation has ended. Free to drop: nothing is missed.
    pub async fn next(&mut self) -> Option<Leader> {
        self.leaders.next().await
    }
}

impl Stream for Observation {
    type Item = Leader;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Leader>> {
        self.leaders.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation").field("key", &self.key).finish_non_exhaustive()
    }
}

/// So long the store may be silent before nothing is known of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one look may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// An answer later than that was not waited for.
const SLACK: Duration = Duration::from_secs(2);
/// The least time between two looks while the key changes hands again and again.
const PACE: Duration = Duration::from_millis(100);
/// How often a store is looked at that cannot tell of changes.
const POLL: Duration = Duration::from_secs(1);

struct Looking {
    engine: Arc<Engine>,
    key: Key,
    retry: RetryPolicy,
    /// When the last look was sent that was answered; when the observation began, before the first.
    answered: Moment,
    /// When the first look since then was sent that was not.
    unanswered: Option<Moment>,
    /// When the last look was sent.
    looked: Option<Moment>,
    /// Since when changes are waited for.
    cursor: Option<Cursor>,
    told: Option<Leader>,
    /// Looks that failed since the last that was answered.
    failures: u32,
    /// Waits that failed since the last that did not.
    failed_waits: u32,
}

impl Looking {
    /// Looks, and waits, until there is something to tell; nothing once the locker is shut down or the retry policy gives up.
    async fn news(&mut self) -> Option<Leader> {
        let engine = Arc::clone(&self.engine);
        tokio::select! {
            biased;
            () = engine.stopping.cancelled() => None,
            leader = self.next_leader() => leader,
        }
    }

    async fn next_leader(&mut self) -> Option<Leader> {
        loop {
            let leader = match self.look_again().await {
                Ok(leader) => leader,
                Err(failed) => match self.give_up_or_pause(failed).await? {
                    Some(unknown) => unknown,
                    None => continue,
                },
            };
            if !self.told.as_ref().is_some_and(|told| told.is_as(&leader)) {
                self.told = Some(leader.clone());
                return Some(leader);
            }
        }
    }

    /// Who leads, once that may have changed.
    async fn look_again(&mut self) -> Result<Leader, Option<StoreError>> {
        if self.unanswered.is_none() && self.told.is_some() {
            self.change().await;
        }
        let clock = self.engine.clock;
        loop {
            if let Some(looked) = self.looked {
                clock.sleep_until(looked.plus(PACE)).await;
            }
            let limit = clock.now().plus(ATTEMPT);
            let answer = self.look().await;
            if clock.now() < limit.plus(SLACK) {
                return answer;
            }
            // Nobody polled meanwhile: an answer is of long ago, and silence says nothing.
            self.unanswered = None;
        }
    }

    async fn look(&mut self) -> Result<Leader, Option<StoreError>> {
        let clock = self.engine.clock;
        let now = clock.now();
        self.looked = Some(now);
        let patience_ends = self.unanswered.get_or_insert(now).plus(PATIENCE);
        // One reply that was lost does not use up all patience; once that is over, looks go on at the same pace.
        let limit = now.plus(ATTEMPT);
        let limit = if patience_ends > now { limit.min(patience_ends) } else { limit };
        let (backend, key, known) = (Arc::clone(&self.engine.backend), self.key.clone(), self.cursor);
        let look = async {
            let tells = backend.capabilities().tells_changes;
            // First the cursor, so that no change is missed after the look.
            let cursor = if tells && known.is_none() { Some(backend.changed(&key, None).await?) } else { known };
            Ok::<_, BackendError>((cursor, backend.inspect(&key).await?))
        };
        let (cursor, inspection) = tokio::select! {
            biased;
            answer = look => answer.map_err(StoreError::new).map_err(Some)?,
            () = clock.sleep_until(limit) => return Err(None),
        };
        (self.cursor, self.answered, self.unanswered, self.failures) = (cursor, now, None, 0);
        // What stands there without a session and a claim is no lock, and nobody's.
        let leader = inspection.holders.into_iter().find(|holder| holder.session.is_some() || holder.claim().is_some());
        Ok(leader.map_or(Leader::Vacant, Leader::Elected))
    }

    /// Waits until something may have changed; a ttl at most, to find out in time that a store is silent. A wait that fails tells nothing: the
    /// look that follows does.
    async fn change(&mut self) {
        let (clock, backend) = (self.engine.clock, Arc::clone(&self.engine.backend));
        if !backend.capabilities().tells_changes {
            clock.sleep_until(clock.now().plus(POLL)).await;
            return;
        }
        let until = clock.now().plus(self.engine.options.ttl);
        let told = tokio::select! {
            biased;
            told = backend.changed(&self.key, self.cursor) => told.map(Some),
            // A cursor that is ahead of a store which was set back would wait for ever.
            () = clock.sleep_until(until) => Ok(None),
        };
        match told {
            Ok(cursor) => (self.cursor, self.failed_waits) = (cursor, 0),
            Err(error) => {
                tracing::debug!(key = %self.key, %error, "waiting for another leader failed, looking instead");
                self.failed_waits = self.failed_waits.saturating_add(1);
                // What happens meanwhile is found by looking anew.
                self.cursor = None;
                let pause = RetryPolicy::default().pause(self.failed_waits, Chance(fastrand::u32(..))).unwrap_or(RetryPolicy::MAX);
                clock.sleep_until(clock.now().plus(pause)).await;
            }
        }
    }

    /// After a look that failed: that nothing is known any more, if that is so now; else a pause. Nothing when the retry policy gives up.
    async fn give_up_or_pause(&mut self, failed: Option<StoreError>) -> Option<Option<Leader>> {
        let clock = self.engine.clock;
        self.failures = self.failures.saturating_add(1);
        let pause = self.retry.pause(self.failures, Chance(fastrand::u32(..)));
        if matches!(self.told, Some(Leader::Unknown { .. })) {
            clock.sleep_until(clock.now().plus(pause?)).await;
            return Some(None);
        }
        let now = clock.now();
        let patience_ends = self.unanswered.get_or_insert(now).plus(PATIENCE);
        let passing = [ErrorKind::Transient, ErrorKind::Ambiguous, ErrorKind::Overloaded];
        let may_pass = failed.as_ref().is_none_or(|error| passing.contains(&error.kind()));
        match pause {
            Some(pause) if may_pass && now < patience_ends => {
                let next = now.plus(pause).min(patience_ends);
                clock.sleep_until(next).await;
                if clock.now() >= next.plus(SLACK) {
                    // Nobody polled meanwhile.
                    self.unanswered = None;
                }
                Some(None)
            }
            _ => Some(Some(Leader::Unknown { since: clock.to_past_instant(self.answered), cause: failed })),
        }
    }
}
