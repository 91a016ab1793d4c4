//! Entering the contention for a key.

use dlock_core::{ClaimsPerKey, ErrorKind, Place, Release, SessionId, Standing};
use tokio::time::{sleep, timeout};

use crate::conformance::{Sent, Shown, Stage, poll_times};

/// A free key is granted to whoever asks.
pub async fn a_free_key_is_held_at_once(stage: &Stage) -> Shown {
    let client = stage.client().await;
    client.held(&stage.claim("k")).await;
    assert_eq!(client.holders(&stage.key("k")).await, 1);
    Ok(())
}

/// A claim is idempotent by its id.
pub async fn a_claim_asked_again_gets_the_same_token(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    let token = client.held(&claim).await;
    assert_eq!(client.held(&claim).await, token);
    assert_eq!(client.claim(&claim, Place::Queue).await, Standing::Held { token });
    Ok(())
}

/// Two copies of one claim are one grant, even if both are under way at once.
pub async fn a_claim_sent_twice_at_once_is_one_grant(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    let (one, other) = tokio::join!(client.held(&claim), client.held(&claim));
    assert_eq!(one, other);
    assert!(client.release(&claim).await);
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// A lost reply is no answer, and the next attempt finds the grant.
pub async fn a_claim_whose_reply_was_lost_is_found_out(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    stage.lose_reply(Sent::Claim)?;
    let lost = client.backend.claim(&client.session, &claim, Place::Try).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Ambiguous, "{lost}");
    let token = client.held(&claim).await;
    assert_eq!(client.held(&claim).await, token);
    assert!(client.release(&claim).await);
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// Whatever a client remembers of its claims, only the store knows.
pub async fn a_client_that_remembers_nothing_finds_its_claim(stage: &Stage) -> Shown {
    let client = stage.client().await;
    // The store may have given it the place of an earlier one.
    let (earlier, claim) = (stage.claim("k"), stage.claim("k"));
    client.held(&earlier).await;
    assert!(client.release(&earlier).await);
    let token = client.held(&claim).await;
    let forgetful = client.without_memory(stage).await;
    assert_eq!(forgetful.held(&claim).await, token);
    assert_eq!(client.holder(&claim.key).await, Some(claim.id));
    Ok(())
}

/// Wherever the future of a claim is dropped, a release clears up after it.
pub async fn a_claim_dropped_at_any_poll_is_undone_by_its_release(stage: &Stage) -> Shown {
    let client = stage.client().await;
    for polls in 1..=8 {
        let claim = stage.claim(&format!("k{polls}"));
        let own = client.another_session(stage.long_ttl()).await;
        poll_times(polls, stage.moment() / 50, own.backend.claim(&own.session, &claim, Place::Queue)).await;
        let release = own.backend.release(&own.session, &claim).await.expect("a release must be answered");
        if matches!(release, Release::Unfenced { .. }) {
            own.backend.close(&own.session).await.expect("a session must close");
        }
        assert_eq!(client.holders(&claim.key).await, 0, "after {polls} polls");
    }
    sleep(stage.moment()).await;
    for polls in 1..=8 {
        assert_eq!(client.holders(&stage.key(&format!("k{polls}"))).await, 0, "a while after {polls} polls");
    }
    Ok(())
}

/// Mutual exclusion, with everybody asking at once.
pub async fn of_many_who_ask_at_once_one_is_granted(stage: &Stage) -> Shown {
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push((stage.client().await, stage.claim("k")));
    }
    // Asked in turn where futures are lazy, at once where a server is between.
    let asked = clients.iter().map(|(client, claim)| client.claim(claim, Place::Try));
    let standings = crate::conformance::all(asked).await;
    let held = standings.iter().filter(|standing| matches!(standing, Standing::Held { .. })).count();
    let busy = standings.iter().filter(|standing| matches!(standing, Standing::Busy { .. })).count();
    assert_eq!((held, busy), (1, 7), "{standings:?}");
    assert_eq!(clients[0].0.holders(&stage.key("k")).await, 1);
    Ok(())
}

/// A session carries as many locks as it likes; one more does not cost another.
pub async fn two_keys_of_one_session_are_two_locks(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let (one, two) = (stage.claim("one"), stage.claim("two"));
    let token = client.held(&one).await;
    client.held(&two).await;
    assert_eq!(client.held(&one).await, token);
    assert!(client.release(&one).await);
    assert_eq!(client.holder(&two.key).await, Some(two.id));
    Ok(())
}

/// Whoever only tries keeps no place.
pub async fn a_try_at_a_taken_key_is_busy_and_leaves_nothing(stage: &Stage) -> Shown {
    let (holder, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    holder.held(&claim).await;
    let busy = other.claim(&stage.claim("k"), Place::Try).await;
    assert!(matches!(busy, Standing::Busy { .. }), "{busy:?}");
    assert!(holder.release(&claim).await);
    assert_eq!(holder.holders(&claim.key).await, 0);
    Ok(())
}

/// A store with a queue keeps a place, one without does not.
pub async fn a_taken_key_is_waited_for_in_the_declared_order(stage: &Stage) -> Shown {
    let (holder, other) = (stage.client().await, stage.client().await);
    holder.held(&stage.claim("k")).await;
    let waiting = stage.claim("k");
    let standing = other.claim(&waiting, Place::Queue).await;
    match (&standing, other.is_fifo()) {
        (Standing::Waiting { ahead: Some(1) | None, .. }, true) | (Standing::Busy { .. }, false) => {}
        _ => panic!("{standing:?}"),
    }
    let again = other.claim(&waiting, Place::Queue).await;
    assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&standing), "asked again it stands as before");
    Ok(())
}

/// Contention is an answer that names the holder, where it tells one.
pub async fn whoever_finds_a_key_taken_is_told_by_whom(stage: &Stage) -> Shown {
    let (holder, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    holder.held(&claim).await;
    let Standing::Busy { holder: told, .. } = other.claim(&stage.claim("k"), Place::Try).await else { panic!("granted twice") };
    if let Some(told) = told {
        assert_eq!(told.owner(), Some(stage.owner().as_str()));
        assert_eq!(told.claim(), Some(claim.id));
    }
    Ok(())
}

/// A store that knows a lock by its session alone declares that, and the gate of the process keeps the second claim away.
pub async fn a_session_is_not_granted_a_key_twice_or_says_so(stage: &Stage) -> Shown {
    let client = stage.client().await;
    client.held(&stage.claim("k")).await;
    let second = client.claim(&stage.claim("k"), Place::Try).await;
    if client.backend.capabilities().claims_per_key == ClaimsPerKey::Many {
        assert!(matches!(second, Standing::Busy { .. }), "{second:?}");
    }
    assert_eq!(client.holders(&stage.key("k")).await, 1);
    Ok(())
}

/// A forgotten session is an answer.
pub async fn an_ended_session_is_told(stage: &Stage) -> Shown {
    let client = stage.client().await;
    stage.end_session(&client.session).await?;
    assert_eq!(client.claim(&stage.claim("k"), Place::Try).await, Standing::SessionGone);
    assert_eq!(client.claim(&stage.claim("k"), Place::Queue).await, Standing::SessionGone);
    assert_eq!(client.holders(&stage.key("k")).await, 0);
    Ok(())
}

/// So is one that never was.
pub async fn an_unknown_session_is_told(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let never = SessionId::new("11111111-2222-3333-4444-555555555555");
    let standing = client.backend.claim(&never, &stage.claim("k"), Place::Try).await.unwrap();
    assert_eq!(standing, Standing::SessionGone);
    assert_eq!(client.holders(&stage.key("k")).await, 0);
    Ok(())
}

/// What a holder that died left under its key is in nobody's way.
pub async fn a_key_left_by_a_dead_session_can_be_had(stage: &Stage) -> Shown {
    let (holder, other) = (stage.client().await, stage.client().await);
    holder.held(&stage.claim("k")).await;
    stage.end_session(&holder.session).await?;
    let claim = stage.claim("k");
    let mut patience = stage.patience().await;
    let held = async {
        loop {
            match other.claim(&claim, Place::Try).await {
                Standing::Held { .. } => break,
                Standing::Delayed { at_most } => sleep(at_most).await,
                standing => panic!("{standing:?}"),
            }
        }
    };
    if let Standing::Delayed { at_most } = other.claim(&claim, Place::Try).await {
        patience += at_most;
    }
    timeout(patience, held).await.expect("the key must be granted once the delay is over");
    assert_eq!(other.holder(&claim.key).await, Some(claim.id));
    Ok(())
}

/// What is no lock is never overwritten.
pub async fn a_key_used_for_something_else_is_a_conflict_and_left_alone(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let key = stage.key("k");
    stage.put_foreign(&key, "data").await?;
    let before = client.backend.inspect(&key).await.unwrap();
    for place in [Place::Try, Place::Queue] {
        let claim = stage.claim("k");
        let error = client.backend.claim(&client.session, &claim, place).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(!client.release(&claim).await);
    }
    assert_eq!(client.backend.inspect(&key).await.unwrap(), before);
    Ok(())
}
