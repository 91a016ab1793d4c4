//! The one task of a session: opens and renews it, watches for interference, tells guards of loss, gives back, closes.
//!
//! It ends when its session's lease is done. If its runtime ends before, the next awaited call starts another
//! (see [`Engine::keep_all`](crate::engine::Engine::keep_all)).

use std::sync::Arc;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    BackendError, Cause, ClaimId, ErrorKind, Interference, LeaseAction, LeaseEnd, LeaseEvent, LeaseStep, Loss, Moment, Renewal,
    SessionId, SessionRequest,
};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::stream::FuturesUnordered;

use crate::engine::Engine;
use crate::error::StoreError;
use crate::interference::{Audit, Audited, Disturbance, Watches};
use crate::session::Session;
use crate::undo::Undoing;

/// The state of the task that keeps one session.
pub(crate) struct Keeper {
    engine: Arc<Engine>,
    session: Arc<Session>,
    number: u64,
    call: Option<Call>,
    undoing: FuturesUnordered<BoxFuture<'static, ()>>,
    audit: Audit,
    watches: Watches,
    found: Option<Found>,
}

/// A call to the store for the lease, under way.
struct Call {
    action: LeaseAction,
    until: Moment,
    sent: Moment,
    answer: BoxFuture<'static, Heard>,
}

/// What an audit found. It waits for a renewal that is sent later: if that finds the session gone, the session is the reason.
struct Found {
    asked: Moment,
    at: Moment,
    interferences: Vec<Interference>,
}

/// What became of a call to the store for the lease.
struct Heard {
    event: LeaseEvent,
    opened: Option<SessionId>,
    error: Option<StoreError>,
}

impl Heard {
    fn event(event: LeaseEvent) -> Self {
        Self { event, opened: None, error: None }
    }

    fn failed(error: BackendError) -> Self {
        Self { event: LeaseEvent::Failed(error.kind()), opened: None, error: Some(StoreError::new(error)) }
    }
}

/// Why the keeper woke up.
enum Woke {
    Heard(Heard),
    Audited(Audited),
    Disturbed(Disturbance),
    /// Somebody handed something in, a release is done, or the time has come for something.
    ToLook,
}

impl Keeper {
    /// Keeps a session until its lease is done, or another keeper took over. Marks it unkept when dropped.
    pub(crate) fn keep(engine: Arc<Engine>, session: Arc<Session>, number: u64) -> impl Future<Output = ()> + Send + 'static {
        // Made before the task is: a task may be dropped before it is polled even once.
        let kept = Kept(Arc::clone(&session), number);
        let (audit, watches) = (Audit::default(), Watches::default());
        let undoing = FuturesUnordered::new();
        let keeper = Self { engine, session, number, call: None, undoing, audit, watches, found: None };
        async move {
            keeper.run().await;
            drop(kept);
        }
    }

    async fn run(mut self) {
        let mut heard = Heard::event(LeaseEvent::Started);
        let end = loop {
            self.session.looks_now();
            // A session that is not wanted any more when its keeper starts is not opened.
            if matches!(heard.event, LeaseEvent::Started | LeaseEvent::Elapsed) {
                let renewal_wanted = self.found.is_some().then_some(LeaseEvent::Disturbed);
                heard.event = self.session.ending_event(self.number).or(renewal_wanted).unwrap_or(heard.event);
            }
            let Heard { event, opened, error } = heard;
            let Some(step) = self.session.step(self.number, event, opened, error) else {
                // This runtime was not driven for long, and another keeper has taken over: what is under way here is handed back.
                if matches!(event, LeaseEvent::Opened { .. }) {
                    self.forget_opening();
                }
                self.session.wake.notify_one();
                return;
            };
            let (action, until) = match step {
                LeaseStep::Do { action, until } => (action, until),
                LeaseStep::Done(end) => {
                    tracing::debug!(?end, "session ended");
                    break end;
                }
            };
            if self.session.take_audit_wanted() || matches!(event, LeaseEvent::Renewed { .. }) {
                self.audit.ask();
            }
            self.start(action, until);
            if matches!(event, LeaseEvent::Renewed { .. }) && self.found.is_some() {
                heard = Heard::event(LeaseEvent::Disturbed);
                continue;
            }
            if action == LeaseAction::Settle {
                self.tell_all();
                self.take_in();
                if self.session.owes_nothing() {
                    heard = Heard::event(LeaseEvent::Settled);
                    continue;
                }
            }
            self.look_at_grants();
            self.take_in();
            // What was found waits for a renewal that is sent later; finding it again would put that off.
            let audit = if self.found.is_some() { Moment::FAR_FUTURE } else { self.audit.start(&self.session) };
            let next = audit.min(self.watches.start(&self.session, action));
            let until = until.min(self.session.next_look()).min(next);
            self.session.promise(until);
            self.session.looks_at(self.number, until);
            let woke = self.sleep(until).await;
            if !self.session.is_kept_by(self.number) {
                // What woke this one may have been meant for the other.
                self.session.wake.notify_one();
                return;
            }
            heard = match woke {
                Woke::Heard(heard) => {
                    let call = self.call.take();
                    let answered = heard.event != LeaseEvent::Failed(ErrorKind::Ambiguous);
                    if heard.event != LeaseEvent::Gone {
                        self.conclude(call.as_ref(), answered);
                    }
                    heard
                }
                Woke::Audited(audited) => {
                    self.note(audited);
                    Heard::event(LeaseEvent::Elapsed)
                }
                Woke::Disturbed(disturbance) => Heard::event(self.watches.returned(&self.session, disturbance, &mut self.audit)),
                Woke::ToLook => Heard::event(LeaseEvent::Elapsed),
            };
        };
        self.tell_all();
        let call = self.call.take();
        self.conclude(call.as_ref(), false);
        if end == LeaseEnd::Lapsed {
            self.engine.may_live(self.session.clock().now().plus(self.session.lapses_within()));
        }
        self.session.finish(end);
        self.engine.forget(&self.session);
    }

    async fn sleep(&mut self, until: Moment) -> Woke {
        let clock = self.session.clock();
        let call: OptionFuture<_> = self.call.as_mut().map(|call| &mut call.answer).into();
        tokio::select! {
            biased;
            Some(heard) = call => Woke::Heard(heard),
            () = self.session.wake.notified() => Woke::ToLook,
            Some(()) = self.undoing.next() => Woke::ToLook,
            disturbance = self.watches.disturbance() => Woke::Disturbed(disturbance),
            audited = self.audit.answer() => Woke::Audited(audited),
            () = clock.sleep_until(until) => Woke::ToLook,
        }
    }

    /// Starts the call of an action, unless it is the one under way; drops any other.
    fn start(&mut self, action: LeaseAction, until: Moment) {
        if self.call.as_ref().is_some_and(|call| (call.action, call.until) == (action, until)) {
            return;
        }
        let given_up = self.call.take();
        if action != LeaseAction::Settle {
            self.conclude(given_up.as_ref(), false);
        }
        let sent = self.session.clock().now();
        let backend = Arc::clone(&self.session.backend);
        let id = self.session.id();
        let answer: BoxFuture<'static, Heard> = match (action, id) {
            (LeaseAction::Open, _) => {
                let id = SessionId::from_bits(fastrand::u128(..));
                let request = SessionRequest { id, ttl: self.session.ttl(), owner: Arc::clone(&self.engine.options.owner) };
                Box::pin(async move {
                    match backend.open(&request).await {
                        Ok(session) => {
                            Heard { event: LeaseEvent::Opened { ttl: session.ttl }, opened: Some(session.id), error: None }
                        }
                        Err(error) => Heard::failed(error),
                    }
                })
            }
            (LeaseAction::Renew, Some(id)) => Box::pin(async move {
                match backend.renew(&id).await {
                    Ok(Renewal::Renewed { ttl }) => Heard::event(LeaseEvent::Renewed { ttl }),
                    Ok(Renewal::Gone) => Heard::event(LeaseEvent::Gone),
                    Err(error) => Heard::failed(error),
                }
            }),
            (LeaseAction::Close, Some(id)) => Box::pin(async move {
                match backend.close(&id).await {
                    Ok(()) => Heard::event(LeaseEvent::Closed),
                    Err(error) => Heard::failed(error),
                }
            }),
            _ => return,
        };
        self.call = Some(Call { action, until, sent, answer });
    }

    /// Takes releases out of the inbox and starts them.
    fn take_in(&mut self) {
        for owed in self.session.inbox() {
            let undoing = Undoing::new(Arc::clone(&self.session), owed);
            self.undoing.push(Box::pin(async move {
                undoing.run().await;
            }));
        }
    }

    /// Belief in the session has ended: tells every guard and owes the release of what they held.
    fn tell_all(&mut self) {
        let loss = self.session.loss().unwrap_or(Loss::Shutdown);
        for grant in self.session.grants() {
            self.lose(grant.claim.id, loss);
        }
    }

    fn lose(&mut self, id: ClaimId, loss: Loss) {
        // Whoever takes the grant out owes its release: here it is us, and the guard finds that it has nothing left.
        let Some(grant) = self.session.take(id) else { return };
        grant.lose(loss);
        let mut owed = grant.owed();
        // Nothing is left to hold on to; as long as the session is sound, `hold_at_least` goes on for what was only told.
        if self.session.loss().is_some() || matches!(loss, Loss::KeyDeleted | Loss::TakenOver) {
            owed.from = Moment::ORIGIN;
        }
        self.session.hand_in(owed);
    }

    /// Ends the belief of grants whose own time is over, and reports those held for long.
    fn look_at_grants(&mut self) {
        let now = self.session.clock().now();
        for grant in self.session.due(now) {
            if let Some(loss) = grant.loss(now) {
                let stops = grant.stops_until(loss, now).is_some_and(|until| now < self.session.linger(&grant, until));
                if !stops {
                    self.lose(grant.claim.id, loss);
                }
            } else {
                let held_for = now.saturating_since(grant.granted_at);
                tracing::info!(key = %grant.claim.key, token = %grant.token, owner = %grant.claim.owner, ?held_for, "lock held for long");
            }
        }
    }

    fn note(&mut self, Audited { asked, verdict }: Audited) {
        let now = self.session.clock().now();
        match verdict {
            Ok(interferences) if interferences.is_empty() => {}
            Ok(interferences) => self.found = Some(Found { asked, at: now, interferences }),
            Err(error) => self.audit.fail(&error, now, self.session.ttl()),
        }
    }

    /// A session may have been opened of which nobody will hear.
    fn forget_opening(&self) {
        let lapses = self.session.ttl().saturating_mul(self.session.backend.capabilities().lapses_within_ttls);
        self.engine.may_live(self.session.clock().now().plus(lapses));
    }

    /// A call for the lease is over. If it was a renewal that was sent after an audit found something, the session is not the reason.
    fn conclude(&mut self, call: Option<&Call>, answered: bool) {
        let Some(Call { action, sent, .. }) = call else { return };
        if *action == LeaseAction::Open && !answered {
            self.forget_opening();
        }
        if *action != LeaseAction::Renew {
            return;
        }
        let Some(Found { asked, interferences, .. }) = self.found.take_if(|found| found.at <= *sent) else { return };
        #[cfg(dlock_planted)]
        if Bug::InterferenceUntold.is_on() {
            return;
        }
        for Interference { claim, cause } in interferences {
            // Only what was granted before the question and is still held: a verdict says nothing of anything else.
            if self.session.grant_of(claim).is_some_and(|grant| grant.granted_at <= asked) {
                let loss = match cause {
                    Cause::KeyDeleted => Loss::KeyDeleted,
                    Cause::TakenOver => Loss::TakenOver,
                };
                self.lose(claim, loss);
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let call = self.call.take();
        self.conclude(call.as_ref(), false);
    }
}

/// Tells that nobody keeps the session any more, also when the task is dropped with its runtime.
struct Kept(Arc<Session>, u64);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.unkept_by(self.1);
    }
}
