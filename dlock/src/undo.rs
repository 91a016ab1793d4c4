//! Gives back what a claim has, in whoever's task; what is dropped half-way goes back to the session's keeper.

use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{Chance, Lease, LockBackend, Loss, Moment, Release, SessionId, Undo, UndoEvent, UndoStep, Undone};

use crate::options::LEAST_ATTEMPT;
use crate::session::{Owed, Session};

/// One release under way. Counted as owed by its session until it is done; handed back to it when dropped before.
pub(crate) struct Undoing {
    session: Arc<Session>,
    owed: Option<Owed>,
}

impl Undoing {
    /// A release that the session already counts as owed.
    pub(crate) fn new(session: Arc<Session>, owed: Owed) -> Self {
        Self { session, owed: Some(owed) }
    }

    /// Releases until the store has answered, the session is gone, or patience has ended. Free to drop.
    pub(crate) async fn run(self) -> Undone {
        self.run_until(Moment::FAR_FUTURE).await.unwrap_or(Undone::GivenUp)
    }

    /// The same until that moment; `None` when it came first. What is not done by then goes back to the session's keeper.
    pub(crate) async fn run_until(mut self, limit: Moment) -> Option<Undone> {
        let undone = self.drive(limit).await?;
        let Some(owed) = self.owed.take() else { return Some(undone) };
        let session = &self.session;
        // What was never answered and cannot be fenced, or was never given back, must not be renewed for ever.
        let unfenced = match undone {
            Undone::Answered(Release::Unfenced { .. }) => true,
            Undone::Answered(_) => owed.unanswered && !session.backend.capabilities().fences,
            Undone::WithSession | Undone::GivenUp => false,
        };
        #[cfg(dlock_planted)]
        if Bug::OrphanRenewed.is_on() && undone == Undone::GivenUp {
            session.settled(owed.claim.id);
            return Some(undone);
        }
        if undone == Undone::GivenUp || unfenced {
            tracing::warn!(key = %owed.claim.key, claim = %owed.claim.id, ?undone, "retiring the session of an unsure release");
            session.retire();
        }
        tracing::debug!(key = %owed.claim.key, claim = %owed.claim.id, ?undone, "given back");
        if undone == Undone::GivenUp {
            session.give_up(owed);
        } else {
            let id = owed.claim.id;
            drop(owed);
            session.settled(id);
        }
        Some(undone)
    }

    async fn drive(&mut self, limit: Moment) -> Option<Undone> {
        let session = Arc::clone(&self.session);
        let clock = session.clock();
        let Some(owed) = &mut self.owed else { return Some(Undone::WithSession) };
        let Some(id) = session.id() else { return Some(Undone::WithSession) };
        // A session that only expired may still be alive at the store, so its claims are released all the same.
        let is_gone = || session.loss() == Some(Loss::SessionGone);
        if is_gone() {
            return Some(Undone::WithSession);
        }
        let gone = async {
            loop {
                let (_, look) = session.stages.look();
                if is_gone() {
                    return;
                }
                session.stages.moved_since(look).await;
            }
        };
        let claim = Arc::clone(&owed.claim);
        let (from, ttl) = (owed.from, session.ttl());
        let under_way = &mut owed.under_way;
        let release = async {
            let mut now = clock.now();
            if now < from {
                clock.sleep_until(from.min(limit)).await;
                now = clock.now();
            }
            let attempt = Lease::attempt(ttl).max(LEAST_ATTEMPT);
            if let Some(call) = under_way.as_mut() {
                let heard_out = now.plus(attempt).min(limit);
                tokio::select! {
                    biased;
                    () = call => {}
                    () = clock.sleep_until(heard_out) => {}
                }
                now = clock.now();
            }
            *under_way = None;
            #[cfg(dlock_planted)]
            let ttl = if Bug::OrphanRenewed.is_on() { std::time::Duration::ZERO } else { ttl };
            let mut undo = Undo::new(attempt, ttl);
            let mut event = UndoEvent::Started;
            // Whatever is waited for is waited for until the limit: a timer of its own would be set for every release.
            loop {
                event = match undo.step(event, now, Chance(fastrand::u32(..))) {
                    UndoStep::Done(undone) => return Some(undone),
                    _ if now >= limit => return is_gone().then_some(Undone::WithSession),
                    UndoStep::Pause { until } => {
                        clock.sleep_until(until.min(limit)).await;
                        UndoEvent::Elapsed
                    }
                    UndoStep::Release { until } => release_once(&*session.backend, &id, &claim, clock, until.min(limit)).await,
                };
                now = clock.now();
            }
        };
        tokio::select! {
            biased;
            // First, so that a release that is answered at once waits for nothing else.
            undone = release => undone,
            () = gone => Some(Undone::WithSession),
        }
    }
}

async fn release_once(
    backend: &dyn LockBackend,
    id: &SessionId,
    claim: &dlock_core::Claim,
    clock: crate::clock::Clock,
    until: Moment,
) -> UndoEvent {
    tokio::select! {
        biased;
        answer = backend.release(id, claim) => match answer {
            Ok(release) => UndoEvent::Answered(release),
            Err(error) => {
                tracing::debug!(key = %claim.key, claim = %claim.id, %error, "release failed, trying again");
                UndoEvent::Failed(error.kind())
            }
        },
        () = clock.sleep_until(until) => UndoEvent::Elapsed,
    }
}

impl Drop for Undoing {
    fn drop(&mut self) {
        if let Some(mut owed) = self.owed.take() {
            // The request may have been sent; asking again is harmless, a release is a fence.
            owed.under_way = None;
            self.session.hand_in(owed);
        }
    }
}
