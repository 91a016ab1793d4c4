//! What happened in a run, as an observer with a true clock saw it: one format for every tier, for live tests, and for the checkers.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use dlock_core::Loss;
use serde::{Deserialize, Serialize};

use crate::plan::{Fault, Slot};

/// Everything that happened, in order of true time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    lines: Vec<Line>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Line {
    /// True time since the beginning, in microseconds.
    pub at: u64,
    /// Whose; `None` for the store and operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u8>,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The number of an acquisition, unique in a run.
pub type Op = u32;

/// What can happen. `op` is the acquisition it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // the fields hold what their names say
pub enum Event {
    /// A client asks for the lock; `tries` when it will not wait.
    Wants { op: Op, tries: bool },
    /// It has a guard with this token, and is told so.
    Held { op: Op, token: u64 },
    /// It is told that it has no lock.
    Refused { op: Op, why: Refusal },
    /// It is told that it lost the lock.
    Lost { op: Op, reason: Reason },
    /// It begins to give the lock back, or lets the guard go.
    Releasing { op: Op },
    /// It is told what became of that.
    Released { op: Op, outcome: Outcome },
    /// The client ends without giving anything back, and nobody goes on in its name.
    Crashed,
    /// The client makes no step until then, in microseconds of true time.
    Paused { until: u64 },
    /// A claim got its ticket in the line of a store that tells so.
    Queued { op: Op },
    /// The store grants the key to a claim.
    Granted { op: Op, token: u64 },
    /// The store ends a grant, for this cause.
    Ended { op: Op, token: u64, cause: End },
    /// At this instant the store no longer grants the key to the claim, yet the client would say that it holds it.
    StillBelieves { op: Op, token: u64 },
    /// A write reaches the protected resource, which refuses those with a token below the highest it has seen.
    Wrote { op: Op, token: u64, accepted: bool },
    /// A write reaches a resource that does not look at tokens; `late` when another holder has written since the grant of this one.
    WroteUnfenced { op: Op, token: u64, late: bool },
    /// A fault strikes.
    Struck { slot: Slot, fault: Fault },
    /// A call leaves a client; `call` is unique in a run.
    Sent { call: u32, slot: Slot },
    /// It is applied at the store.
    Applied { call: u32 },
    /// Its answer reaches the client that still waits for it.
    Answered { call: u32 },
    /// Faults are over; from here on everything must end well.
    Healed,
    /// At the end something of this client is left that should not be.
    Left { what: String },
}

/// Why there is no lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // each is what its name says
pub enum Refusal {
    Busy,
    TimedOut,
    Cancelled,
    Failed,
    ShutDown,
}

/// Why a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as in `Loss`
pub enum Reason {
    Expired,
    SessionGone,
    KeyDeleted,
    TakenOver,
    HeldTooLong,
    Shutdown,
    Other,
}

impl From<Loss> for Reason {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Expired => Self::Expired,
            Loss::SessionGone => Self::SessionGone,
            Loss::KeyDeleted => Self::KeyDeleted,
            Loss::TakenOver => Self::TakenOver,
            Loss::HeldTooLong => Self::HeldTooLong,
            Loss::Shutdown => Self::Shutdown,
            _ => Self::Other,
        }
    }
}

/// What a release brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was held and is given back.
    Released,
    /// It was not held any more.
    NotHeld,
    /// Not answered: it goes on in the background.
    Unknown,
}

/// How a grant ended at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It was given back, or its session closed.
    GivenBack,
    /// Its session lapsed.
    Lapsed,
    /// An operator ended it.
    Interference,
}

impl History {
    /// Takes a line in.
    pub fn push(&mut self, at: u64, client: Option<u8>, event: Event) {
        self.lines.push(Line { at, client, event });
    }

    /// Everything, in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// A number that is the same for the same history.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines.hash(&mut hasher);
        hasher.finish()
    }

    /// One JSON object a line, the first of them naming the version of the format.
    pub fn to_json_lines(&self) -> String {
        let mut text = format!("{{\"format\":\"dlock-history\",\"version\":{}}}\n", Self::VERSION);
        for line in &self.lines {
            let line = serde_json::to_string(line).unwrap_or_else(|error| unreachable!("a line is always JSON: {error}"));
            _ = writeln!(text, "{line}");
        }
        text
    }

    /// The history of such a text.
    pub fn from_json_lines(text: &str) -> Result<Self, serde_json::Error> {
        let mut lines = text.lines();
        let head: Head = serde_json::from_str(lines.next().unwrap_or_default())?;
        if head.version != Self::VERSION {
            let message = format!("version {} of the format, this program reads {}", head.version, Self::VERSION);
            return Err(serde::de::Error::custom(message));
        }
        Ok(Self { lines: lines.map(serde_json::from_str).collect::<Result<_, _>>()? })
    }

    /// The version of the format.
    pub const VERSION: u32 = 1;
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Site;

    #[test]
    fn a_history_survives_being_written_down() {
        let mut history = History::default();
        history.push(3, Some(1), Event::Wants { op: 7, tries: true });
        history.push(4, None, Event::Granted { op: 7, token: 9 });
        let slot = Slot { site: Site::Release, client: 1, nth: 0 };
        history.push(5, Some(1), Event::Struck { slot, fault: Fault::Partition(30) });
        let text = history.to_json_lines();
        let again = History::from_json_lines(&text).unwrap();
        assert_eq!(again, history, "{text}");
        assert_eq!(again.fingerprint(), history.fingerprint());
    }

    #[test]
    fn another_version_is_refused() {
        assert!(History::from_json_lines("{\"format\":\"dlock-history\",\"version\":9}\n").is_err());
    }
}
