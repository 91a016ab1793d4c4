//! Undoing what a claim has, for good.

use dlock_core::{Claim, ErrorKind, Place, Release, Standing};
use tokio::time::{sleep, timeout};

use crate::conformance::{Ability, Client, NotShown, Sent, Shown, Stage, UnderWay, poll_times};

/// A released key can be had by another.
pub async fn what_is_released_is_free(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    client.held(&claim).await;
    assert!(client.release(&claim).await);
    assert_eq!(client.holders(&claim.key).await, 0);
    other.held(&stage.claim("k")).await;
    Ok(())
}

/// Again and again, by turns, refused in between.
pub async fn a_key_can_be_had_again_right_after_its_release(stage: &Stage) -> Shown {
    let clients = [stage.client().await, stage.client().await];
    for turn in 0..10 {
        let (holder, other) = (&clients[turn % 2], &clients[(turn + 1) % 2]);
        let claim = stage.claim("k");
        holder.held(&claim).await;
        let refused = other.claim(&stage.claim("k"), Place::Try).await;
        assert!(matches!(refused, Standing::Busy { .. }), "{refused:?}");
        assert!(holder.release(&claim).await);
    }
    Ok(())
}

/// There may be nothing to undo, and nothing is disturbed.
pub async fn what_was_never_claimed_is_not_held(stage: &Stage) -> Shown {
    let client = stage.client().await;
    assert!(!client.release(&stage.claim("absent")).await);
    let held = stage.claim("k");
    client.held(&held).await;
    assert!(!client.release(&stage.claim("k")).await, "another claim of the same session");
    assert_eq!(client.holder(&held.key).await, Some(held.id));
    assert!(client.release(&held).await);
    Ok(())
}

/// A claim is undone by the session it was made with, and by no other.
pub async fn another_session_cannot_release_it(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    client.held(&claim).await;
    assert!(!other.release(&claim).await);
    assert_eq!(client.holder(&claim.key).await, Some(claim.id));
    assert!(client.release(&claim).await);
    Ok(())
}

/// Asked again, a release finds nothing, whoever holds the key by then.
pub async fn a_repeated_release_never_frees_a_successor(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let first = stage.claim("k");
    client.held(&first).await;
    assert!(client.release(&first).await);
    assert!(!client.release(&first).await, "once is enough");
    assert_spares_successors(stage, &client, &other, &first).await;
    Ok(())
}

/// A release whose reply was lost is repeated, and finds whoever holds the key by then untouched.
pub async fn a_release_that_is_repeated_for_want_of_a_reply_never_frees_a_successor(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let first = stage.claim("k");
    client.held(&first).await;
    stage.lose_reply(Sent::Release)?;
    client.backend.release(&client.session, &first).await.unwrap_err();
    assert_spares_successors(stage, &client, &other, &first).await;
    Ok(())
}

async fn assert_spares_successors(stage: &Stage, client: &Client, other: &Client, first: &Claim) {
    for successor in [other, client] {
        let claim = stage.claim("k");
        successor.held(&claim).await;
        assert!(!client.release(first).await);
        assert_eq!(successor.holder(&claim.key).await, Some(claim.id));
        assert!(successor.release(&claim).await);
    }
}

/// A holder that lapsed and gives back late takes nothing from its successor.
pub async fn a_release_after_the_expiry_never_frees_a_successor(stage: &Stage) -> Shown {
    let (silent, other) = (stage.client_with(stage.short_ttl()).await, stage.client().await);
    let (first, second) = (stage.claim("k"), stage.claim("k"));
    silent.held(&first).await;
    let granted = async {
        while !matches!(other.claim(&second, Place::Try).await, Standing::Held { .. }) {
            sleep(stage.short_ttl() / 10).await;
        }
    };
    let lapses_within = silent.lapses_within(stage.short_ttl());
    timeout(lapses_within + stage.patience().await, granted).await.expect("the session must lapse");
    assert!(!silent.release(&first).await);
    assert_eq!(other.holder(&second.key).await, Some(second.id));
    Ok(())
}

/// A holder that was robbed by force and gives back afterwards takes nothing from its successor.
pub async fn a_release_after_one_by_force_never_frees_a_successor(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let (first, second) = (stage.claim("k"), stage.claim("k"));
    client.held(&first).await;
    stage.release_by_force(&first.key).await?;
    other.held(&second).await;
    assert!(!client.release(&first).await);
    assert_eq!(other.holder(&second.key).await, Some(second.id));
    Ok(())
}

/// A copy of a release that arrives after the next grant has no effect, also within one session.
pub async fn a_late_release_never_frees_a_successor(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let (first, second) = (stage.claim("k"), stage.claim("k"));
    client.held(&first).await;
    let late = stage.hold(Sent::Release)?;
    tokio::select! {
        biased;
        answer = client.backend.release(&client.session, &first) => panic!("answered while under way: {answer:?}"),
        () = late.sent() => {}
    }
    assert!(client.release(&first).await);
    client.held(&second).await;
    late.deliver().await;
    assert_eq!(client.holder(&second.key).await, Some(second.id));
    Ok(())
}

/// A release is a fence: no copy of its claim can take effect later, even if the same session held the key in between.
pub async fn a_claim_that_arrives_after_its_release_has_no_effect(stage: &Stage) -> Shown {
    stage.claims(Ability::Fences).await?;
    let client = stage.client().await;
    for meetings in 0..2 {
        for _ in 0..meetings {
            let claim = stage.claim("k");
            client.held(&claim).await;
            assert!(client.release(&claim).await);
        }
        let late = late_claim(stage, &client).await?;
        let between = stage.claim("k");
        client.held(&between).await;
        assert!(client.release(&between).await);
        late.deliver().await;
        assert_eq!(client.holders(&between.key).await, 0, "after {meetings} meetings");
    }
    Ok(())
}

/// Closing the session fences as well, on every store: what core does where a release cannot.
pub async fn a_claim_that_arrives_after_its_session_was_closed_has_no_effect(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let late = late_claim(stage, &client).await?;
    client.backend.close(&client.session).await.unwrap();
    late.deliver().await;
    assert_eq!(other.holders(&stage.key("k")).await, 0);
    other.held(&stage.claim("k")).await;
    Ok(())
}

/// A claim that is under way, given up, and undone.
async fn late_claim(stage: &Stage, client: &Client) -> Result<Box<dyn UnderWay>, NotShown> {
    let claim = stage.claim("k");
    let late = stage.hold(Sent::Claim)?;
    tokio::select! {
        biased;
        answer = client.backend.claim(&client.session, &claim, Place::Queue) => panic!("answered while under way: {answer:?}"),
        () = late.sent() => {}
    }
    assert!(!client.release(&claim).await);
    Ok(late)
}

/// Perhaps it was applied: asked again, the store says so.
pub async fn a_lost_reply_is_found_out(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    stage.lose_reply(Sent::Release)?;
    let lost = client.backend.release(&client.session, &claim).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Ambiguous, "{lost}");
    client.release(&claim).await;
    assert_eq!(client.holders(&claim.key).await, 0);
    client.held(&stage.claim("k")).await;
    Ok(())
}

/// Wherever the future of a release is dropped, the next attempt ends it, and no copy of it frees a successor.
pub async fn a_release_dropped_at_any_poll_is_ended_by_the_next(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    for polls in 1..=6 {
        let (first, second) = (stage.claim("k"), stage.claim("k"));
        client.held(&first).await;
        poll_times(polls, stage.moment() / 50, client.backend.release(&client.session, &first)).await;
        client.release(&first).await;
        assert_eq!(client.holders(&first.key).await, 0, "after {polls} polls");
        other.held(&second).await;
        sleep(stage.moment() / 5).await;
        assert_eq!(other.holder(&second.key).await, Some(second.id), "after {polls} polls");
        assert!(other.release(&second).await);
    }
    Ok(())
}

/// Only the store knows what is to be given back.
pub async fn a_client_that_remembers_nothing_can_release(stage: &Stage) -> Shown {
    let client = stage.client().await;
    // The store may have given it the place of an earlier one.
    let (earlier, claim) = (stage.claim("k"), stage.claim("k"));
    client.held(&earlier).await;
    assert!(client.release(&earlier).await);
    client.held(&claim).await;
    let forgetful = client.without_memory(stage).await;
    assert!(forgetful.release(&claim).await);
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// Whoever waits can give up; the holder does not notice.
pub async fn a_place_in_line_is_given_up(stage: &Stage) -> Shown {
    let (holder, waiter) = (stage.client().await, stage.client().await);
    let (held, waiting) = (stage.claim("k"), stage.claim("k"));
    holder.held(&held).await;
    waiter.claim(&waiting, Place::Queue).await;
    assert_eq!(waiter.release(&waiting).await, waiter.is_fifo(), "a place is something, where the store has them");
    assert_eq!(holder.holders(&held.key).await, 1);
    assert!(holder.release(&held).await);
    assert_eq!(holder.holders(&held.key).await, 0);
    Ok(())
}

/// There is nothing left to release, and that is an answer.
pub async fn a_session_that_ended_took_its_claims_along(stage: &Stage) -> Shown {
    let client = stage.client().await;
    let claim = stage.claim("k");
    client.held(&claim).await;
    stage.end_session(&client.session).await?;
    assert!(!client.release(&claim).await);
    assert_eq!(client.holders(&claim.key).await, 0);
    Ok(())
}

/// Whatever becomes of a value that somebody puts over a held key, the holder's session has nothing there after the release.
pub async fn what_was_put_over_a_held_key_is_let_go(stage: &Stage) -> Shown {
    let (client, other) = (stage.client().await, stage.client().await);
    let claim = stage.claim("k");
    client.held(&claim).await;
    stage.put_foreign(&claim.key, "data").await?;
    let second = other.backend.claim(&other.session, &stage.claim("k"), Place::Try).await;
    assert!(!matches!(second, Ok(Standing::Held { .. })), "{second:?}");
    let release = client.backend.release(&client.session, &claim).await.expect("a release must be answered");
    assert!(!matches!(release, Release::Unfenced { .. }), "it was answered, so no copy of it is under way");
    let seen = other.backend.inspect(&claim.key).await.unwrap();
    assert!(seen.holders.iter().all(|holder| holder.session.as_ref() != Some(&client.session)), "{:?}", seen.holders);
    Ok(())
}
