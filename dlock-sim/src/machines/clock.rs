//! A client's clock: it starts anywhere and runs slower than true time.

use dlock_core::Moment;

/// Turns true time, in nanoseconds since the beginning, into what a client reads, and back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    origin: u64,
    slower_ppm: u64,
}

const MILLION: u64 = 1_000_000;

impl Clock {
    /// A clock that shows `origin` at the beginning and loses so many millionths of true time.
    pub(super) fn new(origin: u64, slower_ppm: u64) -> Self {
        Self { origin, slower_ppm: slower_ppm.min(MILLION / 2) }
    }

    fn nanos(self, truth: u64) -> u64 {
        // In two parts, so that days of nanoseconds do not overflow.
        let lost = truth / MILLION * self.slower_ppm + (truth % MILLION) * self.slower_ppm / MILLION;
        self.origin + truth - lost
    }

    /// What it shows at a true time.
    pub(super) fn at(self, truth: u64) -> Moment {
        Moment::from_origin(std::time::Duration::from_nanos(self.nanos(truth)))
    }

    /// The first true time at which it shows that moment; `None` for the far future.
    pub(super) fn truth(self, moment: Moment) -> Option<u64> {
        if moment == Moment::FAR_FUTURE {
            return None;
        }
        let shown = moment.since_origin().as_nanos() as u64;
        let passed = shown.saturating_sub(self.origin);
        let rate = MILLION - self.slower_ppm;
        let mut truth = passed / rate * MILLION + (passed % rate) * MILLION / rate;
        while self.nanos(truth) < shown {
            truth += 1;
        }
        Some(truth)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slow_clock_shows_less_and_is_read_back_to_the_nanosecond() {
        let clock = Clock::new(7_000, 45_000);
        assert_eq!(clock.at(0), Moment::from_origin(Duration::from_micros(7)));
        let second = Duration::from_secs(1).as_nanos() as u64;
        assert_eq!(clock.at(second).saturating_since(clock.at(0)), Duration::from_millis(955));
        for shown in [7_000, 7_001, 12_345_678_901, 99_000_000_000_123] {
            let moment = Moment::from_origin(Duration::from_nanos(shown));
            let truth = clock.truth(moment).unwrap();
            assert!(clock.at(truth) >= moment);
            assert!(truth == 0 || clock.at(truth - 1) < moment, "{truth} is not the first");
        }
        assert_eq!(clock.truth(Moment::FAR_FUTURE), None);
    }
}
