//! There is always something to start from: the log from its first entry on, or a snapshot that the
//! log lists and that is whole. Where bits rotted, the program never gives up the last one that it
//! does not know to be bad, nor the last one that is whole, if there was time to see what became of
//! the others. Planted: `delete_leased`.

use lockstep_core::group::GroupStatus;
use lockstep_core::limits;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::ObjectRef;

use super::{Checked, violated};
use crate::node::{Replica, Seen};
use crate::world::MS;

/// What was read within [`limits::PROOF_TICKS`] is not read again before another goes for it; and
/// it takes its time until that is durable.
const READ_LATELY: u64 = 4 * limits::PROOF_TICKS * limits::TICK_MS * MS;

/// A list before another takes its place.
pub struct Before {
    listed: Vec<SnapshotDesc>,
    /// Whether one was whole.
    whole: bool,
}

impl Before {
    pub fn of(replica: &Replica, listed: Vec<SnapshotDesc>) -> Self {
        let whole = bad(replica, &listed).len() < listed.len();
        Self { listed, whole }
    }

    /// Nothing came that may have rotted since it was sealed.
    fn holds(&self, after: &[SnapshotDesc]) -> bool {
        after.iter().all(|desc| self.listed.contains(desc))
    }
}

/// There is something to start from, on a disk where no bit rotted: of what the log lists.
pub fn stand(replica: &Replica, state: &RecoveryState) -> Checked {
    match state.first_index {
        1 => Ok(()),
        _ => one_is_whole(replica, &state.snapshots),
    }
}

/// The log durably lists these now, and what nobody needs was deleted. `rotted`: since when this
/// disk was left alone, if bits were flipped on it.
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
    match rotted.is_none_or(judged) {
        true => one_is_whole(replica, after),
        false => Ok(()),
    }
}

/// What the log is to list from now on, and what is known of that.
pub fn decided(seen: &mut Seen, first_index: u64, status: &GroupStatus) -> Checked {
    let any_good = |known: &[ObjectRef], listed: &[SnapshotDesc]| {
        listed.iter().any(|desc| !known.contains(&ObjectRef::of(desc)))
    };
    let had = any_good(&seen.rotten, &seen.listed);
    let changes = seen.listed != status.snapshots;
    seen.listed.clone_from(&status.snapshots);
    seen.rotten.clone_from(&status.rotten);
    match changes && had && !any_good(&seen.rotten, &seen.listed) && first_index > 1 {
        true => violated("recovery_points", "the last one that was not known to rot is gone"),
        false => Ok(()),
    }
}

fn one_is_whole(replica: &Replica, listed: &[SnapshotDesc]) -> Checked {
    let bad = bad(replica, listed);
    match bad.len() < listed.len() {
        true => Ok(()),
        false => violated("recovery_points", format!("none is whole: {}", bad.join("; "))),
    }
}

/// Why objects are not whole, of each that is not.
fn bad(replica: &Replica, listed: &[SnapshotDesc]) -> Vec<String> {
    let read = |desc: &SnapshotDesc| {
        let object = desc.clone();
        replica.store.peek(|store| store.recoverable(&object)).err()
    };
    listed.iter().filter_map(read).map(|error| error.to_string()).collect()
}
