//! How long things may take at most, from a run's configuration. Generous, so that no run is accused falsely, but finite.

use dlock_core::{Acquire, Lease, RetryPolicy};
use dlock_testkit::memory::Profile;

use crate::plan::Config;

/// All in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub ttl: u64,
    /// From the end of a pause until the client has made the steps that were due; timers tick in milliseconds.
    pub resume: u64,
    /// From when a client can ask again until it has heard that an operator ended its grant: its next renewal and the audit after it.
    pub audit: u64,
    /// From the end of an acquisition until nothing of it is granted: the release is tried for a ttl, then the session lapses.
    pub orphan: u64,
    /// From the moment a key is free until somebody who waits undisturbed has it.
    pub wake: u64,
    /// What that takes longer if faults kept the waiter from hearing: a wait that was never answered, releases of its own that still go on.
    pub deaf: u64,
    /// From the moment an acquisition is made, or faults are over, until it is answered.
    pub answer: u64,
    /// From a client to the resource.
    pub write: u64,
    /// The store grants nothing to who is first in line before that asks for it.
    pub comes_by_asking: bool,
}

/// The longest that a wait may take before its claim asks again by itself.
const LONGEST_WAIT: u64 = 75 * SECOND;
const SECOND: u64 = 1_000_000;

impl Bounds {
    pub(super) fn of(config: &Config) -> Self {
        let ms = |millis: u32| u64::from(millis) * 1_000;
        let micros = |duration: std::time::Duration| duration.as_micros() as u64;
        let ttl = ms(config.ttl_ms);
        let rtt = 2 * ms(config.latency_ms);
        let retry = 2 * (micros(Lease::LONGEST_ATTEMPT) + micros(RetryPolicy::MAX) + rtt);
        // What is tried three times may be queued each time, for little more than an attempt.
        let attempt = micros(Lease::attempt(config.ttl())).max(100_000);
        let queued = if config.calls_in_flight == 0 { 0 } else { 4 * attempt };
        let wake = ms(config.lock_delay_ms) + micros(Acquire::DELAY_PROBE) + retry + queued;
        let deaf = LONGEST_WAIT + 3 * ttl;
        let turns = u64::from(config.clients) * u64::from(config.rounds) + 1;
        Self {
            ttl,
            resume: 2_000,
            audit: ttl + 2 * micros(Lease::LONGEST_ATTEMPT) + rtt,
            orphan: 5 * ttl + retry,
            wake,
            deaf,
            answer: turns * (ms(config.hold_ms) + 4 * ttl + wake + deaf),
            write: ttl + rtt,
            comes_by_asking: config.profile == Profile::Line,
        }
    }
}
