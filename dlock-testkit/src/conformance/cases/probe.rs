//! What a store tells people and tools of itself.

use dlock_core::{Check, Finding, Key, PROBE_NAME};
use tokio::time::{Instant, sleep, timeout};

use crate::conformance::{Ability, Shown, Stage, poll_times};

fn assert_sound(found: &[Finding]) {
    assert_eq!(found.first().map(|first| first.check), Some(Check::Reachable), "whether it is reachable is told first");
    for finding in found {
        assert!(!finding.is_broken(), "{finding}");
        assert!(!finding.detail.is_empty() && finding.remedy() != Some(""), "{finding:?} says nothing");
    }
}

fn assert_out_of_reach(found: &[Finding]) {
    let [finding] = found else { panic!("of what is not reachable nothing else is told: {found:?}") };
    assert!(finding.check == Check::Reachable && finding.is_broken(), "{finding}");
}

/// Every store that passes this suite is fit for locks, and says so.
pub async fn a_sound_store_has_nothing_broken(stage: &Stage) -> Shown {
    let backend = stage.harness().client().await;
    assert_sound(&backend.probe().await);
    Ok(())
}

/// Silence and failures are findings, not errors, and pass with their cause.
pub async fn a_store_out_of_reach_is_found_so(stage: &Stage) -> Shown {
    let failing = stage.harness().client().await;
    stage.fail().await?;
    assert_out_of_reach(&failing.probe().await);
    let cut = stage.harness().client().await;
    stage.cut().await?;
    if let Ok(found) = timeout(stage.moment(), cut.probe()).await {
        assert_out_of_reach(&found);
    }
    stage.heal().await;
    assert_sound(&failing.probe().await);
    assert_sound(&cut.probe().await);
    Ok(())
}

/// No session, no lock, nobody in line, wherever the probe is dropped.
pub async fn a_probe_leaves_nothing_behind(stage: &Stage) -> Shown {
    let alone = stage.alone().await;
    let stage = alone.as_ref().unwrap_or(stage);
    let backend = stage.harness().client().await;
    let before = stage.sessions(PROBE_NAME).await?;
    assert_sound(&backend.probe().await);
    assert_eq!(stage.sessions(PROBE_NAME).await?, before, "what it opened is closed");
    for polls in [1, 2, 3, 5, 8, 13, 21] {
        poll_times(polls, stage.moment() / 10, backend.probe()).await;
    }
    let (dropped, capabilities) = (Instant::now(), backend.capabilities());
    let at_most = capabilities.ttl.min * capabilities.lapses_within_ttls + stage.patience().await;
    while stage.sessions(PROBE_NAME).await? > before {
        assert!(dropped.elapsed() <= at_most, "a session of a dropped probe is still there after {:?}", dropped.elapsed());
        sleep(stage.moment()).await;
    }
    let key = Key::new(PROBE_NAME).expect("it is a key");
    let seen = backend.inspect(&key).await.unwrap();
    assert!(seen.holders.is_empty() && seen.waiters.unwrap_or_default().is_empty(), "{key} is held");
    if Ability::Lists.is_declared(capabilities) {
        assert_eq!(backend.list("").await.unwrap(), []);
    }
    Ok(())
}
