//! Every listed object is there and whole. Planted: `delete_before_unlist`, `delete_listed`,
//! `skip_snapshot_directory_sync`.

use lockstep_core::recovery_state::RecoveryState;

use super::{Checked, violated};
use crate::node::Replica;

/// What a durable state lists can be started from. `doubtful`: bits were flipped on this disk, or
/// reads fail.
pub fn whole(state: &RecoveryState, replica: &Replica, doubtful: bool) -> Checked {
    if doubtful {
        return Ok(());
    }
    for desc in &state.snapshots {
        let object = desc.clone();
        if let Err(error) = replica.store.peek(|store| store.recoverable(&object)) {
            return violated("snapshots", format!("a listed object is bad: {error}"));
        }
    }
    Ok(())
}

/// A replica says that it needs a snapshot: none that it lists restores.
pub fn needs_one(replica: &Replica) -> Checked {
    let state = replica.group.recovery_state();
    for desc in state.snapshots.iter().filter(|desc| desc.index <= state.floor) {
        let object = desc.clone();
        if replica.store.peek(|store| store.recoverable(&object)).is_ok() {
            let what = format!("a snapshot is asked for, and the one at {} is good", desc.index);
            return violated("snapshots", what);
        }
    }
    Ok(())
}
