//! Waiting until asking again is worth a request.

use dlock_core::{Claim, Cursor, Hint, Place, Standing};
use tokio::time::{Instant, timeout};

use crate::conformance::{Ability, Client, NotShown, Shown, Stage};

/// One who holds and one who waits.
struct Line {
    holder: Client,
    held: Claim,
    waiter: Client,
    waiting: Claim,
    cursor: Cursor,
}

async fn line(stage: &Stage) -> Line {
    line_behind(stage, stage.client().await).await
}

async fn line_behind(stage: &Stage, holder: Client) -> Line {
    let waiter = stage.client().await;
    let (held, waiting) = (stage.claim("k"), stage.claim("k"));
    holder.held(&held).await;
    let cursor = match waiter.claim(&waiting, Place::Queue).await {
        Standing::Waiting { cursor, .. } | Standing::Busy { cursor, .. } => cursor,
        other => panic!("{other:?}"),
    };
    Line { holder, held, waiter, waiting, cursor }
}

impl Line {
    /// Waits as the machine does: on what is still held it waits again.
    async fn wait(&self) -> Hint {
        let mut cursor = self.cursor;
        loop {
            let woken =
                self.waiter.backend.wait(&self.waiter.session, &self.waiting, cursor).await.expect("a wait must be answered");
            match woken.hint {
                Hint::StillHeld { .. } => cursor = woken.cursor,
                hint => return hint,
            }
        }
    }

    /// Waits while something happens that must be heard of in time.
    async fn wait_while(&self, stage: &Stage, happens: impl Future<Output = Result<(), NotShown>>) -> Result<Hint, NotShown> {
        let both = async {
            let hint = self.wait();
            tokio::pin!(hint);
            // The wait is under way before anything happens.
            assert!(timeout(stage.moment(), &mut hint).await.is_err(), "nothing has happened yet");
            happens.await?;
            Ok(hint.await)
        };
        timeout(stage.patience().await, both).await.expect("the wait must end")
    }

    async fn release(&self) -> Shown {
        assert!(self.holder.release(&self.held).await);
        Ok(())
    }
}

/// The normal end of a wait, which is prompt unless the machine is busy.
pub async fn a_release_ends_a_wait(stage: &Stage) -> Shown {
    let soon = stage.moment() + stage.prompt();
    let mut took = Vec::new();
    while took.len() < 5 && took.iter().all(|took| *took > soon) {
        let line = line(stage).await;
        let began = Instant::now();
        assert_eq!(line.wait_while(stage, line.release()).await?, Hint::MaybeFree);
        took.push(began.elapsed());
        line.waiter.release(&line.waiting).await;
    }
    assert!(took.iter().any(|took| *took <= soon), "never within {soon:?}: {took:?}");
    Ok(())
}

/// No wake-up is lost between the claim that found the key taken and the wait.
pub async fn a_wait_that_begins_after_the_release_ends_at_once(stage: &Stage) -> Shown {
    let line = line(stage).await;
    line.release().await?;
    let hint = timeout(stage.patience().await, line.wait()).await.expect("the wait must end");
    assert_eq!(hint, Hint::MaybeFree);
    Ok(())
}

/// What a wait announces can be had.
pub async fn whoever_is_woken_by_a_release_is_granted(stage: &Stage) -> Shown {
    let line = line(stage).await;
    line.wait_while(stage, line.release()).await?;
    let standing = if line.waiter.is_fifo() {
        line.waiter.backend.confirm(&line.waiter.session, &line.waiting, line.cursor).await.unwrap()
    } else {
        line.waiter.claim(&line.waiting, Place::Queue).await
    };
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
    Ok(())
}

/// A holder that dies makes room too.
pub async fn the_end_of_the_holders_session_ends_a_wait(stage: &Stage) -> Shown {
    let line = line(stage).await;
    let hint = line.wait_while(stage, stage.end_session(&line.holder.session)).await?;
    assert_eq!(hint, Hint::MaybeFree);
    Ok(())
}

/// One that falls silent as well, once its session lapses.
pub async fn a_wait_behind_a_silent_holder_ends_when_its_session_lapses(stage: &Stage) -> Shown {
    let silent = stage.client_with(stage.short_ttl()).await;
    let lapses_within = silent.lapses_within(stage.short_ttl());
    let line = line_behind(stage, silent).await;
    let hint = timeout(lapses_within + stage.patience().await, line.wait()).await.expect("the wait must end");
    assert_eq!(hint, Hint::MaybeFree);
    Ok(())
}

/// A deletion makes room, or takes a kept place away.
pub async fn a_deletion_ends_a_wait(stage: &Stage) -> Shown {
    let line = line(stage).await;
    let hint = line.wait_while(stage, stage.delete(&line.held.key)).await?;
    assert!(matches!(hint, Hint::MaybeFree | Hint::ClaimGone), "{hint:?}");
    Ok(())
}

/// So does a release by force.
pub async fn a_release_by_force_ends_a_wait(stage: &Stage) -> Shown {
    let line = line(stage).await;
    let hint = line.wait_while(stage, stage.release_by_force(&line.held.key)).await?;
    assert_eq!(hint, Hint::MaybeFree);
    Ok(())
}

/// A place that was taken away is told, is not come by again by asking, and does not stop those who come after.
pub async fn a_place_that_is_removed_while_waiting_is_told(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = line(stage).await;
    let hint = line.wait_while(stage, stage.delete(&line.held.key)).await?;
    // The holder's place went with it, of which the wait may hear first.
    assert!(matches!(hint, Hint::MaybeFree | Hint::ClaimGone), "{hint:?}");
    let standing = line.waiter.backend.confirm(&line.waiter.session, &line.waiting, line.cursor).await.unwrap();
    assert_eq!(standing, Standing::ClaimGone);
    stage.client().await.held(&stage.claim("k")).await;
    Ok(())
}

/// Whoever waits with a dead session waits for nothing.
pub async fn the_end_of_the_waiters_own_session_ends_its_wait(stage: &Stage) -> Shown {
    stage.claims(Ability::Fifo).await?;
    let line = line(stage).await;
    line.wait_while(stage, stage.end_session(&line.waiter.session)).await?;
    let standing = line.waiter.backend.confirm(&line.waiter.session, &line.waiting, line.cursor).await.unwrap();
    assert_eq!(standing, Standing::SessionGone);
    assert_eq!(line.holder.holder(&line.held.key).await, Some(line.held.id));
    Ok(())
}

/// A wait that returns at once would be polling.
pub async fn a_wait_lasts_while_nothing_changes(stage: &Stage) -> Shown {
    let line = line(stage).await;
    let began = Instant::now();
    assert!(timeout(stage.prompt(), line.wait()).await.is_err(), "the key is held");
    assert!(began.elapsed() >= stage.prompt());
    Ok(())
}

/// What happens to keys that begin alike is no news.
pub async fn a_wait_hears_nothing_of_other_keys(stage: &Stage) -> Shown {
    let (line, other) = (line(stage).await, stage.client().await);
    let hint = line.wait();
    tokio::pin!(hint);
    for name in ["kk", "k/below", "K"] {
        let claim = stage.claim(name);
        other.held(&claim).await;
        assert!(other.release(&claim).await);
        assert!(timeout(stage.moment(), &mut hint).await.is_err(), "{name} is another key");
    }
    Ok(())
}

/// A wait is free to drop: the holder holds, and a kept place is kept.
pub async fn a_dropped_wait_changes_nothing(stage: &Stage) -> Shown {
    let line = line(stage).await;
    for _ in 0..3 {
        assert!(timeout(stage.moment(), line.wait()).await.is_err());
    }
    assert_eq!(line.holder.holders(&line.held.key).await, 1);
    assert_eq!(line.wait_while(stage, line.release()).await?, Hint::MaybeFree);
    Ok(())
}
