//! Every arm behind the same two calls.

use std::time::Duration;

use dlock::{LockGuard, Locker};
use dlock_core::Claim;

use crate::Outcome;
use crate::arm::Arm;
use crate::raw;

/// Something that takes locks and gives them back.
pub enum Client {
    /// dlock, on whichever store.
    Dlock(Locker),
    /// A bare client of Consul.
    Consul(raw::consul::Raw),
    /// A bare client of etcd.
    Etcd(raw::etcd::Raw),
    /// The lock service of etcd.
    Service(raw::etcd::Raw),
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
    /// By the lock service, which calls it so.
    Service(Vec<u8>),
    /// By the store in memory.
    Claim(Box<Claim>),
}

/// How long a store may take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

impl Client {
    /// Connects an arm with its session open, at a [place](crate::stores::Stores::place).
    pub async fn connect(arm: Arm, place: &str) -> Outcome<Self> {
        Ok(match arm {
            Arm::Etcd | Arm::Consul | Arm::Fair | Arm::Sqlite => {
                Self::dlock(dlock::builder(place)?.name("bench").connect().await?).await?
            }
            Arm::Memory => Self::dlock(Locker::new(raw::memory::store())).await?,
            Arm::RawConsul => Self::Consul(raw::consul::Raw::connect(place).await?),
            Arm::RawEtcd => Self::Etcd(raw::etcd::Raw::connect(place).await?),
            Arm::LockService => Self::Service(raw::etcd::Raw::connect(place).await?),
            Arm::RawSqlite => Self::Sqlite(raw::sqlite::Raw::open(place)?),
            Arm::RawMemory => Self::Memory(raw::memory::Raw::connect().await?),
            Arm::ConsulLock | Arm::EtcdctlLock => return Err("a command is no client".into()),
        })
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
            Self::Etcd(raw) => raw.lock(key).await.map(|()| Hold::Key(key.to_owned()))?,
            Self::Service(raw) => Hold::Service(raw.service_lock(key).await?),
            Self::Sqlite(raw) => raw.write(true).map(|()| Hold::Key(key.to_owned()))?,
            Self::Memory(raw) => Hold::Claim(Box::new(raw.lock(key).await?)),
        })
    }

    /// Gives it back; returns when the store has answered.
    pub async fn release(&self, hold: Hold) -> Outcome<()> {
        match (self, hold) {
            (_, Hold::Dlock(guard)) => guard.release().await.map(drop).map_err(Into::into),
            (Self::Consul(raw), Hold::Key(key)) => raw.unlock(&key).await,
            (Self::Etcd(raw), Hold::Key(key)) => raw.unlock(&key).await,
            (Self::Service(raw), Hold::Service(name)) => raw.service_unlock(name).await,
            (Self::Sqlite(raw), Hold::Key(_)) => raw.write(false),
            (Self::Memory(raw), Hold::Claim(claim)) => raw.unlock(&claim).await,
            _ => Err("this lock is of another client".into()),
        }
    }

    /// Leaves nothing behind that would lapse while something else is measured.
    pub async fn end(&self) {
        if let Self::Dlock(locker) = self {
            locker.shutdown(Duration::from_secs(2)).await;
        }
    }
}
