//! Gives back what a claim has, in whoever's task; what is dropped half-way goes back to the session's keeper.

use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{Chance, Claim, Lease, Loss, Moment, Release, SessionId, Undo, UndoEvent, UndoStep, Undone};

use crate::admission::{InFlight, Priority, Queued, Turn};
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
            let (mut event, mut ends) = (UndoEvent::Started, limit);
            // Whatever is waited for is waited for until the limit: a timer of its own would be set for every release.
            loop {
                event = match undo.step(event, now, Chance(fastrand::u32(..))) {
                    UndoStep::Done(undone) => return Some(undone),
                    _ if now >= ends => return is_gone().then_some(Undone::WithSession),
                    UndoStep::Pause { until } => {
                        clock.sleep_until(until.min(ends)).await;
                        UndoEvent::Elapsed
                    }
                    UndoStep::Release { until } => {
                        let sending = match session.admission.enter(Priority::Release) {
                            Turn::Now(in_flight) => Some((in_flight, until.min(ends))),
                            // Apart, since hardly a release is queued and every one would carry it.
                            Turn::Later(queued) => {
                                let sending = Box::pin(queue(queued, &mut undo, &session, limit)).await;
                                ends = limit.plus(undo.queued_for());
                                sending
                            }
                        };
                        match sending {
                            Some((in_flight, until)) => release_once(in_flight, &session, &id, &claim, until).await,
                            None => UndoEvent::Elapsed,
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

/// Waits until the release may be sent, and says until when it may take then; `None` when the limit has come, or the store answers nobody. The time for
/// which it answers others is put off the limit.
async fn queue(mut queued: Box<Queued>, undo: &mut Undo, session: &Session, limit: Moment) -> Option<(InFlight, Moment)> {
    let clock = session.clock();
    let mut tell = |event| match undo.step(event, clock.now(), Chance::MIDDLE) {
        UndoStep::Release { until } => Some(until.min(limit.plus(undo.queued_for()))),
        UndoStep::Pause { .. } | UndoStep::Done(_) => None,
    };
    let mut until = tell(UndoEvent::Queued)?;
    loop {
        let in_flight = tokio::select! {
            biased;
            in_flight = queued.admitted() => Some(in_flight),
            () = clock.sleep_until(until) => None,
        };
        let moved = queued.moved();
        if moved {
            until = tell(UndoEvent::Queued)?;
        }
        if let Some(in_flight) = in_flight {
            return Some((in_flight, tell(UndoEvent::Sent)?));
        }
        // What an ended runtime left undone may be what is in flight.
        session.ensure_kept();
        if !moved {
            return None;
        }
    }
}

async fn release_once(in_flight: InFlight, session: &Session, id: &SessionId, claim: &Claim, until: Moment) -> UndoEvent {
    let clock = session.clock();
    let answer = tokio::select! {
        biased;
        answer = session.backend.release(id, claim) => in_flight.answered(answer),
        () = clock.sleep_until(until) => {
            #[cfg(dlock_planted)]
            if Bug::TurnKept.is_on() {
                std::mem::forget(in_flight);
            }
            return UndoEvent::Elapsed;
        }
    };
    match answer {
        Ok(release) => UndoEvent::Answered(release),
        Err(error) => {
            tracing::debug!(key = %claim.key, claim = %claim.id, %error, "release failed, trying again");
            UndoEvent::Failed(error.kind())
        }
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
