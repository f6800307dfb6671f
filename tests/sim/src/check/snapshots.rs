//! Every listed object exists and is whole. Planted: `delete_before_unlist`, `delete_listed`,
//! `skip_snapshot_directory_sync`.

use lockstep_core::recovery_state::RecoveryState;

use super::{Checked, violated};
use crate::node::Replica;

/// A start could use every snapshot that a durable state lists. Not checked on a `doubtful` disk,
/// one with damage or reads that fail.
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

/// A replica reports that it needs a snapshot: then none that it lists can be restored.
pub fn needs_one(replica: &Replica) -> Checked {
    let state = replica.group.recovery_state();
    for desc in state.snapshots.iter().filter(|desc| desc.index <= state.floor) {
        let object = desc.clone();
        if replica.store.peek(|store| store.recoverable(&object)).is_ok() {
            let what = format!("it needs no snapshot: the one at {} is good", desc.index);
            return violated("snapshots", what);
        }
    }
    Ok(())
}
