//! Meeting a group: a replica with an id but no log finds out whether the group exists.
//!
//! - It asks every configured node. A node that hosts the group answers `Have`, and the replica
//!   continues with an empty log: the group's leader sends it entry 1 and all that follow, or a
//!   snapshot. From then on it belongs to the lineage that the answer named.
//! - Only the configured node with the lowest id bootstraps the group, and only when *every* other
//!   configured node said `Nothing` to this very process: a first start needs every node once. If
//!   any node was configured with a lineage to join, no node bootstraps the group.
//! - Nothing is sent before the replica's id is durable.

use std::collections::BTreeMap;

use crate::entry::Bootstrap;
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::frame::{Body, Frame};
use crate::ids::{Lineage, NodeId, ReplicaId};
use crate::limits;

/// What the configured nodes have said so far.
#[derive(Default)]
pub(super) struct Meeting {
    nothing: BTreeMap<NodeId, ReplicaId>,
    outcome: Option<Outcome>,
    asked: Option<u64>,
}

/// How a meeting ends.
pub(super) enum Outcome {
    /// No node has the group: this replica bootstraps it with this record as entry 1.
    Bootstrap(Bootstrap),
    /// Another node hosts the group, which has this lineage.
    Exists(Lineage),
}

impl Meeting {
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    pub(super) fn tick(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        if !shared.persist.is_booted() || self.outcome.is_some() {
            return;
        }
        let due = self.asked.is_none_or(|tick| shared.now >= tick + limits::JOIN_RETRY_TICKS);
        if due {
            self.asked = Some(shared.now);
            let peers: Vec<NodeId> = shared.peers().collect();
            peers.into_iter().for_each(|peer| shared.send(peer, None, Body::Probe, effects));
        }
        self.found_if_due(shared);
    }

    pub(super) fn frame(&mut self, shared: &mut Shared, frame: Frame, effects: &mut Vec<Effect>) {
        if !shared.persist.is_booted() {
            return;
        }
        let from = frame.from;
        match frame.body {
            Body::Probe => shared.send(from.node(), Some(from), Body::Nothing, effects),
            // A node that is configured with a lineage to join says that the group exists.
            Body::Nothing if frame.lineage.is_some() => drop(self.nothing.remove(&from.node())),
            Body::Nothing if !shared.config.nodes.contains(&from.node()) => {}
            Body::Nothing => {
                self.nothing.insert(from.node(), from);
                self.found_if_due(shared);
            }
            // Only replicas that host the group send raft messages.
            Body::Have | Body::Raft(_) => self.outcome = frame.lineage.map(Outcome::Exists),
            Body::Join
            | Body::NotMember { .. }
            | Body::Superseded { .. }
            | Body::Stranger
            | Body::Want(_) => {}
        }
    }

    fn found_if_due(&mut self, shared: &mut Shared) {
        let lowest = shared.config.nodes.first() == Some(&shared.config.node);
        let all = shared.peers().all(|peer| self.nothing.contains_key(&peer));
        if !lowest || !all || self.outcome.is_some() || shared.config.lineage.is_some() {
            return;
        }
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&shared.chance.next().to_le_bytes());
        seed[8..].copy_from_slice(&shared.chance.next().to_le_bytes());
        let peers = shared.config.nodes.iter().filter_map(|node| self.nothing.get(node).copied());
        let mut initial_voters: Vec<ReplicaId> = peers.chain([shared.me()]).collect();
        initial_voters.sort_unstable();
        let bootstrap = Bootstrap {
            module: shared.config.module,
            config: shared.config.guest_config.clone(),
            seed,
            profile: shared.config.profile,
            initial_voters,
        };
        self.outcome = Some(Outcome::Bootstrap(bootstrap));
    }
}
