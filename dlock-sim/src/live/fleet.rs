//! The worker processes of a run, each behind a fault proxy of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dlock_testkit::proxy::FaultProxy;
use dlock_testkit::servers::{Process, mortal};

use super::worker::{Job, Orders};
use super::{Clock, Told};
use crate::history::{Event, Line};

/// The workers; their processes are killed when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    contract: Contract,
    told: Sender<Told>,
    places: Vec<Place>,
    /// The number of the next process.
    next: u8,
    listeners: Vec<JoinHandle<()>>,
}

/// What is the same for all workers.
#[derive(Clone, Debug)]
pub struct Contract {
    /// The program that does [`work`](super::worker::work).
    pub program: PathBuf,
    /// Where it logs.
    pub folder: PathBuf,
    /// What they do.
    pub job: Job,
}

/// Where a worker stands: its way to the store stays when another process takes over.
#[derive(Debug)]
pub struct Place {
    /// Between the worker and its server.
    pub proxy: FaultProxy,
    /// The server.
    pub server: SocketAddr,
    /// The number of the process that works here.
    pub client: u8,
    process: Process,
    input: Option<ChildStdin>,
}

impl Fleet {
    /// The most processes that a run may start, so that each has a number.
    const MOST: u8 = 250;

    /// Starts so many workers, spread over the servers.
    pub async fn start(contract: Contract, servers: &[SocketAddr], workers: usize, told: Sender<Told>) -> io::Result<Self> {
        let mut fleet = Self { contract, told, places: Vec::new(), next: 0, listeners: Vec::new() };
        for server in servers.iter().copied().cycle().take(workers) {
            let proxy = FaultProxy::start(server).await?;
            let (client, process, input) = fleet.hire(proxy.address())?;
            fleet.places.push(Place { proxy, server, client, process, input: Some(input) });
        }
        Ok(fleet)
    }

    /// Where workers stand.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Whether another process can take the place of a killed one.
    pub fn can_hire(&self) -> bool {
        self.next < Self::MOST
    }

    /// Kills a worker's process: nobody goes on in its name.
    pub fn kill(&mut self, place: usize) -> io::Result<()> {
        let place = &mut self.places[place];
        place.process.kill()?;
        tell(&self.told, self.contract.job.clock, place.client, Event::Crashed);
        Ok(())
    }

    /// Another process takes a place.
    pub fn replace(&mut self, place: usize) -> io::Result<()> {
        let (client, process, input) = self.hire(self.places[place].proxy.address())?;
        let place = &mut self.places[place];
        (place.client, place.process, place.input) = (client, process, Some(input));
        Ok(())
    }

    /// Freezes a worker's process.
    pub fn pause(&self, place: usize) -> io::Result<()> {
        self.places[place].process.pause()
    }

    /// Lets it go on.
    pub fn resume(&self, place: usize) -> io::Result<()> {
        self.places[place].process.resume()
    }

    /// Lets every worker give back what it has and end; an error when one does not within the limit.
    pub async fn dismiss(mut self, limit: Duration) -> io::Result<()> {
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

    fn hire(&mut self, consul: SocketAddr) -> io::Result<(u8, Process, ChildStdin)> {
        let client = self.next;
        self.next += 1;
        let orders = Orders { client, consul, job: self.contract.job.clone() };
        let log = File::create(self.contract.folder.join(format!("worker-{client}.log")))?;
        let mut command = mortal(&self.contract.program);
        command.arg(serde_json::to_string(&orders)?).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
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
