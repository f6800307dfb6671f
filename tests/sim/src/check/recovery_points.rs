//! A replica can always start: its log begins at entry 1, or the log lists a snapshot that is
//! whole. On a damaged disk the program never gives up the last snapshot that it does not know to
//! be bad, nor the last one that is whole, if it had the time to read the others. Planted:
//! `delete_in_use`.

use lockstep_core::group::GroupStatus;
use lockstep_core::limits;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::ObjectRef;

use super::{Checked, violated};
use crate::node::{Replica, Seen};
use crate::world::MS;

/// A snapshot that was read within [`limits::PROOF_TICKS`] is not read again before others are
/// given up for it, and some time passes until that is durable.
const READ_LATELY: u64 = 4 * limits::PROOF_TICKS * limits::TICK_MS * MS;

/// A list of snapshots that another one is about to replace.
pub struct Before {
    listed: Vec<SnapshotDesc>,
    /// Whether one of them was whole.
    whole: bool,
}

impl Before {
    pub fn of(replica: &Replica, listed: Vec<SnapshotDesc>) -> Self {
        let whole = bad(replica, &listed).len() < listed.len();
        Self { listed, whole }
    }

    /// Whether the new list adds no snapshot: an added one might have been damaged since it was
    /// sealed.
    fn holds(&self, after: &[SnapshotDesc]) -> bool {
        after.iter().all(|desc| self.listed.contains(desc))
    }
}

/// A start would succeed on an undamaged disk: from entry 1, or from a snapshot that the log lists.
pub fn stand(replica: &Replica, state: &RecoveryState) -> Checked {
    match state.first_index {
        1 => Ok(()),
        _ => one_is_whole(replica, &state.snapshots),
    }
}

/// The log durably lists these snapshots now, and others were deleted. `rotted`: how long ago this
/// disk was last damaged, if it was.
pub fn listed(
    replica: &Replica,
    first_index: u64,
    rotted: Option<u64>,
    before: &Before,
    after: &[SnapshotDesc],
) -> Checked {
    if first_index == 1 {
        return Ok(());
    }
    let judged = |ago| ago > READ_LATELY && before.whole && before.holds(after);
    if rotted.is_none_or(judged) { one_is_whole(replica, after) } else { Ok(()) }
}

/// The core has decided what the log lists from now on, and knows some of it to be corrupt.
pub fn decided(seen: &mut Seen, first_index: u64, status: &GroupStatus) -> Checked {
    let any_good = |known: &[ObjectRef], listed: &[SnapshotDesc]| {
        listed.iter().any(|desc| !known.contains(&ObjectRef::of(desc)))
    };
    let had = any_good(&seen.corrupt, &seen.listed);
    let changes = seen.listed != status.snapshots;
    seen.listed.clone_from(&status.snapshots);
    seen.corrupt.clone_from(&status.corrupt);
    if changes && had && !any_good(&seen.corrupt, &seen.listed) && first_index > 1 {
        violated("recovery_points", "the last one that was not known to be corrupt is gone")
    } else {
        Ok(())
    }
}

fn one_is_whole(replica: &Replica, listed: &[SnapshotDesc]) -> Checked {
    let bad = bad(replica, listed);
    if bad.len() < listed.len() {
        Ok(())
    } else {
        violated("recovery_points", format!("none is whole: {}", bad.join("; ")))
    }
}

/// For each object that is not whole, why.
fn bad(replica: &Replica, listed: &[SnapshotDesc]) -> Vec<String> {
    let read = |desc: &SnapshotDesc| {
        let object = desc.clone();
        replica.store.peek(|store| store.recoverable(&object)).err()
    };
    listed.iter().filter_map(read).map(|error| error.to_string()).collect()
}
