//! etcd under live faults: three members with users, and an operator by their gateway.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use dlock_testkit::conformance::{OnEtcd, Sent};
use dlock_testkit::proxy::{Fault, FaultProxy};
use dlock_testkit::servers::{EtcdCluster, EtcdEntry, EtcdGateway, EtcdServer, StartError};
use futures_util::future::{BoxFuture, try_join_all};
use serde_json::Value;

use super::store::{Access, Done, Operator, PATIENCE, PREFIX, Running, SECRET, Servers, Target, client};
use super::storm::Kind;

/// Nobody releases by force here but by deletion of the holder's entry; who waits has an entry as well.
pub(super) const ACTS: [Kind; 3] = [Kind::EndSession, Kind::DeleteKey, Kind::DeleteWaiter];

/// A leader that wakes up finds the leases expired that were renewed at its successor meanwhile, and may revoke them: seen on 3.5.16, which
/// is meant to have etcd-io/etcd#15247 fixed. Presumably it hears of the successor after it has asked itself whether it leads, so that what
/// it proposes is forwarded. Nothing that a client does prevents it.
pub(super) const EARLY_ENDS: [Kind; 2] = [Kind::FreezeLeader, Kind::FreezeAll];

const USER: &str = "worker";
/// The gRPC status of a member that cannot serve.
const UNAVAILABLE: u16 = 14;

pub(super) async fn start(servers: usize) -> Result<Running, StartError> {
    let mut cluster = EtcdCluster::start_with_auth(servers).await?;
    if let Some(first) = cluster.members().first() {
        first.add_user(USER, SECRET, PREFIX)?;
    }
    let gateways: Vec<EtcdGateway> = cluster.members().iter().map(EtcdServer::gateway).collect();
    let addresses = cluster.members().iter().map(EtcdServer::address).collect();
    let access = Access {
        scheme: "etcd",
        query: "",
        environment: vec![("ETCDCTL_USER", USER), ("ETCDCTL_PASSWORD", SECRET)],
        ways: servers,
        proxy: |server| -> BoxFuture<'static, io::Result<FaultProxy>> { Box::pin(FaultProxy::start_grpc(server)) },
        refusal: Fault::Answer(UNAVAILABLE, "etcdserver: no leader".to_owned()),
        claim: OnEtcd::matching(Sent::Claim),
        release: OnEtcd::matching(Sent::Release),
    };
    Ok(Running { servers: Box::new(Members { cluster, addresses }), operator: Box::new(EtcdOperator { gateways }), access })
}

#[derive(Debug)]
struct Members {
    cluster: EtcdCluster,
    addresses: Vec<SocketAddr>,
}

#[async_trait]
impl Servers for Members {
    fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    async fn leader(&self) -> Option<usize> {
        self.cluster.leader().await
    }

    fn kill(&mut self, place: usize) -> io::Result<()> {
        self.cluster.members()[place].kill()
    }

    async fn restart(&mut self, places: &[usize]) -> Result<(), StartError> {
        let members = self.cluster.members().iter_mut().enumerate().filter(|(place, _)| places.contains(place));
        try_join_all(members.map(|(_, member)| member.restart())).await.map(drop)
    }

    fn pause(&mut self, place: usize) -> io::Result<()> {
        self.cluster.members()[place].pause()
    }

    fn resume(&mut self, place: usize) -> io::Result<()> {
        self.cluster.members()[place].resume()
    }
}

/// Asks the first member that answers, as root.
#[derive(Debug)]
struct EtcdOperator {
    gateways: Vec<EtcdGateway>,
}

#[async_trait]
impl Operator for EtcdOperator {
    async fn targets(&self, act: Kind) -> io::Result<Vec<Target>> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for gateway in &self.gateways {
            match soon(gateway.entries(PREFIX)).await {
                Ok(entries) => return Ok(targets(&entries, act)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn act(&self, act: Kind, target: &Target) -> Done {
        let lease = i64::from_str_radix(&target.session, 16).unwrap_or_default();
        let mut perhaps = false;
        for gateway in &self.gateways {
            let done = async {
                if act == Kind::EndSession { gateway.revoke(lease).await.map(|()| 1) } else { gateway.delete(&target.id).await }
            };
            match soon(done).await {
                // An entry has a name of its own, so that nothing else is deleted instead.
                Ok(0) if !perhaps => return Done::Missed,
                Ok(_) => return if perhaps { Done::Perhaps } else { Done::Surely },
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => perhaps = true,
            }
        }
        Done::Perhaps
    }

    async fn leftovers(&self) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        for (member, gateway) in self.gateways.iter().enumerate() {
            // The cluster is the run's alone: whatever is there is left.
            let (entries, leases) = (gateway.entries("").await?, gateway.leases().await?);
            left.extend(entries.iter().map(|entry| format!("{:?} at member {member}", String::from_utf8_lossy(&entry.key))));
            left.extend(leases.iter().map(|lease| format!("lease {lease:x} at member {member}")));
        }
        Ok(left)
    }
}

async fn soon<T>(answer: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whom an act concerns, of entries in the order in which they came: the first of each line holds, the others wait.
fn targets(entries: &[EtcdEntry], act: Kind) -> Vec<Target> {
    let (mut lines, mut leases) = (BTreeSet::new(), BTreeSet::new());
    let concerned = |(target, holds): &(Target, bool)| match act {
        // One that holds nothing has no name here.
        Kind::EndSession => target.client.is_some() && leases.insert(target.session.clone()),
        Kind::DeleteWaiter => !holds,
        _ => *holds,
    };
    let all = entries.iter().filter_map(target).map(|target| {
        let first = lines.insert(target.key.clone());
        (target, first)
    });
    all.filter(concerned).map(|(target, _)| target).collect()
}

/// An entry in a line; `None` for tombstones, which stand in none.
fn target(entry: &EtcdEntry) -> Option<Target> {
    let id = std::str::from_utf8(&entry.key).ok().filter(|id| !id.contains('\0'))?;
    let (key, _) = id.rsplit_once('/')?;
    let published: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
    let client = published["owner"].as_str().and_then(client);
    Some(Target { client, key: Some(key.to_owned()), id: id.to_owned(), session: format!("{:x}", entry.lease) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, owner: &str) -> EtcdEntry {
        let value = format!(r#"{{"owner":"host/7/{owner}"}}"#).into_bytes();
        EtcdEntry { key: key.as_bytes().to_vec(), value, create_revision: 1, lease: 0x7f }
    }

    fn concerned(act: Kind) -> Vec<String> {
        let entries = [
            entry("live/a/7f.1", "worker-1"),
            entry("live/b/7f.2", "worker-2"),
            entry("live/a\x007f.3", "worker-2"),
            entry("live/a/7f.4", "worker-3"),
        ];
        targets(&entries, act).into_iter().map(|target| target.id).collect()
    }

    #[test]
    fn the_first_of_a_line_holds_and_the_others_wait() {
        assert_eq!(concerned(Kind::DeleteKey), ["live/a/7f.1", "live/b/7f.2"]);
        assert_eq!(concerned(Kind::DeleteWaiter), ["live/a/7f.4"]);
    }

    #[test]
    fn a_session_is_ended_once_and_known_by_its_worker() {
        assert_eq!(concerned(Kind::EndSession), ["live/a/7f.1"]);
        assert_eq!(targets(&[entry("live/a/7f.1", "worker-12")], Kind::EndSession)[0].client, Some(12));
        assert_eq!(targets(&[entry("live/a/7f.1", "other")], Kind::EndSession), []);
    }
}
