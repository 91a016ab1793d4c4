//! What is between the calls and the thread that has the file, so that a test can hold, lose and refuse requests on their way.

use std::fmt;

use crate::worker::{Entrance, Job};

/// How requests get from the calls to the file; for tests. Without one they arrive at once, in the order in which they were sent.
pub trait Wire: fmt::Debug + Send + Sync + 'static {
    /// A request was sent. Dropped, it never arrives, and its caller finds it ambiguous.
    fn send(&self, request: Request);
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Opens a session.
    Open,
    /// Keeps a session alive.
    Renew,
    /// May take keys.
    Claim,
    /// May free keys: a release, the end of a session or an eviction.
    Release,
    /// May change what a holder published.
    Amend,
    /// Only reads.
    Look,
}

/// A request on its way to the file.
pub struct Request {
    pub(crate) job: Job,
    pub(crate) entrance: Entrance,
}

impl Request {
    /// What it is.
    pub fn sent(&self) -> Sent {
        self.job.sent
    }

    /// Lets it arrive, behind those that have.
    pub fn deliver(self) {
        self.entrance.hand_in(self.job);
    }

    /// Lets it arrive, and its reply get lost.
    pub fn deliver_without_reply(mut self) {
        self.job.answers = false;
        self.deliver();
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("sent", &self.job.sent).finish_non_exhaustive()
    }
}

/// The wire that is none.
#[derive(Debug)]
pub(crate) struct Direct;

impl Wire for Direct {
    fn send(&self, request: Request) {
        request.deliver();
    }
}
