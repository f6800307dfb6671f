//! What peers say is checked before it is believed: a peer may be confused, or another process may
//! speak in its name.
//!
//! A replica trusts the voters of its group, as raft does. Still, a message that no correct replica
//! can have sent is dropped, and ending a replica for good takes more than one node's word.
//!
//! - A boot count that is ahead of another by more than [`limits::BOOTS_AHEAD_MAX`] cannot be real:
//!   the lower one is believed, and no process is told that it is superseded.
//! - A term is followed at most [`limits::TERMS_AHEAD_MAX`] ahead: near the end of its range no
//!   further election would be possible.
//! - An acknowledgement of entries that this replica never had does not count, and entries that
//!   leave a gap or contradict committed ones come from no leader.
//! - Only a replica that may lead can say that this log was rolled back.
//! - Any peer may say that another process ran as this replica, with this boot count or a later
//!   one, just as any peer may tell a process that it is superseded. This is checked before
//!   anything else, because what the sender relies on may be in that other process's log only.
//! - That this replica was removed is believed if a majority of the other nodes says so, because by
//!   then it may know no leader. Nodes that have not said so yet are asked.
//! - What is remembered of peers is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::Storage as _;
use raft::eraftpb::{Message, MessageType};

use crate::fault::Fault;
use crate::group::effect::Effect;
use crate::group::frame::{Body, Frame, Inbound};
use crate::group::raft_node::RaftNode;
use crate::group::{Seen, Shared};
use crate::ids::{NodeId, ReplicaId};
use crate::limits;
use crate::mutant::planted;

/// Nodes that said that this replica is no member: the index of the configuration that excludes it,
/// and the tick at which the node said so.
#[derive(Default)]
pub(super) struct NonMember {
    said: BTreeMap<NodeId, (u64, u64)>,
    /// The tick at which the other nodes were last asked.
    asked: Option<u64>,
}

/// Whether two boot counts are close enough for both to be real.
pub(super) fn is_countable(boot: u64, known: u64) -> bool {
    boot.abs_diff(known) <= limits::BOOTS_AHEAD_MAX || planted("believe_any_count")
}

impl Seen {
    /// What this frame says, without the sender's clock and its grant, which may be outdated.
    pub(super) fn of(inbound: &Inbound, tick: u64) -> Self {
        let Inbound { frame, via } = inbound;
        Self {
            boot: frame.boot,
            nonce: frame.nonce,
            via: Arc::clone(via),
            tick,
            clocks: (0, 0),
            short: frame.short,
            applied: frame.applied,
            halted: frame.halted,
            diverged: frame.diverged,
            stalled: frame.stalled,
            memory: frame.memory,
            snapshot: frame.snapshot,
            taken: frame.taken,
            guest: frame.guest,
            grants: false,
            trial: frame.trial.clone(),
        }
    }
}

impl Shared {
    /// Fails if the sender knows another process as this replica, one that ran on a newer copy of
    /// its data directory.
    pub(super) fn is_whom_it_is_for(&self, frame: &Frame) -> Result<(), Fault> {
        let boot = self.recovery.boot;
        match frame.known {
            _ if planted("believe_older_boots") => Ok(()),
            Some((known, _)) if known > boot && is_countable(known, boot) => {
                Err(Fault::OldCopy { boot, known })
            }
            Some((known, nonce)) if known == boot && nonce != self.config.nonce => {
                Err(Fault::OldCopy { boot, known })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes place to remember one more replica.
    pub(super) fn make_place(&mut self) {
        if self.seen.len() < limits::REPLICAS_SEEN_MAX {
            return;
        }
        let members = &self.recovery.configuration;
        let others = self.seen.iter().filter(|(replica, _)| !members.contains(**replica));
        let oldest = others.min_by_key(|(_, seen)| seen.tick).map(|(replica, _)| *replica);
        // There are fewer members than places, so there is always another replica to forget.
        oldest.map(|replica| self.seen.remove(&replica));
    }
}

impl NonMember {
    /// A node says that this replica is no member.
    /// Returns whether enough nodes say so.
    pub(super) fn told(
        &mut self,
        shared: &Shared,
        node: NodeId,
        index: u64,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let mine = shared.recovery.configuration_index;
        if !shared.recovery.configuration.contains(shared.me()) || index <= mine {
            return false;
        }
        let (now, nodes) = (shared.now, shared.config.nodes.clone());
        self.said.insert(node, (index, now));
        self.said.retain(|node, (index, at)| {
            nodes.contains(node) && *index > mine && now <= *at + limits::REPLACE_TICKS
        });
        let peers = nodes.len().saturating_sub(1);
        if self.said.len() > peers / 2 || planted("removed_by_one_word") {
            return true;
        }
        if self.asked.is_none_or(|asked| now >= asked + limits::JOIN_RETRY_TICKS) {
            self.asked = Some(now);
            let others: Vec<NodeId> =
                shared.peers().filter(|peer| !self.said.contains_key(peer)).collect();
            others.into_iter().for_each(|peer| shared.send(peer, None, Body::Probe, effects));
        }
        false
    }
}

/// Whether a correct replica can have sent this message.
pub(super) fn is_sound(raw: &RaftNode, shared: &Shared, message: &Message) -> bool {
    let raft = &raw.raft;
    let last = raft.raft_log.last_index();
    // raft would treat a message without a term as one of its own.
    let terms = 1..=raft.term.saturating_add(limits::TERMS_AHEAD_MAX);
    let follows = terms.contains(&message.term);
    let sound = follows
        && match message.get_msg_type() {
            MessageType::MsgAppend => can_be_appended(raw, message),
            MessageType::MsgAppendResponse => {
                // With a later term the message only announces that term. No replica requests
                // snapshots this way.
                let had = message.index.max(message.reject_hint) <= last;
                (had || message.term > raft.term) && message.request_snapshot == 0
            }
            // Snapshots travel on the bulk channel, and raft forwards no proposals, read
            // indexes or requests to lead.
            MessageType::MsgSnapshot
            | MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgTransferLeader => false,
            MessageType::MsgHeartbeat => {
                message.commit <= last || message.term < raft.term || leads(raw, shared, message)
            }
            MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgTimeoutNow => true,
            // raft uses these within a node only and never sends them.
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum => false,
        };
    sound || planted("believe_any_message")
}

/// Whether the entries follow each other and contradict no committed one.
fn can_be_appended(raw: &RaftNode, message: &Message) -> bool {
    if (message.index == 0) != (message.log_term == 0) {
        return false;
    }
    let committed = raw.raft.raft_log.committed;
    let (mut index, mut term) = (message.index, message.log_term);
    message.entries.iter().all(|entry| {
        let follows = Some(entry.index) == index.checked_add(1)
            && (term..=message.term).contains(&entry.term);
        (index, term) = (entry.index, entry.term);
        let stands = || raw.store().term(entry.index).is_ok_and(|here| here != entry.term);
        follows && (entry.index > committed || !stands())
    })
}

/// Whether the sender may be the leader of the message's term, as far as this replica knows.
fn leads(raw: &RaftNode, shared: &Shared, message: &Message) -> bool {
    let (raft, from) = (&raw.raft, ReplicaId(message.from));
    let known =
        shared.recovery.configuration.contains(from) || shared.config.nodes.contains(&from.node());
    let others = message.term == raft.term && ![raft::INVALID_ID, from.0].contains(&raft.leader_id);
    known && !others
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::*;
    use crate::group::{Body, Event, Frame, Group, GroupConfig, Inbound, SnapshotPolicy};
    use crate::ids::{GroupId, ModuleId};
    use crate::snapshot::Configuration;

    fn group() -> Group {
        let config = GroupConfig {
            name: "g".to_owned(),
            node: NodeId(1),
            nodes: BTreeSet::from([NodeId(1), NodeId(2)]),
            module: ModuleId([7; 32]),
            lineage: None,
            guest_config: Bytes::new(),
            profile: Default::default(),
            snapshot_policy: SnapshotPolicy::default(),
            snapshots_share_log_disk: true,
            seed: 1,
            nonce: 1,
        };
        Group::open(config, None, &mut Vec::new())
    }

    fn probe(from: ReplicaId) -> Event {
        let frame = Frame { nonce: 2, ..Frame::plain(GroupId::of_name("g"), from, Body::Probe) };
        Event::Frame(Inbound { frame, via: "n2".into() })
    }

    /// However many replica ids a peer uses, they take a bounded number of places and displace no
    /// member.
    #[test]
    fn what_is_remembered_of_replicas_is_bounded() {
        let (mut group, mut effects) = (group(), Vec::new());
        let replica = |number: u64| ReplicaId::new(NodeId(2), number << 20);
        let configuration = Configuration::of_voters([replica(1)]);
        group.shared.recovery.configure(configuration, 1);
        let many = 10 * limits::REPLICAS_SEEN_MAX as u64;
        for number in 1..=many {
            group.handle(probe(replica(number)), &mut effects);
            group.handle(Event::Tick { wall_ms: 0 }, &mut effects);
        }
        assert_eq!(group.shared.seen.len(), limits::REPLICAS_SEEN_MAX);
        assert!(group.shared.seen.contains_key(&replica(1)), "a member is not forgotten");
        assert!(group.shared.seen.contains_key(&replica(many)), "the last one heard is remembered");
    }
}
