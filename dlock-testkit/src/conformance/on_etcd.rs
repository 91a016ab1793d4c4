//! The harness of a real etcd, for any backend that lays its locks out as dlock-etcd does.
//!
//! The line of a key `K` are the keys under `K/` that have no further `/`, in the order of their creation; whoever claims puts a key there,
//! whoever gives back deletes one. A session is a lease, spelled in hexadecimal.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{Key, LockBackend, Ownership, SessionId};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::harness::{Harness, Hook, Hooked, SecondProcess, Sent, UnderWay};
use crate::proxy::{Fault, FaultProxy, Held, Matching};
use crate::servers::{EtcdEntry, EtcdGateway, EtcdServer, shared_etcd};

/// A real etcd with fault proxies before it; shared by all tests of the process unless it is [alone](Harness::alone).
pub struct OnEtcd {
    connect: ConnectEtcd,
    server: SocketAddr,
    /// Its own server, where it has one.
    own: Option<tokio::sync::Mutex<EtcdServer>>,
    /// Clients are behind the last; those before are cut off or failing.
    proxies: Mutex<Vec<FaultProxy>>,
    process: Option<PathBuf>,
    allowed: Vec<Hook>,
}

/// How a client is made that speaks to an etcd at this address.
pub type ConnectEtcd = fn(SocketAddr) -> Arc<dyn LockBackend>;

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TXN: &str = "/etcdserverpb.KV/Txn";
/// The gRPC status of a member that cannot serve.
const UNAVAILABLE: u16 = 14;

impl OnEtcd {
    /// A harness whose clients are made by `connect`. The least ttl of its servers is 1 s.
    pub async fn start(connect: ConnectEtcd) -> Self {
        Self::at(connect, shared_etcd().await, None).await
    }

    async fn at(connect: ConnectEtcd, server: SocketAddr, own: Option<EtcdServer>) -> Self {
        let proxy = FaultProxy::start_grpc(server).await.expect("a proxy must start");
        let own = own.map(tokio::sync::Mutex::new);
        Self { connect, server, own, proxies: Mutex::new(vec![proxy]), process: None, allowed: vec![Hook::SecondProcess] }
    }

    /// With a program that is called with `address key ttl-in-milliseconds`, takes the key, says so by a line, and holds it until
    /// its standard input is closed.
    #[must_use]
    pub fn with_second_process(mut self, program: impl Into<PathBuf>) -> Self {
        self.process = Some(program.into());
        self.allowed.clear();
        self
    }

    fn proxies(&self) -> MutexGuard<'_, Vec<FaultProxy>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gateway(&self) -> EtcdGateway {
        EtcdGateway::at(self.server)
    }

    /// Which requests of such a backend are of this kind.
    pub fn matching(sent: Sent) -> Matching {
        match sent {
            Sent::Open => Matching::any().path(GRANT),
            Sent::Renew => Matching::any().path(KEEP_ALIVE),
            Sent::Claim => Matching::any().path(TXN).message(claims),
            Sent::Release => Matching::any().path(TXN).message(releases),
            Sent::Amend => Matching::any().path(TXN).message(amends),
        }
    }

    /// Those in the line of a key, first come first.
    async fn line(&self, key: &Key) -> Vec<EtcdEntry> {
        let start = format!("{key}/");
        let mut line = self.gateway().entries(&start).await.expect("etcd must answer an operator");
        line.retain(|entry| !entry.key[start.len()..].contains(&b'/'));
        line
    }

    async fn delete_entry(&self, entry: &EtcdEntry) {
        self.gateway().delete(&entry.key).await.expect("etcd must answer an operator");
    }

    /// Spoils the proxy of the clients that exist, and starts another for those to come.
    async fn spoil(&self, how: impl FnOnce(&FaultProxy)) {
        let fresh = FaultProxy::start_grpc(self.server).await.expect("a proxy must start");
        let mut proxies = self.proxies();
        how(proxies.last().expect("there is always a last proxy"));
        proxies.push(fresh);
    }

    fn own_server(&self) -> &tokio::sync::Mutex<EtcdServer> {
        self.own.as_ref().expect("only asked of a harness that is alone")
    }
}

/// The fields of a message in protocol buffers: their numbers, with the bytes of those that have a length.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut fields = Vec::new();
    while let Some(tag) = varint(&mut message) {
        let bytes = match tag & 7 {
            0 => varint(&mut message).map(|_| &[][..]),
            2 => varint(&mut message).and_then(|length| message.split_off(..usize::try_from(length).ok()?)),
            1 => message.split_off(..8),
            _ => None,
        };
        let Some(bytes) = bytes else { break };
        fields.push((tag >> 3, bytes));
    }
    fields
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.split_off_first()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Which operations a transaction does if its conditions are met: 2 is a put, 3 a deletion.
fn operations(txn: &[u8]) -> Vec<u64> {
    let then = fields(txn).into_iter().filter(|(number, _)| *number == 2);
    then.filter_map(|(_, operation)| fields(operation).first().map(|(kind, _)| *kind)).collect()
}

fn claims(txn: &[u8]) -> bool {
    let operations = operations(txn);
    operations.contains(&2) && !operations.contains(&3) && !amends(txn)
}

/// Whether it puts only what was not written since: field 6 of a condition is the revision of the last write.
fn amends(txn: &[u8]) -> bool {
    let conditions = fields(txn).into_iter().filter(|(number, _)| *number == 1);
    operations(txn) == [2] && conditions.flat_map(|(_, condition)| fields(condition)).any(|(number, _)| number == 6)
}

fn releases(txn: &[u8]) -> bool {
    operations(txn).contains(&3)
}

/// The lease that a grant asks for by its id.
fn granted(grant: &[u8]) -> Option<i64> {
    let mut rest = grant;
    while let Some(tag) = varint(&mut rest) {
        let value = varint(&mut rest)?;
        if tag >> 3 == 2 {
            return Some(value.cast_signed());
        }
    }
    None
}

#[async_trait]
impl Harness for OnEtcd {
    fn name(&self) -> String {
        "etcd".to_owned()
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        let address = self.proxies().last().expect("there is always a last proxy").address();
        (self.connect)(address)
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn long_ttl(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn prompt(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn missing_hooks_allowed(&self) -> &[Hook] {
        &self.allowed
    }

    async fn alone(&self) -> Option<Box<dyn Harness>> {
        let server = EtcdServer::start().await.expect("a server must start");
        let alone = Self::at(self.connect, server.address(), Some(server)).await;
        Some(Box::new(Self { process: self.process.clone(), allowed: self.allowed.clone(), ..alone }))
    }

    async fn heal(&self) {
        if let Some(server) = &self.own {
            server.lock().await.resume().expect("the server must go on");
        }
        for proxy in self.proxies().iter() {
            proxy.swallow(false);
            proxy.clear();
        }
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        let lease = u64::from_str_radix(session.as_str(), 16).expect("a session is a lease").cast_signed();
        self.gateway().revoke(lease).await.expect("etcd must answer an operator");
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Hooked {
        // From the end, as if all were gone at once: nobody moves up meanwhile.
        for entry in self.line(key).await.iter().rev() {
            self.delete_entry(entry).await;
        }
        Ok(())
    }

    async fn release_by_force(&self, key: &Key) -> Hooked {
        let line = self.line(key).await;
        self.delete_entry(line.first().expect("somebody holds the key")).await;
        Ok(())
    }

    async fn put_foreign(&self, key: &Key, value: &str) -> Hooked {
        let held = self.line(key).await.into_iter().next();
        let over = held.map_or_else(|| format!("{key}/foreign").into_bytes(), |entry| entry.key);
        self.gateway().put(over, value, 0).await.expect("etcd must answer an operator");
        Ok(())
    }

    async fn write_if(&self, ownership: &Ownership) -> Hooked<bool> {
        let (made, key) = ((ownership.key.as_str(), ownership.revision), format!("data/{}", ownership.key));
        Ok(self.gateway().put_if(made, key, "written by a holder").await.expect("etcd must answer an operator"))
    }

    async fn take_permits(&self, key: &Key, owner: &str, all: NonZeroU32) -> Hooked {
        let gateway = self.gateway();
        let (lease, _) = gateway.grant(3_600).await.expect("etcd must answer an operator");
        for nth in 1..all.get() {
            let (entry, value) = (format!("{key}/{lease:x}.{nth:032x}.p{all}"), format!("{{\"owner\":\"{owner}\"}}"));
            gateway.put(entry, value, lease).await.expect("etcd must answer an operator");
        }
        Ok(())
    }

    /// Leases carry no owner: all that this harness's clients asked for are counted, which are of one owner in any case; of a server of its own, all.
    async fn sessions(&self, _owner: &str) -> Hooked<usize> {
        if self.own.is_some() {
            return Ok(self.gateway().leases().await.expect("etcd must answer an operator").len());
        }
        let asked: Vec<i64> = {
            let proxies = self.proxies();
            let seen = proxies.iter().flat_map(FaultProxy::requests);
            seen.filter(|seen| seen.path == GRANT).filter_map(|seen| granted(&seen.bytes)).collect()
        };
        let known = self.gateway().leases().await.expect("etcd must answer an operator");
        Ok(known.iter().filter(|lease| asked.contains(lease)).count())
    }

    fn lose_reply(&self, of: Sent) -> Hooked {
        self.proxies().last().expect("there is always a last proxy").next(Self::matching(of), Fault::DropResponse);
        Ok(())
    }

    fn hold(&self, what: Sent) -> Hooked<Box<dyn UnderWay>> {
        let held = self.proxies().last().expect("there is always a last proxy").hold_next(Self::matching(what));
        Ok(Box::new(OnTheWay { held, server: self.server }))
    }

    async fn cut(&self) -> Hooked {
        self.spoil(|proxy| proxy.swallow(true)).await;
        Ok(())
    }

    async fn fail(&self) -> Hooked {
        self.spoil(|proxy| proxy.all(Matching::any(), Fault::Answer(UNAVAILABLE, "etcdserver: no leader".to_owned()))).await;
        Ok(())
    }

    async fn freeze(&self) -> Hooked {
        self.own_server().lock().await.pause().expect("the server must stop");
        Ok(())
    }

    async fn restart(&self) -> Hooked {
        self.own_server().lock().await.restart().await.expect("the server must start again");
        Ok(())
    }

    async fn second_process(&self, key: &Key, ttl: Duration) -> Hooked<Box<dyn SecondProcess>> {
        let Some(program) = &self.process else { return Err(Hook::SecondProcess) };
        let mut child = Command::new(program)
            .args([format!("etcd://{}", self.server), key.to_string(), ttl.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program must start");
        let out = child.stdout.take().expect("its output is piped");
        let said = BufReader::new(out).lines().next_line().await.expect("it must say something");
        assert!(said.is_some(), "it ended without holding the key");
        Ok(Box::new(Process(child)))
    }
}

struct OnTheWay {
    held: Held,
    server: SocketAddr,
}

#[async_trait]
impl UnderWay for OnTheWay {
    async fn sent(&self) {
        self.held.sent().await;
    }

    async fn deliver(&self) {
        self.held.deliver(self.server).await.expect("the server must answer");
    }
}

struct Process(Child);

#[async_trait]
impl SecondProcess for Process {
    async fn finish(mut self: Box<Self>) {
        drop(self.0.stdin.take());
        let status = self.0.wait().await.expect("it is our child");
        assert!(status.success(), "{status}");
    }

    async fn kill(mut self: Box<Self>) {
        self.0.kill().await.expect("it is our child");
    }
}
