//! A store that is out of reach, fails, stands still, or starts again.

use dlock_core::{Place, Release, Renewal};
use tokio::time::{sleep, timeout};

use crate::conformance::{Client, Shown, Stage};

/// A cut line is silence, never an answer, and what was sent into it is undone afterwards.
pub async fn a_claim_into_a_cut_line_is_not_answered_and_undone_later(stage: &Stage) -> Shown {
    let client = stage.client().await;
    stage.cut().await?;
    assert_silent_then_undone(stage, &client).await;
    Ok(())
}

/// The same of a store that stands still and takes its requests up again when it goes on.
pub async fn a_claim_at_a_frozen_store_is_not_answered_and_undone_later(stage: &Stage) -> Shown {
    let alone = stage.alone().await;
    let stage = alone.as_ref().unwrap_or(stage);
    let client = stage.client().await;
    stage.freeze().await?;
    assert_silent_then_undone(stage, &client).await;
    Ok(())
}

async fn assert_silent_then_undone(stage: &Stage, client: &Client) {
    let claim = stage.claim("k");
    let silent = timeout(stage.moment(), client.backend.claim(&client.session, &claim, Place::Queue)).await;
    assert!(silent.is_err(), "answered {silent:?}");
    let renewal = timeout(stage.moment(), client.backend.renew(&client.session)).await;
    assert!(renewal.is_err(), "answered {renewal:?}");
    stage.heal().await;
    let release = client.backend.release(&client.session, &claim).await.expect("a release must be answered");
    if matches!(release, Release::Unfenced { .. }) {
        client.backend.close(&client.session).await.expect("a session must close");
    }
    // What is still under way arrives by then, and finds itself fenced.
    sleep(stage.moment()).await;
    let other = stage.client().await;
    assert_eq!(other.holders(&claim.key).await, 0);
    other.held(&stage.claim("k")).await;
}

/// An error that may pass says so, and is no verdict on anything.
pub async fn a_failing_store_is_told_as_passing(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let held = stage.claim("held");
    client.held(&held).await;
    stage.fail().await?;
    let (other, session) = (stage.claim("other"), &client.session);
    let claim = client.backend.claim(session, &other, Place::Try).await.unwrap_err();
    let renewal = client.backend.renew(session).await.unwrap_err();
    let release = client.backend.release(session, &held).await.unwrap_err();
    let look = client.backend.inspect(&held.key).await.unwrap_err();
    for error in [claim, renewal, release, look] {
        assert!(error.kind().is_passing(), "{:?}: {error}", error.kind());
    }
    stage.heal().await;
    assert_eq!(client.holder(&held.key).await, Some(held.id));
    assert!(client.release(&held).await);
    client.release(&other).await;
    assert_eq!(client.holders(&other.key).await, 0);
    Ok(())
}

/// A restart keeps what is held, or says that the session is gone; never is it renewed without what it had.
pub async fn a_restart_keeps_what_is_held_or_tells_that_it_is_gone(stage: &Stage) -> Shown {
    let alone = stage.alone().await;
    let stage = alone.as_ref().unwrap_or(stage);
    let client = stage.client().await;
    let claim = stage.claim("k");
    let token = client.held(&claim).await;
    stage.restart().await?;
    // A client of its own: the connections of the old one are dead.
    let again = client.without_memory(stage).await;
    match again.backend.renew(&again.session).await.unwrap() {
        Renewal::Renewed { .. } => {
            assert_eq!(again.holder(&claim.key).await, Some(claim.id));
            assert_eq!(again.held(&claim).await, token);
            assert!(again.release(&claim).await);
        }
        Renewal::Gone => assert_eq!(again.holders(&claim.key).await, 0),
    }
    let other = stage.client().await;
    assert!(other.held(&stage.claim("k")).await > token);
    Ok(())
}
