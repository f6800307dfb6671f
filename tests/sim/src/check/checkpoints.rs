//! Snapshots of the same index are equal on all nodes, unless a state went astray. Planted:
//! `clock_in_snapshot`.

use std::collections::BTreeMap;

use lockstep_core::ids::{Digest, GroupId};
use lockstep_core::snapshot::SnapshotDesc;

use super::{Checked, violated};

/// The term and digest of each snapshot, by group and index.
#[derive(Default)]
pub struct Checkpoints(BTreeMap<(GroupId, u64), (u64, Digest)>);

impl Checkpoints {
    pub fn listed(&mut self, group: GroupId, snapshots: &[SnapshotDesc]) -> Checked {
        for desc in snapshots {
            let found = (desc.term, desc.digest);
            let known = *self.0.entry((group, desc.index)).or_insert(found);
            if known != found {
                let what = format!("two snapshots at {}: {known:?} and {found:?}", desc.index);
                return violated("checkpoints", what);
            }
        }
        Ok(())
    }
}
