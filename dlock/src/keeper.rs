//! The one task of a session: opens and renews it, watches for interference, tells guards of loss, gives back, closes.
//!
//! It ends when its session's lease is done. If its runtime ends before, the next awaited call starts another
//! (see [`Engine::keep_all`](crate::engine::Engine::keep_all)).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dlock_core::{
    BackendError, Cause, ClaimId, Cursor, Granted, Interference, Lease, LeaseAction, LeaseEvent, LeaseStep, Loss, Moment, Renewal,
    SessionId, SessionRequest,
};
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture, OptionFuture};
use futures_util::stream::FuturesUnordered;

use crate::engine::Engine;
use crate::error::StoreError;
use crate::session::Session;
use crate::undo::Undoing;

/// The state of the task that keeps one session.
pub(crate) struct Keeper {
    engine: Arc<Engine>,
    session: Arc<Session>,
    call: Option<(LeaseAction, Moment, BoxFuture<'static, Heard>)>,
    undoing: FuturesUnordered<BoxFuture<'static, ()>>,
    audit: Audit,
    watches: Watches,
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
    Audited(Result<Vec<Interference>, BackendError>),
    Disturbed(Disturbance),
    /// Somebody handed something in, a release is done, or the time has come for something.
    ToLook,
}

impl Keeper {
    /// Keeps a session until its lease is done. Marks it unkept when dropped.
    pub(crate) async fn keep(engine: Arc<Engine>, session: Arc<Session>) {
        let kept = Kept(Arc::clone(&session));
        let (audit, watches) = (Audit::default(), Watches::default());
        let keeper = Self { engine, session, call: None, undoing: FuturesUnordered::new(), audit, watches };
        keeper.run().await;
        drop(kept);
    }

    async fn run(mut self) {
        let mut heard = Heard::event(LeaseEvent::Started);
        loop {
            if heard.event == LeaseEvent::Elapsed
                && let Some(event) = self.session.ending_event()
            {
                heard.event = event;
            }
            let Heard { event, opened, error } = heard;
            let step = self.session.step(event, opened, error);
            let (action, until) = match step {
                LeaseStep::Do { action, until } => (action, until),
                LeaseStep::Done(end) => {
                    tracing::debug!(?end, "session ended");
                    break;
                }
            };
            if matches!(event, LeaseEvent::Renewed { .. }) {
                self.audit.ask();
            }
            self.start(action, until);
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
            let next = self.audit.start(&self.session).min(self.watches.start(&self.session, action));
            let until = until.min(self.session.next_look()).min(next);
            heard = match self.sleep(until).await {
                Woke::Heard(heard) => {
                    self.call = None;
                    heard
                }
                Woke::Audited(verdict) => {
                    self.judge(verdict);
                    Heard::event(LeaseEvent::Elapsed)
                }
                Woke::Disturbed(disturbance) => Heard::event(self.watches.returned(&self.session, disturbance, &mut self.audit)),
                Woke::ToLook => Heard::event(LeaseEvent::Elapsed),
            };
        }
        self.tell_all();
        self.session.finish();
        self.engine.forget(&self.session);
    }

    async fn sleep(&mut self, until: Moment) -> Woke {
        let clock = self.session.clock();
        let call: OptionFuture<_> = self.call.as_mut().map(|(_, _, call)| call).into();
        let audit: OptionFuture<_> = self.audit.running.as_mut().map(|(_, audit)| audit).into();
        tokio::select! {
            biased;
            Some(heard) = call => Woke::Heard(heard),
            () = self.session.wake.notified() => Woke::ToLook,
            Some(()) = self.undoing.next() => Woke::ToLook,
            Some(disturbance) = next_disturbance(&mut self.watches.running) => Woke::Disturbed(disturbance),
            Some(verdict) = audit => Woke::Audited(verdict),
            () = clock.sleep_until(until) => Woke::ToLook,
        }
    }

    /// Starts the call of an action, unless it is the one under way; drops any other.
    fn start(&mut self, action: LeaseAction, until: Moment) {
        if self.call.as_ref().is_some_and(|(running, end, _)| (*running, *end) == (action, until)) {
            return;
        }
        let backend = Arc::clone(&self.session.backend);
        let id = self.session.id();
        let call: BoxFuture<'static, Heard> = match (action, id) {
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
            _ => {
                self.call = None;
                return;
            }
        };
        self.call = Some((action, until, call));
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
        if loss != Loss::HeldTooLong {
            owed.from = Moment::ORIGIN;
        }
        self.session.hand_in(owed);
    }

    /// Ends the belief of grants whose own time is over, and reports those held for long.
    fn look_at_grants(&mut self) {
        let now = self.session.clock().now();
        for grant in self.session.due(now) {
            if let Some(loss) = grant.loss(now) {
                self.lose(grant.claim.id, loss);
            } else {
                let held_for = now.saturating_since(grant.granted_at);
                tracing::info!(key = %grant.claim.key, token = %grant.token, owner = %grant.claim.owner, ?held_for, "lock held for long");
            }
        }
    }

    fn judge(&mut self, verdict: Result<Vec<Interference>, BackendError>) {
        let now = self.session.clock().now();
        let Some((asked, _)) = self.audit.running.take() else { return };
        match verdict {
            Ok(interferences) => {
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
                self.audit.failures = 0;
            }
            Err(error) => {
                tracing::debug!(%error, "audit failed, trying again");
                self.audit.fail(now, self.session.ttl());
            }
        }
    }
}

/// Tells that nobody keeps the session any more, also when the task is dropped with its runtime.
struct Kept(Arc<Session>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.kept.store(false, Ordering::Release);
    }
}

/// The question which grants were ended from outside.
#[derive(Default)]
struct Audit {
    wanted: bool,
    not_before: Moment,
    failures: u32,
    running: Option<(Moment, BoxFuture<'static, Result<Vec<Interference>, BackendError>>)>,
}

impl Audit {
    fn ask(&mut self) {
        self.wanted = true;
    }

    fn fail(&mut self, now: Moment, ttl: Duration) {
        self.failures = (self.failures + 1).min(6);
        self.wanted = true;
        self.not_before = now.plus((Duration::from_millis(50) * (1 << self.failures)).min(ttl / 3));
    }

    /// Starts one if it is wanted and none runs; says when to come back.
    fn start(&mut self, session: &Session) -> Moment {
        if !self.wanted || self.running.is_some() {
            return Moment::FAR_FUTURE;
        }
        let now = session.clock().now();
        if now < self.not_before {
            return self.not_before;
        }
        self.wanted = false;
        let (Some(id), true) = (session.id(), session.backend.capabilities().audits) else { return Moment::FAR_FUTURE };
        let granted = session.granted();
        if granted.is_empty() {
            return Moment::FAR_FUTURE;
        }
        let (backend, clock) = (Arc::clone(&session.backend), session.clock());
        let limit = now.plus(Lease::LONGEST_ATTEMPT.max(session.ttl() / 3));
        let call = async move {
            tokio::select! {
                biased;
                verdict = backend.audit(&id, &granted) => verdict,
                () = clock.sleep_until(limit) => Err(BackendError::new(dlock_core::ErrorKind::Transient, "the audit was not answered in time")),
            }
        };
        self.running = Some((now, Box::pin(call)));
        Moment::FAR_FUTURE
    }
}

/// The waiting requests that tell of interference early: one for the session, one for each of a few claims.
#[derive(Default)]
struct Watches {
    running: Running,
    targets: HashMap<Option<ClaimId>, Watch>,
}

#[derive(Default)]
struct Watch {
    cursor: Option<Cursor>,
    running: Option<AbortHandle>,
    started: Moment,
    not_before: Moment,
    idle: u32,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// The next watch that returned; those that were ended are passed over.
async fn next_disturbance(running: &mut Running) -> Option<Disturbance> {
    loop {
        match running.next().await? {
            Ok(disturbance) => return Some(disturbance),
            Err(Aborted) => {}
        }
    }
}

type Running = FuturesUnordered<Abortable<BoxFuture<'static, Disturbance>>>;

struct Disturbance {
    target: Option<ClaimId>,
    answer: Result<Cursor, BackendError>,
}

impl Watches {
    /// Locks that are given back sooner are not watched at all: it would cost them a request.
    const SETTLED_AFTER: Duration = Duration::from_millis(250);
    /// A watch that lasted so long was not returned idly.
    const LASTED: Duration = Duration::from_secs(5);

    /// Starts what should run and is not running, ends what should not; says when to come back.
    fn start(&mut self, session: &Arc<Session>, action: LeaseAction) -> Moment {
        let (Some(most), Some(id)) = (session.backend.capabilities().watched_claims, session.id()) else {
            return Moment::FAR_FUTURE;
        };
        if !matches!(action, LeaseAction::Rest | LeaseAction::Renew) {
            self.targets.clear();
            return Moment::FAR_FUTURE;
        }
        let now = session.clock().now();
        let Some(oldest) = session.oldest_grant() else {
            self.targets.retain(|target, _| target.is_none());
            return Moment::FAR_FUTURE;
        };
        let settled = oldest.plus(Self::SETTLED_AFTER);
        if now < settled {
            return settled;
        }
        let mut next = self.start_one(session, &id, None, now);
        if session.held() > most {
            self.targets.retain(|target, _| target.is_none());
            return next;
        }
        let grants = session.grants();
        self.targets.retain(|target, _| target.is_none_or(|id| grants.iter().any(|grant| grant.claim.id == id)));
        for grant in grants {
            let from = grant.granted_at.plus(Self::SETTLED_AFTER);
            if now < from {
                next = next.min(from);
                continue;
            }
            let granted = Granted { claim: Arc::clone(&grant.claim), token: grant.token };
            next = next.min(self.start_one(session, &id, Some(granted), now));
        }
        next
    }

    fn start_one(&mut self, session: &Arc<Session>, id: &SessionId, granted: Option<Granted>, now: Moment) -> Moment {
        let target = granted.as_ref().map(|granted| granted.claim.id);
        let watch = self.targets.entry(target).or_default();
        if watch.running.is_some() {
            return Moment::FAR_FUTURE;
        }
        if now < watch.not_before {
            return watch.not_before;
        }
        let (backend, id, cursor) = (Arc::clone(&session.backend), id.clone(), watch.cursor);
        let call: BoxFuture<'static, Disturbance> = Box::pin(async move {
            let answer = backend.disturbed(&id, granted.as_ref(), cursor).await;
            Disturbance { target, answer }
        });
        let (handle, registration) = AbortHandle::new_pair();
        (watch.running, watch.started) = (Some(handle), now);
        self.running.push(Abortable::new(call, registration));
        Moment::FAR_FUTURE
    }

    /// Takes in that a watch returned: something may have happened, so ask; but never in a hot loop.
    fn returned(&mut self, session: &Session, disturbance: Disturbance, audit: &mut Audit) -> LeaseEvent {
        let now = session.clock().now();
        let Some(watch) = self.targets.get_mut(&disturbance.target) else { return LeaseEvent::Elapsed };
        watch.running = None;
        let lasted = now.saturating_since(watch.started) >= Self::LASTED;
        watch.idle = if lasted { 0 } else { (watch.idle + 1).min(8) };
        // The first early return costs nothing; those that follow are spread out, up to the pace of renewals.
        if watch.idle > 1 {
            watch.not_before = now.plus((Duration::from_millis(25) * (1 << watch.idle)).min(session.ttl() / 3));
        }
        match disturbance.answer {
            Ok(cursor) => {
                watch.cursor = Some(cursor);
                audit.ask();
                if disturbance.target.is_none() { LeaseEvent::Disturbed } else { LeaseEvent::Elapsed }
            }
            Err(error) => {
                tracing::debug!(%error, "watching for interference failed, trying again");
                watch.not_before = watch.not_before.max(now.plus(Duration::from_millis(250)));
                LeaseEvent::Elapsed
            }
        }
    }
}
