//! The orderly end of a locker, and what it could not give back.

use std::time::Duration;

use dlock_core::{FencingToken, Key, Loss};

use crate::engine::Engine;

/// What became of the locks of a locker that was shut down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The keys that were held or being given back when the shutdown began, and were given back since.
    pub given_back: Vec<Key>,
    /// The locks that are still at the store: their guards live, or their release was not answered.
    pub left: Vec<LeftBehind>,
    /// Whether every session is closed; one that is not lapses by itself.
    pub closed: bool,
}

impl ShutdownReport {
    /// Whether nothing was left at the store.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty() && self.closed
    }
}

/// A lock that could not be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftBehind {
    /// The key.
    pub key: Key,
    /// The token of the grant, as [`Held::token`](crate::Held::token) tells it.
    pub token: Option<FencingToken>,
    /// How long it can stay at the store, counted from now; it is not renewed any more.
    pub lapses_within: Duration,
}

pub(crate) async fn shut_down(engine: &std::sync::Arc<Engine>, within: Duration) -> ShutdownReport {
    let clock = engine.clock;
    let deadline = clock.now().plus(within);
    // A session's keeper may live on a runtime that nobody drives any more.
    let look_again = || clock.now().plus(engine.options.ttl / 12);
    engine.stopping.cancel();
    engine.keep_all(engine.clock.now());
    let mut held = Vec::new();
    for session in engine.sessions() {
        // From here on it grants nothing, so nobody holds a lock who is not told.
        let (granted, releasing) = session.refuse();
        for grant in &granted {
            grant.lose(Loss::Shutdown);
        }
        held.extend(granted);
        held.extend(releasing);
    }
    // A lock whose guard lives is not given away under it: wait for the guards.
    for session in engine.sessions() {
        loop {
            let quiet = session.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if session.holds_nothing() {
                break;
            }
            tokio::select! {
                biased;
                () = quiet => {}
                () = clock.sleep_until(deadline) => break,
                () = clock.sleep_until(look_again()) => engine.keep_all(engine.clock.now()),
            }
        }
    }
    for session in engine.sessions() {
        if session.holds_nothing() {
            session.retire();
        } else {
            session.abandon();
        }
    }
    let closed = loop {
        let forgotten = engine.forgotten.notified();
        tokio::pin!(forgotten);
        forgotten.as_mut().enable();
        if engine.sessions().is_empty() {
            break true;
        }
        tokio::select! {
            biased;
            () = forgotten => {}
            () = clock.sleep_until(deadline) => break false,
            () = clock.sleep_until(look_again()) => engine.keep_all(engine.clock.now()),
        }
    };
    let mut report = ShutdownReport::default();
    for grant in held {
        if grant.session.still_has(grant.claim.id) {
            let lapses_within = grant.session.lapses_within();
            let token = grant.fencing_token();
            report.left.push(LeftBehind { key: grant.claim.key.clone(), token, lapses_within });
        } else {
            report.given_back.push(grant.claim.key.clone());
        }
    }
    report.closed = closed && report.left.is_empty() && !engine.may_have_unkept_sessions();
    if !report.is_clean() {
        tracing::warn!(left = report.left.len(), closed = report.closed, "shut down with something left at the store");
    }
    report
}
