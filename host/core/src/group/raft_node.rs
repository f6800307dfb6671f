//! How raft-rs is set up: every default that is a trap is set here.

use raft::{Config, RawNode};

use crate::group::raft_log::RaftLog;
use crate::ids::ReplicaId;
use crate::limits;

/// A raft that goes on with this log; what lies up to `applied` was handed over before.
pub(super) fn open(replica: ReplicaId, applied: u64, log: RaftLog) -> RawNode<RaftLog> {
    RawNode::new(&config(replica, applied), log, &silent())
        .expect("the configuration is valid and the recovery state was validated")
}

fn config(replica: ReplicaId, applied: u64) -> Config {
    Config {
        id: replica.0,
        election_tick: limits::ELECTION_TICKS_MIN,
        heartbeat_tick: limits::HEARTBEAT_TICKS,
        min_election_tick: limits::ELECTION_TICKS_MIN,
        max_election_tick: limits::ELECTION_TICKS_MAX,
        applied,
        // 0, the default, means one entry a message.
        max_size_per_msg: limits::APPEND_BYTES_MAX,
        max_inflight_msgs: limits::APPEND_INFLIGHT_MAX,
        // A leader that hears no quorum steps down; a replica cut off does not raise terms.
        check_quorum: true,
        pre_vote: true,
        // raft-rs batches without a bound; packs are this host's way of batching.
        batch_append: false,
        max_uncommitted_size: limits::UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: limits::COMMITTED_BYTES_MAX,
        ..Config::default()
    }
}

/// raft's own log lines say nothing that the effects do not.
fn silent() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}
