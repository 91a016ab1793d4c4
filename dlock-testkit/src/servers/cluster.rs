//! Consul servers that elect a leader among themselves.

use std::time::Duration;

use super::consul::{ConsulAgent, ConsulBuilder, Ports};
use super::http::http;
use super::start::{StartError, until, with_free_ports};

/// Three or more servers that elect a leader among themselves.
#[derive(Debug)]
pub struct ConsulCluster {
    agents: Vec<ConsulAgent>,
}

impl ConsulCluster {
    /// Starts so many servers, and returns when all of them open sessions.
    pub async fn start(size: usize) -> Result<Self, StartError> {
        with_free_ports(|| Box::pin(Self::attempt(size))).await
    }

    async fn attempt(size: usize) -> Result<Self, StartError> {
        let ports: Vec<Ports> = (0..size).map(|_| Ports::free()).collect::<Result<_, _>>()?;
        let mut agents = Vec::new();
        for own in &ports {
            let others = ports.iter().filter(|other| other.serf != own.serf).map(|other| other.serf).collect();
            let builder = ConsulBuilder::default().in_cluster(size, others);
            agents.push(builder.spawn(*own)?);
        }
        for agent in &mut agents {
            agent.ready().await?;
        }
        Ok(Self { agents })
    }

    /// The servers.
    pub fn agents(&mut self) -> &mut [ConsulAgent] {
        &mut self.agents
    }

    /// The place of the leader among the servers, as the first that answers soon says.
    pub async fn leader(&self) -> Option<usize> {
        for agent in &self.agents {
            // A frozen server accepts the connection and keeps silent.
            let asked = http(agent.address(), "GET", "/v1/status/leader", &[], "");
            let Ok(Ok(reply)) = tokio::time::timeout(SOON, asked).await else { continue };
            let leader = self.agents.iter().position(|agent| reply.body.contains(&format!(":{}\"", agent.ports.server)));
            if leader.is_some() {
                return leader;
            }
        }
        None
    }

    /// The place of the leader, once there is one; `None` if there is none for a minute.
    pub async fn elected(&self) -> Option<usize> {
        until(async || self.leader().await).await
    }
}

/// How long a server may take to say who leads.
const SOON: Duration = Duration::from_millis(500);
