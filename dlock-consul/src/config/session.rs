//! What sessions hang on, and what becomes of their keys.

use std::time::Duration;

use super::{ConfigError, ConsulOptions};

/// How sessions are opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionOptions {
    pub(crate) node: Node,
    pub(crate) node_checks: Vec<String>,
    pub(crate) service_checks: Vec<String>,
    /// Where it was chosen.
    pub(crate) behavior: Option<Behavior>,
    /// Whether sessions hold tickets, which must go with them.
    pub(crate) fair: bool,
    /// Where it was asked for.
    pub(crate) lock_delay: Option<Duration>,
}

/// The node of the catalog with which a session ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Node {
    /// That of the agent.
    #[default]
    Agents,
    Registered(String),
    /// Registered by this backend when it is missing.
    External(String),
}

/// What becomes of the keys that a session holds when Consul ends it: after its ttl, by a critical check, with its node, or by an operator.
/// A lock that is given back before is no longer the session's, and its key stays either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Behavior {
    /// They are free, and keep their value as information about the last holder. The default.
    #[default]
    Release,
    /// They are deleted, with whatever is in them by then.
    ///
    /// Two holders at once are as impossible as with [`Release`](Self::Release), and tokens grow over the deletion. What is weaker:
    ///
    /// - **What others keep in a held key is lost.** A value that somebody wrote into a key while it was held goes with the session. So does what
    ///   a Go program left in a lock that it made: only a key that has other flags than a lock when it is met is left alone.
    /// - **A release can be less than a fence**, for every program that locks the key, whatever its own sessions do. A claim that met no
    ///   key is guarded by the key's absence; if Consul never answered it, and another session's end deletes the key after the release, the
    ///   claim's late copy finds what it was guarded by. dlock then opens another session and ends the one of the claim, after which no copy
    ///   of it can take effect; until then the key may be held by a claim that nobody believes in.
    /// - **Who waits for a key that is gone is woken by other keys too**, since Consul tells no index of a missing key but that of all.
    Delete,
}

impl SessionOptions {
    /// Whether something else than silence, an operator or the end of its node can end a session.
    pub(crate) fn has_checks(&self) -> bool {
        !self.node_checks.is_empty() || !self.service_checks.is_empty()
    }

    /// What becomes of the keys that a session holds.
    pub(crate) fn behavior(&self) -> Behavior {
        if self.fair { Behavior::Delete } else { self.behavior.unwrap_or_default() }
    }
}

impl Node {
    fn named(name: impl Into<String>, which: fn(String) -> Self) -> Self {
        Some(name.into()).filter(|name| !name.is_empty()).map_or(Self::Agents, which)
    }

    /// What it is called, unless it is the agent's.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Agents => None,
            Self::Registered(name) | Self::External(name) => Some(name),
        }
    }
}

impl Behavior {
    /// As Consul spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Delete => "delete",
        }
    }
}

impl ConsulOptions {
    /// The longest delay that Consul keeps to; it takes a longer one for this.
    pub const LONGEST_LOCK_DELAY: Duration = Duration::from_secs(60);

    /// The node of Consul's catalog that sessions belong to: when it is deregistered, they end. Takes the place of
    /// [`external_node`](Self::external_node). Defaults to the node of the agent, which an empty name means too.
    ///
    /// It must be registered, or no session can be opened. A token needs `session "NODE" { policy = "write" }`.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.sessions.node = Node::named(name, Node::Registered);
        self
    }

    /// A node of the catalog that stands for no agent, for sessions to belong to: they then outlive every agent's node, for example that of a
    /// server which is replaced. Takes the place of [`node`](Self::node). Defaults to the node of the agent, which an empty name means too.
    ///
    /// When Consul does not know the node, it is registered at the address `127.0.0.1` and without checks (`/v1/catalog/register`), for
    /// which a token needs `node "NODE" { policy = "write" }`, unless an operator registered it; a node that is there is left as it is. It is
    /// never deregistered: other programs may use it too. Choose a name that no agent has. A token needs `session "NODE" { policy =
    /// "write" }` as well.
    #[must_use]
    pub fn external_node(mut self, name: impl Into<String>) -> Self {
        self.sessions.node = Node::named(name, Node::External);
        self
    }

    /// Checks of the node, by their ids, such as `serfHealth`: when one is critical or deregistered, sessions end before their ttl. Defaults
    /// to none.
    ///
    /// A session with checks frees its keys soon after its machine is gone, and is lost to a check that is wrong. The end is told as
    /// `Loss::SessionGone`. Who cannot hear of it believes in the lock until the session's ttl is over, so that Consul keeps the key from
    /// others for that long, see [`lock_delay`](Self::lock_delay). While a check is critical or missing, no session can be opened.
    #[must_use]
    pub fn node_checks<C: Into<String>>(mut self, checks: impl IntoIterator<Item = C>) -> Self {
        self.sessions.node_checks = checks.into_iter().map(Into::into).collect();
        self
    }

    /// Checks of services on the node, by the ids of the checks, such as `service:web`; otherwise as [`node_checks`](Self::node_checks).
    /// Defaults to none.
    #[must_use]
    pub fn service_checks<C: Into<String>>(mut self, checks: impl IntoIterator<Item = C>) -> Self {
        self.sessions.service_checks = checks.into_iter().map(Into::into).collect();
        self
    }

    /// What becomes of held keys when Consul ends their session; [`Behavior::Delete`] weakens what others may rely on. Defaults to
    /// [`Behavior::Release`].
    #[must_use]
    pub fn behavior(mut self, behavior: Behavior) -> Self {
        self.sessions.behavior = Some(behavior);
        self
    }

    /// Whether waiting claims stand in line, first come, first served. Defaults to `false`: whoever asks first once the key is free.
    ///
    /// A claim then has a ticket: a key of its own below the lock's key, `KEY/.dlock/SESSION.CLAIM/`, in the order of their making. Each waits
    /// for the ticket before its own alone, so that a handover costs the release and a lock, and two or three waits before, however many wait. The key of the lock stays what it is, and
    /// programs that lock it without a ticket (in Go, `consul lock`, dlock without this) exclude ours and are excluded; they keep to no line.
    ///
    /// - **Shared locks and permits** come with it, but not with checks: a check can end a session that a holder still believes in, and
    ///   Consul's lock delay then guards the lock's key alone. **Who takes no ticket does not see those who share**: their locks stand on
    ///   their tickets, so that such a program can take the lock's key beside them. Share only what all lock in this mode.
    /// - **Sessions delete their keys** when they end, as with [`Behavior::Delete`], or their tickets would stay for ever. A
    ///   [`behavior`](Self::behavior) of [`Behavior::Release`] is refused beside it by [`Consul::new`](crate::Consul::new).
    /// - **A release is always a fence**, other than with `Behavior::Delete` alone: nothing of a claim takes effect without its ticket.
    /// - **Several keys at once** are not taken, and metadata is limited to 16 KiB, since who enters a line reads all of it.
    ///
    /// A token needs `key_prefix "KEY" { policy = "write" }`.
    #[must_use]
    pub fn fair(mut self, fair: bool) -> Self {
        self.sessions.fair = fair;
        self
    }

    /// Refuses what contradicts itself.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.sessions.fair && self.sessions.behavior == Some(Behavior::Release) {
            return Err(ConfigError::FairRelease);
        }
        Ok(())
    }

    /// For how long Consul keeps everybody from a key whose session ended while it held the key; more than 60 s is refused. It counts in whole
    /// milliseconds, rounded up. Defaults to none without checks, and to the ttl with checks.
    ///
    /// Without checks a session ends no earlier than its ttl after the last renewal, when nobody believes in it any more. A check can end it at
    /// any time: then a delay that is shorter than the ttl lets another take the lock while a holder who was cut off still believes in it, and
    /// only the fencing token tells them apart. A ttl of more than 60 s, which no delay can cover, is refused with checks unless the delay is
    /// set here.
    pub fn lock_delay(mut self, delay: Duration) -> Result<Self, ConfigError> {
        if delay > Self::LONGEST_LOCK_DELAY {
            return Err(ConfigError::LockDelay { delay });
        }
        self.sessions.lock_delay = Some(delay);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_that_consul_would_cut_is_refused() {
        assert!(ConsulOptions::new().lock_delay(Duration::from_secs(60)).is_ok());
        let error = ConsulOptions::new().lock_delay(Duration::from_secs(61)).unwrap_err().to_string();
        assert!(error.contains("61s") && error.contains("60s"), "{error}");
    }

    #[test]
    fn tickets_go_with_their_session_or_are_refused() {
        let fair = ConsulOptions::new().fair(true);
        assert_eq!(fair.sessions.behavior(), Behavior::Delete);
        assert!(fair.clone().behavior(Behavior::Delete).check().is_ok());
        let refused = fair.behavior(Behavior::Release);
        assert!(matches!(refused.check(), Err(ConfigError::FairRelease)));
        assert!(refused.fair(false).check().is_ok());
        assert_eq!(ConsulOptions::new().sessions.behavior(), Behavior::Release);
    }

    #[test]
    fn the_last_word_on_the_node_counts() {
        let options = ConsulOptions::new().node("a").external_node("b");
        assert_eq!(options.sessions.node, Node::External("b".to_owned()));
        let options = options.node("a");
        assert_eq!(options.sessions.node, Node::Registered("a".to_owned()));
        assert_eq!(options.node("").sessions.node, Node::Agents);
    }
}
