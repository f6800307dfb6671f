//! How raft-rs is set up: every default that would be a trap is overridden here.

use raft::{Config, RawNode};

use crate::group::raft_log::RaftLog;
use crate::ids::ReplicaId;
use crate::limits;

/// A raft that continues with this log, whose entries up to `applied` were handed over before.
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
