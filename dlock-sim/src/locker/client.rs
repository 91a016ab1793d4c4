//! What a client does: it wants the lock in one way or another, works under it, and gives it back.

use std::future::{Future, IntoFuture};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use dlock::{AllGuard, Held, Leadership, LockError, LockGuard, Locker, Lost, ReleaseOutcome, ReleaseUnknown, RunError};
use dlock_testkit::memory::Control;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::life::Life;
use super::network::ms;
use super::tenure::{Tenure, Working};
use super::world::{NUMBER, World};
use crate::history::{Event, Op, Outcome, Refusal};
use crate::plan::{Fault, Site, Tenancy};

/// One client: a locker, and workers that want its lock.
pub(super) struct Client {
    pub(super) locker: Locker,
    pub(super) life: Arc<Life>,
    pub(super) world: Arc<World>,
    pub(super) control: Control,
}

/// What an acquisition is like.
struct Manner {
    number: Op,
    tries: bool,
    wait_at_most: Option<Duration>,
    hold_at_most: Option<Duration>,
    stop_before: Duration,
    cancelled: CancellationToken,
}

/// What an acquisition brought.
enum Taken {
    Guard(LockGuard),
    All(AllGuard),
    Term(Leadership),
    /// It was taken, worked under and given back in one call.
    AndGivenBack,
    Not(Refusal),
}

/// What draws are for, so that no two of them are the same.
#[derive(Clone, Copy)]
enum What {
    Workers = 10,
    Idle,
    Tries,
    Way,
    WaitsAtMost,
    Wait,
    HoldsAtMost,
    HoldAtMost,
    StopsBefore,
    Cancels,
    Strikes,
    Hold,
    Steps,
    Guarded,
    GivesBack,
    WriteOut,
    WriteHome,
}

macro_rules! requested {
    ($request:expr, $manner:expr) => {{
        let request = $request.metadata(NUMBER, $manner.number.to_string()).stop_before($manner.stop_before);
        let request = request.cancel_on($manner.cancelled.clone());
        match $manner.hold_at_most {
            Some(most) => request.hold_at_most(most),
            None => request,
        }
    }};
}

impl Client {
    /// Starts the workers, which share the rounds between them.
    pub(super) fn start(self: &Arc<Self>) {
        let workers = 1 + (self.draw(0, What::Workers) % 3) as u8;
        for worker in 0..workers {
            let client = Arc::clone(self);
            let working = Working::new(&self.world);
            self.life.run(async move {
                let _working = working;
                for round in (worker..client.world.config.rounds).step_by(workers.into()) {
                    client.round(Op::from(client.life.client) << 8 | Op::from(round)).await;
                }
            });
        }
    }

    fn draw(&self, number: Op, what: What) -> u64 {
        self.world.config.draw(&[what as u64, self.life.client.into(), number.into()])
    }

    fn one_in(&self, times: u64, number: Op, what: What) -> bool {
        self.draw(number, what).is_multiple_of(times)
    }

    /// A time up to `longest`.
    fn span(&self, longest: Duration, number: Op, what: What) -> Duration {
        self.world.config.chance(&[what as u64, self.life.client.into(), number.into()]).of(longest)
    }

    fn manner(&self, number: Op) -> Manner {
        let (ttl, hold) = (self.world.config.ttl(), ms(self.world.config.hold_ms));
        let stop_before = if self.one_in(6, number, What::StopsBefore) { ttl / 8 } else { Duration::ZERO };
        let hold_at_most = self.one_in(5, number, What::HoldsAtMost).then(|| self.span(hold, number, What::HoldAtMost));
        Manner {
            number,
            tries: self.draw(number, What::Tries) % 100 < self.world.config.tries_percent.into(),
            wait_at_most: self.one_in(4, number, What::WaitsAtMost).then(|| self.span(ttl * 3, number, What::Wait)),
            hold_at_most: hold_at_most.map(|most| most + stop_before + Duration::from_millis(1)),
            stop_before,
            cancelled: CancellationToken::new(),
        }
    }

    /// One acquisition, from wanting the lock to having given it back.
    async fn round(self: &Arc<Self>, number: Op) {
        sleep(self.span(ms(self.world.config.hold_ms), number, What::Idle)).await;
        let manner = self.manner(number);
        let fault = self.world.visit(Site::Acquiring, self.life.client);
        self.world.asks(self.life.client, number, manner.tries);
        match self.through(fault, &manner, self.acquire(&manner)).await {
            Taken::Guard(guard) => self.hold(number, guard.held(), guard.release()).await,
            Taken::All(guard) => self.hold_all(number, guard).await,
            Taken::Term(term) => self.hold(number, term.held(), term.resign()).await,
            // A term that was over before its work was polled even once was never told to the work.
            Taken::AndGivenBack => self.world.refused(number, Refusal::Failed),
            Taken::Not(why) => self.world.refused(number, why),
        }
    }

    /// Asks for the lock in one of the ways there are.
    fn acquire(self: &Arc<Self>, manner: &Manner) -> BoxFuture<'static, Taken> {
        let (number, key) = (manner.number, self.world.key());
        let client = Arc::clone(self);
        let work = move |again| {
            let client = Arc::clone(&client);
            move |held: Held| {
                let client = Arc::clone(&client);
                async move {
                    let tenure = Tenure::new(&client.world, &client.life, number, vec![held.clone()], again);
                    client.work(&tenure, &held).await;
                    tenure.gives_up();
                }
            }
        };
        let way = self.draw(number, What::Way) % 4;
        if let Some(tenancy) = self.world.tenancy {
            return self.acquire_beside(manner, tenancy, way == 0);
        }
        if manner.tries {
            let request = requested!(self.locker.try_lock(key), manner);
            if way == 0 {
                return request.run(work(false)).map(|ran| ran.map_or_else(|error| Taken::after(&error), Taken::of_run)).boxed();
            }
            return request.into_future().map(|tried| tried.map_or_else(|error| Taken::not(&error), Taken::of_try)).boxed();
        }
        let election = || {
            let election = self.locker.election(key).metadata(NUMBER, number.to_string());
            election.stop_before(manner.stop_before).cancel_on(manner.cancelled.clone())
        };
        let request = || {
            let request = requested!(self.locker.lock(key), manner);
            match manner.wait_at_most {
                Some(most) => request.wait_at_most(most),
                None => request,
            }
        };
        match way {
            0 => {
                let running = request().run(work(false));
                running.map(|ran| ran.map_or_else(|error| Taken::after(&error), |()| Taken::AndGivenBack)).boxed()
            }
            1 => {
                let election = election();
                async move { election.campaign().await.map_or_else(|error| Taken::not(&error), Taken::Term) }.boxed()
            }
            2 => {
                let work = work(true);
                let leading = election().lead(move |held| work(held).map(ControlFlow::Break));
                leading.map(|led| led.map_or_else(|error| Taken::not(&error), |()| Taken::AndGivenBack)).boxed()
            }
            _ => request().into_future().map(|got| got.map_or_else(|error| Taken::not(&error), Taken::Guard)).boxed(),
        }
    }

    /// Asks for a share, a permit or several keys.
    fn acquire_beside(self: &Arc<Self>, manner: &Manner, tenancy: Tenancy, runs: bool) -> BoxFuture<'static, Taken> {
        let (number, key, locker) = (manner.number, self.world.key(), &self.locker);
        let reads = tenancy.reads(self.world.config.seed, number);
        if let Tenancy::Several(_) = tenancy {
            let wanted = tenancy.wants(self.world.config.seed, number);
            let keys = wanted.into_iter().filter_map(|key| self.world.keys.get(key as usize));
            let request = requested!(locker.lock_all(keys), manner);
            let request = match manner.wait_at_most {
                Some(most) => request.wait_at_most(most),
                None => request,
            };
            return request.into_future().map(|got| got.map_or_else(|error| Taken::not(&error), Taken::All)).boxed();
        }
        if manner.tries {
            let request = match tenancy {
                Tenancy::Permits(all) => locker.try_permits(key, all),
                _ if reads => locker.try_shared(key),
                _ => locker.try_lock(key),
            };
            let tried = requested!(request, manner).into_future();
            return tried.map(|tried| tried.map_or_else(|error| Taken::not(&error), Taken::of_try)).boxed();
        }
        let request = match tenancy {
            Tenancy::Permits(all) => locker.permits(key, all),
            _ if reads => locker.shared(key),
            _ => locker.lock(key),
        };
        let request = requested!(request, manner);
        let request = match manner.wait_at_most {
            Some(most) => request.wait_at_most(most),
            None => request,
        };
        if !runs {
            return request.into_future().map(|got| got.map_or_else(|error| Taken::not(&error), Taken::Guard)).boxed();
        }
        let client = Arc::clone(self);
        let work = move |held: Held| async move {
            let tenure = Tenure::new(&client.world, &client.life, number, vec![held.clone()], false);
            client.work(&tenure, &held).await;
            tenure.gives_up();
        };
        request.run(work).map(|ran| ran.map_or_else(|error| Taken::after(&error), |()| Taken::AndGivenBack)).boxed()
    }

    /// Works under several locks, and gives them back: by awaiting that, or by dropping their guard.
    async fn hold_all(&self, number: Op, guard: AllGuard) {
        let tenure = Tenure::new(&self.world, &self.life, number, guard.locks().to_vec(), false);
        let Some(first) = guard.locks().first().cloned() else { return };
        if self.one_in(2, number, What::Guarded) {
            _ = guard.guarded(self.work(&tenure, &first)).await;
        } else {
            tokio::select! {
                biased;
                _ = guard.lost() => {}
                () = self.work(&tenure, &first) => {}
            }
        }
        tenure.gives_up();
        if !self.one_in(3, number, What::GivesBack) {
            guard.release().await;
        }
    }

    /// Acquires through what strikes meanwhile.
    async fn through(&self, fault: Option<Fault>, manner: &Manner, acquiring: BoxFuture<'static, Taken>) -> Taken {
        let mut acquiring = acquiring;
        let Some(fault) = fault else { return acquiring.await };
        let strikes_after = match fault {
            Fault::Cancel(millis) => ms(millis),
            _ => self.span(ms(self.world.config.latency_ms * 8), manner.number, What::Strikes),
        };
        tokio::select! {
            biased;
            taken = &mut acquiring => return taken,
            () = sleep(strikes_after) => {}
        }
        if let Fault::Cancel(_) = fault {
            if self.one_in(2, manner.number, What::Cancels) {
                return Taken::Not(Refusal::Cancelled);
            }
            manner.cancelled.cancel();
        } else {
            self.strike(fault).await;
        }
        acquiring.await
    }

    /// Works under a lock that was taken, and gives it back: by awaiting that, or by dropping it with the guard in it.
    async fn hold(&self, number: Op, held: Held, giving_back: impl Future<Output = Result<ReleaseOutcome, ReleaseUnknown>>) {
        let tenure = Tenure::new(&self.world, &self.life, number, vec![held.clone()], false);
        let op = tenure.op;
        let worked = if self.one_in(2, number, What::Guarded) {
            held.guarded(self.work(&tenure, &held)).await
        } else {
            tokio::select! {
                biased;
                reason = held.lost() => Err(Lost { key: held.key().clone(), reason }),
                () = self.work(&tenure, &held) => Ok(()),
            }
        };
        let was_held = tenure.gives_up() && worked.is_ok();
        if self.one_in(3, number, What::GivesBack) {
            return;
        }
        let outcome = match giving_back.await {
            Ok(ReleaseOutcome::Released) => Outcome::Released,
            Ok(ReleaseOutcome::NotHeld) => Outcome::NotHeld,
            Ok(_) | Err(_) => Outcome::Unknown,
        };
        // What a release finds after a loss is not of interest: that was told already.
        if was_held {
            self.world.note(Some(self.life.client), Event::Released { op, outcome });
        }
    }

    /// What is done under the lock.
    async fn work(&self, tenure: &Tenure, held: &Held) {
        let op = tenure.op;
        let fault = self.world.visit(Site::Holding, self.life.client);
        let steps = 1 + self.draw(op, What::Steps) % 3;
        let step = self.span(ms(self.world.config.hold_ms), op, What::Hold) / steps as u32;
        let strikes_at = self.draw(op, What::Strikes) % steps;
        for nth in 0..steps {
            sleep(step).await;
            if let Some(fault) = fault
                && nth == strikes_at
            {
                self.strike(fault).await;
            }
            self.write(op, held).await;
        }
    }

    /// Writes with the token of the lock, if it is held; the write is under way for a while, whatever becomes of its writer.
    async fn write(&self, op: Op, held: &Held) {
        let (Ok(()), Some(token)) = (held.check(), held.token()) else { return };
        if let Some(fault) = self.world.visit(Site::Writing, self.life.client) {
            self.strike(fault).await;
        }
        let latency = |what| self.span(ms(self.world.config.latency_ms), op, what);
        let (out, home) = (latency(What::WriteOut), latency(What::WriteHome));
        let (world, client) = (Arc::clone(&self.world), self.life.client);
        // Owned by the run: ends when the write has arrived.
        tokio::spawn(async move {
            sleep(out).await;
            world.written(client, op, token);
        });
        sleep(out + home).await;
    }

    async fn strike(&self, fault: Fault) {
        match fault {
            Fault::Pause(millis) => self.life.pause(ms(millis)).await,
            Fault::Crash => match self.life.crash().await {},
            Fault::EndSession => _ = self.control.expire_session_of(self.world.key()),
            Fault::DeleteKey => self.control.delete(self.world.key()),
            Fault::ReleaseByForce => _ = self.control.release_by_force(self.world.key()),
            _ => unreachable!("{fault:?} strikes calls only"),
        }
    }
}

impl Taken {
    fn of_try(guard: Option<LockGuard>) -> Self {
        guard.map_or(Self::Not(Refusal::Busy), Self::Guard)
    }

    fn of_run(ran: Option<()>) -> Self {
        ran.map_or(Self::Not(Refusal::Busy), |()| Self::AndGivenBack)
    }

    /// A run ended without its work being done; if the lock was lost under it, its tenure has said so.
    fn after(error: &RunError) -> Self {
        match error {
            RunError::Lock(error) => Self::not(error),
            RunError::Lost(_) => Self::AndGivenBack,
            other => unreachable!("unknown end of a run: {other}"),
        }
    }

    fn not(error: &LockError) -> Self {
        Self::Not(match error {
            LockError::TimedOut { .. } => Refusal::TimedOut,
            LockError::Cancelled { .. } => Refusal::Cancelled,
            LockError::ShutDown => Refusal::ShutDown,
            LockError::NoSession { .. } | LockError::Store { .. } => Refusal::Failed,
            other => unreachable!("the key and the options of a plan are valid: {other}"),
        })
    }
}
