//! The servers and the folder that everything is measured on.

use std::net::SocketAddr;
use std::path::Path;

use dlock_testkit::proxy::FaultProxy;
use dlock_testkit::servers::{ConsulAgent, EtcdServer, http};
use tempfile::TempDir;

use crate::Outcome;
use crate::arm::{Arm, Server};
use crate::raw::{consul, etcd};

/// One server of each kind, and a folder for files; all gone when dropped.
pub struct Stores {
    /// An agent that keeps its data in memory.
    pub consul: ConsulAgent,
    /// A cluster of one that writes to its disk without forcing it.
    pub etcd: EtcdServer,
    folder: TempDir,
}

impl Stores {
    /// Starts the servers.
    pub async fn start() -> Outcome<Self> {
        let (consul, etcd) = tokio::try_join!(ConsulAgent::start(), EtcdServer::start())?;
        Ok(Self { consul, etcd, folder: TempDir::with_prefix("dlock-bench-")? })
    }

    /// Where an arm finds its store, as [`Client::connect`](crate::client::Client::connect) takes it.
    pub fn place(&self, arm: Arm) -> String {
        match arm.server() {
            // Which program it is, the worker cannot know.
            Some(server) if arm.is_command() => format!("{} {}", self.address(server), self.program(server)),
            Some(server) => place(arm, self.address(server)),
            None if arm == Arm::Sqlite => format!("sqlite://{}", self.locks().display()),
            None => self.folder.path().display().to_string(),
        }
    }

    /// A proxy before the server of an arm, that counts what it is asked.
    pub async fn proxy(&self, server: Server) -> Outcome<FaultProxy> {
        let address = self.address(server);
        Ok(match server {
            Server::Consul => FaultProxy::start(address).await?,
            Server::Etcd => FaultProxy::start_grpc(address).await?,
        })
    }

    /// How many keys with such names are held at the server of an arm.
    pub async fn held(&self, arm: Arm, prefix: &str) -> Outcome<usize> {
        match arm.server().ok_or("this arm asks no server")? {
            Server::Consul => consul::held(&self.consul.address().to_string(), prefix).await,
            Server::Etcd => etcd::held(&self.etcd.address().to_string(), prefix).await,
        }
    }

    /// Which versions answer.
    pub async fn versions(&self) -> Outcome<[String; 2]> {
        let consul = self.consul.run(&["version"])?.lines().next().unwrap_or_default().to_owned();
        let told = http(self.etcd.address(), "GET", "/version", &[], "").await?;
        let told: serde_json::Value = serde_json::from_str(&told.body)?;
        Ok([consul, format!("etcd {}", told["etcdserver"].as_str().unwrap_or("of an unknown version"))])
    }

    fn address(&self, server: Server) -> SocketAddr {
        match server {
            Server::Consul => self.consul.address(),
            Server::Etcd => self.etcd.address(),
        }
    }

    fn program(&self, server: Server) -> String {
        let command = match server {
            Server::Consul => self.consul.command(),
            Server::Etcd => self.etcd.command(),
        };
        command.get_program().to_string_lossy().into_owned()
    }

    fn locks(&self) -> std::path::PathBuf {
        Path::new(self.folder.path()).join("locks.db")
    }
}

/// The same with the server of an arm at another address.
pub fn place(arm: Arm, address: SocketAddr) -> String {
    match arm {
        Arm::Etcd => format!("etcd://{address}"),
        Arm::Consul => format!("consul://{address}"),
        Arm::Fair => format!("consul://{address}?fair=true"),
        _ => address.to_string(),
    }
}
