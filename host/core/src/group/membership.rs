//! The members of the group: joining, replacing the old replica of a wiped node, promoting
//! learners, leaving joint states.
//!
//! - A replica that is in no configuration asks to join. The leader answers with one joint change
//!   {remove the node's other ids, add this one as a learner}, but only after it has heard nothing
//!   from those other ids for two election timeouts. Repeated requests are harmless; a node that is
//!   wiped again comes with another id. A configuration never exceeds [`limits::REPLICAS_MAX`].
//! - A learner that has caught up, and holds the entry that made it a learner, is promoted to
//!   voter.
//! - A leader leaves a joint state that an earlier leader left behind. raft-rs 0.7 proposes that
//!   itself at the first commit of a leader's term; this module proposes it again in case that was
//!   not enough.
//! - A raft message or a probe from a non-member is answered with the index of the configuration
//!   that excludes it.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::frame::Body;
use crate::group::raft_node::RaftNode;
use crate::ids::{NodeId, ReplicaId};
use crate::limits;

#[derive(Default)]
pub(super) struct Membership {
    /// The last request to join from each node, and the tick at which it came.
    joins: BTreeMap<NodeId, (ReplicaId, u64)>,
    leading_since: u64,
    joint_since: Option<u64>,
    told_non_member: u64,
    was_member: bool,
}

impl Membership {
    pub(super) fn promoted(&mut self, now: u64) {
        self.leading_since = now;
    }

    pub(super) fn stepped_down(&mut self) {
        self.joint_since = None;
    }

    /// Only nodes that are configured here can join.
    pub(super) fn asked_to_join(&mut self, shared: &Shared, replica: ReplicaId) {
        if shared.config.nodes.contains(&replica.node()) {
            self.joins.insert(replica.node(), (replica, shared.now));
        }
    }

    /// Returns whether this replica was removed.
    pub(super) fn tick(
        &mut self,
        raw: &mut RaftNode,
        shared: &Shared,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let member = shared.recovery.configuration.contains(shared.me());
        if self.was_member && !member {
            return true;
        }
        self.was_member = member;
        if !member && shared.now.is_multiple_of(limits::JOIN_RETRY_TICKS) {
            let peers: Vec<NodeId> = shared.peers().collect();
            peers.into_iter().for_each(|peer| shared.send(peer, None, Body::Join, effects));
        }
        let applied = raw.raft.raft_log.applied;
        if raw.is_leader() && applied >= raw.raft.pending_conf_index {
            self.leave_joint_state(raw, shared);
            self.take_in(raw, shared);
            promote(raw, shared);
        }
        false
    }

    pub(super) fn answer_non_member(
        &mut self,
        shared: &Shared,
        to: ReplicaId,
        effects: &mut Vec<Effect>,
    ) {
        // At most one answer a tick; if it is lost, the next one makes up for it.
        if self.told_non_member == shared.now {
            return;
        }
        self.told_non_member = shared.now;
        let index = shared.recovery.configuration_index;
        shared.send(to.node(), Some(to), Body::NotMember { configuration_index: index }, effects);
    }

    fn leave_joint_state(&mut self, raw: &mut RaftNode, shared: &Shared) {
        if !shared.recovery.configuration.is_joint() {
            self.joint_since = None;
            return;
        }
        let since = *self.joint_since.get_or_insert(shared.now);
        if shared.now >= since + limits::ELECTION_TICKS_MIN as u64 {
            self.joint_since = None;
            let _ = raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    fn take_in(&mut self, raw: &mut RaftNode, shared: &Shared) {
        let configuration = &shared.recovery.configuration;
        if configuration.is_joint() {
            return;
        }
        self.joins.retain(|_, (replica, asked)| {
            !configuration.contains(*replica) && *asked + limits::REPLACE_TICKS >= shared.now
        });
        let welcome = self.joins.values().map(|(replica, _)| *replica).find(|replica| {
            let node = replica.node();
            let silent = configuration.of_node(node).iter().all(|old| self.is_gone(shared, *old));
            let others = configuration.replicas().filter(|id| id.node() != node);
            let others: BTreeSet<ReplicaId> = others.collect();
            let fits = others.len() < limits::REPLICAS_MAX;
            silent && fits
        });
        let Some(replica) = welcome else { return };
        let mut changes: Vec<ConfChangeSingle> = configuration
            .of_node(replica.node())
            .into_iter()
            .map(|old| single(ConfChangeType::RemoveNode, old))
            .collect();
        changes.push(single(ConfChangeType::AddLearnerNode, replica));
        propose_changes(raw, changes);
    }

    /// Whether this leader heard nothing from a replica for two election timeouts while it led.
    fn is_gone(&self, shared: &Shared, replica: ReplicaId) -> bool {
        let heard = shared.seen.get(&replica).map_or(0, |seen| seen.tick);
        shared.now >= heard.max(self.leading_since) + limits::REPLACE_TICKS
    }
}

fn promote(raw: &mut RaftNode, shared: &Shared) {
    if shared.recovery.configuration.is_joint() {
        return;
    }
    // A small lag is not enough: raft counts a new learner as active before it has ever
    // answered.
    let last = raw.raft.raft_log.last_index();
    let near = last.saturating_sub(limits::PROMOTE_LAG_ENTRIES_MAX);
    let least = near.max(shared.recovery.configuration_index);
    let ready = shared.recovery.configuration.learners.iter().copied().find(|learner| {
        raw.raft
            .prs()
            .get(learner.0)
            .is_some_and(|peer| peer.recent_active && peer.matched >= least)
    });
    if let Some(learner) = ready {
        propose_changes(raw, vec![single(ConfChangeType::AddNode, learner)]);
    }
}

fn propose_changes(raw: &mut RaftNode, changes: Vec<ConfChangeSingle>) {
    // A change that raft refuses becomes an empty entry; the next tick tries again.
    let _ = raw.propose_conf_change(Vec::new(), change(changes));
}

/// Several changes form one joint change, which raft leaves by itself once it is applied.
pub(super) fn change(changes: Vec<ConfChangeSingle>) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    change.set_changes(changes.into());
    change
}

pub(super) fn single(kind: ConfChangeType, replica: ReplicaId) -> ConfChangeSingle {
    let mut change = ConfChangeSingle::default();
    change.set_change_type(kind);
    change.node_id = replica.0;
    change
}
