//! The life of a client: round after round it wants the lock, holds it, writes under it, and gives it back.

use std::fmt::Debug;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock::{FencingToken, LockError, LockGuard, Locker, ReleaseOutcome};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join};
use tokio::time::sleep;

use super::scene::Scene;
use crate::history::{Event, Op, Outcome, Refusal};
use crate::plan::{Fault, Site};

/// The one key that all contend for.
pub(super) const KEY: &str = "locks/one";
/// The name under which an acquisition publishes its number.
pub(super) const OP: &str = "op";

/// What surrounds the clients, so that a life can be struck by what no client does by itself.
#[async_trait]
pub(super) trait Surroundings: Debug + Send + Sync + 'static {
    /// Waits while a client makes no step.
    async fn thaw(&self, client: u8);
    /// A client makes no step for so long.
    fn freeze(&self, client: u8, so_long: Duration);
    /// A client makes no step any more.
    fn crash(&self, client: u8);
    /// An operator does something to the lock.
    fn interfere(&self, fault: Fault);
    /// Everything passes again, and everybody is answered.
    fn heal(&self);
    /// The sessions that a client knows of and that are still there.
    fn known_sessions(&self, client: u8) -> Vec<String>;
    /// What is still at the store, with whose it is.
    fn left(&self) -> Vec<(Option<u8>, String)>;
}

/// One client.
pub(super) struct Life {
    pub(super) client: u8,
    pub(super) locker: Locker,
    pub(super) scene: Arc<Scene>,
    pub(super) around: Arc<dyn Surroundings>,
}

/// The client has crashed: nothing of what comes next happens.
struct Crashed;

/// The lock was lost, as the client was told.
struct Lost;

/// How a wait in the middle of a hold ended.
enum Held {
    On(LockGuard),
    Over,
}

impl Life {
    /// Lives all rounds; the locker, unless the client crashed or left of its own accord.
    pub(super) async fn live(self) -> Option<Locker> {
        // Some contend with themselves too: two tasks with one locker.
        let twofold = self.scene.config.draw(&[6, self.client.into()]).is_multiple_of(4);
        let lived = if twofold { try_join(self.rounds(0), self.rounds(1)).await.map(|_| ()) } else { self.rounds(0).await };
        lived.ok()?;
        match self.scene.config.draw(&[7, self.client.into()]) % 8 {
            // While things still go wrong, a shutdown may fail; in the end nothing is left all the same.
            0 => _ = self.locker.shutdown(self.scene.config.ttl()).await,
            1 => {}
            _ => return Some(self.locker),
        }
        None
    }

    async fn rounds(&self, task: u32) -> Result<(), Crashed> {
        for round in 0..self.scene.config.rounds {
            let op = Op::from(self.client) * 1_000 + task * 500 + Op::from(round);
            sleep(self.draw(op, 0, self.scene.config.hold_ms / 2)).await;
            self.around.thaw(self.client).await;
            self.round(op).await?;
        }
        Ok(())
    }

    async fn round(&self, op: Op) -> Result<(), Crashed> {
        let Some(guard) = self.acquire(op).await? else { return Ok(()) };
        let token = guard.token().map_or(0, FencingToken::get);
        self.scene.believes(self.client, op, token, guard.held());
        let (_, fault) = self.scene.visit(Site::Holding, self.client);
        let whole = self.draw(op, 1, self.scene.config.hold_ms);
        // What strikes does so before the write or after it.
        let (before, after) = if self.bits(op, 2) & 1 == 0 { (fault, None) } else { (None, fault) };
        let guard = match self.hold(op, guard, whole / 2, before).await? {
            Held::On(guard) => guard,
            Held::Over => return Ok(()),
        };
        if guard.check().is_ok() {
            match self.scene.visit(Site::Writing, self.client).1 {
                Some(Fault::Pause(millis)) => {
                    self.around.freeze(self.client, Duration::from_millis(millis.into()));
                    self.around.thaw(self.client).await;
                }
                Some(_) => return self.crash(),
                None => {}
            }
            self.scene.write(self.client, op, token);
        }
        let guard = match self.hold(op, guard, whole / 2, after).await? {
            Held::On(guard) => guard,
            Held::Over => return Ok(()),
        };
        self.let_go(op, guard).await;
        Ok(())
    }

    fn crash<T>(&self) -> Result<T, Crashed> {
        self.around.crash(self.client);
        Err(Crashed)
    }

    async fn acquire(&self, op: Op) -> Result<Option<LockGuard>, Crashed> {
        let config = &self.scene.config;
        let tries = self.bits(op, 3) % 100 < u64::from(config.tries_percent);
        self.scene.push(Some(self.client), Event::Wants { op, tries });
        let mut asking: BoxFuture<'static, Result<Option<LockGuard>, LockError>> = if tries {
            self.locker.try_lock(KEY).metadata(OP, op.to_string()).into_future()
        } else {
            let mut request = self.locker.lock(KEY).metadata(OP, op.to_string());
            if self.bits(op, 4).is_multiple_of(8) {
                request = request.wait_at_most(self.draw(op, 5, config.ttl_ms * 4));
            }
            request.into_future().map(|outcome| outcome.map(Some)).boxed()
        };
        let (_, fault) = self.scene.visit(Site::Acquiring, self.client);
        let strikes = match fault {
            Some(Fault::Cancel(millis)) => Duration::from_millis(millis.into()),
            _ => self.draw(op, 6, config.ttl_ms / 2),
        };
        let mut answer = None;
        if let Some(fault) = fault {
            tokio::select! {
                biased;
                outcome = &mut asking => answer = Some(outcome),
                () = sleep(strikes) => match fault {
                    Fault::Pause(millis) => self.around.freeze(self.client, Duration::from_millis(millis.into())),
                    Fault::Cancel(_) => {
                        drop(asking);
                        self.scene.push(Some(self.client), Event::Refused { op, why: Refusal::Cancelled });
                        return Ok(None);
                    }
                    _ => return self.crash(),
                }
            }
        }
        let outcome = match answer {
            Some(outcome) => outcome,
            None => asking.await,
        };
        self.around.thaw(self.client).await;
        let why = match outcome {
            Ok(Some(guard)) => return Ok(Some(guard)),
            Ok(None) => Refusal::Busy,
            Err(LockError::TimedOut { .. }) => Refusal::TimedOut,
            Err(LockError::Cancelled { .. }) => Refusal::Cancelled,
            Err(LockError::ShutDown) => Refusal::ShutDown,
            Err(_) => Refusal::Failed,
        };
        self.scene.push(Some(self.client), Event::Refused { op, why });
        Ok(None)
    }

    /// Holds the lock for so long, unless it is lost before; what strikes does so on the way.
    async fn hold(&self, op: Op, guard: LockGuard, so_long: Duration, fault: Option<Fault>) -> Result<Held, Crashed> {
        let before = if fault.is_some() { self.draw(op, 7, so_long.as_millis() as u32) } else { Duration::ZERO };
        if let Some(fault) = fault {
            if self.stay(op, &guard, before).await.is_err() {
                return Ok(self.over(op, guard));
            }
            match fault {
                Fault::Pause(millis) => {
                    self.around.freeze(self.client, Duration::from_millis(millis.into()));
                    self.around.thaw(self.client).await;
                }
                Fault::Crash => return self.crash(),
                fault => self.around.interfere(fault),
            }
        }
        match self.stay(op, &guard, so_long.saturating_sub(before)).await {
            Ok(()) => Ok(Held::On(guard)),
            Err(Lost) => Ok(self.over(op, guard)),
        }
    }

    /// A lost lock is let go at once.
    fn over(&self, op: Op, guard: LockGuard) -> Held {
        self.scene.lets_go(self.client, op);
        drop(guard);
        Held::Over
    }

    async fn stay(&self, op: Op, guard: &LockGuard, so_long: Duration) -> Result<(), Lost> {
        tokio::select! {
            biased;
            loss = guard.lost() => {
                self.scene.push(Some(self.client), Event::Lost { op, reason: loss.into() });
                Err(Lost)
            }
            () = sleep(so_long) => Ok(()),
        }
    }

    /// Releases the guard, or drops it.
    async fn let_go(&self, op: Op, guard: LockGuard) {
        self.scene.lets_go(self.client, op);
        if self.bits(op, 8).is_multiple_of(4) {
            return drop(guard);
        }
        let outcome = match guard.release().await {
            Ok(ReleaseOutcome::Released) => Outcome::Released,
            Ok(_) => Outcome::NotHeld,
            Err(_) => Outcome::Unknown,
        };
        self.scene.push(Some(self.client), Event::Released { op, outcome });
    }

    fn bits(&self, op: Op, what: u64) -> u64 {
        self.scene.config.draw(&[4, op.into(), what])
    }

    /// A time up to so many milliseconds.
    fn draw(&self, op: Op, what: u64, most: u32) -> Duration {
        Duration::from_millis(self.bits(op, what) % u64::from(most.max(1)))
    }
}
