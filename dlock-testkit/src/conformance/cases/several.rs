//! Several keys at once, and grants as conditions for writes, where that is declared.

use dlock_core::{Claim, Granted, LockBackend, Place, Standing, Together};

use crate::conformance::{Ability, Client, Sent, Shown, Stage};

fn claims(stage: &Stage) -> Vec<Claim> {
    ["a", "b/c", "d"].map(|name| stage.claim(name)).to_vec()
}

async fn ask(client: &Client, claims: &[Claim]) -> Together {
    client.backend.claim_all(&client.session, claims).await.expect("claims must be answered")
}

async fn all_granted(client: &Client, claims: &[Claim]) -> Vec<Granted> {
    match ask(client, claims).await {
        Together::Held { tokens } => {
            assert_eq!(tokens.len(), claims.len());
            claims.iter().zip(tokens).map(|(claim, token)| Granted { claim: claim.clone().into(), token }).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn holders(client: &Client, claims: &[Claim]) -> usize {
    let mut held = 0;
    for claim in claims {
        held += client.holders(&claim.key).await;
    }
    held
}

/// Free keys are taken at once, and each is given back by itself.
pub async fn free_keys_are_taken_at_once(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    for _ in 0..2 {
        let claims = claims(stage);
        let granted = all_granted(&client, &claims).await;
        assert_eq!(client.backend.audit(&client.session, &granted).await.expect("an answer"), []);
        for claim in &claims {
            assert_eq!(client.holder(&claim.key).await, Some(claim.id));
            assert!(matches!(other.claim(&stage.claim_like(claim), Place::Try).await, Standing::Busy { .. }));
            assert!(client.release(claim).await);
            let next = stage.claim_like(claim);
            let token = other.held(&next).await;
            assert!(granted.iter().all(|granted| granted.claim.key != claim.key || granted.token < token));
            assert!(other.release(&next).await);
        }
    }
    Ok(())
}

/// One that is taken refuses all, says which, and leaves nothing.
pub async fn one_taken_key_refuses_all_and_leaves_nothing(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    for taken in 0..3 {
        let claims = claims(stage);
        let blocking = stage.claim_like(&claims[taken]);
        other.held(&blocking).await;
        match ask(&client, &claims).await {
            Together::Busy { claim, .. } => assert_eq!(claim, taken),
            answer => panic!("{answer:?}"),
        }
        assert_eq!(holders(&client, &claims).await, 1);
        assert!(other.release(&blocking).await);
        all_granted(&client, &claims).await;
        for claim in &claims {
            assert!(client.release(claim).await);
        }
    }
    Ok(())
}

/// Asking again gets the same grants.
pub async fn claims_asked_again_get_the_same_tokens(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, claims) = (stage.client().await, claims(stage));
    let first = all_granted(&client, &claims).await;
    assert_eq!(all_granted(&client, &claims).await, first);
    Ok(())
}

/// Claims of which one was taken away since are not called refused, which would leave the others behind.
pub async fn claims_of_which_one_was_taken_away_are_not_called_refused(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, other, claims) = (stage.client().await, stage.client().await, claims(stage));
    all_granted(&client, &claims).await;
    stage.delete(&claims[1].key).await?;
    other.held(&stage.claim_like(&claims[1])).await;
    let answer = client.backend.claim_all(&client.session, &claims).await;
    assert!(answer.is_err_and(|error| error.kind() == dlock_core::ErrorKind::Ambiguous), "two of them are held");
    for claim in &claims {
        client.release(claim).await;
    }
    assert_eq!(holders(&client, &claims).await, 1);
    Ok(())
}

/// Claims whose answer was lost are undone one by one, whatever became of them.
pub async fn claims_whose_reply_was_lost_are_undone_one_by_one(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, claims) = (stage.client().await, claims(stage));
    stage.lose_reply(Sent::Claim)?;
    // Found out within the call, or not answered: either will do.
    _ = tokio::time::timeout(stage.prompt(), client.backend.claim_all(&client.session, &claims)).await;
    for claim in &claims {
        client.release(claim).await;
    }
    assert_eq!(holders(&client, &claims).await, 0);
    Ok(())
}

/// Claims that arrive after their releases have no effect.
pub async fn claims_that_arrive_after_their_releases_have_no_effect(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    stage.claims(Ability::Fences).await?;
    let client = stage.client().await;
    // Met before, so that every store fences by what it knows of them.
    let earlier = claims(stage);
    all_granted(&client, &earlier).await;
    for claim in &earlier {
        assert!(client.release(claim).await);
    }
    let late = claims(stage);
    let under_way = stage.hold(Sent::Claim)?;
    {
        let claiming = client.backend.claim_all(&client.session, &late);
        tokio::select! {
            biased;
            together = claiming => panic!("{together:?}"),
            () = under_way.sent() => {}
        }
    }
    for claim in &late {
        assert!(!client.release(claim).await);
    }
    under_way.deliver().await;
    assert_eq!(holders(&client, &late).await, 0);
    Ok(())
}

/// Each of many keys that were taken at once is in the way of others, also of those whose names it begins with.
pub async fn each_key_taken_at_once_is_in_the_way(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    let nested = (0..9).map(|n| format!("a/-{n}"));
    let claims: Vec<Claim> = std::iter::once("a".to_owned()).chain(nested).map(|name| stage.claim(&name)).collect();
    all_granted(&client, &claims).await;
    for claim in &claims {
        let (tried, queued) = (stage.claim_like(claim), stage.claim_like(claim));
        assert!(matches!(other.claim(&tried, Place::Try).await, Standing::Busy { .. }), "{}", claim.key);
        assert!(!matches!(other.claim(&queued, Place::Queue).await, Standing::Held { .. }), "{}", claim.key);
        other.release(&queued).await;
    }
    for claim in &claims {
        assert!(client.release(claim).await);
    }
    Ok(())
}

/// All of very many keys that were taken some at once are listed.
pub async fn very_many_keys_taken_some_at_once_are_all_listed(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    stage.claims(Ability::Lists).await?;
    let client = stage.client().await;
    let most = client.backend.capabilities().claims_at_once.unwrap_or(0).min(40);
    let mut names = 0..;
    for _ in 0..600 / most {
        let claims: Vec<Claim> = names.by_ref().take(most).map(|n: usize| stage.claim(&format!("many/{n}"))).collect();
        all_granted(&client, &claims).await;
    }
    let listed = client.backend.list(&stage.prefix()).await.expect("an answer");
    assert_eq!(listed.len(), 600 / most * most);
    Ok(())
}

/// A session that is gone takes nothing.
pub async fn an_ended_session_takes_none_of_them(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let (client, claims) = (stage.client().await, claims(stage));
    client.backend.close(&client.session).await.expect("a session must close");
    assert_eq!(ask(&client, &claims).await, Together::SessionGone);
    assert_eq!(holders(&client, &claims).await, 0);
    Ok(())
}

/// What cannot be taken at once is refused before anything is sent.
pub async fn what_cannot_be_taken_at_once_is_refused(stage: &Stage) -> Shown {
    stage.claims(Ability::ClaimsAtOnce).await?;
    let client = stage.client().await;
    let most = client.backend.capabilities().claims_at_once.unwrap_or(0);
    let many: Vec<Claim> = (0..=most).map(|n| stage.claim(&format!("many/{n}"))).collect();
    let twice = [stage.claim("a"), stage.claim("a")];
    for refused in [&many[..], &twice] {
        let error = client.backend.claim_all(&client.session, refused).await.expect_err("it is refused");
        assert_eq!(error.kind(), dlock_core::ErrorKind::Invalid, "{error}");
        assert_eq!(holders(&client, refused).await, 0);
    }
    let granted = all_granted(&client, &many[..most]).await;
    assert_eq!(granted.len(), most);
    for claim in &many[..most] {
        assert!(client.release(claim).await);
    }
    Ok(())
}

/// Writes under a grant's condition, and says whether the store took it.
async fn writes(
    stage: &Stage,
    backend: &dyn LockBackend,
    client: &Client,
    granted: &Granted,
) -> Result<bool, crate::conformance::NotShown> {
    let ownership = backend.ownership(&client.session, granted).expect("it is declared");
    stage.write_if(&ownership).await
}

/// The store takes the writes of a holder, and none once its grant is over, whoever holds the key then.
pub async fn a_write_is_taken_from_the_present_holder_only(stage: &Stage) -> Shown {
    stage.claims(Ability::GuardsWrites).await?;
    let (client, other) = (stage.client().await, stage.client().await);
    let first = client.granted(&stage.claim("k")).await;
    assert!(writes(stage, &*client.backend, &client, &first).await?);
    let past = client.backend.ownership(&client.session, &first).expect("it is declared");
    assert!(client.release(&first.claim).await);
    assert!(!stage.write_if(&past).await?, "it is given back");
    let second = client.granted(&stage.claim("k")).await;
    assert!(!stage.write_if(&past).await?, "another grant of the same session");
    assert!(writes(stage, &*client.backend, &client, &second).await?);
    let past = client.backend.ownership(&client.session, &second).expect("it is declared");
    client.backend.close(&client.session).await.expect("a session must close");
    assert!(!stage.write_if(&past).await?, "its session is over");
    let third = other.granted(&stage.claim("k")).await;
    assert!(!stage.write_if(&past).await?, "another holds it");
    assert!(writes(stage, &*other.backend, &other, &third).await?);
    Ok(())
}

/// Whoever amends goes on writing under what is asked for afterwards.
pub async fn a_write_is_taken_after_an_amendment(stage: &Stage) -> Shown {
    stage.claims(Ability::GuardsWrites).await?;
    stage.claims(Ability::Amends).await?;
    let client = stage.client().await;
    let granted = client.granted(&stage.claim("k")).await;
    let mut metadata = dlock_core::Metadata::new();
    metadata.insert("phase", "two").expect("the name is not reserved");
    assert!(client.backend.amend(&client.session, &granted.claim, &metadata).await.expect("an answer"));
    assert!(writes(stage, &*client.backend, &client, &granted).await?);
    Ok(())
}
