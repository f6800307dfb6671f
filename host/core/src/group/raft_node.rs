//! raft as this host sets it up and asks it: every unsafe default is overridden here.

use std::ops::{Deref, DerefMut};

use raft::{Config, RawNode, StateRole};

use crate::entry::EntryBody;
use crate::group::raft_log::RaftLog;
use crate::ids::ReplicaId;
use crate::limits;

/// A raft instance on this replica's log.
pub(super) struct RaftNode(RawNode<RaftLog>);

impl RaftNode {
    /// Continues with this log, whose entries up to `applied` were handed over before.
    pub(super) fn open(replica: ReplicaId, applied: u64, log: RaftLog) -> Self {
        let raw = RawNode::new(&config(replica, applied), log, &silent());
        Self(raw.expect("the configuration is valid and the recovery state was validated"))
    }

    pub(super) fn has_entries(&self) -> bool {
        self.raft.raft_log.last_index() > 0
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raft.state == StateRole::Leader
    }

    pub(super) fn leader(&self) -> Option<ReplicaId> {
        Some(self.raft.leader_id).filter(|id| *id != 0).map(ReplicaId)
    }

    /// Puts an entry into this leader's log; returns its (index, term), or `None` if raft dropped
    /// it.
    pub(super) fn propose_body(&mut self, body: &EntryBody) -> Option<(u64, u64)> {
        self.propose(Vec::new(), body.encode()).ok()?;
        Some((self.raft.raft_log.last_index(), self.raft.term))
    }
}

impl Deref for RaftNode {
    type Target = RawNode<RaftLog>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for RaftNode {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

fn config(replica: ReplicaId, applied: u64) -> Config {
    Config {
        id: replica.0,
        election_tick: limits::ELECTION_TICKS_MIN,
        heartbeat_tick: limits::HEARTBEAT_TICKS,
        min_election_tick: limits::ELECTION_TICKS_MIN,
        max_election_tick: limits::ELECTION_TICKS_MAX,
        applied,
        // The default, 0, means one entry per message.
        max_size_per_msg: limits::APPEND_BYTES_MAX,
        max_inflight_msgs: limits::APPEND_INFLIGHT_MAX,
        // A leader that hears no quorum steps down, and a replica that is cut off does not raise
        // terms.
        check_quorum: true,
        pre_vote: true,
        // raft-rs batches without a bound; this host batches by putting many commands in one entry.
        batch_append: false,
        max_uncommitted_size: limits::UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: limits::COMMITTED_BYTES_MAX,
        ..Config::default()
    }
}

/// raft's own log lines add nothing to what the effects show.
fn silent() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}
