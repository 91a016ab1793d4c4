//! Gives back what a claim has, in whoever's task; what is dropped half-way goes back to the session's keeper.

use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{Chance, Claim, Lease, Loss, Moment, Release, SessionId, Undo, UndoEvent, UndoStep, Undone};

use crate::admission::{Call, Queued, Turn};
use crate::clock::Clock;
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

    async fn drive(&mut self, mut limit: Moment) -> Option<Undone> {
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
            let (mut turn, mut since) = (None, now);
            // Whatever is waited for is waited for until the limit: a timer of its own would be set for every release.
            loop {
                if event == UndoEvent::Queued {
                    // What the store answers others is no time that it leaves unused.
                    limit = limit.plus(now.saturating_since(since));
                }
                since = now;
                event = match undo.step(event, now, Chance(fastrand::u32(..))) {
                    UndoStep::Done(undone) => return Some(undone),
                    _ if now >= limit => return is_gone().then_some(Undone::WithSession),
                    UndoStep::Pause { until } => {
                        clock.sleep_until(until.min(limit)).await;
                        UndoEvent::Elapsed
                    }
                    UndoStep::Release { until } => {
                        let until = until.min(limit);
                        match turn.take() {
                            Some(Err(queued)) => wait_for_turn(queued, &mut turn, clock, until).await,
                            Some(Ok(turn)) => release_once(turn, &session, &id, &claim, until).await,
                            None => match session.admission.enter(Call::Release) {
                                Ok(turn) => release_once(turn, &session, &id, &claim, until).await,
                                Err(queued) => {
                                    turn = Some(Err(queued));
                                    UndoEvent::Queued
                                }
                            },
                        }
                    }
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

async fn release_once(turn: Turn, session: &Session, id: &SessionId, claim: &Claim, until: Moment) -> UndoEvent {
    let clock = session.clock();
    let answer = tokio::select! {
        biased;
        answer = session.backend.release(id, claim) => answer,
        () = clock.sleep_until(until) => return UndoEvent::Elapsed,
    };
    turn.heard(&answer);
    match answer {
        Ok(release) => UndoEvent::Answered(release),
        Err(error) => {
            tracing::debug!(key = %claim.key, claim = %claim.id, %error, "release failed, trying again");
            UndoEvent::Failed(error.kind())
        }
    }
}

/// Waits in the queue for as long as it moves; the turn, or the place that is kept, is put into `turn`.
async fn wait_for_turn(mut queued: Queued, turn: &mut Option<Result<Turn, Queued>>, clock: Clock, until: Moment) -> UndoEvent {
    tokio::select! {
        biased;
        got = queued.turn() => {
            *turn = Some(Ok(got));
            return UndoEvent::Sent;
        }
        () = clock.sleep_until(until) => {}
    }
    if queued.moves() {
        *turn = Some(Err(queued));
        return UndoEvent::Queued;
    }
    UndoEvent::Elapsed
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
