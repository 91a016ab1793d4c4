//! etcd servers that elect a leader among themselves.

use std::io;
use std::time::Duration;

use super::etcd::{EtcdBuilder, EtcdServer, Ports};
use super::start::{StartError, until, with_free_ports};

/// Three or more members that elect a leader among themselves.
///
/// They have etcd's own timing, which a busy machine keeps up with: no lease is shorter than 2 s, and an election takes one to two seconds.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<EtcdServer>,
}

impl EtcdCluster {
    /// Starts so many members, and returns when all of them answer.
    pub async fn start(size: usize) -> Result<Self, StartError> {
        with_free_ports(|| Box::pin(Self::attempt(size))).await
    }

    /// As [`start`](Self::start), with auth turned on: nothing is allowed without a user.
    pub async fn start_with_auth(size: usize) -> Result<Self, StartError> {
        let mut cluster = Self::start(size).await?;
        let (first, others) = cluster.members.split_first_mut().ok_or_else(|| io::Error::other("a cluster has members"))?;
        first.enable_auth()?;
        others.iter_mut().for_each(EtcdServer::find_auth);
        Ok(cluster)
    }

    async fn attempt(size: usize) -> Result<Self, StartError> {
        let ports: Vec<Ports> = (0..size).map(|_| Ports::free()).collect::<Result<_, _>>()?;
        let builder = EtcdBuilder::default().default_timing();
        let mut members: Vec<EtcdServer> = ports.iter().map(|own| builder.spawn(*own, &ports)).collect::<Result<_, _>>()?;
        for member in &mut members {
            member.ready().await?;
        }
        Ok(Self { members })
    }

    /// The members.
    pub fn members(&mut self) -> &mut [EtcdServer] {
        &mut self.members
    }

    /// The URL of all of them for `dlock::connect`.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.members.iter().map(|member| member.address().to_string()).collect();
        format!("etcd://{}", addresses.join(","))
    }

    /// The place of the leader among the members, as the first that answers soon says; `None` while nobody leads.
    pub async fn leader(&self) -> Option<usize> {
        let mut ids = Vec::new();
        let mut leader = None;
        for member in &self.members {
            // A frozen member accepts the connection and keeps silent.
            let status = tokio::time::timeout(SOON, member.gateway().status()).await.ok().and_then(Result::ok);
            leader = leader.or(status.as_ref().and_then(|status| status.leader));
            ids.push(status.map(|status| status.member));
        }
        ids.iter().position(|id| id.is_some() && *id == leader)
    }

    /// The place of the leader, once there is one; `None` if there is none for a minute.
    pub async fn elected(&self) -> Option<usize> {
        until(async || self.leader().await).await
    }

    /// Hands leadership to the member at this place, and returns when all that answer know that it has it.
    pub async fn move_leader(&self, to: usize) -> io::Result<()> {
        let from = self.elected().await.ok_or_else(|| io::Error::other("nobody leads"))?;
        if from == to {
            return Ok(());
        }
        let heir = self.members[to].gateway().status().await?.member;
        self.members[from].gateway().transfer_leadership(heir).await?;
        // The others hear of it a little later.
        let known = until(async || self.leader().await.filter(|leader| *leader == to)).await;
        known.map(drop).ok_or_else(|| io::Error::other("leadership was not handed over"))
    }
}

/// How long a member may take to say who leads.
const SOON: Duration = Duration::from_millis(500);
