//! A replica is found to have diverged only if more replicas have another snapshot of that index
//! than have its own, and it sends no snapshot from then on. Planted: `judge_without_a_majority`,
//! `serve_what_diverged`.

use std::collections::BTreeMap;

use lockstep_core::group::{ReplicaState, Running};
use lockstep_core::ids::{Digest, GroupId, ReplicaId};
use lockstep_core::snapshot::SnapshotDesc;

use super::{Checked, violated};

/// The digest of the first snapshot that each replica listed of a group and an index.
#[derive(Default)]
pub struct Taken(BTreeMap<(GroupId, u64), BTreeMap<ReplicaId, Digest>>);

impl Taken {
    pub fn listed(&mut self, group: GroupId, replica: ReplicaId, snapshots: &[SnapshotDesc]) {
        for desc in snapshots {
            let taken = self.0.entry((group, desc.index)).or_default();
            taken.entry(replica).or_insert(desc.digest);
        }
    }

    /// The replica halts because of its snapshot at `index`.
    pub fn judged(&self, group: GroupId, replica: ReplicaId, index: u64) -> Checked {
        let Some(taken) = self.0.get(&(group, index)) else { return Ok(()) };
        let Some(own) = taken.get(&replica) else { return Ok(()) };
        let have = |digest: &Digest| taken.values().filter(|it| *it == digest).count();
        if taken.values().filter(|digest| *digest != own).map(have).max() > Some(have(own)) {
            return Ok(());
        }
        let what = format!("replica {replica} halts for its snapshot at {index}: {taken:?}");
        violated("divergence", what)
    }
}

/// A replica in this state sends a snapshot.
pub fn sends(state: &ReplicaState, snapshot: &SnapshotDesc) -> Checked {
    match state {
        ReplicaState::Running(Running::Halted(halt)) if halt.is_diverged() => {
            let what = format!("a replica that has diverged sends {snapshot:?}");
            violated("divergence", what)
        }
        _other => Ok(()),
    }
}
