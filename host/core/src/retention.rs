//! Which recovery points to keep and how far the log may be cut: one pure function.

use crate::limits;
use crate::recovery_state::RecoveryState;
use crate::snapshot::SnapshotDesc;

/// What else needs the log or an object.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// Indexes of snapshots that are being sent: their receivers go on from there.
    pub sending: Vec<u64>,
    /// Last index known on the slowest follower that still answers.
    pub slowest_follower: Option<u64>,
    /// Below this index lie entries with a window's worth of bytes behind them: they are kept for
    /// no follower that merely lags, so that large entries cannot make the log large. 0 = none
    /// known.
    pub outgrown: u64,
}

/// The list and the log's first index after a new snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Newest first.
    pub snapshots: Vec<SnapshotDesc>,
    pub first_index: u64,
}

/// A follower further behind than this does not pin the log: it will get a snapshot, entries.
const FOLLOWER_PIN_ENTRIES_MAX: u64 = 4 * limits::CATCH_UP_ENTRIES;

/// Lists `new` before what is listed, keeps [`limits::RECOVERY_POINTS`], and cuts the log to the
/// lowest index that something still needs. The log never starts behind a kept snapshot, and never
/// moves back.
pub fn plan(state: &RecoveryState, new: SnapshotDesc, pins: &Pins) -> Plan {
    let newest = new.index;
    let mut snapshots = vec![new];
    snapshots.extend(state.snapshots.iter().filter(|desc| desc.index < newest).cloned());
    snapshots.truncate(limits::RECOVERY_POINTS);

    let oldest = snapshots.last().map_or(newest, |desc| desc.index);
    let follower = pins
        .slowest_follower
        .map(|index| index.max(newest.saturating_sub(FOLLOWER_PIN_ENTRIES_MAX)));
    let lagging =
        newest.saturating_sub(limits::CATCH_UP_ENTRIES).max(pins.outgrown.saturating_sub(1));
    let needed = pins
        .sending
        .iter()
        .copied()
        .chain(follower)
        .chain([oldest, lagging])
        .min()
        .expect("the oldest kept index is always there");
    Plan { snapshots, first_index: state.first_index.max(needed + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, ModuleId, ReplicaId};
    use crate::snapshot::Configuration;

    fn desc(index: u64) -> SnapshotDesc {
        SnapshotDesc {
            term: 1,
            index,
            length: 10,
            digest: Digest([index as u8; 32]),
            module: ModuleId([0; 32]),
            format: 1,
            configuration: Configuration::of_voters([ReplicaId(1)]),
        }
    }

    #[test]
    fn the_table() {
        // listed, first index, new, sending, slowest follower, outgrown -> kept, first index
        type Row =
            (&'static [u64], u64, u64, &'static [u64], Option<u64>, u64, &'static [u64], u64);
        let rows: &[Row] = &[
            (&[], 1, 100, &[], None, 1, &[100], 1),
            (&[], 1, 9_000, &[], None, 1, &[9_000], 4_001),
            (&[], 1, 9_000, &[], None, 8_001, &[9_000], 8_001),
            (&[], 1, 9_000, &[], Some(5_000), 8_001, &[9_000], 5_001),
            (&[9_000], 4_001, 20_000, &[], None, 1, &[20_000, 9_000], 9_001),
            (&[20_000, 9_000], 9_001, 30_000, &[], None, 1, &[30_000, 20_000], 20_001),
            (&[20_000], 9_001, 30_000, &[12_000], None, 1, &[30_000, 20_000], 12_001),
            (&[20_000], 9_001, 30_000, &[], Some(15_000), 1, &[30_000, 20_000], 15_001),
            (&[20_000], 9_001, 30_000, &[], Some(3), 1, &[30_000, 20_000], 10_001),
            (&[20_000], 15_001, 30_000, &[3], None, 1, &[30_000, 20_000], 15_001),
        ];
        for (listed, first, new, sending, follower, outgrown, kept, want) in rows {
            let mut state = RecoveryState::unfounded("g", ReplicaId(1));
            state.snapshots = listed.iter().map(|index| desc(*index)).collect();
            state.first_index = *first;
            let pins = Pins {
                sending: sending.to_vec(),
                slowest_follower: *follower,
                outgrown: *outgrown,
            };
            let plan = plan(&state, desc(*new), &pins);
            let indexes: Vec<u64> = plan.snapshots.iter().map(|d| d.index).collect();
            assert_eq!(
                (indexes.as_slice(), plan.first_index),
                (*kept, *want),
                "{listed:?} + {new}"
            );
        }
    }
}
