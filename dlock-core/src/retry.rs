//! How long to pause between attempts.

use std::time::Duration;

use thiserror::Error;

use crate::Chance;

/// Pauses between attempts, as plain data: exponential, with jitter, up to a greatest pause.
///
/// How long to go on in all is not said here: that is the acquisition's deadline. The fixed `LockRetryInterval` of Go's
/// `sameervitian/dlock` is [`RetryPolicy::fixed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    first: Duration,
    max: Duration,
    factor: u32,
    jitter_percent: u32,
    attempts: Option<u32>,
}

impl RetryPolicy {
    /// The default first pause.
    pub const FIRST: Duration = Duration::from_millis(50);
    /// The default greatest pause.
    pub const MAX: Duration = Duration::from_secs(2);
    /// The default factor from one pause to the next.
    pub const FACTOR: u32 = 2;
    /// The default part of a pause that is drawn at random, in percent.
    pub const JITTER_PERCENT: u32 = 50;

    /// The same pause each time, without jitter.
    pub const fn fixed(pause: Duration) -> Self {
        Self { first: pause, max: pause, factor: 1, jitter_percent: 0, attempts: None }
    }

    /// The pause after the first failure. Defaults to 50 ms.
    #[must_use]
    pub const fn first(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// The greatest pause. Defaults to 2 s.
    #[must_use]
    pub const fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// What each pause is multiplied with to give the next. Defaults to 2.
    #[must_use]
    pub const fn factor(mut self, factor: u32) -> Self {
        self.factor = factor;
        self
    }

    /// The part of each pause that is drawn at random, in percent. Defaults to 50.
    #[must_use]
    pub const fn jitter_percent(mut self, percent: u32) -> Self {
        self.jitter_percent = percent;
        self
    }

    /// Gives up after so many failed attempts in a row. Defaults to no limit.
    ///
    /// Finding the lock held by another is no failed attempt.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Checks that the numbers make sense together.
    pub fn validate(&self) -> Result<(), InvalidRetryPolicy> {
        if self.first.is_zero() {
            return Err(InvalidRetryPolicy::NoPause);
        }
        if self.max < self.first {
            return Err(InvalidRetryPolicy::MaxBelowFirst { first: self.first, max: self.max });
        }
        if self.factor == 0 {
            return Err(InvalidRetryPolicy::NoFactor);
        }
        if self.jitter_percent > 100 {
            return Err(InvalidRetryPolicy::TooMuchJitter { percent: self.jitter_percent });
        }
        if self.attempts == Some(0) {
            return Err(InvalidRetryPolicy::NoAttempts);
        }
        Ok(())
    }

    /// The pause after `failures` failures in a row; `None` when it is time to give up.
    pub fn pause(&self, failures: u32, chance: Chance) -> Option<Duration> {
        if self.attempts.is_some_and(|attempts| failures >= attempts) {
            return None;
        }
        let growth = self.factor.max(1).saturating_pow(failures.saturating_sub(1));
        let full = self.first.saturating_mul(growth).min(self.max).max(Duration::from_millis(1));
        let drawn = full / 100 * self.jitter_percent.min(100);
        Some(full.saturating_sub(chance.of(drawn)))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { first: Self::FIRST, max: Self::MAX, factor: Self::FACTOR, jitter_percent: Self::JITTER_PERCENT, attempts: None }
    }
}

/// Why a [`RetryPolicy`] cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidRetryPolicy {
    /// A pause of nothing would flood the store.
    #[error("the first pause between attempts must be longer than zero")]
    NoPause,
    /// The greatest pause is less than the first.
    #[error("the greatest pause {max:?} is below the first {first:?}")]
    MaxBelowFirst {
        /// The first pause.
        first: Duration,
        /// The greatest pause.
        max: Duration,
    },
    /// A factor of nothing.
    #[error("the factor between pauses must be at least 1")]
    NoFactor,
    /// More than the whole pause drawn at random.
    #[error("jitter of {percent} % is more than the whole pause; use 0 to 100")]
    TooMuchJitter {
        /// The refused number.
        percent: u32,
    },
    /// No attempt at all.
    #[error("at least one attempt is needed")]
    NoAttempts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_greatest_and_stay() {
        let policy = RetryPolicy::default().jitter_percent(0);
        let pauses: Vec<_> = (1..=8).map(|n| policy.pause(n, Chance::MIDDLE).unwrap().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn jitter_takes_off_at_most_its_part() {
        let policy = RetryPolicy::fixed(Duration::from_secs(1)).jitter_percent(50);
        assert_eq!(policy.pause(1, Chance(0)), Some(Duration::from_secs(1)));
        assert_eq!(policy.pause(1, Chance(u32::MAX)), Some(Duration::from_millis(500)));
    }

    #[test]
    fn attempts_are_counted() {
        let policy = RetryPolicy::default().attempts(2);
        assert!(policy.pause(1, Chance::MIDDLE).is_some());
        assert_eq!(policy.pause(2, Chance::MIDDLE), None);
    }

    #[test]
    fn senseless_policies_are_named() {
        let ok = RetryPolicy::default();
        assert_eq!(ok.validate(), Ok(()));
        assert_eq!(ok.first(Duration::ZERO).validate(), Err(InvalidRetryPolicy::NoPause));
        assert!(matches!(ok.max(Duration::from_millis(1)).validate(), Err(InvalidRetryPolicy::MaxBelowFirst { .. })));
        assert_eq!(ok.factor(0).validate(), Err(InvalidRetryPolicy::NoFactor));
        assert_eq!(ok.jitter_percent(101).validate(), Err(InvalidRetryPolicy::TooMuchJitter { percent: 101 }));
        assert_eq!(ok.attempts(0).validate(), Err(InvalidRetryPolicy::NoAttempts));
    }

    #[test]
    fn policies_at_the_limits_make_sense() {
        let ok = RetryPolicy::default();
        assert_eq!(ok.max(RetryPolicy::FIRST).validate(), Ok(()));
        assert_eq!(ok.factor(1).jitter_percent(100).attempts(1).validate(), Ok(()));
        assert_eq!(RetryPolicy::fixed(Duration::from_millis(1)).validate(), Ok(()));
    }

    #[test]
    fn what_is_set_is_followed() {
        let policy = RetryPolicy::default().first(Duration::from_secs(1)).factor(3).max(Duration::from_secs(8)).jitter_percent(10);
        let pauses: Vec<_> = (1..=3).map(|n| policy.pause(n, Chance(u32::MAX)).unwrap().as_millis()).collect();
        assert_eq!(pauses, [900, 2_700, 7_200]);
    }
}
