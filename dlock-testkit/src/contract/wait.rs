//! Waiting until asking again is worth a request.

use dlock_core::{Claim, Cursor, Hint, Place, Standing};
use tokio::time::{Instant, timeout};

use super::{Client, Harness, claim_of};

/// One who holds and one who waits.
struct Line {
    holder: Client,
    held: Claim,
    waiter: Client,
    waiting: Claim,
    cursor: Cursor,
}

async fn line(harness: &dyn Harness) -> Line {
    let (holder, waiter) = (Client::new(harness).await, Client::new(harness).await);
    let (held, waiting) = (claim_of("k"), claim_of("k"));
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
    async fn wait_while(&self, harness: &dyn Harness, happens: impl Future<Output = ()>) -> Hint {
        let both = async {
            let hint = self.wait();
            tokio::pin!(hint);
            // The wait is under way before anything happens.
            assert!(timeout(harness.prompt() / 10, &mut hint).await.is_err(), "nothing has happened yet");
            happens.await;
            hint.await
        };
        timeout(harness.prompt(), both).await.expect("the wait must end")
    }
}

/// The normal end of a wait.
pub async fn a_release_ends_a_wait(harness: &dyn Harness) {
    let line = line(harness).await;
    let hint = line.wait_while(harness, async { assert!(line.holder.release(&line.held).await) }).await;
    assert_eq!(hint, Hint::MaybeFree);
}

/// A holder that dies makes room too.
pub async fn the_end_of_the_holders_session_ends_a_wait(harness: &dyn Harness) {
    let line = line(harness).await;
    let hint = line.wait_while(harness, harness.end_session(&line.holder.session)).await;
    assert_eq!(hint, Hint::MaybeFree);
}

/// A deletion makes room, or takes a kept place away.
pub async fn a_deletion_ends_a_wait(harness: &dyn Harness) {
    let line = line(harness).await;
    let hint = line.wait_while(harness, harness.delete(&line.held.key)).await;
    assert!(matches!(hint, Hint::MaybeFree | Hint::ClaimGone), "{hint:?}");
}

/// A wait that returns at once would be polling.
pub async fn a_wait_lasts_while_nothing_changes(harness: &dyn Harness) {
    let line = line(harness).await;
    let began = Instant::now();
    assert!(timeout(harness.prompt(), line.wait()).await.is_err(), "the key is held");
    assert!(began.elapsed() >= harness.prompt());
}

/// A wait is free to drop: the holder holds, and a kept place is kept.
pub async fn a_dropped_wait_changes_nothing(harness: &dyn Harness) {
    let line = line(harness).await;
    for _ in 0..3 {
        assert!(timeout(harness.prompt() / 10, line.wait()).await.is_err());
    }
    assert_eq!(line.holder.holders(&line.held.key).await, 1);
    let hint = line.wait_while(harness, async { assert!(line.holder.release(&line.held).await) }).await;
    assert_eq!(hint, Hint::MaybeFree);
}
