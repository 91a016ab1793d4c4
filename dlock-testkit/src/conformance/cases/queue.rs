//! First come, first served, where that is declared.

use dlock_core::{Claim, Cursor, FencingToken, Place, Standing};

use crate::conformance::{Ability, Client, Shown, Stage};

/// So many in line, the first of whom holds.
async fn in_line(stage: &Stage, many: usize) -> Vec<(Client, Claim)> {
    let mut line = Vec::new();
    for _ in 0..many {
        let (client, claim) = (stage.client().await, stage.claim("k"));
        client.claim(&claim, Place::Queue).await;
        line.push((client, claim));
    }
    line
}

async fn confirm((client, claim): &(Client, Claim)) -> Standing {
    client.backend.confirm(&client.session, claim, Cursor(0)).await.expect("a confirmation must be answered")
}

async fn confirmed(place: &(Client, Claim)) -> FencingToken {
    match confirm(place).await {
        Standing::Held { token } => token,
        other => panic!("{other:?}"),
    }
}

async fn assert_waiting(place: &(Client, Claim)) {
    let standing = confirm(place).await;
    assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}");
}

/// The first in line holds, the others wait, and each gets it in turn with a greater token.
pub async fn the_first_in_line_is_confirmed_and_no_other(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = in_line(stage, 4).await;
    let mut last = None;
    for (first, place) in line.iter().enumerate() {
        for other in &line[first + 1..] {
            assert_waiting(other).await;
        }
        let token = confirmed(place).await;
        assert!(Some(token) > last, "{token} after {last:?}");
        last = Some(token);
        assert!(place.0.release(&place.1).await);
    }
    Ok(())
}

/// A confirmation never creates a place.
pub async fn a_place_is_never_made_by_asking(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let never = (stage.client().await, stage.claim("k"));
    assert_eq!(confirm(&never).await, Standing::ClaimGone);
    never.0.held(&stage.claim("k")).await;
    Ok(())
}

/// A waiter that dies lets nobody past the holder.
pub async fn the_death_of_a_waiter_lets_nobody_past_the_holder(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = in_line(stage, 3).await;
    stage.end_session(&line[1].0.session).await?;
    assert_waiting(&line[2]).await;
    assert_eq!(confirm(&line[1]).await, Standing::SessionGone);
    assert!(line[0].0.release(&line[0].1).await);
    confirmed(&line[2]).await;
    Ok(())
}

/// A place that is given up lets those behind move up, and only them.
pub async fn a_place_that_is_given_up_lets_those_behind_move_up(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = in_line(stage, 4).await;
    assert!(line[1].0.release(&line[1].1).await);
    assert_waiting(&line[2]).await;
    assert!(line[0].0.release(&line[0].1).await);
    confirmed(&line[2]).await;
    assert_waiting(&line[3]).await;
    assert_eq!(confirm(&line[1]).await, Standing::ClaimGone);
    Ok(())
}

/// Whoever only tries does not get ahead of those who wait.
pub async fn a_try_does_not_overtake_the_line(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = in_line(stage, 2).await;
    assert!(line[0].0.release(&line[0].1).await);
    let standing = stage.client().await.claim(&stage.claim("k"), Place::Try).await;
    assert!(matches!(standing, Standing::Busy { .. }), "{standing:?}");
    confirmed(&line[1]).await;
    Ok(())
}

/// The claim that is asked again keeps the place it has.
pub async fn asking_again_keeps_the_place(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = in_line(stage, 3).await;
    line[1].0.claim(&line[1].1, Place::Queue).await;
    assert!(line[0].0.release(&line[0].1).await);
    confirmed(&line[1]).await;
    assert_waiting(&line[2]).await;
    Ok(())
}
