//! Consul under live faults: three servers, and an operator by its plain API.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Consul, ConsulOptions};
use dlock_core::{LockBackend, TtlRange};
use dlock_testkit::conformance::{OnConsul, Sent};
use dlock_testkit::proxy::{Fault, FaultProxy};
use dlock_testkit::servers::{ConsulAgent, ConsulCluster, HttpReply, StartError, http};
use futures_util::future::{BoxFuture, try_join_all};
use serde::Deserialize;

use super::store::{Access, Done, Operator, PATIENCE, PREFIX, Running, SECRET, Servers, Target, client};
use super::storm::Kind;

pub(super) const ACTS: [Kind; 3] = [Kind::EndSession, Kind::DeleteKey, Kind::ReleaseByForce];

/// In line, who waits has a ticket as well.
pub(super) const ACTS_IN_LINE: [Kind; 4] = [Kind::EndSession, Kind::DeleteKey, Kind::DeleteWaiter, Kind::ReleaseByForce];

pub(super) async fn start_fair(servers: usize) -> Result<Running, StartError> {
    let mut running = start(servers).await?;
    running.access.query = "?fair=true";
    running.access.claim = OnConsul::matching_fair(Sent::Claim);
    running.access.release = OnConsul::matching_fair(Sent::Release);
    Ok(running)
}

pub(super) async fn start(servers: usize) -> Result<Running, StartError> {
    let mut cluster = ConsulCluster::start(servers).await?;
    let addresses: Vec<SocketAddr> = cluster.agents().iter().map(ConsulAgent::address).collect();
    let access = Access {
        scheme: "consul",
        query: "",
        environment: vec![("CONSUL_HTTP_TOKEN", SECRET)],
        ways: 1,
        proxy: |server| -> BoxFuture<'static, io::Result<FaultProxy>> { Box::pin(FaultProxy::start(server)) },
        refusal: Fault::Answer(500, "No cluster leader".to_owned()),
        claim: OnConsul::matching(Sent::Claim),
        release: OnConsul::matching(Sent::Release),
    };
    let operator = Box::new(ConsulOperator { servers: addresses.clone() });
    Ok(Running { servers: Box::new(ConsulServers { cluster, addresses }), operator, access })
}

pub(super) fn backend(url: &str) -> Result<Arc<dyn LockBackend>, Box<dyn Error + Send + Sync>> {
    let range = TtlRange { min: Duration::from_millis(200), max: Duration::from_secs(86_400) };
    Ok(Arc::new(Consul::new(ConsulOptions::from_url(url)?.ttl_range(range))?))
}

#[derive(Debug)]
struct ConsulServers {
    cluster: ConsulCluster,
    addresses: Vec<SocketAddr>,
}

#[async_trait]
impl Servers for ConsulServers {
    fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    async fn leader(&self) -> Option<usize> {
        self.cluster.leader().await
    }

    fn kill(&mut self, place: usize) -> io::Result<()> {
        self.cluster.agents()[place].kill()
    }

    async fn restart(&mut self, places: &[usize]) -> Result<(), StartError> {
        let agents = self.cluster.agents().iter_mut().enumerate().filter(|(place, _)| places.contains(place));
        try_join_all(agents.map(|(_, agent)| agent.restart())).await.map(drop)
    }

    fn pause(&mut self, place: usize) -> io::Result<()> {
        self.cluster.agents()[place].pause()
    }

    fn resume(&mut self, place: usize) -> io::Result<()> {
        self.cluster.agents()[place].resume()
    }
}

/// Asks the first server that answers.
#[derive(Clone, Debug)]
struct ConsulOperator {
    servers: Vec<SocketAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OpenSession {
    #[serde(rename = "ID")]
    id: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyEntry {
    key: String,
    flags: u64,
    #[serde(default)]
    session: String,
}

#[async_trait]
impl Operator for ConsulOperator {
    async fn targets(&self, act: Kind) -> io::Result<Vec<Target>> {
        let sessions = sessions(&self.read("/v1/session/list?stale").await?)?;
        if act == Kind::EndSession {
            return Ok(sessions);
        }
        concerned(act, &self.read(&format!("/v1/kv/{PREFIX}?recurse&stale")).await?, &sessions)
    }

    async fn act(&self, act: Kind, target: &Target) -> Done {
        let Target { id, session, key, .. } = target;
        match (act, key) {
            (Kind::EndSession, _) => self.ask_all("PUT", &format!("/v1/session/destroy/{session}")).await,
            (Kind::DeleteKey, Some(key)) => self.ask_all("DELETE", &format!("/v1/kv/{key}")).await,
            (Kind::DeleteWaiter, _) => self.ask_all("DELETE", &format!("/v1/kv/{id}")).await,
            (Kind::ReleaseByForce, Some(key)) => self.ask_all("PUT", &format!("/v1/kv/{key}?release={session}&flags={id}")).await,
            (other, _) => unreachable!("{other:?} is nothing that is done to {target:?}"),
        }
    }

    async fn leftovers(&self) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        for server in &self.servers {
            let alone = Self { servers: vec![*server] };
            for act in [Kind::EndSession, Kind::DeleteKey, Kind::DeleteWaiter] {
                left.extend(alone.targets(act).await?.into_iter().map(|target| format!("{target:?} at {server}")));
            }
        }
        Ok(left)
    }
}

impl ConsulOperator {
    /// The list at a path; an empty one where there is nothing.
    async fn read(&self, path: &str) -> io::Result<String> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for server in &self.servers {
            match ask(*server, "GET", path).await {
                Ok(reply) if reply.status == 200 => return Ok(reply.body),
                Ok(reply) if reply.status == 404 => return Ok("[]".to_owned()),
                Ok(reply) => last = io::Error::other(format!("{path}: {} {}", reply.status, reply.body)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_all(&self, method: &str, path: &str) -> Done {
        let mut perhaps = false;
        for server in &self.servers {
            match ask(*server, method, path).await {
                Ok(reply) if reply.status == 200 => return if perhaps { Done::Perhaps } else { Done::Surely },
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) | Err(_) => perhaps = true,
            }
        }
        Done::Perhaps
    }
}

async fn ask(server: SocketAddr, method: &str, path: &str) -> io::Result<HttpReply> {
    match tokio::time::timeout(PATIENCE, http(server, method, path, &[], "")).await {
        Ok(reply) => reply,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The sessions of dlock's.
fn sessions(body: &str) -> io::Result<Vec<Target>> {
    let all: Vec<OpenSession> = serde_json::from_str(body)?;
    let ours = all.into_iter().filter(|session| session.name.starts_with("dlock:"));
    Ok(ours.map(|OpenSession { id, name }| Target { client: client(&name), key: None, session: id.clone(), id }).collect())
}

/// The keys that are held, each with its flags, without which Consul would change them; or of who waits for one, the ticket. The names of tickets end
/// in a slash, as no lock's does.
fn concerned(act: Kind, body: &str, sessions: &[Target]) -> io::Result<Vec<Target>> {
    let entries: Vec<KeyEntry> = serde_json::from_str(body)?;
    let entries = entries.into_iter().filter(|entry| !entry.session.is_empty());
    let (beside, held): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.key.ends_with('/'));
    let client = |session: &str| sessions.iter().find(|known| known.session == session).and_then(|known| known.client);
    if act == Kind::DeleteWaiter {
        let waiting = beside.into_iter().filter_map(|entry| {
            let lock = entry.key.rsplit_once("/.dlock/")?.0.to_owned();
            let holds = held.iter().any(|held| held.key == lock && held.session == entry.session);
            let KeyEntry { key: id, session, .. } = entry;
            (!holds).then(|| Target { client: client(&session), key: Some(lock), id, session })
        });
        return Ok(waiting.collect());
    }
    let target =
        |KeyEntry { key, flags, session }| Target { client: client(&session), key: Some(key), id: flags.to_string(), session };
    Ok(held.into_iter().map(target).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_ours_are_known_by_their_names_and_workers_by_their_numbers() {
        let body = r#"[{"ID":"a","Name":"dlock:host/7/worker-12"},{"ID":"b","Name":""},{"ID":"c","Name":"dlock:host/8/live"}]"#;
        let found = sessions(body).unwrap();
        assert_eq!(found.iter().map(|session| session.client).collect::<Vec<_>>(), [Some(12), None]);
    }

    #[test]
    fn a_key_without_a_session_is_free() {
        let body = r#"[{"Key":"a","Flags":3304740253564472344,"Session":"s","Value":null},{"Key":"b","Flags":0,"Value":null}]"#;
        let (id, session) = ("3304740253564472344".to_owned(), "s".to_owned());
        assert_eq!(
            concerned(Kind::DeleteKey, body, &[]).unwrap(),
            [Target { client: None, key: Some("a".to_owned()), id, session }]
        );
    }

    #[test]
    fn who_waits_has_a_ticket_and_not_the_key() {
        let body = r#"[{"Key":"live/a","Flags":1,"Session":"s"},{"Key":"live/a/.dlock/s.1/","Flags":1,"Session":"s"},
            {"Key":"live/a/.dlock/t.2/","Flags":1,"Session":"t"},{"Key":"live/a/.dlock-undone/u.3/","Flags":1,"Session":"u"}]"#;
        let found = |act| {
            let found = concerned(act, body, &[]).unwrap();
            found.into_iter().map(|target| (target.key.unwrap(), target.id)).collect::<Vec<_>>()
        };
        let named = |key: &str, id: &str| (key.to_owned(), id.to_owned());
        assert_eq!(found(Kind::DeleteKey), [named("live/a", "1")]);
        assert_eq!(found(Kind::DeleteWaiter), [named("live/a", "live/a/.dlock/t.2/")]);
    }
}
