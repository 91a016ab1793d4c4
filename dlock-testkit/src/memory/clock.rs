//! The clock of the store.

use std::time::Duration;

use dlock_core::Moment;
use tokio::time::Instant;

/// The runtime's clock, running fast.
#[derive(Clone, Copy)]
pub(crate) struct StoreClock {
    origin: Instant,
    fast_ppm: u32,
}

impl StoreClock {
    /// A clock that begins now and is faster than the runtime's by so many millionths.
    pub(crate) fn new(fast_ppm: u32) -> Self {
        Self { origin: Instant::now(), fast_ppm }
    }

    pub(crate) fn now(self) -> Moment {
        self.after(Duration::ZERO)
    }

    /// The moment at which so much real time will have passed.
    pub(crate) fn after(self, real: Duration) -> Moment {
        let real = self.origin.elapsed() + real;
        let ahead = if self.fast_ppm == 0 { Duration::ZERO } else { scaled(real, self.fast_ppm, 1_000_000) };
        Moment::from_origin(real + ahead)
    }

    /// The real time in which so much passes at the store.
    pub(crate) fn of_runtime(self, passes: Duration) -> Duration {
        scaled(passes, 1_000_000, 1_000_000 + self.fast_ppm) + Duration::from_nanos(u64::from(self.fast_ppm > 0))
    }
}

fn scaled(duration: Duration, by: u32, of: u32) -> Duration {
    let nanos = duration.as_nanos() * u128::from(by) / u128::from(of);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
