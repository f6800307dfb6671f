//! Every listed object is there and whole, there is always a recovery point, and objects of one
//! mark are equal on all nodes. Planted: `delete_before_unlist`, `delete_leased`,
//! `skip_snapshot_directory_sync`.

use std::collections::BTreeMap;

use lockstep_core::ids::{Digest, GroupId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;

use super::{Checked, violated};
use crate::node::Replica;

/// Digests by group, term and index.
#[derive(Default)]
pub struct Marks(BTreeMap<(GroupId, u64, u64), Digest>);

impl Marks {
    pub fn listed(&mut self, group: GroupId, snapshots: &[SnapshotDesc]) -> Checked {
        for desc in snapshots {
            let key = (group, desc.term, desc.index);
            let known = *self.0.entry(key).or_insert(desc.digest);
            if known != desc.digest {
                let what = format!("two digests at the mark {} of term {}", desc.index, desc.term);
                return violated("snapshots", what);
            }
        }
        Ok(())
    }
}

/// What a durable state lists can be started from. `rotted`: bits were flipped on this disk.
pub fn whole(state: &RecoveryState, replica: &Replica, rotted: bool) -> Checked {
    if state.snapshots.is_empty() && state.first_index != 1 {
        return violated("snapshots", "there is no recovery point");
    }
    if rotted {
        return Ok(());
    }
    for desc in &state.snapshots {
        let object = desc.clone();
        if let Err(error) = replica.with_store(move |store| store.recoverable(&object)) {
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
        if replica.with_store(move |store| store.recoverable(&object)).is_ok() {
            let what = format!("a snapshot is asked for, and the one at {} is good", desc.index);
            return violated("snapshots", what);
        }
    }
    Ok(())
}
