//! One clock for every process of a run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Counts from the beginning of a run; hand it to another process of this machine, and it counts the same there.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Clock {
    origin: Duration,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { origin: monotonic() }
    }

    /// Microseconds since the beginning.
    pub fn now(&self) -> u64 {
        monotonic().saturating_sub(self.origin).as_micros() as u64
    }
}

/// The system's monotonic clock, which all processes share; `Instant` cannot be handed over.
fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
