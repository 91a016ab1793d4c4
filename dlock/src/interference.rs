//! How the keeper finds out that somebody else ended a lock: audits with every renewal, waiting requests in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    BackendError, ClaimId, Cursor, ErrorKind, Granted, Interference, Lease, LeaseAction, LeaseEvent, Moment, SessionId,
};
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::FuturesUnordered;

use crate::session::Session;

/// The question which grants were ended from outside.
#[derive(Default)]
pub(crate) struct Audit {
    wanted: bool,
    not_before: Moment,
    failures: u32,
    denied: bool,
    running: Option<Asked>,
}

/// An audit under way.
struct Asked {
    at: Moment,
    call: BoxFuture<'static, Result<Vec<Interference>, BackendError>>,
}

/// What an audit found, and when it was asked.
pub(crate) struct Audited {
    pub(crate) asked: Moment,
    pub(crate) verdict: Result<Vec<Interference>, BackendError>,
}

impl Audit {
    pub(crate) fn ask(&mut self) {
        self.wanted = true;
    }

    /// The next answer; never, while none is under way. Free to drop.
    pub(crate) async fn answer(&mut self) -> Audited {
        let Some(Asked { at, call }) = &mut self.running else { return std::future::pending().await };
        let audited = Audited { asked: *at, verdict: call.await };
        self.running = None;
        self.failures = if audited.verdict.is_ok() { 0 } else { self.failures };
        audited
    }

    /// A missing permission is told once; whatever failed, it is tried again.
    pub(crate) fn fail(&mut self, error: &BackendError, now: Moment, ttl: Duration) {
        if error.kind() == ErrorKind::Denied && !std::mem::replace(&mut self.denied, true) {
            tracing::warn!(%error, "held locks cannot be looked after: nobody will hear of a deleted or taken key");
        } else {
            tracing::debug!(%error, "audit failed, trying again");
        }
        self.failures = (self.failures + 1).min(6);
        self.wanted = true;
        self.not_before = now.plus((Duration::from_millis(50) * (1 << self.failures)).min(ttl / 3));
    }

    /// Starts one if it is wanted and none runs; says when to come back.
    pub(crate) fn start(&mut self, session: &Session) -> Moment {
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
                () = clock.sleep_until(limit) => Err(BackendError::new(ErrorKind::Transient, "the audit was not answered in time")),
            }
        };
        self.running = Some(Asked { at: now, call: Box::pin(call) });
        Moment::FAR_FUTURE
    }
}

/// The waiting requests that tell of interference early: one for the session, one for each of a few claims.
#[derive(Default)]
pub(crate) struct Watches {
    running: Running,
    targets: BTreeMap<Option<ClaimId>, Watch>,
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

type Running = FuturesUnordered<Abortable<BoxFuture<'static, Disturbance>>>;

/// A watch returned.
pub(crate) struct Disturbance {
    target: Option<ClaimId>,
    answer: Result<Cursor, BackendError>,
}

impl Watches {
    /// Locks that are given back sooner are not watched at all: it would cost them a request.
    pub(crate) const SETTLED_AFTER: Duration = Duration::from_millis(250);
    /// A watch that lasted so long was not returned idly.
    const LASTED: Duration = Duration::from_secs(5);

    /// The next watch that returned, those that were ended passed over; never, while none runs. Free to drop.
    pub(crate) async fn disturbance(&mut self) -> Disturbance {
        loop {
            match self.running.next().await {
                Some(Ok(disturbance)) => return disturbance,
                Some(Err(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }

    /// Starts what should run and is not running, ends what should not; says when to come back.
    pub(crate) fn start(&mut self, session: &Arc<Session>, action: LeaseAction) -> Moment {
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
    pub(crate) fn returned(&mut self, session: &Session, disturbance: Disturbance, audit: &mut Audit) -> LeaseEvent {
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
