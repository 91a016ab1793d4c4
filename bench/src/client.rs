//! Every arm behind the same two calls.

use std::time::Duration;

use dlock::{LockGuard, Locker};
use dlock_core::Claim;

use crate::Outcome;
use crate::arm::Arm;
use crate::peer::lock_service::LockService;
use crate::peer::rs_consul::RsConsul;
use crate::raw;
use crate::raw::consul::By;

/// Something that takes locks and gives them back.
pub enum Client {
    /// dlock, on whichever store.
    Dlock(Locker),
    /// A bare client of Consul.
    Consul(raw::consul::key::Raw),
    /// The same with what dlock sends.
    ConsulGuarded(raw::consul::guarded::Guarded),
    /// The same in line.
    ConsulLine(raw::consul::line::Line),
    /// A bare client of etcd.
    Etcd(raw::etcd::key::Raw),
    /// The same in line.
    EtcdLine(raw::etcd::line::Line),
    /// The lock service of etcd.
    Service(LockService),
    /// The crate `rs-consul`.
    RsConsul(RsConsul),
    /// Bare transactions.
    Sqlite(raw::sqlite::Raw),
    /// The store in memory.
    Memory(raw::memory::Raw),
}

/// A lock that is held.
pub enum Hold {
    /// By dlock.
    Dlock(LockGuard),
    /// By a bare client, under the name of its key.
    Key(String),
    /// By a bare client of etcd in line, by its place there.
    Entry(String),
    /// The same of Consul.
    Place(raw::consul::line::Place),
    /// By the lock service, which calls it so.
    Service(Vec<u8>),
    /// By `rs-consul`, which gives it back when this is dropped.
    RsConsul(rs_consul::Lock<'static>),
    /// By the store in memory.
    Claim(Box<Claim>),
}

/// How long a store may take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sessions that lapse while something else is measured would disturb that.
const SESSION_OF_PEER: Duration = Duration::from_secs(3_600);

impl Client {
    /// Connects an arm with its session open, at a [place](crate::stores::Stores::place).
    pub async fn connect(arm: Arm, place: &str) -> Outcome<Self> {
        Ok(match arm {
            Arm::Etcd | Arm::Consul | Arm::Fair | Arm::Sqlite => {
                Self::dlock(dlock::builder(place)?.name("bench").connect().await?).await?
            }
            Arm::Memory => Self::dlock(Locker::new(raw::memory::store())).await?,
            Arm::RawConsul => Self::Consul(raw::consul::key::Raw::connect(place, By::Reqwest).await?),
            Arm::RawConsulPool => Self::Consul(raw::consul::key::Raw::connect(place, By::Pool).await?),
            Arm::RawConsulGuarded => Self::ConsulGuarded(raw::consul::guarded::Guarded::connect(place).await?),
            Arm::RawConsulLine => Self::ConsulLine(raw::consul::line::Line::connect(place).await?),
            Arm::RawEtcd => Self::Etcd(raw::etcd::key::Raw::connect(place).await?),
            Arm::RawEtcdLine => Self::EtcdLine(raw::etcd::line::Line::connect(place).await?),
            Arm::LockService => Self::Service(LockService::connect(place).await?),
            Arm::RsConsul => Self::RsConsul(RsConsul::new(place, SESSION_OF_PEER)),
            Arm::RawSqlite => Self::Sqlite(raw::sqlite::Raw::open(place)?),
            Arm::RawMemory => Self::Memory(raw::memory::Raw::connect().await?),
            Arm::ConsulLock | Arm::EtcdctlLock => return Err("a command is no client".into()),
        })
    }

    /// The same with sessions that live as long as by default, also where nobody renews them.
    pub async fn connect_to_hold(arm: Arm, place: &str) -> Outcome<Self> {
        match arm {
            Arm::RsConsul => Ok(Self::RsConsul(RsConsul::new(place, rs_consul::LockRequest::default().timeout))),
            _ => Self::connect(arm, place).await,
        }
    }

    async fn dlock(locker: Locker) -> Outcome<Self> {
        locker.ready(PATIENCE).await?;
        Ok(Self::Dlock(locker))
    }

    /// Takes a key; waits for it, where the arm can.
    pub async fn lock(&self, key: &str) -> Outcome<Hold> {
        Ok(match self {
            Self::Dlock(locker) => Hold::Dlock(locker.lock(key).await?),
            Self::Consul(raw) => raw.lock(key).await.map(|()| Hold::Key(key.to_owned()))?,
            Self::ConsulGuarded(raw) => raw.lock(key).await.map(|()| Hold::Key(key.to_owned()))?,
            Self::Etcd(raw) => raw.lock(key).await.map(|()| Hold::Key(key.to_owned()))?,
            Self::ConsulLine(raw) => Hold::Place(raw.lock(key).await?),
            Self::EtcdLine(raw) => Hold::Entry(raw.lock(key).await?),
            Self::Service(service) => Hold::Service(service.lock(key).await?),
            Self::RsConsul(peer) => Hold::RsConsul(peer.lock(key).await?),
            Self::Sqlite(raw) => raw.write(true).map(|()| Hold::Key(key.to_owned()))?,
            Self::Memory(raw) => Hold::Claim(Box::new(raw.lock(key).await?)),
        })
    }

    /// Gives it back; returns when the store has answered.
    pub async fn release(&self, hold: Hold) -> Outcome<()> {
        match (self, hold) {
            (_, Hold::Dlock(guard)) => guard.release().await.map(drop).map_err(Into::into),
            (Self::Consul(raw), Hold::Key(key)) => raw.unlock(&key).await,
            (Self::ConsulGuarded(raw), Hold::Key(key)) => raw.unlock(&key).await,
            (Self::Etcd(raw), Hold::Key(key)) => raw.unlock(&key).await,
            (Self::ConsulLine(raw), Hold::Place(place)) => raw.unlock(&place).await,
            (Self::EtcdLine(raw), Hold::Entry(entry)) => raw.unlock(entry).await,
            (Self::Service(service), Hold::Service(name)) => service.unlock(name).await,
            (_, Hold::RsConsul(lock)) => {
                // It sends its request when it is dropped, and holds the thread until that is answered. Whether it was released is not told.
                tokio::task::block_in_place(|| drop(lock));
                Ok(())
            }
            (Self::Sqlite(raw), Hold::Key(_)) => raw.write(false),
            (Self::Memory(raw), Hold::Claim(claim)) => raw.unlock(&claim).await,
            _ => Err("this lock is of another client".into()),
        }
    }

    /// Leaves nothing behind that would lapse while something else is measured.
    pub async fn end(&self) -> Outcome<()> {
        match self {
            Self::Dlock(locker) => {
                locker.shutdown(Duration::from_secs(2)).await;
                Ok(())
            }
            Self::Consul(raw) => raw.end().await,
            Self::ConsulGuarded(raw) => raw.end().await,
            Self::ConsulLine(raw) => raw.end().await,
            Self::Etcd(raw) => raw.end().await,
            Self::EtcdLine(raw) => raw.end().await,
            Self::Service(service) => service.end().await,
            // The sessions of `rs-consul` end with its locks; the others have none.
            Self::RsConsul(_) | Self::Sqlite(_) | Self::Memory(_) => Ok(()),
        }
    }
}
