//! The lock that a command line asks for.

use std::time::Duration;

use dlock::{LockError, LockGuard, Locker, Requirement};
use tokio::time::Instant;

use crate::args::Lock;
use crate::contender::Contender;
use crate::exit::{Exit, Failure};
use crate::output::harmless;
use crate::session::Session;
use crate::waiting::{Waited, announce};

/// What became of asking for it.
#[derive(Debug)]
pub enum Acquired {
    /// It is held.
    Held(LockGuard),
    /// A signal came first; nothing is left at the store but what was said.
    Interrupted(i32),
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
pub async fn acquire(lock: &Lock, stop_before: Duration, session: &mut Session) -> Result<Acquired, Failure> {
    let locker = session.locker.clone();
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
    match announce(acquired, key, session).await {
        Waited::Done(Ok(Some(guard))) => Ok(Acquired::Held(guard)),
        Waited::Done(Ok(None)) => Err(busy(&locker, key).await),
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
            Err(Failure::new(Exit::BUSY, format!("{} after waiting for {waited}", busy(&locker, key).await)))
        }
        Waited::Done(Err(error)) => Err(error.into()),
        Waited::Interrupted(number) => Ok(Acquired::Interrupted(number)),
    }
}

/// That another holds it, and who.
async fn busy(locker: &Locker, key: &str) -> Failure {
    let holder = locker.inspect(key).await.ok().and_then(|seen| seen.holders.first().map(Contender::of));
    let by = holder.map_or(String::new(), |holder| format!(" by {}", harmless(&holder.name())));
    Failure::new(Exit::BUSY, format!("{key} is held{by}"))
}

/// Keeps a lock until it was held for `least`. Whether a signal asked to end first.
pub async fn keep(guard: &LockGuard, since: Instant, least: Duration, session: &mut Session) -> bool {
    let left = least.saturating_sub(since.elapsed());
    if left.is_zero() {
        return false;
    }
    let whole = humantime::format_duration(Duration::from_secs(left.as_secs() + 1));
    session.output.note(format_args!("{} stays locked for another {whole}; Ctrl-C or TERM gives it back now", guard.key()));
    tokio::select! {
        biased;
        _ = guard.lost() => false,
        _ = session.signals.end() => true,
        () = tokio::time::sleep(left) => false,
    }
}
