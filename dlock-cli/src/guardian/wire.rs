//! What `dlock` and its guardian say to each other, as lines of JSON on a socket that both have from birth.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// To the guardian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The command may run until then, and must be gone by then.
    Until(BootTime),
    /// Pass this signal on to the command's process group.
    Signal(i32),
    /// End the command: `TERM` now, `KILL` after the grace.
    End,
}

/// From the guardian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The command was started; its process group goes by this number.
    Started(i32),
    /// It was stopped by the keyboard, or because it wanted a terminal that is not its own; whether it goes on by itself.
    Suspended {
        /// Whether the guardian had it go on.
        continued: bool,
    },
    /// It has ended, and these processes of it cannot be killed.
    Lingering(Vec<i32>),
    /// The command and all that it started are gone.
    Gone(Gone),
    /// There is no command: the deadline was too near.
    TooLate,
    /// There is no command, and why.
    NotStarted(String),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// What it would be in a shell's `$?`: the exit code, or 128 and the number of the signal.
    pub code: u8,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it ended.
    pub why: Why,
    /// Processes of it that could not be killed.
    pub left: Vec<i32>,
}

/// Why a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It ended by itself, or by a signal that was passed on.
    Itself,
    /// It was ended because no later deadline was heard of.
    Deadline,
    /// It was ended because `dlock` said so, or is gone.
    Ordered,
}

/// A moment on the clock that counts since the machine was started, and goes on while it is suspended. All processes of a machine share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootTime(u64);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        #[cfg(target_os = "linux")]
        let clock = ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = ClockId::Monotonic;
        let time = clock_gettime(clock);
        let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// So much earlier.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; nothing if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::str::FromStr for BootTime {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl std::fmt::Display for BootTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One message as a line.
pub fn line(message: &impl Serialize) -> Vec<u8> {
    // Numbers, strings and lists of them: there is nothing that JSON does not hold.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What came in so far; gives out whole lines.
#[derive(Debug, Default)]
pub struct Incoming(Vec<u8>);

impl Incoming {
    /// More was read.
    pub fn take_in(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next message, if it is there as a whole. What is no message is left out: both ends are the same program.
    pub fn next<M: for<'a> Deserialize<'a>>(&mut self) -> Option<M> {
        loop {
            let end = self.0.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.0.drain(..=end).collect();
            if let Ok(message) = serde_json::from_slice(&line) {
                return Some(message);
            }
        }
    }
}

/// Gives the other end a file descriptor of ours.
pub fn hand_over(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// The file descriptor that the other end hands over.
pub fn take_over(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let handed = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    handed.ok_or_else(|| io::Error::other("nothing was handed over"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let orders = [Order::Until(BootTime(u64::MAX)), Order::Signal(15), Order::End];
        let bytes: Vec<u8> = orders.iter().flat_map(line).collect();
        let mut incoming = Incoming::default();
        let mut heard = Vec::new();
        for byte in bytes {
            incoming.take_in(&[byte]);
            heard.extend(incoming.next::<Order>());
        }
        assert_eq!(heard, orders);
    }

    #[test]
    fn a_descriptor_is_handed_over_and_is_the_same_file() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        hand_over(&one, &file).unwrap();
        let taken = take_over(&other).unwrap();
        let inode = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
        assert_eq!(inode(&taken), inode(&file));
    }

    #[test]
    fn boot_time_moves_on_and_saturates() {
        let now = BootTime::now();
        assert!(BootTime::now() >= now && now > BootTime(0));
        assert_eq!(now.plus(Duration::from_secs(2)).since(now), Duration::from_secs(2));
        assert_eq!(now.since(now.plus(Duration::from_secs(2))), Duration::ZERO);
        assert_eq!(BootTime(1).minus(Duration::MAX), BootTime(0));
    }
}
