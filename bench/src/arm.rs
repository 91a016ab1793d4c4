//! What is measured beside one another.

use clap::ValueEnum;

/// One way to take and give back a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    /// dlock on etcd.
    Etcd,
    /// dlock on Consul.
    Consul,
    /// dlock on Consul, first come, first served.
    Fair,
    /// dlock in a SQLite file.
    Sqlite,
    /// dlock on the store in memory.
    Memory,
    /// A bare client of etcd: one key, put if it is absent, deleted; whoever waits watches it.
    RawEtcd,
    /// A bare client of etcd: a key for each contender, who watches the one before.
    RawEtcdLine,
    /// A bare client of Consul: one key, locked and unlocked; whoever waits asks for its change.
    RawConsul,
    /// The same without the layers of the HTTP client that dlock uses.
    RawConsulPool,
    /// A bare client of Consul that sends what dlock sends: one key, locked and unlocked as it was left; whoever waits asks for its change.
    RawConsulGuarded,
    /// A bare client of Consul that sends what dlock sends in fair mode: a ticket for each contender, who asks for the end of the one before.
    RawConsulLine,
    /// Two bare write transactions.
    RawSqlite,
    /// The store in memory, asked directly.
    RawMemory,
    /// The lock service inside etcd, by `etcd-client`.
    LockService,
    /// The lock of the crate `rs-consul`.
    RsConsul,
    /// `consul lock KEY true`, with the start of its process.
    ConsulLock,
    /// `etcdctl lock KEY true`, with the start of its process.
    EtcdctlLock,
}

/// A program that answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// An agent of Consul.
    Consul,
    /// A member of etcd.
    Etcd,
}

impl Arm {
    /// What people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "dlock on etcd",
            Self::Consul => "dlock on Consul",
            Self::Fair => "dlock on Consul, fair",
            Self::Sqlite => "dlock in SQLite",
            Self::Memory => "dlock in memory",
            Self::RawEtcd => "raw etcd",
            Self::RawEtcdLine => "raw line on etcd",
            Self::RawConsul => "raw Consul",
            Self::RawConsulPool => "raw Consul, without `reqwest`",
            Self::RawConsulGuarded => "raw Consul, guarded",
            Self::RawConsulLine => "raw line on Consul",
            Self::RawSqlite => "two bare SQLite transactions",
            Self::RawMemory => "raw memory",
            Self::LockService => "etcd's lock service",
            Self::RsConsul => "rs-consul's lock",
            Self::ConsulLock => "`consul lock` command",
            Self::EtcdctlLock => "`etcdctl lock` command",
        }
    }

    /// The fewest requests that can do the work on the same store where nobody waits; `None` for those arms themselves.
    pub fn floor(self) -> Option<Self> {
        match self {
            Self::Etcd | Self::RawEtcdLine | Self::LockService | Self::EtcdctlLock => Some(Self::RawEtcd),
            Self::Consul
            | Self::Fair
            | Self::RawConsulPool
            | Self::RawConsulGuarded
            | Self::RawConsulLine
            | Self::RsConsul
            | Self::ConsulLock => Some(Self::RawConsul),
            Self::Sqlite => Some(Self::RawSqlite),
            Self::Memory => Some(Self::RawMemory),
            Self::RawEtcd | Self::RawConsul | Self::RawSqlite | Self::RawMemory => None,
        }
    }

    /// The bare client that sends the same requests where nobody waits, against which what dlock adds is judged.
    pub fn same_sent_bare(self) -> Option<Self> {
        match self {
            Self::Etcd => Some(Self::RawEtcdLine),
            Self::Consul => Some(Self::RawConsulGuarded),
            Self::Fair => Some(Self::RawConsulLine),
            Self::Sqlite => Some(Self::RawSqlite),
            Self::Memory => Some(Self::RawMemory),
            _ => None,
        }
    }

    /// The bare client whose waiters stand as those of this arm do, in line or all before one key, and for dlock send the same. A bare client stands beside
    /// itself.
    pub fn handover_floor(self) -> Self {
        match self {
            Self::Etcd | Self::LockService | Self::EtcdctlLock => Self::RawEtcdLine,
            Self::Fair => Self::RawConsulLine,
            Self::Consul => Self::RawConsulGuarded,
            Self::RsConsul | Self::ConsulLock | Self::RawConsulPool => Self::RawConsul,
            Self::Sqlite => Self::RawSqlite,
            Self::Memory => Self::RawMemory,
            raw => raw,
        }
    }

    /// Whether it is dlock, whose waiters in one process share a locker.
    pub fn is_dlock(self) -> bool {
        matches!(self, Self::Etcd | Self::Consul | Self::Fair | Self::Sqlite | Self::Memory)
    }

    /// Whether it is somebody else's, which may fail without that being an error of what is measured.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::LockService | Self::RsConsul) || self.is_command()
    }

    /// Whether it is a command, which takes a process for each lock.
    pub fn is_command(self) -> bool {
        matches!(self, Self::ConsulLock | Self::EtcdctlLock)
    }

    /// Whom it asks, unless everything happens on this machine's disk or in this process.
    pub fn server(self) -> Option<Server> {
        match self {
            Self::Etcd | Self::RawEtcd | Self::RawEtcdLine | Self::LockService | Self::EtcdctlLock => Some(Server::Etcd),
            Self::Consul
            | Self::Fair
            | Self::RawConsul
            | Self::RawConsulPool
            | Self::RawConsulGuarded
            | Self::RawConsulLine
            | Self::RsConsul
            | Self::ConsulLock => Some(Server::Consul),
            Self::Sqlite | Self::Memory | Self::RawSqlite | Self::RawMemory => None,
        }
    }
}
