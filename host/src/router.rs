//! Which groups this node hosts, by name and by id, and how all of them ended.

use std::collections::BTreeMap;

use lockstep_core::fault::Fault;
use lockstep_core::group::{ReplicaState, Stopped};
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::mutant::planted;

use crate::group::GroupHandle;

#[cfg(test)]
mod tests;

/// How the groups of a node ended by themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Each left its configuration, or was asked to stop.
    Removed,
    /// No group can serve any more: name and fault of each that failed.
    Failed(Vec<(String, Fault)>),
}

/// A node's groups and the addresses of its peers; built once, before any service starts.
#[derive(Clone)]
pub struct Router {
    node: NodeId,
    by_name: BTreeMap<String, GroupHandle>,
    by_id: BTreeMap<GroupId, GroupHandle>,
    addresses: Addresses,
}

/// Where each node can be reached (`host:port`), this one included.
#[derive(Clone, Default)]
pub struct Addresses {
    /// By the other nodes: `[nodes]`.
    pub peers: BTreeMap<NodeId, String>,
    /// By clients, where that is another address: `[advertise]`.
    pub advertised: BTreeMap<NodeId, String>,
}

impl Router {
    pub fn new(
        node: NodeId,
        groups: impl IntoIterator<Item = GroupHandle>,
        addresses: Addresses,
    ) -> Self {
        let by_name: BTreeMap<String, GroupHandle> =
            groups.into_iter().map(|group| (group.name().to_owned(), group)).collect();
        let by_id = by_name.values().map(|group| (group.id(), group.clone())).collect();
        Self { node, by_name, by_id, addresses }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// A group by name; the empty name is the only group's, if there is just one.
    pub fn group(&self, name: &str) -> Option<&GroupHandle> {
        if name.is_empty() && self.by_name.len() == 1 {
            self.by_name.values().next()
        } else {
            self.by_name.get(name)
        }
    }

    pub fn group_by_id(&self, id: GroupId) -> Option<&GroupHandle> {
        self.by_id.get(&id)
    }

    /// All groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &GroupHandle> {
        self.by_name.values()
    }

    /// Waits until no group can serve any more. A call that comes late returns the same.
    pub async fn ended(&self) -> Ended {
        let mut faults = Vec::new();
        if self.by_name.is_empty() && planted("wait_for_the_absent") {
            std::future::pending::<()>().await;
        }
        for group in self.groups() {
            let mut watch = group.watch();
            if planted("miss_what_was") {
                drop(watch.borrow_and_update());
                let _ = watch.changed().await;
            }
            // An error means that the actor is gone; its last state can still be read.
            let _ = watch.wait_for(ReplicaState::is_stopped).await;
            let state = watch.borrow().clone();
            match state {
                ReplicaState::Stopped(Stopped::Failed(fault)) => {
                    faults.push((group.name().to_owned(), fault));
                }
                ReplicaState::Stopped(Stopped::Removed) if planted("removed_is_failed") => {
                    faults.push((group.name().to_owned(), Fault::Internal("removed".to_owned())));
                }
                ReplicaState::Stopped(_) | ReplicaState::Running(_) => {}
            }
        }
        if faults.is_empty() { Ended::Removed } else { Ended::Failed(faults) }
    }

    /// Where clients reach a node.
    pub fn address(&self, node: NodeId) -> Option<&str> {
        let Addresses { peers, advertised } = &self.addresses;
        advertised.get(&node).or_else(|| peers.get(&node)).map(String::as_str)
    }

    /// Where the nodes reach each other.
    pub fn peers(&self) -> &BTreeMap<NodeId, String> {
        &self.addresses.peers
    }
}
