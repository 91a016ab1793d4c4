//! How a run ends before its time: by a signal, with nothing left behind.

use std::io;

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals by which people and service managers end a program.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they are heard of, and do not end the program by themselves.
    pub fn listen() -> io::Result<Self> {
        let [interrupt, terminate, hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { interrupt: interrupt?, terminate: terminate?, hangup: hangup? })
    }

    /// The next that comes; free to drop.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        }
    }
}

/// With what a program ends that a signal ended, as a shell tells it.
pub fn code(signal: SignalKind) -> u8 {
    128_u8.saturating_add(u8::try_from(signal.as_raw_value()).unwrap_or_default())
}

/// Returns when every process that this one started is gone; they were all killed before.
pub fn wait_for_children() {
    while wait(WaitOptions::empty()).is_ok() {}
}
