//! Whether a store is fit for locks: what a probe found, for people and tools.

use std::error::Error;
use std::fmt;

use crate::{BackendError, ErrorKind};

/// What a probe calls itself at a store: the owner of a session that it opens, and the key that it asks about.
pub const PROBE_NAME: &str = "dlock-probe";

/// One thing that a [probe](crate::LockBackend::probe) looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Whether it will do.
    pub fitness: Fitness,
    /// What was found, in lower case and without a full stop. Holds no secret.
    pub detail: String,
}

/// What a probe looks at; a store tells of what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Check {
    /// Whether the store answers, and how fast.
    Reachable,
    /// Who leads it.
    Leader,
    /// Which version it is.
    Version,
    /// Which lifetimes of sessions it accepts.
    Ttl,
    /// Whether we may, and can, do what a lock needs.
    Permissions,
    /// Whether the clocks that sessions hang on are sound.
    Clock,
    /// Whether there is room.
    Storage,
}

/// Whether something will do for locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// It will.
    Fine,
    /// It may not, or could not be found out.
    Doubtful {
        /// What to do.
        remedy: String,
    },
    /// It will not.
    Broken {
        /// What to do.
        remedy: String,
    },
}

impl Finding {
    /// Something that will do.
    pub fn fine(check: Check, detail: impl Into<String>) -> Self {
        Self { check, fitness: Fitness::Fine, detail: detail.into() }
    }

    /// Something that may be in the way of locks, and what to do about it.
    pub fn doubtful(check: Check, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, fitness: Fitness::Doubtful { remedy: remedy.into() }, detail: detail.into() }
    }

    /// Something with which no lock can be had, and what to do about it.
    pub fn broken(check: Check, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, fitness: Fitness::Broken { remedy: remedy.into() }, detail: detail.into() }
    }

    /// Something broken, told by the error of a call. What to do is what the error's message says behind its first semicolon, or `otherwise`
    /// where it says nothing.
    pub fn from_error(check: Check, error: &BackendError, otherwise: &str) -> Self {
        let (what, remedy) = error.message().split_once("; ").unwrap_or((error.message(), otherwise));
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        // What may pass is understood by its cause; what will not says all there is to know.
        let cause = causes.last().map(ToString::to_string).filter(|cause| error.kind().is_passing() && !what.contains(cause));
        let detail = match cause {
            Some(cause) => format!("{what}: {}", cause.lines().next().unwrap_or_default()),
            None => what.to_owned(),
        };
        Self::broken(check, detail, remedy)
    }

    /// All that there is to find where the first request was not answered as it should be: the store is out of reach, or lets us in for nothing.
    pub fn unanswered(error: &BackendError, otherwise: &str) -> Vec<Self> {
        if error.kind() != ErrorKind::Denied {
            return vec![Self::from_error(Check::Reachable, error, otherwise)];
        }
        vec![Self::fine(Check::Reachable, "it answers"), Self::from_error(Check::Permissions, error, otherwise)]
    }

    /// The same, where it only may be in the way: doubtful instead of broken.
    #[must_use]
    pub fn softened(mut self) -> Self {
        if let Fitness::Broken { remedy } = self.fitness {
            self.fitness = Fitness::Doubtful { remedy };
        }
        self
    }

    /// Whether no lock can be had with this.
    pub fn is_broken(&self) -> bool {
        matches!(self.fitness, Fitness::Broken { .. })
    }

    /// What to do, unless it is fine.
    pub fn remedy(&self) -> Option<&str> {
        match &self.fitness {
            Fitness::Fine => None,
            Fitness::Doubtful { remedy } | Fitness::Broken { remedy } => Some(remedy),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.check, self.fitness, self.detail)?;
        self.remedy().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reachable => "reachable",
            Self::Leader => "leader",
            Self::Version => "version",
            Self::Ttl => "ttl",
            Self::Permissions => "permissions",
            Self::Clock => "clock",
            Self::Storage => "storage",
        })
    }
}

impl fmt::Display for Fitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fine => "fine",
            Self::Doubtful { .. } => "doubtful",
            Self::Broken { .. } => "broken",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_a_line_with_what_to_do_at_its_end() {
        assert_eq!(Finding::fine(Check::Leader, "a leads").to_string(), "leader fine: a leads");
        let full = Finding::broken(Check::Storage, "no room", "make some");
        assert_eq!(full.to_string(), "storage broken: no room; make some");
        assert_eq!(full.softened().to_string(), "storage doubtful: no room; make some");
    }

    #[test]
    fn an_error_is_told_with_its_own_remedy_or_another() {
        let denied = BackendError::new(ErrorKind::Denied, "opening a session: denied; ask for a rule").caused_by("status 403");
        let found = Finding::from_error(Check::Permissions, &denied, "no idea");
        assert_eq!((found.detail.as_str(), found.remedy()), ("opening a session: denied", Some("ask for a rule")));
        let silent =
            BackendError::new(ErrorKind::Transient, "asking for the leader: no connection").caused_by("refused\nby a peer");
        let found = Finding::from_error(Check::Reachable, &silent, "start it");
        assert_eq!((found.detail.as_str(), found.remedy()), ("asking for the leader: no connection: refused", Some("start it")));
    }

    #[test]
    fn whoever_is_denied_was_answered() {
        let of = |kind| Finding::unanswered(&BackendError::new(kind, "no"), "see to it");
        let checks = |found: Vec<Finding>| found.into_iter().map(|found| (found.check, found.is_broken())).collect::<Vec<_>>();
        assert_eq!(checks(of(ErrorKind::Transient)), [(Check::Reachable, true)]);
        assert_eq!(checks(of(ErrorKind::Denied)), [(Check::Reachable, false), (Check::Permissions, true)]);
    }
}
