//! One lock that this process holds, as the guard, its witnesses and the keeper share it.

use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{Claim, FencingToken, Loss, Metadata, Mode, Moment};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::gate::Pass;
use crate::measure::Hold;
use crate::session::{Owed, Session};

/// A granted claim and what is believed of it.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) claim: Arc<Claim>,
    /// The number of the grant; a token to fence with only where the claim is exclusive.
    pub(crate) token: FencingToken,
    pub(crate) session: Arc<Session>,
    pub(crate) granted_at: Moment,
    pub(crate) limits: HoldLimits,
    /// A copy of the claim was never answered.
    unanswered: bool,
    loss: AtomicU8,
    lost: Notify,
    cancellation: OnceLock<CancellationToken>,
    /// Where several locks are held together: what the loss of any cancels.
    together: OnceLock<CancellationToken>,
    /// In a box of its own, since few are amended and many may be held.
    amendment: OnceLock<Box<Amendment>>,
    pass: Mutex<Option<Pass>>,
    hold: Hold,
}

/// What a holder published since its claim.
#[derive(Debug)]
pub(crate) struct Amendment {
    /// The last that the store answered, in place of what the claim says.
    published: Mutex<Option<Arc<Metadata>>>,
    /// Whoever amends: one after the other.
    pub(crate) turn: Semaphore,
}

/// The bounds on how long one lock is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldLimits {
    pub(crate) stop_before: Duration,
    /// Belief ends here whatever the session says.
    pub(crate) hold_until: Moment,
    /// The lock is not given back before.
    pub(crate) release_from: Moment,
    /// A lock held until here is reported.
    pub(crate) report_at: Moment,
}

impl Grant {
    pub(crate) fn new(
        claim: Arc<Claim>,
        token: FencingToken,
        session: Arc<Session>,
        granted_at: Moment,
        limits: HoldLimits,
        unanswered: bool,
        pass: Option<Pass>,
    ) -> Self {
        let hold = Hold::begin(session.clock(), granted_at, claim.mode);
        Self {
            claim,
            token,
            session,
            granted_at,
            limits,
            unanswered,
            loss: AtomicU8::new(0),
            lost: Notify::new(),
            cancellation: OnceLock::new(),
            together: OnceLock::new(),
            amendment: OnceLock::new(),
            pass: Mutex::new(pass),
            hold,
        }
    }

    /// What a resource can be fenced with; none where no order separates the holders.
    pub(crate) fn fencing_token(&self) -> Option<FencingToken> {
        (self.claim.mode == Mode::Exclusive).then_some(self.token)
    }

    /// What the user published last, as far as the store answered.
    pub(crate) fn metadata(&self) -> Option<Arc<Metadata>> {
        let published = self.amendment.get().and_then(|amendment| amendment.published().clone());
        published.or_else(|| self.claim.metadata.clone())
    }

    /// The store answered that others read this from now on.
    pub(crate) fn amended(&self, metadata: Arc<Metadata>) {
        *self.amendment().published() = Some(metadata);
    }

    pub(crate) fn amendment(&self) -> &Amendment {
        self.amendment.get_or_init(|| Box::new(Amendment { published: Mutex::new(None), turn: Semaphore::const_new(1) }))
    }

    /// What is owed to the store for this grant, once it was [taken](Session::take) out of its session.
    pub(crate) fn owed(&self) -> Owed {
        let pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner).take();
        #[cfg(dlock_planted)]
        let pass = pass.filter(|_| !Bug::GateOpenedBeforeRelease.is_on());
        // Not a loss, so nobody is told; but a witness that outlives its guard must not go on believing.
        if self.loss.compare_exchange(0, code(Loss::Released), Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // Work that is guarded by such a witness is to be dropped now.
            self.lost.notify_waiters();
            self.hold.end(Loss::Released);
        }
        let claim = Arc::clone(&self.claim);
        Owed { claim, pass, under_way: None, from: self.limits.release_from, unanswered: self.unanswered }
    }

    /// Until when the lock is surely held, as far as is known now.
    pub(crate) fn valid_until(&self) -> Moment {
        self.session.believed_until().minus(self.limits.stop_before).min(self.limits.hold_until)
    }

    /// Until when a grant that is told of this loss now stays at the store, so that what runs under it has the time to stop that it
    /// asked for; `None` when it is to be given back at once.
    pub(crate) fn stops_until(&self, loss: Loss, now: Moment) -> Option<Moment> {
        let end = self.limits.hold_until.plus(self.limits.stop_before);
        let until = match loss {
            Loss::Expired if !self.limits.stop_before.is_zero() => self.session.believed_until(),
            Loss::HeldTooLong if !self.limits.stop_before.is_zero() => end,
            // Its guard lives: what runs under it goes on until it is let go.
            Loss::Shutdown => end,
            _ => return None,
        };
        (now < until).then_some(until)
    }

    /// Whether its loss was told.
    pub(crate) fn is_told(&self) -> bool {
        self.told().is_some()
    }

    /// Why the lock is not held at this moment, if it is not. Looks at the deadline, not only at what was told.
    pub(crate) fn loss(&self, now: Moment) -> Option<Loss> {
        if let Some(loss) = self.told() {
            return Some(loss);
        }
        if now < self.valid_until() {
            return None;
        }
        let loss = if now >= self.limits.hold_until { Loss::HeldTooLong } else { self.session.loss().unwrap_or(Loss::Expired) };
        self.lose(loss);
        // Belief may move on by a renewal under way; what was told is given back all the same.
        self.session.look_at(self.claim.id, now);
        self.told()
    }

    /// Ends belief for good and tells everyone; the first reason stays.
    pub(crate) fn lose(&self, loss: Loss) {
        if self.loss.compare_exchange(0, code(loss), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let (key, token, owner) = (&self.claim.key, self.token, &self.claim.owner);
        match loss {
            Loss::Shutdown | Loss::HeldTooLong => tracing::info!(%key, %token, %owner, reason = %loss, "lock ended"),
            _ => tracing::warn!(%key, %token, %owner, reason = %loss, "lock lost"),
        }
        self.lost.notify_waiters();
        // Either we see the token, or who makes it sees the loss.
        fence(Ordering::SeqCst);
        [&self.cancellation, &self.together].into_iter().filter_map(OnceLock::get).for_each(CancellationToken::cancel);
        // Last, since a recorder is the user's code: nobody hears later of a loss because it is counted.
        self.hold.end(loss);
    }

    /// Returns when the lock is lost, at once if it already is. Does not depend on the keeper: the deadline fires by itself.
    pub(crate) async fn lost(&self) -> Loss {
        self.session.ensure_kept();
        loop {
            let told = self.lost.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let clock = self.session.clock();
            match self.loss(clock.now()) {
                Some(Loss::Released) => std::future::pending().await,
                Some(loss) => return loss,
                None => {}
            }
            tokio::select! {
                biased;
                () = told => {}
                () = clock.sleep_until(self.valid_until()) => {}
            }
        }
    }

    /// Its loss cancels this token, which is that of all the locks that are held together with it.
    pub(crate) fn cancels(&self, token: &CancellationToken) {
        self.session.ensure_kept();
        self.together.get_or_init(|| token.clone());
        fence(Ordering::SeqCst);
        if self.told().is_some_and(|loss| loss != Loss::Released) {
            token.cancel();
        }
    }

    pub(crate) fn cancellation(&self) -> CancellationToken {
        self.session.ensure_kept();
        let token = self.cancellation.get_or_init(CancellationToken::new).clone();
        fence(Ordering::SeqCst);
        if self.told().is_some_and(|loss| loss != Loss::Released) {
            token.cancel();
        }
        token
    }

    fn told(&self) -> Option<Loss> {
        reason(self.loss.load(Ordering::Acquire))
    }
}

impl Amendment {
    fn published(&self) -> MutexGuard<'_, Option<Arc<Metadata>>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn code(loss: Loss) -> u8 {
    // Zero is no loss. A reason that is not in the list would be told as the most general one, which is the first.
    Loss::ALL.iter().position(|reason| *reason == loss).map_or(1, |position| position as u8 + 1)
}

fn reason(code: u8) -> Option<Loss> {
    Loss::ALL.get(usize::from(code).checked_sub(1)?).copied()
}
