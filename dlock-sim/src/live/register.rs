//! What the workers protect: for each key one register that looks at fencing tokens, and one that does not.
//!
//! An update reads a register, and later replaces its content by what was read with one entry more. Whoever replaces it in between is
//! overwritten: that update is lost, and [`Chain`] finds it out. Nothing but the lock and the fence keep that from happening.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock::{Fence, FencingToken};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Clock, Told};
use crate::history::{Event, Line, Op};

/// The number of a register's content: how many updates it took to come to it, those that were lost included.
pub type Version = u64;

/// The contents that a register had, each with the one it was made from.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// That of version n at n - 1; version 0 is the empty register.
    made_from: Vec<Version>,
}

impl Chain {
    /// The content now.
    pub fn version(&self) -> Version {
        self.made_from.len() as Version
    }

    /// Replaces the content by that of `read` with one entry more.
    pub fn replace(&mut self, read: Version) {
        self.made_from.push(read);
    }

    /// The updates whose entries are not in the content any more.
    pub fn lost(&self) -> Vec<Version> {
        let mut kept = vec![false; self.made_from.len()];
        let mut version = self.version();
        while let Some(place) = version.checked_sub(1) {
            kept[place as usize] = true;
            version = self.made_from[place as usize];
        }
        (1..).zip(kept).filter_map(|(version, kept)| (!kept).then_some(version)).collect()
    }
}

/// What a worker asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// What both registers of a key hold now.
    Read {
        /// Of which key.
        key: String,
        /// Of the lock: whoever reads to write later must be refused already here, or its reading could be older than the last
        /// accepted write of an earlier holder.
        token: u64,
    },
    /// Replaces what both registers of a key hold.
    Write {
        /// Of which key.
        key: String,
        /// Who asks.
        client: u8,
        /// Under which acquisition.
        op: Op,
        /// Of the lock.
        token: u64,
        /// What was read of the fenced register; `None` leaves it alone.
        fenced: Option<Version>,
        /// What was read of the unfenced one.
        unfenced: Version,
    },
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The contents.
    Read {
        /// `None` when the fence refused.
        fenced: Option<Version>,
        /// Never refused.
        unfenced: Version,
    },
    /// Taken or refused.
    Written,
    /// There is no such key.
    Unknown,
}

/// What became of all updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Updates that the fenced registers took.
    pub fenced: usize,
    /// Of those, the ones that are gone.
    pub lost_fenced: usize,
    /// Updates that the fence refused.
    pub refused: usize,
    /// Updates that the unfenced registers took.
    pub unfenced: usize,
    /// Of those, the ones that are gone.
    pub lost_unfenced: usize,
    /// Of those, the ones that came after a later holder's.
    pub late: usize,
}

/// The registers of all keys.
#[derive(Debug)]
pub struct Registers {
    clock: Clock,
    told: Sender<Told>,
    pairs: BTreeMap<String, Mutex<Pair>>,
}

#[derive(Debug, Default)]
struct Pair {
    fence: Fence,
    fenced: Chain,
    refused: usize,
    unfenced: Chain,
    late: usize,
    /// The highest token that wrote the unfenced register, which does not know it.
    last_holder: u64,
}

impl Registers {
    /// Empty registers for these keys, that tell of every write.
    pub fn new(keys: &[String], clock: Clock, told: Sender<Told>) -> Self {
        Self { clock, told, pairs: keys.iter().map(|key| (key.clone(), Mutex::default())).collect() }
    }

    /// Does what a worker asks, in one step.
    pub fn ask(&self, ask: &Ask) -> Answer {
        let (Ask::Read { key, .. } | Ask::Write { key, .. }) = ask;
        let Some(pair) = self.pairs.get(key) else { return Answer::Unknown };
        let mut pair = locked(pair);
        match ask {
            Ask::Read { token, .. } => {
                let fenced = pair.admits(*token).then(|| pair.fenced.version());
                Answer::Read { fenced, unfenced: pair.unfenced.version() }
            }
            Ask::Write { client, op, token, fenced, unfenced, .. } => {
                let tell = |event| {
                    let line = Line { at: self.clock.now(), client: Some(*client), event };
                    // Nobody listens any more once the run is over.
                    _ = self.told.send(Told { key: Some(key.clone()), line });
                };
                if let Some(read) = fenced {
                    let accepted = pair.admits(*token);
                    if accepted {
                        pair.fenced.replace(*read);
                    } else {
                        pair.refused += 1;
                    }
                    tell(Event::Wrote { op: *op, token: *token, accepted });
                }
                let late = pair.last_holder > *token;
                pair.last_holder = pair.last_holder.max(*token);
                pair.late += usize::from(late);
                pair.unfenced.replace(*unfenced);
                tell(Event::WroteUnfenced { op: *op, token: *token, late });
                Answer::Written
            }
        }
    }

    /// What became of all updates so far.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for pair in self.pairs.values() {
            let pair = locked(pair);
            tally.fenced += pair.fenced.version() as usize;
            tally.lost_fenced += pair.fenced.lost().len();
            tally.refused += pair.refused;
            tally.unfenced += pair.unfenced.version() as usize;
            tally.lost_unfenced += pair.unfenced.lost().len();
            tally.late += pair.late;
        }
        tally
    }
}

impl Pair {
    fn admits(&self, token: u64) -> bool {
        FencingToken::new(token).is_some_and(|token| self.fence.admit(token).is_ok())
    }
}

fn locked(pair: &Mutex<Pair>) -> MutexGuard<'_, Pair> {
    pair.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves registers to other processes, one JSON object a line; ends when dropped.
#[derive(Debug)]
pub struct RegisterServer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl RegisterServer {
    /// Listens on a free port.
    pub async fn start(registers: Arc<Registers>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        // Aborted with the server; the connections end with their workers.
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registers = Arc::clone(&registers);
                tokio::spawn(async move { serve(stream, &registers).await });
            }
        });
        Ok(Self { address, accepting })
    }

    /// Where workers connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RegisterServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: tokio::net::TcpStream, registers: &Registers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (asks, mut answers) = stream.split();
    let mut asks = tokio::io::BufReader::new(asks).lines();
    while let Some(line) = asks.next_line().await? {
        let answer = registers.ask(&serde_json::from_str(&line)?);
        answers.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
    }
    Ok(())
}

/// A worker's connection to the registers. Blocks: between the last look at the lock and the write there is no await at which the work could
/// still be stopped.
#[derive(Debug)]
pub struct RegisterClient {
    stream: BufReader<TcpStream>,
}

impl RegisterClient {
    /// Connects to a [`RegisterServer`].
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, ask: &Ask) -> io::Result<Answer> {
        self.stream.get_mut().write_all(format!("{}\n", serde_json::to_string(ask)?).as_bytes())?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn registers() -> Registers {
        Registers::new(&["k".to_owned()], Clock::start(), channel().0)
    }

    fn read(registers: &Registers, token: u64) -> (Option<Version>, Version) {
        match registers.ask(&Ask::Read { key: "k".to_owned(), token }) {
            Answer::Read { fenced, unfenced } => (fenced, unfenced),
            other => panic!("{other:?}"),
        }
    }

    fn write(registers: &Registers, token: u64, (fenced, unfenced): (Option<Version>, Version)) {
        let write = Ask::Write { key: "k".to_owned(), client: 0, op: 0, token, fenced, unfenced };
        assert_eq!(registers.ask(&write), Answer::Written);
    }

    #[test]
    fn holders_that_take_turns_lose_nothing() {
        let registers = registers();
        for token in [3, 5, 5, 9] {
            let seen = read(&registers, token);
            write(&registers, token, seen);
        }
        let tally = Tally { fenced: 4, unfenced: 4, ..Tally::default() };
        assert_eq!(registers.tally(), tally);
    }

    #[test]
    fn a_write_of_a_past_holder_is_refused_by_the_fence_and_loses_an_unfenced_update() {
        let registers = registers();
        let old = read(&registers, 3);
        let new = read(&registers, 5);
        write(&registers, 5, new);
        write(&registers, 3, old);
        let tally = Tally { fenced: 1, refused: 1, unfenced: 2, lost_unfenced: 1, late: 1, ..Tally::default() };
        assert_eq!(registers.tally(), tally);
    }

    #[test]
    fn a_reading_of_the_next_holder_already_shuts_the_past_one_out() {
        let registers = registers();
        let old = read(&registers, 3);
        let new = read(&registers, 5);
        write(&registers, 3, old);
        write(&registers, 5, new);
        let tally = registers.tally();
        assert_eq!((tally.fenced, tally.lost_fenced, tally.refused), (1, 0, 1));
        assert_eq!((tally.unfenced, tally.lost_unfenced, tally.late), (2, 1, 0));
    }

    #[test]
    fn two_holders_with_one_token_would_show_as_a_lost_fenced_update() {
        let registers = registers();
        let (one, other) = (read(&registers, 3), read(&registers, 3));
        write(&registers, 3, one);
        write(&registers, 3, other);
        assert_eq!(registers.tally().lost_fenced, 1);
    }
}
