//! Locks that are held by several, where that is declared.

use std::num::NonZeroU32;

use dlock_core::{Claim, Mode, Place, Standing};

use crate::conformance::{Ability, Client, Shown, Stage};

async fn busy(client: &Client, claim: &Claim) {
    let standing = client.claim(claim, Place::Try).await;
    assert!(matches!(standing, Standing::Busy { .. }), "{standing:?}");
}

/// Shared claims hold together, and neither with an exclusive one.
pub async fn shared_claims_keep_out_exclusive_ones_only(stage: &Stage) -> Shown {
    stage.claims(Ability::Shared).await?;
    let clients = [stage.client().await, stage.client().await, stage.client().await];
    let shared = [(); 2].map(|()| Claim { mode: Mode::Shared, ..stage.claim("k") });
    let exclusive = stage.claim("k");
    clients[0].held(&shared[0]).await;
    clients[1].held(&shared[1]).await;
    assert_eq!(clients[2].holders(&exclusive.key).await, 2);
    assert!(clients[0].release(&shared[0]).await);
    busy(&clients[2], &exclusive).await;
    assert!(clients[1].release(&shared[1]).await);
    clients[2].held(&exclusive).await;
    busy(&clients[0], &Claim { mode: Mode::Shared, ..stage.claim("k") }).await;
    Ok(())
}

/// As many as there are permits hold together, and not one more.
pub async fn permits_are_granted_up_to_their_number(stage: &Stage) -> Shown {
    stage.claims(Ability::Permits).await?;
    let two = Mode::Permits(NonZeroU32::MIN.saturating_add(1));
    let clients = [stage.client().await, stage.client().await, stage.client().await];
    let claims = [(); 3].map(|()| Claim { mode: two, ..stage.claim("k") });
    clients[0].held(&claims[0]).await;
    clients[1].held(&claims[1]).await;
    busy(&clients[2], &claims[2]).await;
    assert!(clients[0].release(&claims[0]).await);
    clients[2].held(&claims[2]).await;
    assert_eq!(clients[2].holders(&claims[2].key).await, 2);
    Ok(())
}
