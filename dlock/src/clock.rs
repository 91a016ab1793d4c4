//! The clock that a backend's deadlines live on: the one place that reads time.

use std::time::Duration;

use dlock_core::{ClockSource, Moment};
use tokio::time::Instant;

/// Reads moments and waits for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    source: ClockSource,
    origin: Instant,
}

impl Clock {
    /// How often a deadline on boot time is looked at, since the runtime's timers stand still while the machine sleeps.
    const LOOK: Duration = Duration::from_secs(1);

    pub(crate) fn new(source: ClockSource) -> Self {
        Self { source, origin: Instant::now() }
    }

    pub(crate) fn now(&self) -> Moment {
        if self.source == ClockSource::Boot
            && let Some(since_boot) = since_boot()
        {
            return Moment::from_origin(since_boot);
        }
        Moment::from_origin(self.origin.elapsed())
    }

    /// Returns once the moment has come; on boot time at the latest a second after the machine resumed.
    pub(crate) async fn sleep_until(&self, moment: Moment) {
        if moment == Moment::FAR_FUTURE {
            return std::future::pending().await;
        }
        loop {
            let left = moment.saturating_since(self.now());
            if left.is_zero() {
                return;
            }
            let nap = if self.source == ClockSource::Boot { left.min(Self::LOOK) } else { left };
            tokio::time::sleep(nap).await;
        }
    }

    /// A moment that has passed, on the runtime's clock.
    pub(crate) fn to_past_instant(self, moment: Moment) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.now().saturating_since(moment)).unwrap_or(now)
    }

    /// The same moment on the runtime's clock, as of now.
    pub(crate) fn to_instant(self, moment: Moment) -> Instant {
        let now = Instant::now();
        now.checked_add(moment.saturating_since(self.now())).unwrap_or(now)
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "fuchsia"))]
fn since_boot() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// Elsewhere the runtime's clock serves; whether it counts suspended time is the system's choice.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "fuchsia")))]
fn since_boot() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_moves_forward_and_is_not_the_runtimes() {
        let clock = Clock::new(ClockSource::Boot);
        let first = clock.now();
        assert!(clock.now() >= first);
        assert_eq!(since_boot().is_some(), first.since_origin() > Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn the_runtimes_clock_can_be_paused() {
        let clock = Clock::new(ClockSource::Runtime);
        let before = clock.now();
        clock.sleep_until(before.plus(Duration::from_secs(3600))).await;
        assert_eq!(clock.now().saturating_since(before), Duration::from_secs(3600));
    }
}
