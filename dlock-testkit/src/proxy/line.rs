//! The line between clients and server: how much it carries, and in which direction.

use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// A direction of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the server.
    Requests,
    /// From the server to clients.
    Replies,
}

/// How the connections of a moment come to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severance {
    /// Both sides are told.
    Reset,
    /// The server is told, the client is not: for it the connection lives.
    HalfOpen,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    holes: [watch::Sender<bool>; 2],
    bytes_per_second: watch::Sender<Option<NonZeroU32>>,
    severed: watch::Sender<Option<Severance>>,
}

impl Line {
    /// How many pieces a second a throttled message comes in.
    const PIECES: u32 = 20;

    pub(super) fn black_hole(&self, direction: Direction, open: bool) {
        self.hole(direction).send_replace(open);
    }

    pub(super) fn throttle(&self, bytes_per_second: Option<NonZeroU32>) {
        self.bytes_per_second.send_replace(bytes_per_second);
    }

    pub(super) fn sever(&self, how: Severance) {
        self.severed.send_replace(Some(how));
    }

    /// How the connections that are open now will be severed; for a connection to subscribe when it begins.
    pub(super) fn severance(&self) -> watch::Receiver<Option<Severance>> {
        self.severed.subscribe()
    }

    /// Brings a message to its receiver as fast as the line does.
    pub(super) async fn carry(
        &self,
        direction: Direction,
        mut message: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        while !message.is_empty() {
            self.passable(direction).await;
            let pace = *self.bytes_per_second.borrow();
            let piece = match pace {
                None => message.len(),
                Some(pace) => message.len().min((pace.get() / Self::PIECES).max(1) as usize),
            };
            if let Some(pace) = pace {
                tokio::time::sleep(Duration::from_secs_f64(piece as f64 / f64::from(pace.get()))).await;
            }
            let (now, later) = message.split_at(piece);
            to.write_all(now).await?;
            message = later;
        }
        Ok(())
    }

    /// Returns when nothing swallows what goes in this direction.
    pub(super) async fn passable(&self, direction: Direction) {
        _ = self.hole(direction).subscribe().wait_for(|open| !open).await;
    }

    fn hole(&self, direction: Direction) -> &watch::Sender<bool> {
        &self.holes[direction as usize]
    }
}
