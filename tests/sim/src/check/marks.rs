//! Snapshots of one index are equal on all nodes. Planted: `clock_in_snapshot`.

use std::collections::BTreeMap;

use lockstep_core::ids::{Digest, GroupId};
use lockstep_core::snapshot::SnapshotDesc;

use super::{Checked, violated};

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
                return violated("marks", what);
            }
        }
        Ok(())
    }
}
