//! There is always something to start from: the log from its first entry on, or a snapshot that the
//! log lists and that is whole. Where bits rotted, the program never gives up the last good one.
//! Planted: `delete_listed`, `keep_a_rotten_one`.

use lockstep_core::snapshot::SnapshotDesc;

use super::{Checked, violated};
use crate::node::Replica;

/// Whether one of these is whole.
pub fn any_good(replica: &Replica, snapshots: &[SnapshotDesc]) -> bool {
    snapshots.iter().any(|desc| {
        let object = desc.clone();
        replica.with_store(move |store| store.recoverable(&object)).is_ok()
    })
}

/// The log durably lists others now, and what nobody needs was deleted.
pub fn listed(
    replica: &Replica,
    first_index: u64,
    (had, rotted): (bool, bool),
    snapshots: &[SnapshotDesc],
) -> Checked {
    if first_index == 1 || (rotted && !had) || any_good(replica, snapshots) {
        return Ok(());
    }
    let listed: Vec<u64> = snapshots.iter().map(|desc| desc.index).collect();
    violated("recovery_points", format!("none of {listed:?} is whole, the log has {first_index}.."))
}
