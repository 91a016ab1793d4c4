//! The ways between the clients and the members, byte by byte: what freezes, is cut off, or breaks there.
//!
//! Connections carry at once; how long a message is under way is counted around each call, where it can be drawn by its slot.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep_until};

use crate::wire::scene::{FOR_EVER, Scene};

/// Every client's way to the members.
#[derive(Debug)]
pub(super) struct Network {
    scene: Arc<Scene>,
    state: Mutex<State>,
    /// Told when a client goes on, and when everything passes again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Until when nothing passes between a client and the members.
    partitions: BTreeMap<u8, Duration>,
    /// Until when a client makes no step.
    frozen: BTreeMap<u8, Duration>,
    links: Vec<Weak<Link>>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    network: Arc<Network>,
    pub(super) client: u8,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
struct LinkState {
    /// It is broken, as both ends hear.
    cut: bool,
    /// Something in between has forgotten it: nothing passes any more, and nobody is told.
    dead: bool,
    wakers: Vec<Waker>,
}

/// Whether bytes pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Free,
    /// Not before then.
    Until(Duration),
    Never,
    Cut,
}

impl Network {
    pub(super) fn new(scene: Arc<Scene>) -> Arc<Self> {
        Arc::new(Self { scene, state: Mutex::default(), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a client makes no step.
    pub(super) async fn thaw(&self, client: u8) {
        self.until(|state| state.frozen.get(&client).copied()).await;
    }

    /// Waits while there is no way between a client and the members.
    pub(super) async fn reach(&self, client: u8) {
        self.until(|state| state.partitions.get(&client).copied()).await;
    }

    async fn until(&self, time: impl Fn(&State) -> Option<Duration>) {
        loop {
            let changed = self.changed.notified();
            let until = time(&self.state()).unwrap_or_default();
            if until <= self.scene.now() {
                return;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(self.scene.instant(until)) => {}
            }
        }
    }

    /// A client makes no step for so long.
    pub(super) fn freeze(&self, client: u8, so_long: Duration) {
        let until = self.scene.now() + so_long;
        self.state().frozen.insert(client, until);
        self.scene.push(Some(client), crate::history::Event::Paused { until: until.as_micros() as u64 });
    }

    /// A client makes no step any more, ever; its connections end with it.
    pub(super) fn crash(&self, client: u8) {
        self.state().frozen.insert(client, FOR_EVER);
        self.scene.crashed(client);
        self.each(|link| link.client == client, Link::cut);
    }

    /// Nothing passes between a client and the members for so long. What was under way arrives afterwards, unless its connection is forgotten.
    pub(super) fn part(&self, client: u8, so_long: Duration, forgets: bool) {
        let until = self.scene.now() + so_long;
        let mut state = self.state();
        let present = state.partitions.entry(client).or_default();
        *present = (*present).max(until);
        drop(state);
        if forgets {
            self.each(|link| link.client == client, |link| link.state().dead = true);
        }
    }

    /// Every connection breaks.
    pub(super) fn cut_all(&self) {
        self.each(|_| true, Link::cut);
    }

    /// Everything passes again.
    pub(super) fn heal(&self) {
        self.state().partitions.clear();
        self.changed.notify_waiters();
        self.each(|_| true, Link::wake);
    }

    /// Does this to the connections of that kind, the oldest first.
    fn each(&self, which: impl Fn(&Link) -> bool, does: impl Fn(&Link)) {
        let mut state = self.state();
        state.links.retain(|link| link.strong_count() > 0);
        let links: Vec<_> = state.links.iter().filter_map(Weak::upgrade).filter(|link| which(link)).collect();
        drop(state);
        for link in links {
            does(&link);
        }
    }

    /// A new connection of a client: its end, and the other.
    pub(super) fn connect(self: &Arc<Self>, client: u8) -> (Wire, DuplexStream) {
        /// What flows before anybody must make room for more.
        const WINDOW: usize = 1 << 16;
        let (near, far) = tokio::io::duplex(WINDOW);
        (Wire { io: near, link: self.link(client), reads: None, writes: None }, far)
    }

    /// What happens to a connection of a client.
    pub(super) fn link(self: &Arc<Self>, client: u8) -> Arc<Link> {
        let link = Arc::new(Link { network: Arc::clone(self), client, state: Mutex::default() });
        self.state().links.push(Arc::downgrade(&link));
        link
    }
}

impl Link {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It breaks.
    pub(super) fn cut(&self) {
        self.state().cut = true;
        self.wake();
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut self.state().wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn passage(&self) -> Passage {
        let link = self.state();
        if link.cut {
            return Passage::Cut;
        }
        if link.dead {
            return Passage::Never;
        }
        let state = self.network.state();
        let until = state.partitions.get(&self.client).max(state.frozen.get(&self.client)).copied().unwrap_or_default();
        if until <= self.network.scene.now() { Passage::Free } else { Passage::Until(until) }
    }

    /// Waits until what is under way to the members passes; `false` if it never will.
    pub(super) async fn passes(&self) -> bool {
        self.network.reach(self.client).await;
        !self.state().dead
    }

    fn heard_by(&self, waker: &Waker) {
        let mut state = self.state();
        if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
    }
}

/// A client's end of a connection.
pub(super) struct Wire {
    io: DuplexStream,
    pub(super) link: Arc<Link>,
    reads: Option<Pin<Box<Sleep>>>,
    writes: Option<Pin<Box<Sleep>>>,
}

/// Whether bytes pass; wakes the task when that may have changed.
fn passage(link: &Link, pause: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<Passage> {
    link.heard_by(cx.waker());
    loop {
        let passage = link.passage();
        let Passage::Until(until) = passage else {
            *pause = None;
            return Poll::Ready(passage);
        };
        let until = link.network.scene.instant(until);
        let sleep = pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        match std::task::ready!(passage(&wire.link, &mut wire.reads, cx)) {
            Passage::Cut => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Passage::Never | Passage::Until(_) => Poll::Pending,
            Passage::Free => Pin::new(&mut wire.io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        match std::task::ready!(passage(&wire.link, &mut wire.writes, cx)) {
            Passage::Cut => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Passage::Never | Passage::Until(_) => Poll::Ready(Ok(bytes.len())),
            Passage::Free => Pin::new(&mut wire.io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
