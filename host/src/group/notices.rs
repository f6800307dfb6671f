//! [`Notices`]: what a group says once in the log when it begins, and once when it is over.

use std::collections::BTreeMap;

use lockstep_core::group::{GroupStatus, RebuildTally};
use lockstep_core::ids::{Lineage, NodeId, ReplicaId};

use crate::group::CLOCK_IS_OFF;

/// As the log said it last.
#[derive(Default)]
pub(super) struct Notices {
    clock_is_off: bool,
    strangers: Vec<(NodeId, Lineage)>,
    memory_is_near: bool,
    rebuilds: RebuildTally,
    /// Snapshots that followers were sent in a row.
    sent: BTreeMap<ReplicaId, u32>,
}

impl Notices {
    /// Says what is new since the last time.
    pub(super) fn tell(&mut self, group: &str, status: &GroupStatus) {
        self.tell_of_the_clock(group, status);
        self.tell_of_strangers(group, status);
        self.tell_of_rebuilds(group, status);
        self.tell_of_memory(group, status);
        self.tell_of_the_outrun(group, status);
    }

    fn tell_of_the_clock(&mut self, group: &str, status: &GroupStatus) {
        let off = status.clock_is_off;
        if std::mem::replace(&mut self.clock_is_off, off) == off {
            return;
        }
        match off {
            true => tracing::warn!(group, "{CLOCK_IS_OFF}"),
            false => tracing::info!(group, "this node's clock agrees with the others' again"),
        }
    }

    /// Says once when a node speaks for another group of the name.
    fn tell_of_strangers(&mut self, group: &str, status: &GroupStatus) {
        let (now, ours) = (&status.strangers, status.lineage);
        for (node, theirs) in now.iter().filter(|stranger| !self.strangers.contains(stranger)) {
            let ours = ours.map(|lineage| lineage.to_string());
            tracing::warn!(group, %node, %theirs, ours,
                "a node speaks for another group of this name: correct [nodes] where it is wrong");
        }
        self.strangers.clone_from(now);
    }

    /// The state machine was built anew for the sake of its memory.
    fn tell_of_rebuilds(&mut self, group: &str, status: &GroupStatus) {
        let now = status.rebuilds;
        let before = std::mem::replace(&mut self.rebuilds, now);
        if now.done <= before.done {
            return;
        }
        let gave_back = now.bytes.saturating_sub(before.bytes);
        match now.in_vain > before.in_vain {
            true => tracing::warn!(
                group,
                gave_back,
                "the state machine was rebuilt, and little memory came back"
            ),
            false => tracing::info!(group, gave_back, "the state machine was rebuilt"),
        }
    }

    /// Memory comes near the bound at which commands are refused, or is far from it again.
    fn tell_of_memory(&mut self, group: &str, status: &GroupStatus) {
        let Some(memory) = status.memory else { return };
        let near = memory.bytes >= memory.warning();
        if std::mem::replace(&mut self.memory_is_near, near) == near {
            return;
        }
        let (bytes, soft) = (memory.bytes, memory.soft());
        match near {
            true => tracing::warn!(
                group,
                bytes,
                refused_from = soft,
                most = memory.most,
                "the state machine's memory grows near to where commands are refused"
            ),
            false => tracing::info!(group, bytes, refused_from = soft, "memory is well again"),
        }
    }

    /// Followers that one snapshot after the other does not bring to the end of the log: said at
    /// each snapshot but the first.
    fn tell_of_the_outrun(&mut self, group: &str, status: &GroupStatus) {
        for peer in status.peers.iter().filter(|peer| peer.snapshots_in_a_row > 1) {
            if self.sent.get(&peer.replica) < Some(&peer.snapshots_in_a_row) {
                tracing::warn!(
                    group,
                    node = %peer.replica.node(),
                    snapshots = peer.snapshots_in_a_row,
                    log_kept_bytes = peer.log_kept_bytes,
                    "a follower does not catch up: more is written while it is sent a snapshot \
                     than is kept for it; raise snapshot-log-bytes, or write less until it has"
                );
            }
        }
        let sent = status.peers.iter().map(|peer| (peer.replica, peer.snapshots_in_a_row));
        self.sent = sent.collect();
    }
}
