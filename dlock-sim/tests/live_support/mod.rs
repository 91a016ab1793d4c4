//! What the live faults on all stores share: how long, which seed, and what makes a run pass.
//!
//! `DLOCK_LIVE_SECONDS` says for how long, 60 by default; `DLOCK_LIVE_SEED` draws the same faults again; `DLOCK_LIVE_LOG` replaces the
//! filter of the workers' logs; without a trace of the backend in it the run is void, since secrets are looked for there. Histories
//! and logs go to `target/dlock-sim/live`.

use std::path::Path;
use std::time::Duration;

use dlock_sim::live::{Live, Store, run};

/// So long a storm takes to bring every kind of fault.
const COMPLETE: Duration = Duration::from_secs(60);

/// Workers with sessions of this ttl in a storm. What was broken is an answer and no panic, so that it is the last thing to be printed, after what
/// the run brought.
pub async fn outlive_a_storm(store: Store, ttl: Duration) -> Result<(), Vec<String>> {
    let lasting = number("DLOCK_LIVE_SECONDS").map_or(COMPLETE, Duration::from_secs);
    let live = Live {
        store,
        seed: number("DLOCK_LIVE_SEED").unwrap_or_else(|| fastrand::u64(..)),
        storm: lasting,
        complete: lasting >= COMPLETE,
        ttl,
        program: env!("CARGO_BIN_EXE_live_worker").into(),
        folder: Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("dlock-sim").join("live"),
    };
    println!("live on {store}: DLOCK_LIVE_SEED={} DLOCK_LIVE_SECONDS={}", live.seed, live.storm.as_secs());
    let outcome = run(&live).await.unwrap_or_else(|error| panic!("{error}: {error:?}"));
    println!("{outcome}");
    let mut failures = outcome.failures();
    if live.complete {
        failures.extend(outcome.missed().iter().map(|kind| format!("{kind:?} never struck")));
    }
    if failures.is_empty() {
        return Ok(());
    }
    failures.push(format!("seed {}, histories in {}", live.seed, outcome.folder.display()));
    Err(failures)
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}
