//! What can go wrong, and where.

use serde::{Deserialize, Serialize};

/// A place in a client's life where something can go wrong: its calls to the store, and the moments between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the calls are those of that name
pub enum Site {
    Open,
    Renew,
    Audit,
    Close,
    Claim,
    Wait,
    Confirm,
    Release,
    Disturbed,
    /// While it acquires.
    Acquiring,
    /// While it holds.
    Holding,
    /// Between its check that it holds the lock, and its write.
    Writing,
}

impl Site {
    pub(super) const COUNT: usize = Self::Writing as usize + 1;

    /// Whether it is a call to the store.
    pub fn is_call(self) -> bool {
        !matches!(self, Self::Acquiring | Self::Holding | Self::Writing)
    }

    /// What can strike here.
    pub fn allows(self, kind: FaultKind) -> bool {
        use FaultKind as K;
        match kind {
            K::LoseRequest | K::LoseReply | K::DelayRequest | K::DelayReply | K::Refuse | K::Partition | K::Outage => {
                self.is_call()
            }
            // Reads change nothing when they arrive twice.
            K::Repeat => matches!(self, Self::Open | Self::Renew | Self::Close | Self::Claim | Self::Release),
            K::Pause | K::Crash => !self.is_call(),
            K::Cancel => self == Self::Acquiring,
            K::EndSession | K::DeleteKey | K::ReleaseByForce => self == Self::Holding,
        }
    }
}

/// Something that goes wrong. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request never arrives.
    LoseRequest,
    /// The request is applied, its reply never arrives.
    LoseReply,
    /// The request is under way so much longer, whether or not its sender still waits.
    DelayRequest(u32),
    /// The reply is under way so much longer.
    DelayReply(u32),
    /// The request arrives twice, the second time so much later.
    Repeat(u32),
    /// The store refuses to answer this one; not applied.
    Refuse,
    /// From this call on, nothing passes between this client and the store for so long.
    Partition(u32),
    /// From this call on, the store answers nobody for so long. What it keeps stays, and sessions get their whole ttl again.
    Outage(u32),
    /// The client makes no step for so long; its clock goes on.
    Pause(u32),
    /// The client ends without giving anything back.
    Crash,
    /// The acquisition is dropped after so many milliseconds.
    Cancel(u32),
    /// An operator ends the session.
    EndSession,
    /// An operator deletes the key.
    DeleteKey,
    /// An operator releases the key.
    ReleaseByForce,
}

/// A [`Fault`] without its measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as in Fault
pub enum FaultKind {
    LoseRequest,
    LoseReply,
    DelayRequest,
    DelayReply,
    Repeat,
    Refuse,
    Partition,
    Outage,
    Pause,
    Crash,
    Cancel,
    EndSession,
    DeleteKey,
    ReleaseByForce,
}

impl FaultKind {
    /// Those after which belief may be false for a while: whoever stands still, or whose lock an operator ends, cannot know.
    pub const EXCUSE: [Self; 4] = [Self::Pause, Self::EndSession, Self::DeleteKey, Self::ReleaseByForce];

    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::LoseRequest,
        Self::LoseReply,
        Self::DelayRequest,
        Self::DelayReply,
        Self::Repeat,
        Self::Refuse,
        Self::Partition,
        Self::Outage,
        Self::Pause,
        Self::Crash,
        Self::Cancel,
        Self::EndSession,
        Self::DeleteKey,
        Self::ReleaseByForce,
    ];

    /// The fault of this kind with a measure drawn up to three ttl.
    pub(super) fn drawn(self, bits: u64, ttl_ms: u32) -> Fault {
        // Short ones are as interesting as long ones: half of them stay below an eighth of a ttl.
        let longest = if bits & 1 == 0 { ttl_ms / 8 } else { ttl_ms.saturating_mul(3) };
        let measure = 1 + ((bits >> 1) % u64::from(longest.max(1))) as u32;
        match self {
            Self::LoseRequest => Fault::LoseRequest,
            Self::LoseReply => Fault::LoseReply,
            Self::DelayRequest => Fault::DelayRequest(measure),
            Self::DelayReply => Fault::DelayReply(measure),
            Self::Repeat => Fault::Repeat(measure),
            Self::Refuse => Fault::Refuse,
            Self::Partition => Fault::Partition(measure),
            Self::Outage => Fault::Outage(measure),
            Self::Pause => Fault::Pause(measure),
            Self::Crash => Fault::Crash,
            Self::Cancel => Fault::Cancel(measure),
            Self::EndSession => Fault::EndSession,
            Self::DeleteKey => Fault::DeleteKey,
            Self::ReleaseByForce => Fault::ReleaseByForce,
        }
    }
}

impl Fault {
    /// What somebody did to the lock itself: belief may be false until it is heard of.
    pub fn is_interference(self) -> bool {
        matches!(self, Self::EndSession | Self::DeleteKey | Self::ReleaseByForce)
    }

    /// The same fault with another measure; `None` where there is none.
    #[must_use]
    pub fn measured(self, millis: u32) -> Option<Self> {
        Some(match self {
            Self::DelayRequest(_) => Self::DelayRequest(millis),
            Self::DelayReply(_) => Self::DelayReply(millis),
            Self::Repeat(_) => Self::Repeat(millis),
            Self::Partition(_) => Self::Partition(millis),
            Self::Outage(_) => Self::Outage(millis),
            Self::Pause(_) => Self::Pause(millis),
            Self::Cancel(_) => Self::Cancel(millis),
            _ => return None,
        })
    }

    /// Its measure in milliseconds, where it has one.
    pub fn measure(self) -> Option<u32> {
        match self {
            Self::DelayRequest(millis)
            | Self::DelayReply(millis)
            | Self::Repeat(millis)
            | Self::Partition(millis)
            | Self::Outage(millis)
            | Self::Pause(millis)
            | Self::Cancel(millis) => Some(millis),
            _ => None,
        }
    }
}
