//! There is always something to start from: the log from its first entry on, or a snapshot that the
//! log lists and that is whole. Where bits rotted, the program never gives up the last good one.
//! Planted: `delete_leased`.

use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::ObjectRef;

use super::{Checked, violated};
use crate::node::Replica;

/// The log durably lists these now, instead of `before`, and what nobody needs was deleted.
/// `rotted`: bits were flipped on this disk; then only what the program knows of counts.
pub fn listed(
    replica: &Replica,
    first_index: u64,
    rotted: bool,
    (before, after): (&[SnapshotDesc], &[SnapshotDesc]),
) -> Checked {
    if first_index == 1 {
        return Ok(());
    }
    if rotted {
        let now = replica.group.status().rotten;
        let any_good = |known: &[ObjectRef], listed: &[SnapshotDesc]| {
            listed.iter().any(|desc| !known.contains(&ObjectRef::of(desc)))
        };
        return match any_good(&replica.seen.rotten, before) && !any_good(&now, after) {
            true => violated("recovery_points", "the last one that was not known to rot is gone"),
            false => Ok(()),
        };
    }
    let read = |desc: &SnapshotDesc| {
        let object = desc.clone();
        replica.with_store(move |store| store.recoverable(&object)).err()
    };
    let bad: Vec<String> = after.iter().filter_map(read).map(|error| error.to_string()).collect();
    match bad.len() < after.len() {
        true => Ok(()),
        false => {
            let why = bad.join("; ");
            let what = format!("none is whole, the log begins at {first_index}: {why}");
            violated("recovery_points", what)
        }
    }
}
