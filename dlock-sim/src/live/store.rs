//! What differs between the stores: how their servers are handled, how workers get there, what an operator can do, and what is left.
//!
//! A run, its fleet and its storm know a store by this module only; [`consul`](super::consul) and [`etcd`](super::etcd) fill it in.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::LockBackend;
use dlock_testkit::proxy::{Fault, FaultProxy, Matching};
use dlock_testkit::servers::StartError;
use futures_util::future::BoxFuture;

use super::storm::Kind;
use super::{consul, etcd};
use crate::wgl::Unheld;

/// A store that workers contend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Consul's servers; each worker is told of one of them, as of the agent on its machine.
    Consul,
    /// The same with workers in fair mode.
    ConsulFair,
    /// etcd's members, with users; each worker is told of all of them.
    Etcd,
}

/// A store that was started for a run.
pub(super) struct Running {
    pub(super) servers: Box<dyn Servers>,
    pub(super) operator: Box<dyn Operator>,
    pub(super) access: Access,
}

/// How workers get to a store, and what their requests are known by.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// What their URL begins with.
    pub(super) scheme: &'static str,
    /// And what it ends with.
    pub(super) query: &'static str,
    /// What else they are told, by the variables of the store's own tools.
    pub(super) environment: Vec<(&'static str, &'static str)>,
    /// How many of the servers each is told of.
    pub(super) ways: usize,
    /// Puts a fault proxy before a server.
    pub(super) proxy: fn(SocketAddr) -> BoxFuture<'static, io::Result<FaultProxy>>,
    /// How a server says that it cannot serve.
    pub(super) refusal: Fault,
    /// The requests that may take a lock.
    pub(super) claim: Matching,
    /// Those that may free one.
    pub(super) release: Matching,
}

/// The servers, by their places.
#[async_trait]
pub(super) trait Servers: fmt::Debug + Send + Sync {
    /// Where they listen, without a proxy between.
    fn addresses(&self) -> Vec<SocketAddr>;

    /// Who leads, as the first says that answers soon.
    async fn leader(&self) -> Option<usize>;

    /// Kills the process; its data stays.
    fn kill(&mut self, place: usize) -> io::Result<()>;

    /// Starts these anew on their data, all at once, and returns when they serve.
    async fn restart(&mut self, places: &[usize]) -> Result<(), StartError>;

    /// Freezes the process.
    fn pause(&mut self, place: usize) -> io::Result<()>;

    /// Lets it go on.
    fn resume(&mut self, place: usize) -> io::Result<()>;
}

/// Somebody with access to all servers, past dlock and the proxies.
#[async_trait]
pub(super) trait Operator: fmt::Debug + Send + Sync {
    /// Whom this act would concern now, as the first server knows that answers; none where there is nothing to do it to.
    async fn targets(&self, act: Kind) -> io::Result<Vec<Target>>;

    /// Does it.
    async fn act(&self, act: Kind, target: &Target) -> Done;

    /// What is left of workers at each server: sessions, held keys, places in line.
    async fn leftovers(&self) -> io::Result<Vec<String>>;
}

/// What an operator may do something to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The worker whose it is, where that is known.
    pub(super) client: Option<u8>,
    /// The lock; `None` for a session.
    pub(super) key: Option<String>,
    /// What the store calls it.
    pub(super) id: String,
    /// The session that it hangs on.
    pub(super) session: String,
}

/// Whether something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It was.
    Surely,
    /// It came too late: there was nothing any more.
    Missed,
    /// Nobody answered: perhaps it is still done later.
    Perhaps,
}

/// How long one server may take to answer an operator.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Under which name all keys stand.
pub(super) const PREFIX: &str = "live/";
/// The token or password of every worker, which must stand in no log.
pub(super) const SECRET: &str = "d10c4e57-5ec2-4e75-8a11-700000c0ffee";

impl Store {
    pub(super) async fn start(self, servers: usize) -> Result<Running, StartError> {
        match self {
            Self::Consul => consul::start(servers).await,
            Self::ConsulFair => consul::start_fair(servers).await,
            Self::Etcd => etcd::start(servers).await,
        }
    }

    /// What somebody with access to it does to locks.
    pub fn acts(self) -> &'static [Kind] {
        match self {
            Self::Consul => &consul::ACTS,
            Self::ConsulFair => &consul::ACTS_IN_LINE,
            Self::Etcd => &etcd::ACTS,
        }
    }

    /// After what its servers may end a session although it was renewed, as an operator does.
    pub(super) fn early_ends(self) -> &'static [Kind] {
        match self {
            Self::Consul | Self::ConsulFair => &[],
            Self::Etcd => &etcd::EARLY_ENDS,
        }
    }

    /// Under which target its backend tells of every answer.
    pub(super) fn logs(self) -> &'static str {
        match self {
            Self::Consul | Self::ConsulFair => "dlock_consul",
            Self::Etcd => "dlock_etcd",
        }
    }

    /// When a try may find a key taken that nobody holds.
    pub(super) fn unheld(self) -> Unheld {
        match self {
            Self::ConsulFair => Unheld::InLine,
            Self::Consul | Self::Etcd => Unheld::Never,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consul => "consul",
            Self::ConsulFair => "consul, fair",
            Self::Etcd => "etcd",
        })
    }
}

impl Access {
    /// The URL for a worker whose ways begin at these addresses.
    pub(super) fn url(&self, addresses: &[SocketAddr]) -> String {
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        format!("{}://{}{}", self.scheme, addresses.join(","), self.query)
    }
}

/// The backend for a URL, as [`dlock::backend`] makes it, but for ttls as short as those of the runs.
pub(super) fn backend(url: &str) -> Result<Arc<dyn LockBackend>, Box<dyn Error + Send + Sync>> {
    // Consul's servers are told by their configuration to take shorter ttls than usual, and no URL says so.
    if url.starts_with("consul://") { consul::backend(url) } else { Ok(dlock::backend(url)?) }
}

/// The worker that this name is of; see [`name`](super::worker::name).
pub(super) fn client(owner: &str) -> Option<u8> {
    let client = owner.rsplit_once('-')?.1.parse().ok()?;
    owner.ends_with(&super::worker::name(client)).then_some(client)
}
