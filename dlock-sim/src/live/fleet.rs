//! The worker processes of a run, each behind fault proxies of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dlock_testkit::proxy::{FaultProxy, Matching};
use dlock_testkit::servers::{Process, mortal};

use super::store::Access;
use super::worker::{Job, Orders};
use super::{Clock, Told};
use crate::history::{Event, Line};

/// The workers; their processes are killed when it is dropped.
#[derive(Debug)]
pub(super) struct Fleet {
    contract: Contract,
    told: Sender<Told>,
    places: Vec<Place>,
    /// The number of the next process.
    next: u8,
    listeners: Vec<JoinHandle<()>>,
}

/// What is the same for all workers.
#[derive(Clone, Debug)]
pub(super) struct Contract {
    /// The program that does [`work`](super::worker::work).
    pub(super) program: PathBuf,
    /// Where it logs.
    pub(super) folder: PathBuf,
    /// What they do.
    pub(super) job: Job,
    /// How they get to the store.
    pub(super) access: Access,
}

/// Where a worker stands: its ways to the store stay when another process takes over.
#[derive(Debug)]
pub(super) struct Place {
    /// To the servers it is told of, in that order.
    pub(super) ways: Vec<Way>,
    /// The number of the process that works here.
    pub(super) client: u8,
    process: Process,
    input: Option<ChildStdin>,
}

/// A way to a server.
#[derive(Debug)]
pub(super) struct Way {
    /// Between the worker and the server.
    pub(super) proxy: FaultProxy,
    /// The server.
    pub(super) server: SocketAddr,
}

impl Place {
    /// The way that most requests took lately.
    pub(super) fn taken(&self) -> &Way {
        let most = self.ways.iter().max_by_key(|way| way.proxy.count(&Matching::any()));
        most.expect("every worker is told of a server")
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.ways.iter().map(|way| way.proxy.address()).collect()
    }
}

impl Fleet {
    /// The most processes that a run may start, so that each has a number.
    const MOST: u8 = 250;

    /// Starts so many workers; each is told of another server first.
    pub(super) async fn start(contract: Contract, servers: &[SocketAddr], workers: usize, told: Sender<Told>) -> io::Result<Self> {
        let mut fleet = Self { contract, told, places: Vec::new(), next: 0, listeners: Vec::new() };
        for place in 0..workers {
            let mut ways = Vec::new();
            for server in servers.iter().copied().cycle().skip(place).take(fleet.contract.access.ways) {
                ways.push(Way { proxy: (fleet.contract.access.proxy)(server).await?, server });
            }
            let addresses: Vec<_> = ways.iter().map(|way| way.proxy.address()).collect();
            let (client, process, input) = fleet.hire(&addresses)?;
            fleet.places.push(Place { ways, client, process, input: Some(input) });
        }
        Ok(fleet)
    }

    /// How workers get to the store.
    pub(super) fn access(&self) -> &Access {
        &self.contract.access
    }

    /// Where workers stand.
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Whether another process can take the place of a killed one.
    pub(super) fn can_hire(&self) -> bool {
        self.next < Self::MOST
    }

    /// Kills a worker's process: nobody goes on in its name.
    pub(super) fn kill(&mut self, place: usize) -> io::Result<()> {
        let place = &mut self.places[place];
        place.process.kill()?;
        tell(&self.told, self.contract.job.clock, place.client, Event::Crashed);
        Ok(())
    }

    /// Another process takes a place.
    pub(super) fn replace(&mut self, place: usize) -> io::Result<()> {
        let (client, process, input) = self.hire(&self.places[place].addresses())?;
        let place = &mut self.places[place];
        (place.client, place.process, place.input) = (client, process, Some(input));
        Ok(())
    }

    /// Freezes a worker's process.
    pub(super) fn pause(&self, place: usize) -> io::Result<()> {
        self.places[place].process.pause()
    }

    /// Lets it go on.
    pub(super) fn resume(&self, place: usize) -> io::Result<()> {
        self.places[place].process.resume()
    }

    /// Lets every worker give back what it has and end; an error when one does not within the limit.
    pub(super) async fn dismiss(mut self, limit: Duration) -> io::Result<()> {
        for place in &mut self.places {
            drop(place.input.take());
        }
        let began = Instant::now();
        for place in &mut self.places {
            while !place.process.has_ended()? {
                if began.elapsed() > limit {
                    return Err(io::Error::other(format!("worker {} did not end within {limit:?}", place.client)));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        for listener in self.listeners.drain(..) {
            listener.join().map_err(|_| io::Error::other("a listener panicked"))?;
        }
        Ok(())
    }

    fn hire(&mut self, addresses: &[SocketAddr]) -> io::Result<(u8, Process, ChildStdin)> {
        let client = self.next;
        self.next += 1;
        let Contract { access, job, .. } = &self.contract;
        let orders = Orders { client, url: access.url(addresses), job: job.clone() };
        let log = File::create(self.contract.folder.join(format!("worker-{client}.log")))?;
        let mut command = mortal(&self.contract.program);
        command.arg(serde_json::to_string(&orders)?).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // What developers tell the tools of their own stores is not for workers.
        let strange = std::env::vars_os().map(|(name, _)| name);
        for name in strange.filter(|name| ["CONSUL_", "ETCDCTL_"].iter().any(|tool| name.to_string_lossy().starts_with(tool))) {
            command.env_remove(name);
        }
        command.envs(access.environment.iter().copied());
        let mut process = Process::start(&mut command)?;
        let piped = || io::Error::other("a piped end is missing");
        let (input, output) = (process.stdin().ok_or_else(piped)?, process.stdout().ok_or_else(piped)?);
        let (told, clock) = (self.told.clone(), orders.job.clock);
        // Ends with the process, whose end of the pipe closes.
        self.listeners.push(std::thread::spawn(move || listen(output, &told, clock, client)));
        Ok((client, process, input))
    }
}

/// Passes on what a worker tells. What cannot be read is told as something left over, which no run may end with.
fn listen(output: ChildStdout, told: &Sender<Told>, clock: Clock, client: u8) {
    for line in BufReader::new(output).lines() {
        let read = line.map_err(serde_json::Error::io).and_then(|line| serde_json::from_str(&line));
        match read {
            Ok(line) => _ = told.send(line),
            Err(error) => tell(told, clock, client, Event::Left { what: format!("a line that cannot be read: {error}") }),
        }
    }
}

fn tell(told: &Sender<Told>, clock: Clock, client: u8, event: Event) {
    // Nobody listens any more once the run is over.
    _ = told.send(Told { key: None, line: Line { at: clock.now(), client: Some(client), event } });
}
