//! One client as the machine it runs on sees it: all its tasks, which stand still or end together.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::world::World;
use crate::history::Event;

/// The process of one client: runs every task of it, dlock's own included.
///
/// A pause is that of a stopped process: no task of it takes a step, while its clock, what it sent, and what is sent to it go on. A crash is
/// that of a killed one: no task ever takes a step again, and nothing more is sent.
pub(super) struct Life {
    pub(super) client: u8,
    world: Arc<World>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    paused_until: Option<Instant>,
    crashed: bool,
    /// Tasks that were to take a step while they could not.
    parked: Vec<Waker>,
    tasks: Vec<JoinHandle<()>>,
}

impl Life {
    pub(super) fn new(client: u8, world: Arc<World>) -> Self {
        Self { client, world, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task of this client. Owned by the client: ends with it.
    pub(super) fn run(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(InStep { life: Arc::clone(self), task: task.boxed() });
        self.state().tasks.push(task);
    }

    /// Stops every task of the client for so long, the calling one included.
    pub(super) async fn pause(self: &Arc<Self>, pause: Duration) {
        let until = Instant::now() + pause;
        self.world.note(Some(self.client), Event::Paused { until: self.world.micros(until) });
        {
            let mut state = self.state();
            state.paused_until = state.paused_until.max(Some(until));
        }
        let life = Arc::clone(self);
        // Owned by the run: ends when the pause does.
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            life.resume();
        });
        tokio::task::yield_now().await;
    }

    fn resume(&self) {
        let mut state = self.state();
        if state.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        state.paused_until = None;
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        parked.into_iter().for_each(Waker::wake);
    }

    /// Ends every task of the client, the calling one included.
    pub(super) async fn crash(&self) -> Infallible {
        self.world.crashed(self.client);
        {
            let mut state = self.state();
            state.crashed = true;
            for task in &state.tasks {
                task.abort();
            }
        }
        std::future::pending::<Infallible>().await
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// How many tasks go on. Panics as one of them did.
    pub(super) fn tasks_left(&self) -> usize {
        let mut state = self.state();
        for task in &mut state.tasks {
            if !task.is_finished() {
                continue;
            }
            if let Some(Err(ended)) = task.now_or_never()
                && ended.is_panic()
            {
                std::panic::resume_unwind(ended.into_panic());
            }
        }
        state.tasks.retain(|task| !task.is_finished());
        state.tasks.len()
    }

    /// Whether a task may take a step; it is woken later if not.
    fn lets_step(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        let stands = state.crashed || state.paused_until.is_some();
        if stands {
            state.parked.push(waker.clone());
        }
        !stands
    }
}

/// A task that only takes steps while its client does.
struct InStep {
    life: Arc<Life>,
    task: BoxFuture<'static, ()>,
}

impl Future for InStep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.life.lets_step(cx.waker()) {
            return Poll::Pending;
        }
        self.task.as_mut().poll(cx)
    }
}
