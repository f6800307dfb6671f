//! Which groups this node hosts, by name and by id, and how all of them ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Every replica was removed from its group, or was asked to stop.
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
    wrong: WrongAddresses,
}

/// Where each node can be reached (`host:port`), this one included.
#[derive(Clone, Default)]
pub struct Addresses {
    /// By the other nodes: `[nodes]`.
    pub peers: BTreeMap<NodeId, String>,
    /// By clients, where that is another address: `[advertise]`.
    pub advertised: BTreeMap<NodeId, String>,
}

/// The peers at whose address another node answers, each with that node's reason to refuse the
/// connection: it is not the node that was meant, or not of this cluster. Clones share their
/// content.
#[derive(Clone, Default)]
pub struct WrongAddresses(Arc<Mutex<BTreeMap<NodeId, String>>>);

impl WrongAddresses {
    /// Records that another node answered at the peer's address, and why it refused the connection.
    pub(crate) fn add(&self, peer: NodeId, why: &str) {
        self.lock().insert(peer, why.to_owned());
    }

    /// Records that the peer itself answered at its address.
    pub(crate) fn remove(&self, peer: NodeId) {
        self.lock().remove(&peer);
    }

    fn get(&self, peer: NodeId) -> Option<String> {
        self.lock().get(&peer).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        Self { node, by_name, by_id, addresses, wrong: WrongAddresses::default() }
    }

    /// This router, with the wrong addresses that the connections to the peers find.
    #[must_use]
    pub fn knowing(self, wrong: WrongAddresses) -> Self {
        Self { wrong, ..self }
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

    /// Waits until no group can serve any more. Later calls return the same result at once.
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

    /// Where clients reach a node, according to the configuration.
    pub fn address(&self, node: NodeId) -> Option<&str> {
        let Addresses { peers, advertised } = &self.addresses;
        advertised.get(&node).or_else(|| peers.get(&node)).map(String::as_str)
    }

    /// The address at which clients are referred to a node; `None` while another node answers
    /// there.
    pub fn hint(&self, node: NodeId) -> Option<&str> {
        self.address(node).filter(|_| self.wrong_address(node).is_none())
    }

    /// If another node answers at this peer's address: its reason to refuse the connection.
    pub fn wrong_address(&self, peer: NodeId) -> Option<String> {
        self.wrong.get(peer).filter(|_| !planted("believe_any_address"))
    }

    /// Where the nodes reach each other.
    pub fn peers(&self) -> &BTreeMap<NodeId, String> {
        &self.addresses.peers
    }
}
