//! What users hold: the way to locks of one store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Check, Finding, Inspection, Key, LockBackend, Mode};
use futures_util::future::BoxFuture;

use crate::connect::{CONNECT_LIMIT, ConnectError};
use crate::election::Election;
use crate::engine::Engine;
use crate::error::{InspectError, LockError, StoreError};
use crate::measure;
use crate::options::{self, InvalidOptions, LockerOptions, RequestOptions, Spawn};
use crate::request::{LockRequest, TryRequest, Wanted};
use crate::require::{Requirement, Unmet, require};
use crate::several::{LockAllRequest, WantedAll};
use crate::shutdown::{ShutdownReport, shut_down};

/// The way to the locks of one store; cheap to clone, to be shared by the whole process.
///
/// All locks of a locker share one session at the store. It is opened by the first acquisition and kept by a background task on the runtime
/// of that call; if that runtime ends, or nobody drives it any more, the next awaited call of the locker or of a guard's release starts the
/// task again on its own. When the last clone and the last guard are gone, what is held is given back and the session closed;
/// [`shutdown`](Self::shutdown) does so at once and reports.
#[derive(Clone)]
pub struct Locker {
    handle: Arc<Handle>,
}

/// Dropped with the last clone.
struct Handle {
    engine: Arc<Engine>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.leave();
    }
}

impl Locker {
    /// A locker with default options.
    pub fn new(backend: impl LockBackend) -> Self {
        Self::from_arc(Arc::new(backend))
    }

    /// A locker with default options on a backend chosen at run time, as [`backend`](crate::backend) makes it.
    ///
    /// Nothing can be refused here: the default ttl is moved into the store's range. A backend whose range holds no ttl that can be used is
    /// refused by [`LockerBuilder::build`] only.
    pub fn from_arc(backend: Arc<dyn LockBackend>) -> Self {
        let builder = LockerBuilder::new(backend);
        let options = builder.options_unchecked();
        Self::with(builder.backend, options)
    }

    /// A locker whose options are set one by one.
    pub fn builder(backend: impl LockBackend) -> LockerBuilder {
        LockerBuilder::new(Arc::new(backend))
    }

    /// As [`builder`](Self::builder), on a backend chosen at run time.
    pub fn builder_from_arc(backend: Arc<dyn LockBackend>) -> LockerBuilder {
        LockerBuilder::new(backend)
    }

    fn with(backend: Arc<dyn LockBackend>, options: LockerOptions) -> Self {
        measure::describe();
        let engine = Engine::new(measure::counted(backend), options);
        Self { handle: Arc::new(Handle { engine: Arc::new(engine) }) }
    }

    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.handle.engine)
    }

    /// Asks for the lock of a key; await the request to wait for it. A bad key or option is told then.
    pub fn lock(&self, key: impl AsRef<str>) -> LockRequest {
        LockRequest { wanted: self.want(key.as_ref()) }
    }

    /// Asks for the lock of a key if it is free now; await the request for the guard, or for `None`. A bad key or option is told then.
    pub fn try_lock(&self, key: impl AsRef<str>) -> TryRequest {
        TryRequest { wanted: self.want(key.as_ref()) }
    }

    /// Asks to share a key with others who share it; await the request to wait for it.
    ///
    /// The readers of a read-write lock, whose writers ask by [`lock`](Self::lock): any number of shared holders at a time, and none beside
    /// an exclusive one. Who waits for the exclusive lock stops those who come to share later, so that no stream of them keeps it out.
    /// Shared holders have no [token](crate::Held::token). A process that asks for the exclusive lock while it shares the key waits for itself.
    /// Refused where the store does not grant it, see [`Capabilities::shared`](dlock_core::Capabilities::shared): etcd and SQLite do, and
    /// Consul in fair mode.
    pub fn shared(&self, key: impl AsRef<str>) -> LockRequest {
        LockRequest { wanted: self.want(key.as_ref()).in_mode(Mode::Shared) }
    }

    /// As [`shared`](Self::shared), if there is room now; await the request for the guard, or for `None`.
    pub fn try_shared(&self, key: impl AsRef<str>) -> TryRequest {
        TryRequest { wanted: self.want(key.as_ref()).in_mode(Mode::Shared) }
    }

    /// Asks for one of `all` permits of a key, a distributed semaphore; await the request to wait for it.
    ///
    /// First come, first served. All who ask must name the same number: who names another than the holders did is refused as a
    /// [conflict](dlock_core::ErrorKind::Conflict) that names both. Holders of permits have no [token](crate::Held::token).
    /// Refused where the store does not grant it, see [`Capabilities::permits`](dlock_core::Capabilities::permits): etcd and SQLite do, and
    /// Consul in fair mode.
    pub fn permits(&self, key: impl AsRef<str>, all: u32) -> LockRequest {
        LockRequest { wanted: self.want(key.as_ref()).with_permits(all) }
    }

    /// As [`permits`](Self::permits), if one is free now; await the request for the guard, or for `None`.
    pub fn try_permits(&self, key: impl AsRef<str>, all: u32) -> TryRequest {
        TryRequest { wanted: self.want(key.as_ref()).with_permits(all) }
    }

    /// Asks for the locks of several keys together; await the request to wait for all of them. Keys that are named twice are taken once. A bad key or
    /// option is told then.
    pub fn lock_all<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> LockAllRequest {
        let keys = keys.into_iter().map(|key| Key::new(key.as_ref()).map_err(LockError::Key)).collect();
        LockAllRequest { wanted: WantedAll { locker: self.clone(), keys, options: RequestOptions::default() } }
    }

    /// An election of one leader, by the lock of a key. A bad name or option is told when a campaign is awaited.
    pub fn election(&self, name: impl AsRef<str>) -> Election {
        Election::new(self.want(name.as_ref()))
    }

    fn want(&self, key: &str) -> Wanted {
        let key = Key::new(key).map_err(LockError::Key);
        Wanted { locker: self.clone(), key, options: RequestOptions::default() }
    }

    /// Makes sure that the store does what the program relies on, at start instead of at three in the morning. Sends nothing.
    ///
    /// ```
    /// # use dlock::{Locker, Requirement};
    /// # fn example(locker: &Locker) -> Result<(), dlock::Unmet> {
    /// locker.require([Requirement::Fifo, Requirement::Shared])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn require(&self, what: impl IntoIterator<Item = Requirement>) -> Result<(), Unmet> {
        require(what, self.handle.engine.backend.capabilities())
    }

    /// Who holds a key and, where the store knows, who waits for it; asks the store once.
    ///
    /// Takes at most five seconds. Free to drop.
    pub async fn inspect(&self, key: impl AsRef<str>) -> Result<Inspection, InspectError> {
        let key = Key::new(key)?;
        let engine = self.engine();
        let clock = engine.clock;
        let limit = clock.now().plus(options::TRY_LIMIT);
        tokio::select! {
            biased;
            inspection = engine.backend.inspect(&key) => inspection.map_err(|error| InspectError::Store(StoreError::new(error))),
            () = clock.sleep_until(limit) => Err(InspectError::TimedOut { key, limit: options::TRY_LIMIT }),
        }
    }

    /// Looks whether the store is fit for locks, for people and tools: is it reachable and how fast, who leads, which version it is, which ttl it
    /// accepts, may we do what a lock needs, are the clocks sound, is there room. Each finding is fine, or says what to do.
    ///
    /// Leaves nothing at the store, and has nothing to do with the session of this locker. Takes at most five seconds; a store that has not told all by then
    /// is found unreachable. Free to drop.
    ///
    /// ```
    /// # async fn example(locker: &dlock::Locker) {
    /// for finding in locker.probe().await {
    ///     println!("{finding}"); // such as: permissions broken: opening a session: permission denied; the token needs ...
    /// }
    /// # }
    /// ```
    pub async fn probe(&self) -> Vec<Finding> {
        let engine = self.engine();
        let clock = engine.clock;
        let limit = clock.now().plus(options::TRY_LIMIT);
        tokio::select! {
            biased;
            found = engine.backend.probe() => found,
            () = clock.sleep_until(limit) => {
                let detail = format!("no answer within {:?}", options::TRY_LIMIT);
                vec![Finding::broken(Check::Reachable, detail, "see that the store runs, is not overloaded, and can be reached from here")]
            }
        }
    }

    /// Ends this locker and all its clones within the given time, and says what was given back and what was not.
    ///
    /// New requests are refused and waiting ones end with [`LockError::ShutDown`]. Every guard is told
    /// [`Loss::Shutdown`](dlock_core::Loss::Shutdown); a lock whose guard lives on is not given away under it, but is not renewed
    /// any more either. Free to drop; to be called again to go on.
    pub async fn shutdown(&self, within: Duration) -> ShutdownReport {
        shut_down(&self.handle.engine, within).await
    }

    /// Opens the session now instead of with the first lock, to find out that address, permissions and ttl are right.
    ///
    /// Ends with [`LockError::NoSession`] when the store refuses, or has not answered in time; then the session goes on opening in the
    /// background. Ends with [`LockError::ShutDown`] after a [`shutdown`](Self::shutdown). Free to drop.
    pub async fn ready(&self, within: Duration) -> Result<(), LockError> {
        crate::acquisition::ready(&self.engine(), within).await
    }

    /// The ttl that sessions are opened with.
    pub fn ttl(&self) -> Duration {
        self.handle.engine.options.ttl
    }

    /// Who holds this locker's locks, as others read it: `host/pid/name`.
    pub fn owner(&self) -> &str {
        &self.handle.engine.options.owner
    }
}

impl fmt::Debug for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.handle.engine;
        f.debug_struct("Locker")
            .field("backend", &engine.backend)
            .field("owner", &engine.options.owner)
            .field("ttl", &engine.options.ttl)
            .finish_non_exhaustive()
    }
}

/// Options of a [`Locker`].
#[derive(Debug)]
pub struct LockerBuilder {
    backend: Arc<dyn LockBackend>,
    ttl: Option<Duration>,
    name: String,
    /// The URL it came from, for messages.
    url: Option<String>,
    spawn: Spawn,
    required: Vec<Requirement>,
}

impl LockerBuilder {
    pub(crate) fn new(backend: Arc<dyn LockBackend>) -> Self {
        Self { backend, ttl: None, name: "dlock".to_owned(), url: None, spawn: Spawn::default(), required: Vec::new() }
    }

    pub(crate) fn at(mut self, url: String) -> Self {
        self.url = Some(url);
        self
    }

    /// How long a lock outlives its silent holder at the store, at least. Defaults to 15 s, moved into the store's range.
    ///
    /// A shorter ttl means a faster takeover after a crash, and less patience with a slow store or a busy runtime.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The name of this program, the last part of `host/pid/name` by which others know a holder. Defaults to `dlock`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the program relies on: [`build`](Self::build) and [`connect`](Self::connect) refuse a store that lacks any of it.
    #[must_use]
    pub fn require(mut self, what: impl IntoIterator<Item = Requirement>) -> Self {
        self.required.extend(what);
        self
    }

    /// Who runs the background task of each session. Defaults to the runtime of the call that needs it.
    ///
    /// A program whose runtime is busy with long polls renews late, and loses its locks; it can keep them on a runtime of their own:
    ///
    /// ```
    /// # use dlock::{InvalidOptions, LockBackend, Locker};
    /// # fn example(backend: impl LockBackend, keeping: &tokio::runtime::Runtime) -> Result<Locker, InvalidOptions> {
    /// let runtime = keeping.handle().clone();
    /// dlock::Locker::builder(backend).spawn_with(move |task| drop(runtime.spawn(task))).build()
    /// # }
    /// ```
    ///
    /// The task must be polled inside a tokio runtime with time, and not by the call itself. If it is dropped unfinished, the next awaited call
    /// hands out another.
    #[must_use]
    pub fn spawn_with(mut self, spawn: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static) -> Self {
        self.spawn = Spawn(Some(Arc::new(spawn)));
        self
    }

    /// Checks the options and makes the locker; sends nothing.
    pub fn build(self) -> Result<Locker, InvalidOptions> {
        let options = self.options_unchecked();
        options::validate_ttl(options.ttl, self.backend.capabilities())?;
        require(self.required, self.backend.capabilities())?;
        Ok(Locker::with(self.backend, options))
    }

    /// As [`build`](Self::build), and makes sure that the store answers and opens a session.
    ///
    /// Takes at most five seconds. Free to drop.
    pub async fn connect(self) -> Result<Locker, ConnectError> {
        let url = self.url.clone();
        let locker = self.build()?;
        match locker.ready(CONNECT_LIMIT).await {
            Ok(()) => Ok(locker),
            Err(error) => Err(ConnectError::NotReady { url, source: Box::new(error) }),
        }
    }

    fn options_unchecked(&self) -> LockerOptions {
        let range = self.backend.capabilities().ttl;
        // No `clamp`: a range that a backend has the wrong way round is told by `build`, not by a panic.
        let ttl = self.ttl.unwrap_or_else(|| options::DEFAULT_TTL.max(range.min).min(range.max));
        let owner = format!("{}/{}/{}", host(), std::process::id(), self.name).into();
        LockerOptions { ttl, owner, spawn: self.spawn.clone() }
    }
}

fn host() -> String {
    let host = rustix::system::uname();
    host.nodename().to_string_lossy().into_owned()
}
