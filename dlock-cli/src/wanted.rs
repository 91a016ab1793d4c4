//! The lock that a command line asks for.

use std::time::Duration;

use dlock::{LockError, LockGuard, Locker, Requirement};
use tokio::time::Instant;

use crate::args::Lock;
use crate::exit::{Exit, Failure};
use crate::signals::Signals;
use crate::speak::note;
use crate::waiting::{Waited, told};

/// What became of asking for it.
#[derive(Debug)]
pub enum Asked {
    /// It is held.
    Held(LockGuard),
    /// A signal came first; nothing is left at the store but what was said.
    Signalled(i32),
}

macro_rules! with_options {
    ($request:expr, $lock:expr, $stop_before:expr) => {{
        let mut request = $request.stop_before($stop_before);
        for (name, value) in &$lock.metadata {
            request = request.metadata(name, value);
        }
        if let Some(most) = $lock.hold_at_most {
            request = request.hold_at_most(most);
        }
        request
    }};
}

/// Refuses what contradicts itself or the store, before anything is sent.
pub fn check(lock: &Lock, locker: &Locker) -> Result<(), Failure> {
    if let (Some(least), Some(most)) = (lock.hold_at_least, lock.hold_at_most)
        && least > most
    {
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        return Err(Failure::new(Exit::USAGE, format!("--hold-at-least {least} is longer than --hold-at-most {most}")));
    }
    dlock::Key::new(&lock.key).map_err(|error| Failure::from_error(Exit::USAGE, &error))?;
    let needed = [lock.shared.then_some(Requirement::Shared), lock.permits.map(|_| Requirement::Permits)];
    locker.require(needed.into_iter().flatten()).map_err(|unmet| Failure::from_error(Exit::CONFIGURATION, &unmet))
}

/// Asks for the lock as the command line says, and tells who has it meanwhile. The loss is told `stop_before` the deadline.
pub async fn ask(
    lock: &Lock,
    stop_before: Duration,
    locker: &Locker,
    quiet: bool,
    signals: &mut Signals,
) -> Result<Asked, Failure> {
    let key = &lock.key;
    let tries = lock.try_once || lock.wait.is_some_and(|most| most.is_zero());
    let acquired = async {
        if tries {
            let request = match lock.permits {
                Some(all) => locker.try_permits(key, all),
                None if lock.shared => locker.try_shared(key),
                None => locker.try_lock(key),
            };
            return with_options!(request, lock, stop_before).await;
        }
        let request = match lock.permits {
            Some(all) => locker.permits(key, all),
            None if lock.shared => locker.shared(key),
            None => locker.lock(key),
        };
        let request = with_options!(request, lock, stop_before);
        match lock.wait {
            Some(most) => request.wait_at_most(most).await.map(Some),
            None => request.await.map(Some),
        }
    };
    match told(acquired, locker, key, quiet, signals).await {
        Waited::Done(Ok(Some(guard))) => Ok(Asked::Held(guard)),
        Waited::Done(Ok(None)) => Err(busy(locker, key).await),
        Waited::Done(Err(error @ LockError::TimedOut { .. })) if tries => {
            // A try that was not answered says nothing of a holder.
            Err(Failure::from_error(Exit::UNREACHABLE, &error))
        }
        Waited::Done(Err(error @ LockError::TimedOut { .. })) => {
            let failure = Failure::from(error);
            if failure.exit != Exit::BUSY {
                return Err(failure);
            }
            let waited = humantime::format_duration(lock.wait.unwrap_or_default());
            Err(Failure::new(Exit::BUSY, format!("{} after waiting for {waited}", busy(locker, key).await)))
        }
        Waited::Done(Err(error)) => Err(error.into()),
        Waited::Signalled(number) => Ok(Asked::Signalled(number)),
    }
}

/// That another holds it, and who.
async fn busy(locker: &Locker, key: &str) -> Failure {
    let holder = locker.inspect(key).await.ok().and_then(|seen| seen.holders.first().map(crate::holder::Person::of));
    let by = holder.map_or(String::new(), |holder| format!(" by {}", crate::speak::harmless(&holder.name())));
    Failure::new(Exit::BUSY, format!("{key} is held{by}"))
}

/// Gives back all that is left, and says what could not be.
pub async fn leave(locker: &Locker) {
    /// Whoever ends is not kept waiting for a store that does not answer.
    const PATIENCE: Duration = Duration::from_secs(3);
    let report = locker.shutdown(PATIENCE).await;
    for left in &report.left {
        note(format_args!("{} could not be given back; it lapses within {} s", left.key, left.lapses_within.as_secs_f32().ceil()));
    }
    if report.left.is_empty() && !report.is_clean() {
        note(format_args!("the session could not be closed; it lapses within {} s", locker.ttl().as_secs_f32().ceil()));
    }
}

/// Opens the locker's session, so that a store that is out of reach is told at once. What to end with, if it is not reached or a signal came first.
pub async fn reach(locker: &Locker, url: &str, signals: &mut Signals) -> Option<Result<Exit, Failure>> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let ended = tokio::select! {
        biased;
        number = signals.end() => Ok(Exit::of_signal(number)),
        ready = locker.ready(PATIENCE) => match ready {
            Ok(()) => return None,
            Err(error) => {
                let failure = Failure::from(error);
                Err(Failure::new(failure.exit, format!("the store at {url} is not ready: {failure}")))
            }
        },
    };
    // A session may be opening.
    leave(locker).await;
    Some(ended)
}

/// Keeps a lock until it was held for `least`. Whether a signal asked to end first.
pub async fn keep(guard: &LockGuard, since: Instant, least: Duration, quiet: bool, signals: &mut Signals) -> bool {
    let left = least.saturating_sub(since.elapsed());
    if left.is_zero() {
        return false;
    }
    if !quiet {
        let left = humantime::format_duration(Duration::from_secs(left.as_secs() + 1));
        note(format_args!("{} stays locked for another {left}; Ctrl-C or TERM gives it back now", guard.key()));
    }
    tokio::select! {
        biased;
        _ = guard.lost() => false,
        _ = signals.end() => true,
        () = tokio::time::sleep(left) => false,
    }
}
