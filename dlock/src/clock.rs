//! The clock that a backend's deadlines live on, and the one that people read: the one place that reads time.

use std::sync::{Arc, Mutex, PoisonError};
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

/// The time of day, to the second, for people to read; no deadline lives on it.
#[derive(Debug, Default)]
pub(crate) struct WallClock {
    /// The last second that was asked for, since 1970, and how it is spelled: locks that begin in one second share it.
    last: Mutex<Option<(i64, Arc<str>)>>,
}

impl WallClock {
    /// Now, as RFC 3339 has it.
    pub(crate) fn now(&self) -> Arc<str> {
        let now = jiff::Timestamp::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((second, spelled)) = &*last
            && *second == now.as_second()
        {
            return Arc::clone(spelled);
        }
        let spelled: Arc<str> = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        *last = Some((now.as_second(), Arc::clone(&spelled)));
        spelled
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

    #[test]
    fn the_time_of_day_is_spelled_to_the_second_whether_it_was_asked_for_or_not() {
        let clock = WallClock::default();
        let second = || jiff::Timestamp::now().as_second();
        for _ in 0..2 {
            let before = second();
            let spelled = clock.now();
            let read: jiff::Timestamp = spelled.parse().unwrap();
            assert!((before..=second()).contains(&read.as_second()), "{spelled}");
            assert_eq!(spelled.len(), "1970-01-01T00:00:00Z".len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_runtimes_clock_can_be_paused() {
        let clock = Clock::new(ClockSource::Runtime);
        let before = clock.now();
        clock.sleep_until(before.plus(Duration::from_secs(3600))).await;
        assert_eq!(clock.now().saturating_since(before), Duration::from_secs(3600));
    }
}
