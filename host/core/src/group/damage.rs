//! Log entries that can no longer be read back: the replica cuts them off.
//!
//! A replica whose log has a damaged segment keeps serving, because recent entries are in memory,
//! but a restart would refuse the log. So the replica takes a snapshot after the damage, lists none
//! that needs the damaged entries or older ones, and keeps none of these for a follower: one that
//! lacks them gets the snapshot. Then the segment can be deleted. A replica without a guest gets
//! the snapshot from a peer.

use std::collections::BTreeSet;

use crate::group::raft_log::RaftLog;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::retention::{self, ObjectName};

/// Whether log that cannot be read has yet to be cut off.
pub(super) fn is_to_be_cut_off(log: &RaftLog, state: &RecoveryState) -> bool {
    log.unreadable() > state.first_index && !planted("keep_damaged_log")
}

/// Whether that needs a snapshot that there is not yet.
pub(super) fn needs_snapshot(
    log: &RaftLog,
    state: &RecoveryState,
    corrupt: &BTreeSet<ObjectName>,
) -> bool {
    is_to_be_cut_off(log, state)
        && !retention::survives_damage(&state.snapshots, corrupt, log.unreadable())
}
