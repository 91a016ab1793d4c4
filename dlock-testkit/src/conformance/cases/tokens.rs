//! The number that tells an old holder from a new one.

use dlock_core::{FencingToken, Place, Standing};
use tokio::time::{sleep, timeout};

use crate::conformance::{Shown, Stage};

/// Tokens in the order of their grants.
#[derive(Default)]
struct Growing(Option<FencingToken>);

impl Growing {
    fn then(&mut self, token: FencingToken) {
        assert!(Some(token) > self.0, "{token} after {:?}", self.0);
        self.0 = Some(token);
    }
}

/// Within a session, between sessions, between clients.
pub async fn every_grant_has_a_greater_one(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let clients = [client.another_session(stage.long_ttl()).await, client, stage.client().await];
    let mut tokens = Growing::default();
    for client in clients.iter().cycle().take(7) {
        let claim = stage.claim("k");
        tokens.then(client.held(&claim).await);
        assert!(client.release(&claim).await);
    }
    Ok(())
}

/// A key that is made anew goes on counting.
pub async fn a_deletion_does_not_set_them_back(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let mut tokens = Growing::default();
    for _ in 0..3 {
        let claim = stage.claim("k");
        tokens.then(client.held(&claim).await);
        stage.delete(&claim.key).await?;
        client.release(&claim).await;
    }
    Ok(())
}

/// The successor of a holder whose session was ended has a greater one.
pub async fn the_end_of_a_session_does_not_set_them_back(stage: &Stage) -> Shown {
    let mut tokens = Growing::default();
    for _ in 0..3 {
        let client = stage.client().await;
        tokens.then(client.held(&stage.claim("k")).await);
        stage.end_session(&client.session).await?;
    }
    Ok(())
}

/// The successor of a holder that was robbed has a greater one.
pub async fn a_release_by_force_does_not_set_them_back(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let mut tokens = Growing::default();
    for client in [&client, &other, &client] {
        let claim = stage.claim("k");
        tokens.then(client.held(&claim).await);
        stage.release_by_force(&claim.key).await?;
        client.release(&claim).await;
    }
    Ok(())
}

/// A successor of a holder that lapsed has a greater one.
pub async fn an_expiry_does_not_set_them_back(stage: &Stage) -> Shown {
    let silent = stage.client_with(stage.short_ttl()).await;
    let token = silent.held(&stage.claim("k")).await;
    let client = stage.client().await;
    let claim = stage.claim("k");
    let granted = async {
        loop {
            if let Standing::Held { token } = client.claim(&claim, Place::Try).await {
                break token;
            }
            sleep(stage.short_ttl() / 10).await;
        }
    };
    let lapses_within = silent.lapses_within(stage.short_ttl());
    let later = timeout(lapses_within + stage.patience().await, granted).await.expect("the session must lapse");
    assert!(later > token, "{later} after {token}");
    Ok(())
}

/// A store that was killed and started again goes on counting, also for keys that were deleted before.
pub async fn a_restart_does_not_set_them_back(stage: &Stage) -> Shown {
    let alone = stage.alone().await;
    let stage = alone.as_ref().unwrap_or(stage);
    let mut tokens = [Growing::default(), Growing::default()];
    for _ in 0..2 {
        let client = stage.client().await;
        for (tokens, name) in tokens.iter_mut().zip(["kept", "deleted"]) {
            let claim = stage.claim(name);
            tokens.then(client.held(&claim).await);
            assert!(client.release(&claim).await);
        }
        stage.delete(&stage.key("deleted")).await?;
        stage.restart().await?;
    }
    Ok(())
}
