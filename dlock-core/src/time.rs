//! Time as an argument: core reads no clock.

use std::fmt;
use std::time::Duration;

/// A point on a clock that only moves forward, in nanoseconds since an origin that the clock chose.
///
/// Moments of different clocks, or of one clock before and after a reboot, must not be compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The origin of the clock.
    pub const ORIGIN: Self = Self(0);
    /// Later than anything that happens.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The moment that lies this long after the origin.
    pub const fn from_origin(elapsed: Duration) -> Self {
        Self(saturating_nanos(elapsed))
    }

    /// How long after the origin this moment lies.
    pub const fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// How long after `earlier` this moment lies; zero if it lies before.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved later, at most to the far future.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(by)))
    }

    /// This moment moved earlier, at most to the origin.
    #[must_use]
    pub const fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(by)))
    }
}

const fn saturating_nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::FAR_FUTURE {
            return f.write_str("never");
        }
        write!(f, "+{:?}", self.since_origin())
    }
}

/// Which clock the deadlines of a backend live on.
///
/// The clock is a property of the store: a store in memory lives on the runtime's clock, so that a paused test pauses belief too;
/// a real store goes on while this machine sleeps, so its deadlines must count suspended time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClockSource {
    /// The clock of the async runtime; stands still when a test pauses it.
    Runtime,
    /// Time since boot with suspended time included, where the system has such a clock.
    Boot,
}

/// A random draw, as an argument: a fraction of one in steps of 2^-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chance(pub u32);

impl Chance {
    /// The draw in the middle, for callers that want no randomness.
    pub const MIDDLE: Self = Self(u32::MAX / 2);

    /// This fraction of `whole`.
    pub fn of(self, whole: Duration) -> Duration {
        let nanos = whole.as_nanos() * u128::from(self.0) / u128::from(u32::MAX);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn moments_move_by_durations_and_are_told_apart_by_them() {
        let moment = Moment::from_origin(3 * SECOND);
        assert_eq!(moment.plus(SECOND).since_origin(), 4 * SECOND);
        assert_eq!(moment.minus(SECOND).since_origin(), 2 * SECOND);
        assert_eq!(moment.saturating_since(Moment::from_origin(SECOND)), 2 * SECOND);
    }

    #[test]
    fn moments_stay_between_the_origin_and_the_far_future() {
        let longer = Duration::from_nanos(u64::MAX) + Duration::from_nanos(1);
        assert_eq!(Moment::from_origin(longer), Moment::FAR_FUTURE);
        assert_eq!(Moment::from_origin(SECOND).plus(longer), Moment::FAR_FUTURE);
        assert_eq!(Moment::from_origin(SECOND).minus(longer), Moment::ORIGIN);
        assert_eq!(Moment::ORIGIN.saturating_since(Moment::from_origin(SECOND)), Duration::ZERO);
    }

    #[test]
    fn a_moment_shows_how_long_after_the_origin_it_lies() {
        assert_eq!(format!("{:?} {:?}", Moment::from_origin(SECOND), Moment::FAR_FUTURE), "+1s never");
    }

    #[test]
    fn a_chance_is_a_fraction_of_the_whole() {
        assert_eq!(Chance(0).of(SECOND), Duration::ZERO);
        assert_eq!(Chance(u32::MAX).of(SECOND), SECOND);
        assert_eq!(Chance::MIDDLE.of(SECOND).as_millis(), 499);
        assert_eq!(Chance(u32::MAX).of(Duration::MAX), Duration::from_nanos(u64::MAX));
    }
}
