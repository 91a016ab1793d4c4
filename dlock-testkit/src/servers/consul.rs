//! Real Consul agents.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::binary;
use super::http::http;
use super::process::{Process, mortal};
use super::start::{Folder, PATIENCE, StartError, free_ports, with_free_ports};
use super::tls::{self, TlsFiles};

/// A running Consul agent; killed when dropped, its data removed.
#[derive(Debug)]
pub struct ConsulAgent {
    process: Process,
    binary: PathBuf,
    arguments: Vec<String>,
    folder: Folder,
    pub(super) ports: Ports,
    tls: Option<TlsFiles>,
    token: Option<String>,
}

/// What an agent is to be like.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is an independent yes or no
pub struct ConsulBuilder {
    ttl_min: Option<String>,
    acl: bool,
    tls: bool,
    client_certificates: bool,
    unix_socket: bool,
    persistent: bool,
    connections_per_client: usize,
    /// Of how many servers, with the ports of the others to join.
    cluster: Option<(usize, Vec<u16>)>,
}

impl Default for ConsulBuilder {
    fn default() -> Self {
        Self {
            ttl_min: Some("200ms".to_owned()),
            acl: false,
            tls: false,
            client_certificates: false,
            unix_socket: false,
            persistent: false,
            connections_per_client: 800,
            cluster: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    http: u16,
    https: u16,
    pub(super) server: u16,
    pub(super) serf: u16,
}

/// The token that may do everything on agents with ACLs.
const ROOT_TOKEN: &str = "8f1f2c0e-6f0b-4b5e-9b0a-5d6f0c7d1e2a";

impl ConsulAgent {
    /// An agent with the defaults of [`ConsulBuilder`].
    pub async fn start() -> Result<Self, StartError> {
        Self::builder().start().await
    }

    /// Options for an agent.
    pub fn builder() -> ConsulBuilder {
        ConsulBuilder::default()
    }

    /// Where it listens for HTTP.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.http).into()
    }

    /// Its URL for `dlock::connect`.
    pub fn url(&self) -> String {
        format!("consul://{}", self.address())
    }

    /// Its URL over TLS, for agents that were started [with TLS](ConsulBuilder::tls).
    pub fn tls_url(&self) -> String {
        format!("consul+https://localhost:{}", self.ports.https)
    }

    /// Where it listens for HTTPS, for agents with TLS.
    pub fn tls_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.https).into()
    }

    /// The authority that signed its certificate and the client's, for agents with TLS.
    pub fn ca_certificate(&self) -> Option<&Path> {
        self.tls.as_ref().map(|files| files.ca.as_path())
    }

    /// A certificate for a client and its key, for agents with TLS.
    pub fn client_certificate(&self) -> Option<(&Path, &Path)> {
        self.tls.as_ref().map(|files| (files.client_certificate.as_path(), files.client_key.as_path()))
    }

    /// Its unix socket, for agents with one.
    pub fn unix_socket(&self) -> PathBuf {
        self.folder.path().join("http.sock")
    }

    /// A new token with these rules, for agents with ACLs.
    pub fn token_with(&self, rules: &str) -> Result<String, StartError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("policy-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.run(&["acl", "policy", "create", "-name", &name, "-rules", rules])?;
        let told = self.run(&["acl", "token", "create", "-policy-name", &name])?;
        let secret = told.lines().find_map(|line| line.strip_prefix("SecretID:"));
        let secret = secret.ok_or_else(|| std::io::Error::other(format!("no token in {told}")))?;
        Ok(secret.trim().to_owned())
    }

    /// The `consul` command, to be run against this agent.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("CONSUL_HTTP_ADDR", format!("http://{}", self.address())).stdin(Stdio::null());
        command.env_remove("CONSUL_HTTP_TOKEN");
        if let Some(token) = &self.token {
            command.env("CONSUL_HTTP_TOKEN", token);
        }
        command
    }

    /// Runs the `consul` command to its end; what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, StartError> {
        let output = self.command().args(arguments).output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(std::io::Error::other(format!("consul {arguments:?}: {error}")).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes its folder from the disk; only for an agent that keeps its data in memory and is never restarted.
    pub(crate) fn forget_folder(&self) {
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

    /// Waits until the agent opens sessions: then it has a leader, and its node is registered.
    pub(super) async fn ready(&mut self) -> Result<(), StartError> {
        let began = Instant::now();
        let headers: Vec<(&str, &str)> = self.token.iter().map(|token| ("X-Consul-Token", token.as_str())).collect();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.http));
        while began.elapsed() < PATIENCE {
            let opened = http(address, "PUT", "/v1/session/create", &headers, r#"{"TTL":"86400s","NodeChecks":[]}"#).await;
            if let Ok(reply) = opened
                && reply.status == 200
            {
                let id = reply.body.split('"').nth(3).unwrap_or_default().to_owned();
                _ = http(address, "PUT", &format!("/v1/session/destroy/{id}"), &headers, "").await;
                return Ok(());
            }
            if self.process.has_ended()? {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(self.folder.not_ready(began.elapsed()))
    }
}

impl ConsulBuilder {
    /// The least session ttl that it accepts, as Consul spells durations. Defaults to 200 ms; `None` is Consul's own 10 s.
    #[must_use]
    pub fn ttl_min(mut self, ttl_min: Option<&str>) -> Self {
        self.ttl_min = ttl_min.map(str::to_owned);
        self
    }

    /// Turns ACLs on: nothing is allowed without a token.
    #[must_use]
    pub fn acl(mut self) -> Self {
        self.acl = true;
        self
    }

    /// Listens for HTTPS too, with a certificate of its own authority.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Listens for HTTPS too, and lets nobody in there without a certificate of its own authority.
    #[must_use]
    pub fn client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self.tls()
    }

    /// Listens on a unix socket too.
    #[must_use]
    pub fn with_unix_socket(mut self) -> Self {
        self.unix_socket = true;
        self
    }

    /// Keeps its data over a [restart](ConsulAgent::restart); takes a few seconds longer to come up.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// How many connections it takes from one address; closes what is beyond. Defaults to 800, where Consul's own are 200.
    #[must_use]
    pub fn connections_per_client(mut self, most: usize) -> Self {
        self.connections_per_client = most;
        self
    }

    /// One of so many servers, which joins those at these ports.
    pub(super) fn in_cluster(mut self, size: usize, others: Vec<u16>) -> Self {
        self.cluster = Some((size, others));
        self
    }

    /// Starts it, and returns when it opens sessions.
    pub async fn start(self) -> Result<ConsulAgent, StartError> {
        with_free_ports(|| Box::pin(self.attempt())).await
    }

    async fn attempt(&self) -> Result<ConsulAgent, StartError> {
        let mut agent = self.spawn(Ports::free()?)?;
        agent.ready().await?;
        Ok(agent)
    }

    pub(super) fn spawn(&self, ports: Ports) -> Result<ConsulAgent, StartError> {
        let binary = binary::consul()?;
        let folder = Folder::new("consul")?;
        let tls = if self.tls { Some(tls::make(folder.path()).map_err(StartError::Certificates)?) } else { None };
        let config = folder.path().join("config.hcl");
        fs::write(&config, self.config(ports, folder.path(), tls.as_ref()))?;
        let mut arguments =
            vec!["agent".to_owned(), format!("-config-file={}", config.display()), format!("-node=n{}", ports.http)];
        match &self.cluster {
            None if !self.persistent => arguments.push("-dev".to_owned()),
            None => arguments.extend(["-server".to_owned(), "-bootstrap-expect=1".to_owned()]),
            Some((size, others)) => {
                arguments.extend(["-server".to_owned(), format!("-bootstrap-expect={size}")]);
                arguments.extend(others.iter().map(|port| format!("-retry-join=127.0.0.1:{port}")));
            }
        }
        if self.persistent || self.cluster.is_some() {
            arguments.push(format!("-data-dir={}", folder.path().join("data").display()));
        }
        let process = spawn(&binary, &arguments, &folder)?;
        let token = self.acl.then(|| ROOT_TOKEN.to_owned());
        Ok(ConsulAgent { process, binary, arguments, folder, ports, tls, token })
    }

    fn config(&self, ports: Ports, folder: &Path, tls: Option<&TlsFiles>) -> String {
        let Ports { http, https, server, serf } = ports;
        let (https, connections) = (if self.tls { i32::from(https) } else { -1 }, self.connections_per_client);
        let mut config = format!(
            "bind_addr = \"127.0.0.1\"\nadvertise_addr = \"127.0.0.1\"\nlog_level = \"WARN\"\ndisable_update_check = true\n\
             performance {{ raft_multiplier = 1 }}\nlimits {{ http_max_conns_per_client = {connections} }}\n\
             ports {{ http = {http} https = {https} server = {server} serf_lan = {serf} serf_wan = -1 dns = -1 grpc = -1 }}\n"
        );
        if let Some(min) = &self.ttl_min {
            config += &format!("session_ttl_min = \"{min}\"\n");
        }
        if self.acl {
            config += &format!(
                "acl {{ enabled = true default_policy = \"deny\" tokens {{ master = \"{ROOT_TOKEN}\" agent = \"{ROOT_TOKEN}\" }} }}\n"
            );
        }
        if let Some(files) = tls {
            config += &format!(
                "ca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
                files.ca.display(),
                files.certificate.display(),
                files.key.display()
            );
        }
        if self.client_certificates {
            config += "verify_incoming = true\n";
        }
        let socket = folder.join("http.sock");
        let addresses = if self.unix_socket { format!("127.0.0.1 unix://{}", socket.display()) } else { "127.0.0.1".to_owned() };
        config + &format!("addresses {{ http = \"{addresses}\" https = \"127.0.0.1\" }}\n")
    }
}

impl Ports {
    /// Ports that were free a moment ago.
    pub(super) fn free() -> std::io::Result<Self> {
        let [http, https, server, serf] = free_ports()?;
        Ok(Self { http, https, server, serf })
    }
}

/// Starts an agent on these arguments.
fn spawn(binary: &Path, arguments: &[String], folder: &Folder) -> std::io::Result<Process> {
    let mut command = mortal(binary);
    for name in ["CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_SSL"] {
        command.env_remove(name);
    }
    folder.spawn(command.args(arguments))
}
