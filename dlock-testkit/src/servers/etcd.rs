//! Real etcd servers.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::binary;
use super::etcd_gateway::EtcdGateway;
use super::http::http;
use super::process::{Process, mortal};
use super::start::{Folder, PATIENCE, StartError, free_ports, with_free_ports};
use super::tls::{self, TlsFiles};

/// A running etcd; killed when dropped, its data removed.
///
/// It listens without TLS in any case, and with TLS at another port where it was asked to. It keeps its data over a restart.
#[derive(Debug)]
pub struct EtcdServer {
    process: Process,
    binary: PathBuf,
    etcdctl: PathBuf,
    arguments: Vec<String>,
    folder: Folder,
    ports: Ports,
    tls: Option<TlsFiles>,
    has_auth: bool,
}

/// What an etcd is to be like.
#[derive(Clone, Debug)]
pub struct EtcdBuilder {
    timing: Option<(Duration, Duration)>,
    tls: bool,
    client_certificates: bool,
    auth: bool,
    auth_token_ttl: Option<Duration>,
    quota: Option<u64>,
}

impl Default for EtcdBuilder {
    fn default() -> Self {
        Self {
            timing: Some((Duration::from_millis(20), Duration::from_millis(200))),
            tls: false,
            client_certificates: false,
            auth: false,
            auth_token_ttl: None,
            quota: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    client: u16,
    client_tls: u16,
    pub(super) peer: u16,
}

/// The password of root on servers with auth.
const ROOT_PASSWORD: &str = "open-sesame";

impl EtcdServer {
    /// A server with the defaults of [`EtcdBuilder`].
    pub async fn start() -> Result<Self, StartError> {
        Self::builder().start().await
    }

    /// Options for a server.
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder::default()
    }

    /// Where it listens for gRPC and for JSON, without TLS.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.client).into()
    }

    /// Where it listens with TLS, for servers that were started [with TLS](EtcdBuilder::tls).
    pub fn tls_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.client_tls).into()
    }

    /// Its URL for `dlock::connect`.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.address())
    }

    /// Its URL over TLS, for servers that were started [with TLS](EtcdBuilder::tls).
    pub fn tls_url(&self) -> String {
        format!("etcds://localhost:{}", self.ports.client_tls)
    }

    /// The authority that signed its certificate and the client's, for servers with TLS.
    pub fn ca_certificate(&self) -> Option<&Path> {
        self.tls.as_ref().map(|files| files.ca.as_path())
    }

    /// A certificate that names the user `client` and its key, for servers with TLS.
    pub fn client_identity(&self) -> Option<(&Path, &Path)> {
        self.tls.as_ref().map(|files| (files.client_certificate.as_path(), files.client_key.as_path()))
    }

    /// The name and password of the user who may do everything, for servers with auth.
    pub fn root(&self) -> Option<(&'static str, &'static str)> {
        self.has_auth.then_some(("root", ROOT_PASSWORD))
    }

    /// Adds a user who may read and write what begins with this prefix, for servers with auth.
    pub fn add_user(&self, name: &str, password: &str, prefix: &str) -> Result<(), StartError> {
        self.run(&["role", "add", name])?;
        self.run(&["role", "grant-permission", "--prefix=true", name, "readwrite", prefix])?;
        self.run(&["user", "add", &format!("{name}:{password}")])?;
        self.run(&["user", "grant-role", name, name]).map(drop)
    }

    /// What an operator does at it, without `etcdctl`; as root where it has auth.
    pub fn gateway(&self) -> EtcdGateway {
        let gateway = EtcdGateway::at(self.address());
        self.root().map_or(gateway, |(name, password)| gateway.as_user(name, password))
    }

    /// The `etcdctl` command, to be run against this server; as root where it has auth.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.etcdctl);
        without_variables(&mut command, "ETCDCTL_");
        command.arg(format!("--endpoints=http://{}", self.address())).stdin(Stdio::null());
        if self.has_auth {
            command.arg(format!("--user=root:{ROOT_PASSWORD}"));
        }
        command
    }

    /// The `etcdctl` command over TLS, with the client's certificate, for servers with TLS.
    pub fn tls_command(&self) -> Option<Command> {
        let files = self.tls.as_ref()?;
        let mut command = Command::new(&self.etcdctl);
        without_variables(&mut command, "ETCDCTL_");
        command.arg(format!("--endpoints=https://localhost:{}", self.ports.client_tls)).arg("--cacert").arg(&files.ca);
        command.arg("--cert").arg(&files.client_certificate).arg("--key").arg(&files.client_key).stdin(Stdio::null());
        Some(command)
    }

    /// Runs the `etcdctl` command to its end; what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, StartError> {
        let output = self.command().args(arguments).output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(std::io::Error::other(format!("etcdctl {arguments:?}: {error}")).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it measures of itself, by name and labels as Prometheus writes them.
    pub async fn metrics(&self) -> std::io::Result<BTreeMap<String, f64>> {
        let told = http(self.address(), "GET", "/metrics", &[], "").await?;
        let lines = told.body.lines().filter(|line| !line.starts_with('#'));
        Ok(lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// Removes its folder from the disk; only for a server that is never restarted.
    pub(super) fn forget_folder(&self) {
        self.folder.remove();
    }

    /// Freezes the process: its sockets stay open and nothing is answered.
    pub fn pause(&self) -> std::io::Result<()> {
        self.process.pause()
    }

    /// Lets a frozen process go on.
    pub fn resume(&self) -> std::io::Result<()> {
        self.process.resume()
    }

    /// Kills the process; its data stays until the handle is dropped.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.process.kill()
    }

    /// Starts the process again on the same ports and data, after it was killed.
    pub async fn restart(&mut self) -> Result<(), StartError> {
        self.process.kill()?;
        self.process = spawn(&self.binary, &self.arguments, &self.folder)?;
        self.ready().await
    }

    /// Waits until it answers reads that a leader must have confirmed.
    pub(super) async fn ready(&mut self) -> Result<(), StartError> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if http(self.address(), "GET", "/health", &[], "").await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            if self.process.has_ended()? {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(self.folder.not_ready(began.elapsed()))
    }

    /// Turns auth on, for the whole cluster that it is a member of.
    pub(super) fn enable_auth(&mut self) -> Result<(), StartError> {
        self.run(&["user", "add", &format!("root:{ROOT_PASSWORD}")])?;
        self.run(&["user", "grant-role", "root", "root"])?;
        self.run(&["auth", "enable"])?;
        self.find_auth();
        Ok(())
    }

    /// Another member turned auth on.
    pub(super) fn find_auth(&mut self) {
        self.has_auth = true;
    }
}

impl EtcdBuilder {
    /// How often a leader is heard, and after which silence another is elected. Defaults to 20 ms and 200 ms, with which leases of 1 s are
    /// granted: the least ttl is one and a half election timeouts, in whole seconds.
    #[must_use]
    pub fn timing(mut self, heartbeat: Duration, election: Duration) -> Self {
        self.timing = Some((heartbeat, election));
        self
    }

    /// etcd's own timing, 100 ms and 1 s: no lease is shorter than 2 s.
    #[must_use]
    pub fn default_timing(mut self) -> Self {
        self.timing = None;
        self
    }

    /// Listens with TLS too, with a certificate of its own authority.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Listens with TLS too, and lets nobody in there without a certificate of its own authority.
    #[must_use]
    pub fn client_certificates(mut self) -> Self {
        self.tls = true;
        self.client_certificates = true;
        self
    }

    /// Turns auth on: nothing is allowed without a user.
    #[must_use]
    pub fn auth(mut self) -> Self {
        self.auth = true;
        self
    }

    /// After how long without use a user has to authenticate anew, in whole seconds. Defaults to etcd's own 300 s.
    #[must_use]
    pub fn auth_token_ttl(mut self, ttl: Duration) -> Self {
        self.auth_token_ttl = Some(ttl);
        self
    }

    /// How many bytes it stores before it takes no more. Defaults to etcd's own 2 GB.
    #[must_use]
    pub fn quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// Starts it, and returns when it has a leader and, if asked for, auth.
    pub async fn start(self) -> Result<EtcdServer, StartError> {
        with_free_ports(|| Box::pin(self.attempt())).await
    }

    async fn attempt(&self) -> Result<EtcdServer, StartError> {
        let ports = Ports::free()?;
        let mut server = self.spawn(ports, &[ports])?;
        server.ready().await?;
        if self.auth {
            server.enable_auth()?;
        }
        Ok(server)
    }

    /// Starts the one of these members that has these ports.
    pub(super) fn spawn(&self, ports: Ports, members: &[Ports]) -> Result<EtcdServer, StartError> {
        let binary = binary::etcd()?;
        let etcdctl = binary::etcdctl(&binary)?;
        let folder = Folder::new("etcd")?;
        let tls = if self.tls { Some(tls::make(folder.path()).map_err(StartError::Certificates)?) } else { None };
        let arguments = self.arguments(ports, members, &folder, tls.as_ref());
        let process = spawn(&binary, &arguments, &folder)?;
        Ok(EtcdServer { process, binary, etcdctl, arguments, folder, ports, tls, has_auth: false })
    }

    fn arguments(&self, ports: Ports, members: &[Ports], folder: &Folder, tls: Option<&TlsFiles>) -> Vec<String> {
        let Ports { client, client_tls, peer } = ports;
        let members: Vec<_> = members.iter().map(|member| format!("{}={}", member.name(), member.peer_url())).collect();
        let mut client_urls = format!("http://127.0.0.1:{client}");
        if tls.is_some() {
            client_urls += &format!(",https://127.0.0.1:{client_tls}");
        }
        let mut arguments = vec![
            format!("--name={}", ports.name()),
            format!("--data-dir={}", folder.path().join("data").display()),
            format!("--listen-client-urls={client_urls}"),
            format!("--advertise-client-urls={client_urls}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls={}", ports.peer_url()),
            format!("--initial-cluster={}", members.join(",")),
            format!("--initial-cluster-token={}", members.join(",")),
            "--log-level=warn".to_owned(),
            "--log-outputs=stderr".to_owned(),
            // Passwords of tests are no secrets, and whoever connects anew shall not wait for them.
            "--bcrypt-cost=4".to_owned(),
            // A process that is killed loses nothing by it, only a machine that crashes.
            "--unsafe-no-fsync".to_owned(),
            // Whoever looks for old files every half a minute ends the process if their folder is given up.
            "--max-wals=0".to_owned(),
            "--max-snapshots=0".to_owned(),
        ];
        if let Some((heartbeat, election)) = self.timing {
            arguments.push(format!("--heartbeat-interval={}", heartbeat.as_millis()));
            arguments.push(format!("--election-timeout={}", election.as_millis()));
        }
        if let Some(files) = tls {
            arguments.push(format!("--cert-file={}", files.certificate.display()));
            arguments.push(format!("--key-file={}", files.key.display()));
            arguments.push(format!("--trusted-ca-file={}", files.ca.display()));
        }
        if self.client_certificates {
            arguments.push("--client-cert-auth".to_owned());
        }
        if let Some(ttl) = self.auth_token_ttl {
            arguments.push(format!("--auth-token-ttl={}", ttl.as_secs()));
        }
        if let Some(bytes) = self.quota {
            arguments.push(format!("--quota-backend-bytes={bytes}"));
        }
        arguments
    }
}

impl Ports {
    /// Ports that were free a moment ago.
    pub(super) fn free() -> std::io::Result<Self> {
        let [client, client_tls, peer] = free_ports()?;
        Ok(Self { client, client_tls, peer })
    }

    fn name(self) -> String {
        format!("m{}", self.peer)
    }

    fn peer_url(self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

/// Starts a server on these arguments.
fn spawn(binary: &Path, arguments: &[String], folder: &Folder) -> std::io::Result<Process> {
    let mut command = mortal(binary);
    without_variables(&mut command, "ETCD_");
    folder.spawn(command.args(arguments))
}

/// Keeps variables of the machine from changing what a program does.
fn without_variables(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(prefix)) {
        command.env_remove(name);
    }
}
