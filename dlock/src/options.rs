//! What can be set, with its defaults and what does not go together.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Capabilities, InvalidRetryPolicy, Lease, Limits, Metadata, Mode, ReservedName, RetryPolicy, TtlRange};
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::require::Unmet;

/// What holds for a whole locker.
#[derive(Clone, Debug)]
pub(crate) struct LockerOptions {
    pub(crate) ttl: Duration,
    pub(crate) owner: Arc<str>,
    pub(crate) spawn: Spawn,
}

/// Runs a session's background task; on the runtime of the call that needs it, unless the user runs it.
#[derive(Clone, Default)]
pub(crate) struct Spawn(pub(crate) Option<Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>>);

impl Spawn {
    pub(crate) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.0 {
            Some(spawn) => spawn(Box::pin(task)),
            None => drop(tokio::spawn(task)),
        }
    }
}

impl fmt::Debug for Spawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "by the user" } else { "on the runtime of the call" })
    }
}

/// The default ttl, as in Consul's own tools.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(15);
/// Below this, the margin against clock rate leaves too little of a ttl to work with.
pub(crate) const LEAST_TTL: Duration = Duration::from_millis(200);
/// How long one claim or release may take at least, even if the ttl is tiny.
pub(crate) const LEAST_ATTEMPT: Duration = Duration::from_millis(100);
/// What waiters elsewhere get after this process had its turns in a row.
pub(crate) const HEAD_START: Duration = Duration::from_millis(25);
/// How long a try goes on when the store does not answer, or it is not sent yet.
pub(crate) const TRY_LIMIT: Duration = Duration::from_secs(5);
/// How long a wait goes on before it is reported.
pub(crate) const REPORT_WAITING_AFTER: Duration = Duration::from_secs(10);
/// How long a lock is held before it is reported.
pub(crate) const REPORT_HELD_AFTER: Duration = Duration::from_secs(300);
/// The longest single wait at the store before the claim asks again by itself.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(75);

/// The most that dlock's own entries take besides the owner's name.
const RESERVED_BYTES: usize = 216;

/// What holds for one acquisition.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestOptions {
    pub(crate) mode: Mode,
    pub(crate) wait_at_most: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    pub(crate) metadata: Metadata,
    pub(crate) hold_at_most: Option<Duration>,
    pub(crate) hold_at_least: Duration,
    pub(crate) stop_before: Duration,
    pub(crate) cancel_on: Option<CancellationToken>,
    /// The first mistake made while building, told when the request is awaited.
    pub(crate) mistake: Option<InvalidOptions>,
}

impl RequestOptions {
    /// Returns when the caller's token is cancelled; never without one. Free to drop.
    pub(crate) async fn cancelled(&self) {
        match &self.cancel_on {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn validate(&self, ttl: Duration) -> Result<(), InvalidOptions> {
        if let Some(mistake) = &self.mistake {
            return Err(mistake.clone());
        }
        self.retry.validate()?;
        if self.hold_at_most.is_some_and(|most| most.is_zero()) {
            return Err(InvalidOptions::HoldsNothing);
        }
        if let Some(most) = self.hold_at_most
            && self.hold_at_least > most
        {
            return Err(InvalidOptions::HoldAtLeastAboveMost { least: self.hold_at_least, most });
        }
        // Renewals come every third of the ttl; a stop before the last third would fire although all is well.
        let longest = ttl.saturating_sub(Lease::margin(ttl)) / 2;
        if self.stop_before > longest {
            return Err(InvalidOptions::StopBeforeTooLong { stop_before: self.stop_before, longest, ttl });
        }
        if let Some(most) = self.hold_at_most
            && self.stop_before >= most
        {
            return Err(InvalidOptions::StopBeforeAboveHoldAtMost { stop_before: self.stop_before, most });
        }
        Ok(())
    }
}

/// Checks that the store has room for what a holder publishes, with the entries that dlock adds.
pub(crate) fn validate_metadata(metadata: &Metadata, owner: &str, limits: Limits) -> Result<(), InvalidOptions> {
    let mut json = Count(0);
    let written = serde_json::to_writer(&mut json, metadata).and_then(|()| serde_json::to_writer(&mut json, owner));
    // The names, a timestamp, a claim id, a token, quotes and commas.
    let bytes = written.map_or(usize::MAX, |()| json.0.saturating_add(RESERVED_BYTES));
    if bytes > limits.metadata_bytes {
        return Err(InvalidOptions::MetadataTooLarge { bytes, limit: limits.metadata_bytes });
    }
    Ok(())
}

/// How many bytes were written, and nothing else of them.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn validate_ttl(ttl: Duration, capabilities: &Capabilities) -> Result<(), InvalidOptions> {
    let range = capabilities.ttl;
    if ttl < LEAST_TTL {
        return Err(InvalidOptions::TtlTooShort { ttl });
    }
    if !range.contains(ttl) {
        return Err(InvalidOptions::TtlOutOfRange { ttl, range });
    }
    Ok(())
}

/// Options that cannot be followed; nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidOptions {
    /// The ttl leaves no time to work.
    #[error("a ttl of {ttl:?} is too short to hold a lock reliably; use at least {LEAST_TTL:?}, better 15 s")]
    TtlTooShort {
        /// The refused ttl.
        ttl: Duration,
    },
    /// The store does not accept the ttl.
    #[error(
        "the backend is set up for a ttl from {:?} to {:?}, not {ttl:?}; if your servers accept others, say so in the backend's options",
        .range.min,
        .range.max
    )]
    TtlOutOfRange {
        /// The refused ttl.
        ttl: Duration,
        /// What the store accepts.
        range: TtlRange,
    },
    /// The metadata uses a name of dlock's.
    #[error(transparent)]
    ReservedMetadata(#[from] ReservedName),
    /// The metadata is larger than the store takes.
    #[error("the metadata takes up to {bytes} bytes as JSON with the entries that dlock adds, this store accepts {limit}")]
    MetadataTooLarge {
        /// Its size, with room for what dlock adds.
        bytes: usize,
        /// What the store accepts.
        limit: usize,
    },
    /// The key is longer than the store takes.
    #[error("the key has {bytes} bytes, this store accepts {limit}")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
        /// What the store accepts.
        limit: usize,
    },
    /// The store cannot grant what was asked for.
    #[error("this store does not grant {mode}; choose another store or another mode of it, and say so at start by `require`")]
    NotGranted {
        /// What was asked for.
        mode: Mode,
    },
    /// No key to lock.
    #[error("lock_all needs at least one key")]
    NoKeys,
    /// One of no permits.
    #[error("the number of permits must be at least 1")]
    NoPermits,
    /// The store lacks what the program relies on.
    #[error(transparent)]
    Unmet(#[from] Unmet),
    /// The retry policy contradicts itself.
    #[error(transparent)]
    Retry(#[from] InvalidRetryPolicy),
    /// A lock that may be held for no time.
    #[error("hold_at_most must be longer than zero")]
    HoldsNothing,
    /// The two bounds on holding contradict each other.
    #[error("hold_at_least {least:?} is longer than hold_at_most {most:?}")]
    HoldAtLeastAboveMost {
        /// The lower bound.
        least: Duration,
        /// The upper bound.
        most: Duration,
    },
    /// `stop_before` would fire between two renewals that are in time.
    #[error("stop_before {stop_before:?} is too long for a ttl of {ttl:?}; use at most {longest:?}, or a longer ttl")]
    StopBeforeTooLong {
        /// The refused duration.
        stop_before: Duration,
        /// The longest that fits.
        longest: Duration,
        /// The ttl of the locker.
        ttl: Duration,
    },
    /// Nothing would be left of the time the lock may be held.
    #[error("stop_before {stop_before:?} leaves nothing of hold_at_most {most:?}")]
    StopBeforeAboveHoldAtMost {
        /// The time to stop.
        stop_before: Duration,
        /// The time to hold.
        most: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn a_time_to_stop_that_leaves_nothing_of_the_time_to_hold_is_refused() {
        let (most, stop_before) = (Duration::from_secs(2), Duration::from_secs(2));
        let options = RequestOptions { hold_at_most: Some(most), stop_before, ..RequestOptions::default() };
        assert_eq!(options.validate(TTL), Err(InvalidOptions::StopBeforeAboveHoldAtMost { stop_before, most }));
    }

    #[test]
    fn a_retry_policy_that_contradicts_itself_is_refused_with_what_would_do() {
        let options = RequestOptions { retry: RetryPolicy::default().factor(0), ..RequestOptions::default() };
        let error = options.validate(TTL).unwrap_err();
        assert!(matches!(error, InvalidOptions::Retry(_)) && error.to_string().contains("at least 1"), "{error}");
    }

    #[test]
    fn a_ttl_is_refused_for_what_is_wrong_with_it() {
        let range = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(100) };
        let capabilities = Capabilities::minimal(dlock_core::ClockSource::Runtime, range);
        assert_eq!(validate_ttl(TTL, &capabilities), Ok(()));
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(101));
        assert_eq!(validate_ttl(short, &capabilities), Err(InvalidOptions::TtlTooShort { ttl: short }));
        let error = validate_ttl(long, &capabilities).unwrap_err();
        assert_eq!(error, InvalidOptions::TtlOutOfRange { ttl: long, range });
        assert!(error.to_string().contains("set up for a ttl from"), "{error}");
    }
}
