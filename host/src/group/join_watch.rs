//! [`JoinWatch`]: while a replica has not met its group, logs the nodes that it waits for, and why
//! they do not answer.

use lockstep_core::group::{GroupStatus, ReplicaState, Running};
use lockstep_core::ids::NodeId;

use crate::transport::Transport;

/// Looks, one a tick, after which a wait is logged: longer than it takes to start all nodes
/// together.
const PATIENCE_LOOKS: u64 = 50;

#[derive(Default)]
pub(super) struct JoinWatch {
    /// Looks in a row that found the replica joining.
    looks: u64,
    /// The nodes as last logged.
    told: Vec<NodeId>,
}

impl JoinWatch {
    /// Looks at a replica, once a tick, and logs which nodes it has begun to wait for.
    pub(super) fn look(&mut self, status: &GroupStatus, transport: &dyn Transport) {
        for node in self.news(status) {
            let why = unheard(transport.trouble_with(node));
            let group = &status.name;
            tracing::warn!(group, %node, why, "joining waits for a node that does not answer");
        }
    }

    fn news(&mut self, status: &GroupStatus) -> Vec<NodeId> {
        if status.state != ReplicaState::Running(Running::Joining) {
            *self = Self::default();
            return Vec::new();
        }
        self.looks += 1;
        if self.looks < PATIENCE_LOOKS {
            return Vec::new();
        }
        let told = std::mem::replace(&mut self.told, status.unheard.clone());
        status.unheard.iter().copied().filter(|node| !told.contains(node)).collect()
    }
}

/// Why nothing was heard from a node.
pub(crate) fn unheard(trouble: Option<String>) -> String {
    trouble.unwrap_or_else(|| "connected; does its configuration have the group?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::tests::blank;

    #[test]
    fn each_node_that_is_waited_for_is_told_once() {
        let mut watch = JoinWatch::default();
        let mut status = blank("g").status;
        assert_eq!(status.state, ReplicaState::Running(Running::Joining));
        status.unheard = vec![NodeId(2), NodeId(3)];
        for _ in 1..PATIENCE_LOOKS {
            assert_eq!(watch.news(&status), [], "they may just be starting");
        }
        assert_eq!(watch.news(&status), [NodeId(2), NodeId(3)]);
        assert_eq!(watch.news(&status), []);
        status.unheard = vec![NodeId(3)];
        assert_eq!(watch.news(&status), []);
        status.unheard = vec![NodeId(2), NodeId(3)];
        assert_eq!(watch.news(&status), [NodeId(2)], "it had answered meanwhile");
        status.state = ReplicaState::Running(Running::Restoring);
        assert_eq!(watch.news(&status), []);
    }
}
