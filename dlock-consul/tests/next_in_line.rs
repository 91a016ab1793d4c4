//! Whoever is told by the ticket ahead that it is the next in line, on a real Consul: it asks for the key without looking, and gets it only when it is its turn.
#![allow(missing_docs)]

mod fair_support;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock_core::{BackendError, Claim, Cursor, ErrorKind, FencingToken, Granted, Hint, LockBackend, Metadata, Mode, Standing};
use dlock_testkit::proxy::{Fault, FaultProxy, Matching};
use dlock_testkit::servers::ConsulAgent;
use fair_support::{Process, claim, permit, process, raw, shared, within};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// A key that was handed on, and one who waits for the second that has it. Each is a process of its own, and has a proxy of its own.
struct Line {
    agent: ConsulAgent,
    of_holder: FaultProxy,
    of_next: FaultProxy,
    first: Process,
    holder: Process,
    next: Process,
    since: [Cursor; 2],
}

impl Line {
    async fn new() -> Self {
        let agent = ConsulAgent::start().await.unwrap();
        let [of_holder, of_next] =
            [FaultProxy::start(agent.address()).await.unwrap(), FaultProxy::start(agent.address()).await.unwrap()];
        let first = process(&agent.address()).await;
        let [holder, next] = [process(&of_holder.address()).await, process(&of_next.address()).await];
        Self { agent, of_holder, of_next, first, holder, next, since: [Cursor(0); 2] }.stands().await
    }

    /// The same where all claims are of one session, for which Consul locks a key that it has.
    async fn of_one_session() -> Self {
        let agent = ConsulAgent::start().await.unwrap();
        let [of_holder, of_next] =
            [FaultProxy::start(agent.address()).await.unwrap(), FaultProxy::start(agent.address()).await.unwrap()];
        let next = process(&of_next.address()).await;
        let (first, holder) = (next.clone(), next.clone());
        Self { agent, of_holder, of_next, first, holder, next, since: [Cursor(0); 2] }.stands().await
    }

    async fn stands(mut self) -> Self {
        self.first.held(&claim("k", 1)).await;
        self.since = [self.holder.waiting(&claim("k", 2)).await, self.next.waiting(&claim("k", 3)).await];
        self
    }

    fn ticket(&self) -> String {
        format!("/v1/kv/{}", self.holder.ticket(&claim("k", 2)))
    }

    /// The holder comes to the key.
    async fn hands_on(&self) {
        self.first.released(&claim("k", 1)).await;
        self.comes().await;
        // Whoever watches its own ticket asks for it otherwise.
        let anew = Matching::any().path(&format!("{}?recurse", self.ticket()));
        within(SOON, "the next waits anew", async || self.of_next.count(&anew) == 2).await;
    }

    /// The same while the next does not wait: it has heard that the holder came to the key, and was cut off. What it is told when it waits again.
    async fn next_cut_off_while(&self, happens: impl AsyncFnOnce(&Self)) -> Result<Standing, BackendError> {
        let (next, cursor) = (claim("k", 3), self.since[1]);
        tokio::select! {
            biased;
            woken = self.next.consul.wait(&self.next.session, &next, cursor) => panic!("{woken:?}"),
            () = self.hands_on() => {}
        }
        happens(self).await;
        let woken = timeout(SOON, self.next.consul.wait(&self.next.session, &next, cursor)).await.unwrap().unwrap();
        assert_eq!(woken.hint, Hint::MaybeFree);
        self.next.consul.confirm(&self.next.session, &next, cursor).await
    }

    /// The holder comes to the key while the next waits, which hears of that; then this happens. What the next is told once its wait returned.
    async fn next_after(&self, happens: impl AsyncFnOnce(&Self)) -> Standing {
        let (next, cursor) = (claim("k", 3), self.since[1]);
        let wait = timeout(SOON, self.next.consul.wait(&self.next.session, &next, cursor));
        let meanwhile = async {
            self.hands_on().await;
            happens(self).await;
        };
        let (woken, ()) = tokio::join!(wait, meanwhile);
        assert_eq!(woken.unwrap().unwrap().hint, Hint::MaybeFree);
        self.of_next.reset();
        self.next.consul.confirm(&self.next.session, &next, cursor).await.unwrap()
    }

    async fn comes(&self) {
        let (claim, since) = (claim("k", 2), self.since[0]);
        let woken = timeout(SOON, self.holder.consul.wait(&self.holder.session, &claim, since)).await.unwrap().unwrap();
        assert_eq!(woken.hint, Hint::MaybeFree);
        match self.holder.consul.confirm(&self.holder.session, &claim, since).await {
            Ok(Standing::Held { .. }) => {}
            Err(error) if error.kind() == ErrorKind::Ambiguous => {}
            other => panic!("{other:?}"),
        }
    }

    /// The key goes to the next only now.
    async fn goes_on(&self, standing: Standing) {
        let Standing::Waiting { cursor, .. } = standing else { panic!("not waiting: {standing:?}") };
        assert_eq!(self.first.holders("k").await, 1);
        self.holder.released(&claim("k", 2)).await;
        timeout(SOON, self.next.granted(&claim("k", 3), cursor)).await.expect("it is next");
    }
}

#[tokio::test]
async fn whoever_is_next_asks_once_after_a_release() {
    let line = Line::new().await;
    let standing = line.next_after(async |line| line.holder.released(&claim("k", 2)).await).await;
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
    assert_eq!(line.of_next.requests().len(), 1, "{:?}", line.of_next.requests());
}

#[tokio::test]
async fn a_key_is_its_holders_though_the_ticket_is_taken_away() {
    for line in [Line::new().await, Line::of_one_session().await] {
        let standing = line.next_after(async |line| _ = raw(&line.agent, "DELETE", &line.ticket(), "").await).await;
        line.goes_on(standing).await;
    }
}

#[tokio::test]
async fn whoever_comes_after_one_that_shares_asks_for_nothing_in_vain() {
    let agent = ConsulAgent::start().await.unwrap();
    let proxy = FaultProxy::start(agent.address()).await.unwrap();
    let [sharing, next] = [process(&agent.address()).await, process(&proxy.address()).await];
    let (shares, waits) = (shared("k", 1), claim("k", 2));
    sharing.held(&shares).await;
    let since = next.waiting(&waits).await;
    sharing.released(&shares).await;
    let woken = timeout(SOON, next.consul.wait(&next.session, &waits, since)).await.unwrap().unwrap();
    assert_eq!(woken.hint, Hint::MaybeFree);
    proxy.reset();
    let standing = next.consul.confirm(&next.session, &waits, since).await.unwrap();
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
    assert_eq!(proxy.requests().len(), 2, "it looks, and locks: {:?}", proxy.requests());
}

#[tokio::test]
async fn a_key_that_its_holder_wrote_since_its_ticket_was_taken_away_is_its_own() {
    for line in [Line::new().await, Line::of_one_session().await] {
        let standing = line.next_cut_off_while(async |line| {
            raw(&line.agent, "DELETE", &line.ticket(), "").await;
            let amended = line.holder.consul.amend(&line.holder.session, &claim("k", 2), &Metadata::new()).await;
            assert!(amended.unwrap());
        });
        line.goes_on(standing.await.unwrap()).await;
    }
}

#[tokio::test]
async fn what_somebody_made_of_the_key_since_it_was_given_back_is_left_alone() {
    for line in [Line::new().await, Line::of_one_session().await] {
        let told = line.next_cut_off_while(async |line| {
            line.holder.released(&claim("k", 2)).await;
            raw(&line.agent, "PUT", "/v1/kv/k?flags=7", "precious").await;
        });
        assert_eq!(told.await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(raw(&line.agent, "GET", "/v1/kv/k?raw", "").await, "precious");
    }
}

#[tokio::test]
async fn a_ticket_that_is_taken_from_its_session_says_nothing() {
    let line = Line::new().await;
    let release = format!("{}?release={}", line.ticket(), line.holder.session);
    let standing = line.next_after(async |line| _ = raw(&line.agent, "PUT", &release, "").await).await;
    line.goes_on(standing).await;
}

#[tokio::test]
async fn a_holder_that_dies_makes_way_for_the_next() {
    let line = Line::new().await;
    let destroy = format!("/v1/session/destroy/{}", line.holder.session);
    let standing = line.next_after(async |line| _ = raw(&line.agent, "PUT", &destroy, "").await).await;
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
}

#[tokio::test]
async fn a_holder_that_never_heard_of_its_lock_gives_it_back() {
    let line = Line::new().await;
    line.of_holder.next(Matching::any().body("\"lock\",\"Key\":\"k\""), Fault::DropResponse);
    let standing = line.next_after(async |line| line.holder.released(&claim("k", 2)).await).await;
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
    assert_eq!(line.first.holders("k").await, 1);
}

#[tokio::test]
async fn a_holder_that_asks_again_after_a_lost_reply_has_its_key() {
    let line = Line::new().await;
    line.of_holder.next(Matching::any().body("\"lock\",\"Key\":\"k\""), Fault::DropResponse);
    let standing = line
        .next_after(async |line| {
            let token = FencingToken::new(line.holder.held(&claim("k", 2)).await).unwrap();
            // Its own mark is no loss.
            let granted = [Granted { claim: Arc::new(claim("k", 2)), token }];
            assert_eq!(line.holder.consul.audit(&line.holder.session, &granted).await.unwrap(), []);
            let seen = line.next.consul.inspect(&granted[0].claim.key).await.unwrap();
            assert_eq!((seen.holders.len(), seen.waiters.map(|waiters| waiters.len())), (1, Some(1)));
            line.holder.released(&claim("k", 2)).await;
        })
        .await;
    assert!(matches!(standing, Standing::Held { .. }), "{standing:?}");
}

#[tokio::test]
async fn one_that_leaves_before_it_came_to_the_key_says_nothing_of_those_ahead_of_it() {
    for ahead in [claim("k", 1), shared("k", 1), permit("k", 1, 2)] {
        let agent = ConsulAgent::start().await.unwrap();
        let [first, between, last] =
            [process(&agent.address()).await, process(&agent.address()).await, process(&agent.address()).await];
        first.held(&ahead).await;
        let (leaves, waits) = (claim("k", 2), claim("k", 3));
        between.waiting(&leaves).await;
        let since = last.waiting(&waits).await;
        let wait = timeout(SOON, last.consul.wait(&last.session, &waits, since));
        let (woken, ()) = tokio::join!(wait, between.released(&leaves));
        assert_eq!(woken.unwrap().unwrap().hint, Hint::MaybeFree);
        let standing = last.consul.confirm(&last.session, &waits, since).await.unwrap();
        let Standing::Waiting { cursor, ahead: Some(1), .. } = standing else { panic!("{standing:?}") };
        first.released(&ahead).await;
        timeout(SOON, last.granted(&waits, cursor)).await.expect("it is next");
    }
}

#[tokio::test]
async fn a_ticket_that_went_before_a_release_is_not_taken_for_the_one_released() {
    let agent = ConsulAgent::start().await.unwrap();
    let of = async || process(&agent.address()).await;
    let [holder, sharing, leaving, last] = [of().await, of().await, of().await, of().await];
    let (held, shares, leaves, waits) = (claim("k", 1), shared("k", 2), claim("k", 3), claim("k", 4));
    holder.held(&held).await;
    let of_sharing = sharing.waiting(&shares).await;
    leaving.waiting(&leaves).await;
    let since = last.waiting(&waits).await;
    leaving.released(&leaves).await;
    holder.released(&held).await;
    // The ticket right before its own went, and the key was given back, but not in one transaction, nor by the one who was ahead.
    let woken = timeout(SOON, last.consul.wait(&last.session, &waits, since)).await.unwrap().unwrap();
    assert_eq!(woken.hint, Hint::MaybeFree);
    timeout(SOON, sharing.granted(&shares, of_sharing)).await.expect("it is next");
    let standing = last.consul.confirm(&last.session, &waits, since).await.unwrap();
    assert!(matches!(standing, Standing::Waiting { ahead: Some(1), .. }), "{standing:?}");
}

#[tokio::test]
async fn who_shares_and_who_does_not_never_have_the_key_together() {
    let agent = ConsulAgent::start().await.unwrap();
    let line = |n: u128| match n % 8 {
        0 | 3 | 4 | 7 => claim("k", n),
        1 | 2 => shared("k", n),
        _ => permit("k", n, 2),
    };
    let holder = process(&agent.address()).await;
    let first = claim("k", 1_000);
    holder.held(&first).await;
    let inside = [const { AtomicU32::new(0) }; 3];
    let turn = async |process: Process, claim: Claim, since| {
        let token = process.granted(&claim, since).await;
        let place = match claim.mode {
            Mode::Exclusive => 0,
            Mode::Shared => 1,
            _ => 2,
        };
        inside[place].fetch_add(1, Ordering::SeqCst);
        // Others have their turn in between, if any may.
        _ = process.holders("k").await;
        let now = [0, 1, 2].map(|place| inside[place].load(Ordering::SeqCst));
        assert!(matches!(now, [1, 0, 0] | [0, _, 0] | [0, 0, 1 | 2]), "{now:?}");
        inside[place].fetch_sub(1, Ordering::SeqCst);
        process.released(&claim).await;
        (claim.mode == Mode::Exclusive).then_some(token)
    };
    let mut turns = Vec::new();
    for n in 0..24 {
        let (process, claim) = (process(&agent.address()).await, line(n));
        let since = process.waiting(&claim).await;
        turns.push(turn(process, claim, since));
    }
    let all = pin!(futures_util::future::join_all(turns));
    let (tokens, ()) = tokio::join!(timeout(Duration::from_secs(60), all), holder.released(&first));
    let exclusive: Vec<_> = tokens.expect("all come through").into_iter().flatten().collect();
    assert!(exclusive.is_sorted(), "first come, first served: {exclusive:?}");
}
