//! What is measured: with `requests.rs` the one place that names the crate `metrics`.
//!
//! Without the feature of that name `off.rs` takes the place of this module: the same names, and nothing behind them. What goes up and down is
//! a value that counts itself out when it is dropped, on the recorder that it was counted in on.

use std::sync::{Mutex, PoisonError};

use dlock_core::{Loss, Mode, Moment};
use metrics::{Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::clock::Clock;
use crate::error::LockError;

mod requests;

pub(crate) use requests::counted;

const WAIT: &str = "dlock_wait_seconds";
const HOLD: &str = "dlock_hold_seconds";
const HELD: &str = "dlock_locks_held";
const LOST: &str = "dlock_locks_lost_total";
const SUSPECT: &str = "dlock_sessions_suspect";
const AT_GATE: &str = "dlock_gate_waiters";
const QUEUED: &str = "dlock_calls_queued";
const REQUESTS: &str = "dlock_requests_total";

/// Tells what everything is, and shows at zero what may stay there for long: who alerts on a change must have seen it before.
///
/// For every locker anew, as nobody hears of it who comes later.
pub(crate) fn describe() {
    describe_histogram!(WAIT, Unit::Seconds, "How long acquisitions took, by what became of them");
    describe_histogram!(HOLD, Unit::Seconds, "How long locks were held, until they were given back or lost");
    describe_gauge!(HELD, Unit::Count, "Locks that this process believes to hold");
    describe_counter!(LOST, Unit::Count, "Locks that ended otherwise than by their guard, by reason");
    describe_gauge!(SUSPECT, Unit::Count, "Sessions whose renewal is late");
    describe_gauge!(AT_GATE, Unit::Count, "Acquisitions that wait for another of this process");
    describe_gauge!(
        QUEUED,
        Unit::Count,
        "Calls that claim, confirm or release and are not sent yet, as many are in flight as may be"
    );
    describe_counter!(REQUESTS, Unit::Count, "Requests to the store, by kind and outcome");
    for mode in MODES {
        gauge!(HELD, "mode" => mode).increment(0.0);
    }
    for reason in Loss::ALL.iter().filter(|loss| **loss != Loss::Released) {
        counter!(LOST, "reason" => reason_word(*reason)).increment(0);
    }
    gauge!(SUSPECT).increment(0.0);
    gauge!(AT_GATE).increment(0.0);
    gauge!(QUEUED).increment(0.0);
}

/// One acquisition; abandoned when it is dropped before its [end](Self::end).
pub(crate) struct Wait {
    clock: Clock,
    since: Moment,
    mode: &'static str,
    outcome: &'static str,
}

impl Wait {
    pub(crate) fn begin(clock: Clock, mode: Mode) -> Self {
        Self { clock, since: clock.now(), mode: mode_word(mode), outcome: "abandoned" }
    }

    /// Whether it was acquired, or why not.
    pub(crate) fn end(mut self, acquired: Result<bool, &LockError>) {
        self.outcome = match acquired {
            Ok(true) => "acquired",
            Ok(false) => "busy",
            Err(LockError::TimedOut { .. }) => "timed_out",
            Err(LockError::Cancelled { .. }) => "cancelled",
            Err(LockError::ShutDown) => "shut_down",
            Err(LockError::NoSession { .. } | LockError::Store { .. } | LockError::Key(_) | LockError::Options(_)) => "failed",
        };
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let waited = self.clock.now().saturating_since(self.since);
        histogram!(WAIT, "mode" => self.mode, "outcome" => self.outcome).record(waited);
    }
}

/// A lock that is held, until its [end](Self::end) at the latest until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold(Mutex<Option<Holding>>);

#[derive(Debug)]
struct Holding {
    clock: Clock,
    since: Moment,
    mode: &'static str,
    _held: OneMore,
}

impl Hold {
    pub(crate) fn begin(clock: Clock, since: Moment, mode: Mode) -> Self {
        let mode = mode_word(mode);
        Self(Mutex::new(Some(Holding { clock, since, mode, _held: OneMore::new(gauge!(HELD, "mode" => mode)) })))
    }

    /// It is given back, or lost for this reason.
    pub(crate) fn end(&self, loss: Loss) {
        if loss != Loss::Released {
            counter!(LOST, "reason" => reason_word(loss)).increment(1);
        }
        let holding = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(holding);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let held = self.clock.now().saturating_since(self.since);
        histogram!(HOLD, "mode" => self.mode).record(held);
    }
}

/// Whether a session is suspect; not any more when it is dropped.
#[derive(Debug)]
pub(crate) struct Suspect(Option<OneMore>);

impl Suspect {
    /// Not yet.
    pub(crate) fn new() -> Self {
        Self(None)
    }

    pub(crate) fn tell(&mut self, suspect: bool) {
        if suspect != self.0.is_some() {
            self.0 = suspect.then(|| OneMore::new(gauge!(SUSPECT)));
        }
    }
}

/// An acquisition that waits at the gate of its key, until it is dropped.
pub(crate) struct AtGate {
    _waiting: OneMore,
}

impl AtGate {
    pub(crate) fn begin() -> Self {
        Self { _waiting: OneMore::new(gauge!(AT_GATE)) }
    }
}

/// A call that is not sent yet, until it is dropped.
pub(crate) struct InQueue {
    _queued: OneMore,
}

impl InQueue {
    pub(crate) fn begin() -> Self {
        Self { _queued: OneMore::new(gauge!(QUEUED)) }
    }
}

/// One more in a gauge, until it is dropped.
#[derive(Debug)]
struct OneMore(Gauge);

impl OneMore {
    fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

const MODES: [&str; 3] = ["exclusive", "shared", "permits"];
/// What has no word here yet.
const OTHER: &str = "other";

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        // Without their number: whoever chooses it would choose how many series there are.
        Mode::Permits(_) => "permits",
        _ => OTHER,
    }
}

fn reason_word(loss: Loss) -> &'static str {
    match loss {
        Loss::Expired => "expired",
        Loss::SessionGone => "session_gone",
        Loss::KeyDeleted => "key_deleted",
        Loss::TakenOver => "taken_over",
        Loss::HeldTooLong => "held_too_long",
        Loss::Shutdown => "shutdown",
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn every_reason_and_every_mode_has_a_word_of_its_own() {
        let reasons: BTreeSet<_> = Loss::ALL.iter().map(|loss| reason_word(*loss)).collect();
        assert_eq!(reasons.len(), Loss::ALL.len(), "only what is no loss has none: {reasons:?}");
        assert_eq!(reason_word(Loss::Released), OTHER);
        let permits = NonZeroU32::new(3).unwrap();
        assert_eq!([Mode::Exclusive, Mode::Shared, Mode::Permits(permits)].map(mode_word), MODES);
    }
}
