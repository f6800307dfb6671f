//! [`Notices`]: conditions of a group that are logged once when they begin, and once when they end.

use std::collections::BTreeMap;

use lockstep_core::group::{GroupStatus, RebuildTally};
use lockstep_core::ids::{Lineage, NodeId, ReplicaId};

use crate::group::CLOCK_IS_OFF;

/// The conditions as last logged.
#[derive(Default)]
pub(super) struct Notices {
    clock_is_off: bool,
    strangers: Vec<(NodeId, Lineage)>,
    memory_is_near: bool,
    rebuilds: RebuildTally,
    /// How many snapshots in a row each follower was sent.
    sent: BTreeMap<ReplicaId, u32>,
}

impl Notices {
    /// Logs what has changed since the last time.
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
        if off {
            tracing::warn!(group, "{CLOCK_IS_OFF}");
        } else {
            tracing::info!(group, "this node's clock agrees with the others' again");
        }
    }

    /// Logs each node that speaks for another group of the same name, once.
    fn tell_of_strangers(&mut self, group: &str, status: &GroupStatus) {
        let (now, ours) = (&status.strangers, status.lineage);
        for (node, theirs) in now.iter().filter(|stranger| !self.strangers.contains(stranger)) {
            let ours = ours.map(|lineage| lineage.to_string());
            tracing::warn!(group, %node, %theirs, ours,
                "a node speaks for another group of this name: correct [nodes] where it is wrong");
        }
        self.strangers.clone_from(now);
    }

    /// Logs that the state machine was rebuilt to give memory back.
    fn tell_of_rebuilds(&mut self, group: &str, status: &GroupStatus) {
        let now = status.rebuilds;
        let before = std::mem::replace(&mut self.rebuilds, now);
        if now.done <= before.done {
            return;
        }
        let gave_back = now.bytes.saturating_sub(before.bytes);
        if now.in_vain > before.in_vain {
            tracing::warn!(
                group,
                gave_back,
                "the state machine was rebuilt, but gave little memory back"
            );
        } else {
            tracing::info!(group, gave_back, "the state machine was rebuilt");
        }
    }

    /// Logs when the guest's memory comes near the bound at which commands are refused, and when it
    /// is no longer near.
    fn tell_of_memory(&mut self, group: &str, status: &GroupStatus) {
        let Some(memory) = status.memory else { return };
        let near = memory.bytes >= memory.warning();
        if std::mem::replace(&mut self.memory_is_near, near) == near {
            return;
        }
        let (bytes, soft) = (memory.bytes, memory.soft());
        if near {
            tracing::warn!(
                group,
                bytes,
                refused_from = soft,
                most = memory.most,
                "the state machine's memory is near the bound at which commands are refused"
            );
        } else {
            tracing::info!(
                group,
                bytes,
                refused_from = soft,
                "the state machine's memory is no longer near its bound"
            );
        }
    }

    /// Logs a follower that is sent one snapshot after the other and still does not reach the end
    /// of the log: once for each snapshot after the first.
    fn tell_of_the_outrun(&mut self, group: &str, status: &GroupStatus) {
        for peer in status.peers.iter().filter(|peer| peer.snapshots_in_a_row > 1) {
            if self.sent.get(&peer.replica) < Some(&peer.snapshots_in_a_row) {
                tracing::warn!(
                    group,
                    node = %peer.replica.node(),
                    snapshots = peer.snapshots_in_a_row,
                    log_kept_bytes = peer.log_kept_bytes,
                    "a follower does not catch up: while it is sent a snapshot, more log is \
                     written than is kept for it; raise snapshot-log-bytes, or write less until it \
                     has caught up"
                );
            }
        }
        let sent = status.peers.iter().map(|peer| (peer.replica, peer.snapshots_in_a_row));
        self.sent = sent.collect();
    }
}
