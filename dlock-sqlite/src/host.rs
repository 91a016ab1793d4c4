//! What the life of a session hangs on: the host's clock since boot, and which boot that is.

use std::fmt;
#[cfg(test)]
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use crate::file::OpenError;

/// The present boot of this host, and its clock.
#[derive(Clone)]
pub(crate) struct Host {
    boot: Arc<OnceLock<String>>,
    clock: Clock,
}

#[derive(Clone)]
enum Clock {
    /// The system's.
    SinceBoot,
    /// A test's own.
    #[cfg(test)]
    Set(Arc<AtomicI64>),
}

impl Host {
    /// This host.
    pub(crate) fn this() -> Self {
        Self { boot: Arc::default(), clock: Clock::SinceBoot }
    }

    /// A host of a test's own: its boot, and what its clock shows.
    #[cfg(test)]
    pub(crate) fn of_test(boot: &str, clock: &Arc<AtomicI64>) -> Self {
        Self { boot: Arc::new(OnceLock::from(boot.to_owned())), clock: Clock::Set(Arc::clone(clock)) }
    }

    /// The id of the boot, which no other boot of any host has.
    pub(crate) fn boot(&self) -> Result<&str, OpenError> {
        if let Some(boot) = self.boot.get() {
            return Ok(boot);
        }
        let boot = boot_id()?;
        Ok(self.boot.get_or_init(|| boot))
    }

    /// Nanoseconds since boot, suspended time included.
    pub(crate) fn now(&self) -> i64 {
        match &self.clock {
            Clock::SinceBoot => since_boot(),
            #[cfg(test)]
            Clock::Set(clock) => clock.load(Ordering::SeqCst),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("boot", &self.boot.get()).finish_non_exhaustive()
    }
}

/// Microseconds since the beginning of 2025 by the wall clock, in each of which less than one number is given out. Tokens of a file that is made
/// anew begin there, behind those of one that was deleted.
pub(crate) fn microseconds_since_2025() -> i64 {
    const BEGINNING: Duration = Duration::from_secs(1_735_689_600);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.saturating_sub(BEGINNING).as_micros()).unwrap_or_default()
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
    fn the_clock_since_boot_moves_forward_and_the_boot_stays_the_same() {
        let (one, other) = (Host::this(), Host::this());
        let before = one.now();
        assert!(before > 0 && other.now() >= before);
        assert_eq!(one.boot().unwrap(), other.boot().unwrap());
    }
}
