//! What the life of a session hangs on: the host's clock since boot, and which boot that is.

use std::fmt;
#[cfg(test)]
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use crate::refusal::OpenError;

/// The present boot of this host, and its clock.
#[derive(Clone)]
pub(crate) struct Host {
    boot: Arc<OnceLock<String>>,
    clock: Clock,
}

#[derive(Clone)]
enum Clock {
    /// The system's, and what this process is shown beyond it.
    SinceBoot(Arc<OnceLock<i64>>),
    /// A test's own, and the wall clock along with it.
    #[cfg(test)]
    Set { since_boot: Arc<AtomicI64>, wall: Arc<AtomicI64> },
}

impl Host {
    /// This host.
    pub(crate) fn this() -> Self {
        Self { boot: Arc::default(), clock: Clock::SinceBoot(Arc::default()) }
    }

    /// A host of a test's own: its boot, and what its clocks show.
    #[cfg(test)]
    pub(crate) fn of_test(boot: &str, since_boot: &Arc<AtomicI64>, wall: &Arc<AtomicI64>) -> Self {
        let clock = Clock::Set { since_boot: Arc::clone(since_boot), wall: Arc::clone(wall) };
        Self { boot: Arc::new(OnceLock::from(boot.to_owned())), clock }
    }

    /// The id of the boot, which no other boot of any host has.
    pub(crate) fn boot(&self) -> Result<&str, OpenError> {
        if let Some(boot) = self.boot.get() {
            return Ok(boot);
        }
        match &self.clock {
            Clock::SinceBoot(shift) => _ = shift_of(shift)?,
            #[cfg(test)]
            Clock::Set { .. } => {}
        }
        let boot = boot_id()?;
        Ok(self.boot.get_or_init(|| boot))
    }

    /// Nanoseconds since boot, suspended time included.
    pub(crate) fn now(&self) -> i64 {
        match &self.clock {
            // Of a shift that cannot be read the file is not opened.
            Clock::SinceBoot(shift) => since_boot().saturating_sub(shift_of(shift).unwrap_or_default()),
            #[cfg(test)]
            Clock::Set { since_boot, .. } => since_boot.load(Ordering::SeqCst),
        }
    }

    /// Microseconds since the beginning of 2025 by the wall clock, in each of which less than one number is given out: behind them begin the tokens of a
    /// boot, and those of a file that is made after one was deleted.
    pub(crate) fn wall(&self) -> i64 {
        match &self.clock {
            Clock::SinceBoot(_) => microseconds_since_2025(),
            #[cfg(test)]
            Clock::Set { wall, .. } => wall.load(Ordering::SeqCst),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("boot", &self.boot.get()).finish_non_exhaustive()
    }
}

fn microseconds_since_2025() -> i64 {
    const BEGINNING: Duration = Duration::from_secs(1_735_689_600);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.saturating_sub(BEGINNING).as_micros()).unwrap_or_default()
}

/// By how many nanoseconds the clock of this process is shifted, as in a container with a time namespace of its own.
fn shift_of(shift: &OnceLock<i64>) -> Result<i64, OpenError> {
    if let Some(shift) = shift.get() {
        return Ok(*shift);
    }
    let read = match std::fs::read_to_string("/proc/self/timens_offsets") {
        Ok(offsets) => boottime_of(&offsets).ok_or(OpenError::NoBoot { source: None })?,
        // A kernel that shifts no clocks.
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => 0,
        Err(source) => return Err(OpenError::NoBoot { source: Some(source) }),
    };
    Ok(*shift.get_or_init(|| read))
}

/// The line `boottime SECONDS NANOSECONDS`.
fn boottime_of(offsets: &str) -> Option<i64> {
    let mut words = offsets.lines().find_map(|line| line.strip_prefix("boottime"))?.split_whitespace();
    let (seconds, nanoseconds): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(())?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn boot_id() -> Result<String, OpenError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    match std::fs::read_to_string(PATH) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Ok(_) => Err(OpenError::NoBoot { source: None }),
        Err(source) => Err(OpenError::NoBoot { source: Some(source) }),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// Elsewhere the clock on which dlock's belief lives is not the same for all processes, so there is nothing safe to fall back to.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn boot_id() -> Result<String, OpenError> {
    Err(OpenError::NoBoot { source: None })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> i64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shift_of_a_time_namespace_is_read_or_refused() {
        assert_eq!(boottime_of("monotonic           0         0\nboottime            0         0\n"), Some(0));
        assert_eq!(boottime_of("monotonic  1 2\nboottime    604800  5\n"), Some(604_800_000_000_005));
        assert_eq!(boottime_of("monotonic  1 2\nboottime   -7         0\n"), Some(-7_000_000_000));
        for unknown in
            ["", "monotonic 0 0\n", "boottime 0\n", "boottime x 0\n", "boottime 0 0 0\n", "boottime 9223372036854775807 0\n"]
        {
            assert_eq!(boottime_of(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn the_clock_since_boot_moves_forward_and_the_boot_stays_the_same() {
        let (one, other) = (Host::this(), Host::this());
        let before = one.now();
        assert!(before > 0 && other.now() >= before);
        assert_eq!(one.boot().unwrap(), other.boot().unwrap());
    }
}
