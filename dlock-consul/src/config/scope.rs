//! Which part of Consul is spoken to.

use super::ConsulOptions;

/// Namespace, partition and datacenter of every request; none is the agent's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) namespace: Option<String>,
    pub(crate) partition: Option<String>,
    pub(crate) datacenter: Option<String>,
}

impl ConsulOptions {
    /// The namespace in which sessions and keys live, sent along with every request. Defaults to that of the token, or `default`; an empty
    /// one counts as none.
    ///
    /// Namespaces are a feature of Consul Enterprise; other agents refuse to open a session in one. Two namespaces know nothing of one
    /// another: the same key in both is two locks.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.scope.namespace = named(namespace);
        self
    }

    /// The admin partition in which sessions and keys live, sent along with every request. Defaults to that of the agent; an empty one
    /// counts as none.
    ///
    /// Partitions are a feature of Consul Enterprise since 1.11. Beware of older agents: they ignore it, and lock in the only partition that
    /// they know.
    #[must_use]
    pub fn partition(mut self, partition: impl Into<String>) -> Self {
        self.scope.partition = named(partition);
        self
    }

    /// The datacenter whose servers keep sessions and keys, sent along with every request. Defaults to that of the agent; an empty one counts
    /// as none.
    ///
    /// In another datacenter than the agent's, a session needs a node that is registered there: name one with [`node`](Self::node) or
    /// [`external_node`](Self::external_node). Consul advises against it: every request crosses the line between the datacenters, and so
    /// does every renewal, on which the locks hang. There is no variable for it, as for Consul's own tools.
    #[must_use]
    pub fn datacenter(mut self, datacenter: impl Into<String>) -> Self {
        self.scope.datacenter = named(datacenter);
        self
    }
}

fn named(name: impl Into<String>) -> Option<String> {
    Some(name.into()).filter(|name| !name.is_empty())
}
