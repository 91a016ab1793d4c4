//! What a session holds, and what it owes the store.

use std::sync::Arc;

use dlock_core::{Claim, ClaimId, FencingToken, Granted, Moment};
use futures_util::future::BoxFuture;

use super::{Ending, Session, State};
use crate::gate::Pass;
use crate::grant::{Grant, HoldLimits};
use crate::interference::Watches;

/// A claim whose release is owed to the store.
pub(crate) struct Owed {
    pub(crate) claim: Arc<Claim>,
    /// Keeps the gate closed until the release is answered.
    pub(crate) pass: Option<Pass>,
    /// A request of the claim that is still under way; it is heard out first.
    pub(crate) under_way: Option<BoxFuture<'static, ()>>,
    /// Not before this moment.
    pub(crate) from: Moment,
    /// The claim was sent and never answered.
    pub(crate) unanswered: bool,
}

impl Session {
    /// Takes in a grant, unless the session is not believed (any more); the pass comes back then.
    pub(crate) fn grant(
        self: &Arc<Self>,
        claim: Arc<Claim>,
        token: FencingToken,
        now: Moment,
        limits: HoldLimits,
        unanswered: bool,
        pass: Option<Pass>,
    ) -> Result<Arc<Grant>, Option<Pass>> {
        let mut state = self.state();
        let id = claim.id;
        // Not the grant's own limits: whoever set them is told by the guard.
        if state.refusing || self.loss.get().is_some() || now >= self.believed_until() {
            return Err(pass);
        }
        let grant = Arc::new(Grant::new(claim, token, Arc::clone(self), now, limits, unanswered, pass));
        state.grants.insert(id, Arc::clone(&grant));
        let timer = limits.hold_until.min(limits.report_at);
        if timer != Moment::FAR_FUTURE {
            state.timers.insert((timer, id));
        }
        if !limits.stop_before.is_zero() {
            state.early.insert((limits.stop_before, id));
        }
        let watched = self.backend.capabilities().watched_claims.map(|_| now.plus(Watches::SETTLED_AFTER));
        let early =
            state.lease.believed_until().filter(|_| !limits.stop_before.is_zero()).map(|until| until.minus(limits.stop_before));
        // Kept also if the lock is given back sooner, so that the next one wakes nobody.
        let look = [watched, early].into_iter().flatten().fold(timer, Moment::min);
        state.look_by = state.look_by.min(look);
        drop(state);
        if let Some(engine) = self.engine.upgrade() {
            engine.known_to_the_store();
        }
        self.have_looked_by(look);
        Ok(grant)
    }

    /// Takes a grant out; whoever gets it owes its release. `None` when another was first.
    pub(crate) fn take(&self, id: ClaimId) -> Option<Arc<Grant>> {
        let mut state = self.state();
        let grant = state.grants.remove(&id)?;
        if grant.limits.hold_until != Moment::FAR_FUTURE {
            state.timers.remove(&(grant.limits.hold_until, id));
        }
        state.timers.remove(&(grant.limits.report_at, id));
        state.early.remove(&(grant.limits.stop_before, id));
        if let Some(until) = state.lingering.remove(&id) {
            state.timers.remove(&(until, id));
        }
        state.owed += 1;
        state.releasing.insert(id, Arc::clone(&grant));
        Some(grant)
    }

    /// A grant that was told of its loss ahead of time stays for as long as was said first, so that what runs under it has time to stop.
    pub(crate) fn linger(&self, grant: &Grant, until: Moment) -> Moment {
        let mut state = self.state();
        let id = grant.claim.id;
        if !state.grants.contains_key(&id) {
            return Moment::ORIGIN;
        }
        state.early.remove(&(grant.limits.stop_before, id));
        let until = *state.lingering.entry(id).or_insert(until);
        state.timers.insert((until, id));
        until
    }

    /// The keeper is to look at a grant: its loss was told by whoever found its time over.
    pub(crate) fn look_at(&self, id: ClaimId, now: Moment) {
        let mut state = self.state();
        if state.grants.contains_key(&id) {
            state.timers.insert((now, id));
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Grants nothing any more; what it holds, and what is being released.
    pub(crate) fn refuse(&self) -> (Vec<Arc<Grant>>, Vec<Arc<Grant>>) {
        let mut state = self.state();
        state.refusing = true;
        (state.grants.values().cloned().collect(), state.releasing.values().cloned().collect())
    }

    /// Counts a release in that was not a grant's.
    pub(crate) fn owe(&self) {
        self.state().owed += 1;
    }

    /// Hands a counted release to the keeper.
    pub(crate) fn hand_in(&self, owed: Owed) {
        let mut state = self.state();
        if state.ended {
            // Its claims ended with it, or lapse with nobody renewing them.
            state.owed -= 1;
            drop(state);
            drop(owed);
            self.quiet.notify_waiters();
            return;
        }
        state.inbox.push(owed);
        drop(state);
        self.wake.notify_one();
    }

    /// Counts a release out that the store did not answer for long. The gate opens; it is tried again every ttl for as long as
    /// something else keeps the session alive.
    pub(crate) fn give_up(&self, mut owed: Owed) {
        let pass = owed.pass.take();
        (owed.under_way, owed.from) = (None, self.clock.now().plus(self.ttl));
        let mut state = self.state();
        state.owed -= 1;
        if !state.ended {
            state.given_up.push(owed);
        }
        let quiet = state.owed == 0 && state.grants.is_empty();
        drop((state, pass));
        self.wake.notify_one();
        if quiet {
            self.quiet.notify_waiters();
        }
    }

    /// Takes what was given up and is due again into the inbox. Nothing if only that would keep the session alive: it is closed then.
    fn try_again(&self, state: &mut State) {
        if state.grants.is_empty() && state.acquiring == 0 {
            return;
        }
        let now = self.clock.now();
        let due: Vec<_> = state.given_up.extract_if(.., |owed| owed.from <= now).collect();
        state.owed += due.len();
        state.inbox.extend(due);
    }

    /// Counts a release out.
    pub(crate) fn settled(&self, id: ClaimId) {
        let mut state = self.state();
        let released = state.releasing.remove(&id);
        state.owed -= 1;
        let quiet = state.owed == 0 && state.grants.is_empty();
        // The keeper waits for it, or watches it.
        let awaited = state.ending != Ending::Wanted || self.loss.get().is_some();
        let watched = released.is_none_or(|grant| self.clock.now() >= grant.granted_at.plus(Watches::SETTLED_AFTER));
        drop(state);
        if awaited || watched {
            self.wake.notify_one();
        }
        if quiet {
            self.quiet.notify_waiters();
        }
    }

    pub(crate) fn inbox(&self) -> Vec<Owed> {
        let mut state = self.state();
        self.try_again(&mut state);
        std::mem::take(&mut state.inbox)
    }

    pub(crate) fn owes_nothing(&self) -> bool {
        self.state().owed == 0
    }

    pub(crate) fn holds_nothing(&self) -> bool {
        let state = self.state();
        state.owed == 0 && state.grants.is_empty()
    }

    /// When the keeper must look at its grants of its own accord. What it had to look at by now counts as looked at.
    pub(crate) fn next_look(&self) -> Moment {
        let mut state = self.state();
        if state.look_by <= self.clock.now() {
            state.look_by = Moment::FAR_FUTURE;
        }
        let timer = state.timers.first().map_or(Moment::FAR_FUTURE, |(moment, _)| *moment);
        let alive = !state.grants.is_empty() || state.acquiring > 0;
        let again = state.given_up.iter().map(|owed| owed.from).min().filter(|_| alive);
        let timer = timer.min(again.unwrap_or(Moment::FAR_FUTURE)).min(state.look_by);
        match (state.lease.believed_until(), state.early.last()) {
            (Some(until), Some((stop_before, _))) => timer.min(until.minus(*stop_before)),
            _ => timer,
        }
    }

    /// The grants whose time for a look has come; each is returned once for a timer, and again and again while it is early.
    pub(crate) fn due(&self, now: Moment) -> Vec<Arc<Grant>> {
        let mut state = self.state();
        let mut due = Vec::new();
        while let Some((moment, id)) = state.timers.first().copied()
            && moment <= now
        {
            state.timers.pop_first();
            if let Some(grant) = state.grants.get(&id).cloned() {
                if now < grant.limits.hold_until && grant.limits.hold_until != Moment::FAR_FUTURE && !grant.is_told() {
                    state.timers.insert((grant.limits.hold_until, id));
                }
                due.push(grant);
            }
        }
        if let Some(until) = state.lease.believed_until() {
            let early = state.early.iter().rev().take_while(|(stop_before, _)| until.minus(*stop_before) <= now);
            due.extend(early.filter_map(|(_, id)| state.grants.get(id).cloned()));
        }
        due
    }

    /// All grants, for those who tell or look after them.
    pub(crate) fn grants(&self) -> Vec<Arc<Grant>> {
        self.state().grants.values().cloned().collect()
    }

    pub(crate) fn oldest_grant(&self) -> Option<Moment> {
        self.state().grants.values().map(|grant| grant.granted_at).min()
    }

    pub(crate) fn granted(&self) -> Vec<Granted> {
        let state = self.state();
        state.grants.values().map(|grant| Granted { claim: Arc::clone(&grant.claim), token: grant.token }).collect()
    }

    pub(crate) fn grant_of(&self, id: ClaimId) -> Option<Arc<Grant>> {
        self.state().grants.get(&id).cloned()
    }

    /// Whether a claim is held or its release not answered.
    pub(crate) fn still_has(&self, id: ClaimId) -> bool {
        let state = self.state();
        state.grants.contains_key(&id) || state.releasing.contains_key(&id)
    }

    pub(crate) fn held(&self) -> usize {
        self.state().grants.len()
    }
}
