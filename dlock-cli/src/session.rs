//! What every command that takes a lock has from its beginning to its end.

use std::future::Future;
use std::time::Duration;

use dlock::{Held, Locker, Loss};
use tokio::time::timeout;

use crate::exit::{Exit, Failure};
use crate::output::{Output, note};
use crate::signals::Signals;
use crate::store::Store;

/// How long a store may take to answer at first.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever ends is not kept waiting for a store that does not answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Nor for a reader that does not read.
const SAY_TIMEOUT: Duration = Duration::from_secs(1);

/// A locker on the store, the signals to this process, and where its results go.
#[derive(Debug)]
pub struct Session {
    /// Gives the locks.
    pub locker: Locker,
    /// From now on they do not end the process by themselves.
    pub signals: Signals,
    /// Where results go.
    pub output: Output,
    url: String,
}

impl Session {
    /// Listens for signals, and checks what can be checked here; sends nothing.
    pub fn new(store: &Store, ttl: Option<Duration>, output: Output) -> Result<Self, Failure> {
        let signals = Signals::listen().map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
        let locker = store.locker(ttl)?.build().map_err(|options| Failure::from_error(Exit::USAGE, &options))?;
        Ok(Self { locker, signals, output, url: store.url()?.to_owned() })
    }

    /// Makes sure that the store answers. What to end with, if it does not or a signal came first.
    pub async fn reach(&mut self) -> Option<Result<Exit, Failure>> {
        let ended = tokio::select! {
            biased;
            number = self.signals.end() => Ok(Exit::of_signal(number)),
            ready = self.locker.ready(REACH_TIMEOUT) => match ready {
                Ok(()) => return None,
                Err(error) => {
                    let failure = Failure::from(error);
                    Err(Failure::new(failure.exit, format!("the store at {} is not ready: {failure}", self.url)))
                }
            },
        };
        // A session may be opening.
        self.close().await;
        Some(ended)
    }

    /// Returns when the lock is lost, and why, or when a signal asks to end. `said` is what there is to say of it meanwhile.
    pub async fn stay(&mut self, held: &Held, said: impl Future<Output = Result<(), Failure>>) -> Result<Option<Loss>, Failure> {
        tokio::pin!(said);
        let mut unsaid = true;
        loop {
            tokio::select! {
                biased;
                reason = held.lost() => return Ok(Some(reason)),
                _ = self.signals.end() => return Ok(None),
                outcome = &mut said, if unsaid => {
                    outcome?;
                    unsaid = false;
                }
            }
        }
    }

    /// Waits until this was said, but not for ever.
    pub async fn say_at_last(&self, said: impl Future<Output = Result<(), Failure>>) {
        let _ = timeout(SAY_TIMEOUT, said).await;
    }

    /// Gives back all that is left, and says what could not be.
    pub async fn close(&self) {
        let report = self.locker.shutdown(CLOSE_TIMEOUT).await;
        for left in &report.left {
            let lapses = left.lapses_within.as_secs_f32().ceil();
            note(format_args!("{} could not be given back; it lapses within {lapses} s", left.key));
        }
        if report.left.is_empty() && !report.is_clean() {
            let lapses = self.locker.ttl().as_secs_f32().ceil();
            note(format_args!("the session could not be closed; it lapses within {lapses} s"));
        }
    }
}
