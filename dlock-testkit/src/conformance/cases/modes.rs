//! Locks that are held by several, where that is declared.

use std::num::NonZeroU32;

use dlock_core::{Claim, Cursor, ErrorKind, Hint, Mode, Place, Standing};

use crate::conformance::{Ability, Client, NotShown, Sent, Shown, Stage};

async fn busy(client: &Client, claim: &Claim) {
    let standing = client.claim(claim, Place::Try).await;
    assert!(matches!(standing, Standing::Busy { .. }), "{standing:?}");
}

/// A claim that waits in line, and from where its wait goes on.
async fn waiting(client: &Client, claim: &Claim) -> Cursor {
    match client.claim(claim, Place::Queue).await {
        Standing::Waiting { cursor, .. } => cursor,
        other => panic!("{other:?}"),
    }
}

/// Waits, as core does, until the claim holds its key.
async fn granted_after(client: &Client, claim: &Claim, since: Cursor) {
    let mut since = since;
    loop {
        let woken = client.backend.wait(&client.session, claim, since).await.expect("a wait must be answered");
        since = woken.cursor;
        if woken.hint != Hint::MaybeFree {
            assert!(matches!(woken.hint, Hint::StillHeld { .. }), "{woken:?}");
            continue;
        }
        match client.backend.confirm(&client.session, claim, since).await.expect("a confirmation must be answered") {
            Standing::Held { .. } => return,
            Standing::Waiting { cursor, .. } => since = cursor,
            other => panic!("{other:?}"),
        }
    }
}

fn shared(stage: &Stage) -> Claim {
    Claim { mode: Mode::Shared, ..stage.claim("k") }
}

fn permits(stage: &Stage, all: u32) -> Claim {
    Claim { mode: Mode::Permits(NonZeroU32::new(all).expect("cases ask for permits")), ..stage.claim("k") }
}

async fn clients<const N: usize>(stage: &Stage) -> [Client; N] {
    let mut clients = Vec::new();
    for _ in 0..N {
        clients.push(stage.client().await);
    }
    clients.try_into().unwrap_or_else(|_| unreachable!("as many were made"))
}

/// For cases that need a mode and a queue.
async fn in_line(stage: &Stage, mode: Ability) -> Result<(), NotShown> {
    stage.claims(mode).await?;
    stage.claims(Ability::Fifo).await
}

/// Shared claims hold together, and neither with an exclusive one.
pub async fn shared_claims_keep_out_exclusive_ones_only(stage: &Stage) -> Shown {
    stage.claims(Ability::Shared).await?;
    let clients: [_; 3] = clients(stage).await;
    let sharing = [shared(stage), shared(stage)];
    let exclusive = stage.claim("k");
    clients[0].held(&sharing[0]).await;
    clients[1].held(&sharing[1]).await;
    assert_eq!(clients[2].holders(&exclusive.key).await, 2);
    assert!(clients[0].release(&sharing[0]).await);
    busy(&clients[2], &exclusive).await;
    assert!(clients[1].release(&sharing[1]).await);
    clients[2].held(&exclusive).await;
    busy(&clients[0], &shared(stage)).await;
    Ok(())
}

/// One that waits for the exclusive lock stops those that come to share later, and lets them in once it is through or gives up.
pub async fn a_waiting_exclusive_claim_stops_later_shared_ones(stage: &Stage) -> Shown {
    in_line(stage, Ability::Shared).await?;
    let clients: [_; 3] = clients(stage).await;
    let (first, exclusive, later) = (shared(stage), stage.claim("k"), shared(stage));
    clients[0].held(&first).await;
    waiting(&clients[1], &exclusive).await;
    busy(&clients[2], &shared(stage)).await;
    let since = waiting(&clients[2], &later).await;
    assert_eq!(clients[2].holders(&later.key).await, 1);
    assert!(clients[1].release(&exclusive).await);
    granted_after(&clients[2], &later, since).await;
    assert_eq!(clients[2].holders(&later.key).await, 2);
    Ok(())
}

/// Those who wait to share are let in together, and not before the exclusive holder has gone.
pub async fn those_who_wait_to_share_are_let_in_together(stage: &Stage) -> Shown {
    in_line(stage, Ability::Shared).await?;
    let clients: [_; 4] = clients(stage).await;
    let exclusive = stage.claim("k");
    clients[0].held(&exclusive).await;
    let mut line = Vec::new();
    for client in &clients[1..] {
        let claim = shared(stage);
        let since = waiting(client, &claim).await;
        line.push((client, claim, since));
    }
    assert!(clients[0].release(&exclusive).await);
    for (client, claim, since) in line.iter().rev() {
        granted_after(client, claim, *since).await;
    }
    assert_eq!(clients[0].holders(&exclusive.key).await, 3);
    Ok(())
}

/// As many as there are permits hold together, and not one more.
pub async fn permits_are_granted_up_to_their_number(stage: &Stage) -> Shown {
    stage.claims(Ability::Permits).await?;
    let clients: [_; 3] = clients(stage).await;
    let claims = [(); 3].map(|()| permits(stage, 2));
    clients[0].held(&claims[0]).await;
    clients[1].held(&claims[1]).await;
    busy(&clients[2], &claims[2]).await;
    assert!(clients[0].release(&claims[0]).await);
    clients[2].held(&claims[2]).await;
    assert_eq!(clients[2].holders(&claims[2].key).await, 2);
    Ok(())
}

/// Whichever holder of a permit goes first makes room for the first in line, and for nobody else.
pub async fn whichever_permit_is_given_back_goes_to_the_first_in_line(stage: &Stage) -> Shown {
    in_line(stage, Ability::Permits).await?;
    for gone in 0..3 {
        let clients: [_; 5] = clients(stage).await;
        let claims = [(); 5].map(|()| Claim { key: stage.key(&format!("k{gone}")), ..permits(stage, 3) });
        for (client, claim) in clients[..3].iter().zip(&claims) {
            client.held(claim).await;
        }
        let since = waiting(&clients[3], &claims[3]).await;
        let last = waiting(&clients[4], &claims[4]).await;
        assert!(clients[gone].release(&claims[gone]).await);
        granted_after(&clients[3], &claims[3], since).await;
        let standing = clients[4].backend.confirm(&clients[4].session, &claims[4], last).await.expect("an answer");
        let Standing::Waiting { cursor, .. } = standing else { panic!("{standing:?}") };
        assert_eq!(clients[4].holders(&claims[4].key).await, 3);
        assert!(clients[3].release(&claims[3]).await);
        granted_after(&clients[4], &claims[4], cursor).await;
    }
    Ok(())
}

/// A permit of many, which are not watched one by one.
pub async fn one_of_many_permits_is_waited_for(stage: &Stage) -> Shown {
    in_line(stage, Ability::Permits).await?;
    let client = stage.client().await;
    let claims: Vec<_> = (0..21).map(|_| permits(stage, 20)).collect();
    for claim in &claims[..20] {
        client.held(claim).await;
    }
    let since = waiting(&client, &claims[20]).await;
    assert!(client.release(&claims[7]).await);
    granted_after(&client, &claims[20], since).await;
    assert_eq!(client.holders(&claims[20].key).await, 20);
    Ok(())
}

/// Permits keep out exclusive claims, and are kept out by them.
pub async fn permits_and_exclusive_claims_keep_one_another_out(stage: &Stage) -> Shown {
    stage.claims(Ability::Permits).await?;
    let clients: [_; 2] = clients(stage).await;
    let (permit, exclusive) = (permits(stage, 2), stage.claim("k"));
    clients[0].held(&permit).await;
    busy(&clients[1], &exclusive).await;
    assert!(clients[0].release(&permit).await);
    clients[1].held(&exclusive).await;
    busy(&clients[0], &permits(stage, 2)).await;
    Ok(())
}

/// Whoever names another number of permits than the holders did is refused with both numbers, and leaves nothing.
pub async fn permits_of_another_number_are_a_conflict(stage: &Stage) -> Shown {
    stage.claims(Ability::Permits).await?;
    let clients: [_; 2] = clients(stage).await;
    let held = permits(stage, 3);
    clients[0].held(&held).await;
    for place in [Place::Try, Place::Queue] {
        let other = permits(stage, 5);
        let error = clients[1].backend.claim(&clients[1].session, &other, place).await.expect_err("the numbers differ");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains('3') && error.to_string().contains('5'), "{error}");
    }
    clients[1].held(&permits(stage, 3)).await;
    assert_eq!(clients[0].holders(&held.key).await, 2, "what was refused is in nobody's way");
    Ok(())
}

/// Asking again is one grant, also beside others.
pub async fn a_claim_beside_others_asked_again_is_one_grant(stage: &Stage) -> Shown {
    stage.claims(Ability::Permits).await?;
    let clients: [_; 2] = clients(stage).await;
    let (first, second) = (permits(stage, 3), permits(stage, 3));
    clients[0].held(&first).await;
    let tokens = [clients[1].held(&second).await, clients[1].held(&second).await];
    assert_eq!(tokens[0], tokens[1]);
    assert_eq!(clients[0].holders(&first.key).await, 2);
    assert!(clients[1].release(&second).await);
    assert_eq!(clients[0].holders(&first.key).await, 1);
    Ok(())
}

/// A claim that arrives after its release takes no permit.
pub async fn a_permit_claimed_too_late_has_no_effect(stage: &Stage) -> Shown {
    stage.claims(Ability::Permits).await?;
    stage.claims(Ability::Fences).await?;
    let client = stage.client().await;
    let late = permits(stage, 2);
    let under_way = stage.hold(Sent::Claim)?;
    {
        let claiming = client.backend.claim(&client.session, &late, Place::Queue);
        tokio::select! {
            biased;
            standing = claiming => panic!("{standing:?}"),
            () = under_way.sent() => {}
        }
    }
    client.release(&late).await;
    under_way.deliver().await;
    assert_eq!(client.holders(&late.key).await, 0);
    client.held(&permits(stage, 1)).await;
    Ok(())
}

/// Of several holders, an operator's act concerns the one that it names.
pub async fn one_of_several_holders_is_evicted(stage: &Stage) -> Shown {
    stage.claims(Ability::Shared).await?;
    stage.claims(Ability::Evicts).await?;
    stage.claims(Ability::Audits).await?;
    let clients: [_; 2] = clients(stage).await;
    let sharing = [clients[0].granted(&shared(stage)).await, clients[1].granted(&shared(stage)).await];
    let evicted = clients[0].backend.evict(&sharing[1].claim.key, sharing[1].token).await.expect("an answer");
    assert!(evicted);
    for (client, granted) in clients.iter().zip(&sharing) {
        let found = client.backend.audit(&client.session, std::slice::from_ref(granted)).await.expect("an answer");
        assert_eq!(found.len(), usize::from(granted.token == sharing[1].token), "{granted:?}");
    }
    assert_eq!(clients[0].holders(&sharing[0].claim.key).await, 1);
    Ok(())
}
