//! Which recovery points to keep and how far the log may be cut: pure functions.
//!
//! - [`plan`] is for a new snapshot, [`unlist`] makes space for an object, [`shed`] for the log.
//!   Each returns the whole list and the log's first index, or `None` if nothing may be given up.
//! - The log continues every kept snapshot without a gap, and its first index never falls.
//! - The newest recovery point that is not corrupt is never given up; corrupt ones are given up
//!   first.
//! - A follower that lags holds the log only within [`Pins::budget`], one that is sent a snapshot
//!   only within [`Pins::sent_budget`]. Beyond that a lagging follower gets a snapshot, and a
//!   transfer that took too long is followed by another one.
//! - Log that cannot be read is kept for no follower. A recovery point that needs such log is given
//!   up once there is one that does not: [`past`].

use std::collections::BTreeSet;

use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::snapshot::SnapshotDesc;
use crate::snapshot::chunk::ObjectRef;

/// What needs the log or an object besides the recovery points, and bounds for it.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// Snapshots that are being sent or promised: their receivers continue from these indexes.
    pub sending: Vec<(ReplicaId, u64)>,
    /// The last index known to be on the slowest follower that still answers.
    pub slowest_follower: Option<(ReplicaId, u64)>,
    /// Entries below this index are followed by more than a window's worth of bytes. They do not
    /// count as trailing entries, so that large entries cannot make the log large. 0 if there are
    /// none.
    pub outgrown: u64,
    /// Entries below this index may not be readable. 0 if all are.
    pub unreadable: u64,
    /// Trailing entries: kept before the newest snapshot for followers that lag a little. A
    /// follower that lags by more than four times as many does not pin the log: it gets a snapshot.
    pub catch_up: u64,
    /// The lowest index from which followers that lag may hold the log, by its bytes. While space
    /// is short, also the lowest for followers that are sent a snapshot.
    pub budget: u64,
    /// The lowest index from which followers that are sent a snapshot may hold the log, by its
    /// bytes.
    pub sent_budget: u64,
}

/// What keeps the log from being cut further, for `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pin {
    /// The oldest recovery point: the log has to continue it.
    RecoveryPoint,
    /// A follower that lags.
    Follower(ReplicaId),
    /// A snapshot that is being sent or was promised to this replica.
    Sending(ReplicaId),
    /// Trailing entries for followers that lag a little.
    CatchUp,
}

/// The recovery points to list, and the log's first index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Newest first.
    pub snapshots: Vec<SnapshotDesc>,
    pub first_index: u64,
}

/// Lists `new` beside those that are listed and not corrupt, keeps the newest
/// [`limits::RECOVERY_POINTS`] of them, and cuts the log to the lowest index that something needs.
pub fn plan(
    state: &RecoveryState,
    new: SnapshotDesc,
    pins: &Pins,
    corrupt: &BTreeSet<ObjectName>,
) -> Plan {
    let readable = |index: u64| index + 1 >= pins.unreadable;
    let good = |desc: &&SnapshotDesc| {
        !corrupt.contains(&name(desc))
            && desc.index != new.index
            && (readable(desc.index) || !readable(new.index))
    };
    let mut snapshots: Vec<SnapshotDesc> = state.snapshots.iter().filter(good).cloned().collect();
    snapshots.push(new);
    snapshots.sort_by_key(|desc| std::cmp::Reverse(desc.index));
    snapshots.truncate(limits::RECOVERY_POINTS);
    cut(state, snapshots, pins)
}

/// Lists only `new`, and cuts the log to the lowest index that something needs: for a replica that
/// is short of space.
pub fn plan_alone(state: &RecoveryState, new: SnapshotDesc, pins: &Pins) -> Plan {
    cut(state, vec![new], pins)
}

/// Takes `wanted` off the list, or a corrupt one in its place, so that its object can be deleted;
/// `None` if all have to be kept.
pub fn unlist(
    state: &RecoveryState,
    wanted: &SnapshotDesc,
    pins: &Pins,
    corrupt: &BTreeSet<ObjectName>,
) -> Option<Plan> {
    let spared = newest_good(&state.snapshots, corrupt).or(state.newest())?;
    let may_go = |desc: &&SnapshotDesc| *desc != spared;
    let is_corrupt = |desc: &&SnapshotDesc| corrupt.contains(&name(desc));
    let listed = || state.snapshots.iter().filter(may_go);
    let victim = listed().find(is_corrupt).or_else(|| listed().find(|desc| *desc == wanted))?;
    let kept = state.snapshots.iter().filter(|desc| *desc != victim).cloned().collect();
    let mut plan = cut(state, kept, pins);
    if corrupt.contains(&name(spared)) {
        // All recovery points are corrupt: only the log can restore the state.
        plan.first_index = state.first_index;
    }
    Some(plan)
}

/// Keeps only the newest good recovery point, and only the log that it and the receivers of
/// snapshots need; `None` if that frees nothing, or no recovery point is good.
pub fn shed(state: &RecoveryState, pins: &Pins, corrupt: &BTreeSet<ObjectName>) -> Option<Plan> {
    let spared = newest_good(&state.snapshots, corrupt)?.clone();
    let least = pins.budget.max(pins.unreadable.saturating_sub(1));
    let sending = pins.sending.iter().map(|(_, index)| (*index).max(least));
    let needed = sending.chain([spared.index]).min().expect("the spared index is one of them");
    let first_index = state.first_index.max(needed + 1);
    let plan = Plan { snapshots: vec![spared], first_index };
    (plan.snapshots != state.snapshots || plan.first_index != state.first_index).then_some(plan)
}

/// Keeps the recovery points that do not need log that cannot be read, and cuts that log off;
/// `None` if no such recovery point is good.
pub fn past(state: &RecoveryState, pins: &Pins, corrupt: &BTreeSet<ObjectName>) -> Option<Plan> {
    let readable = |desc: &&SnapshotDesc| desc.index + 1 >= pins.unreadable;
    let kept: Vec<SnapshotDesc> = state.snapshots.iter().filter(readable).cloned().collect();
    let good = kept.iter().any(|desc| !corrupt.contains(&name(desc)));
    good.then(|| cut(state, kept, pins))
}

/// What keeps the log from being cut further, and the index after which it needs the log.
pub fn pinned_by(state: &RecoveryState, pins: &Pins) -> Option<(Pin, u64)> {
    let newest = state.newest()?.index;
    let oldest = state.snapshots.last().map_or(newest, |desc| desc.index);
    // Among equals the last one counts: a follower is named only if it alone holds the log there.
    holders(newest, oldest, pins).into_iter().rev().min_by_key(|(_, index)| *index)
}

/// The name of a listed object in sets: term, index and the head of the digest.
pub type ObjectName = (u64, u64, [u8; 16]);

pub fn name(desc: &SnapshotDesc) -> ObjectName {
    let object = ObjectRef::of(desc);
    (object.term, object.index, object.digest)
}

/// The newest of the listed recovery points that is not corrupt.
pub fn newest_good<'a>(
    listed: &'a [SnapshotDesc],
    corrupt: &BTreeSet<ObjectName>,
) -> Option<&'a SnapshotDesc> {
    let is_corrupt = |desc: &&SnapshotDesc| corrupt.contains(&name(desc));
    listed.iter().find(|desc| !is_corrupt(desc) || planted("keep_a_corrupt_one"))
}

fn cut(state: &RecoveryState, snapshots: Vec<SnapshotDesc>, pins: &Pins) -> Plan {
    let newest = snapshots.first().map_or(0, |desc| desc.index);
    let oldest = snapshots.last().map_or(0, |desc| desc.index);
    let needed = holders(newest, oldest, pins).into_iter().map(|(_, index)| index).min();
    let needed = needed.expect("the oldest kept index is one of them");
    let last_cut = if planted("truncate_too_far") { newest } else { needed };
    Plan { snapshots, first_index: state.first_index.max(last_cut + 1) }
}

/// Everything that needs the log after an index, with that index.
fn holders(newest: u64, oldest: u64, pins: &Pins) -> Vec<(Pin, u64)> {
    let unreadable = pins.unreadable.saturating_sub(1);
    let outgrown = pins.outgrown.saturating_sub(1).max(unreadable);
    let lagging = newest.saturating_sub(pins.catch_up).max(outgrown);
    let budget = pins.budget.saturating_sub(1).max(unreadable);
    let sent_budget = pins.sent_budget.saturating_sub(1).max(unreadable);
    let follower = pins.slowest_follower.map(|(id, index)| {
        let least = newest.saturating_sub(pins.catch_up.saturating_mul(4)).max(budget);
        (Pin::Follower(id), index.max(least))
    });
    let sending =
        pins.sending.iter().map(|(id, index)| (Pin::Sending(*id), (*index).max(sent_budget)));
    let always = [(Pin::RecoveryPoint, oldest), (Pin::CatchUp, lagging)];
    sending.chain(follower).chain(always).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::{Digest, ModuleId};
    use crate::snapshot::Configuration;

    pub(crate) fn desc(index: u64) -> SnapshotDesc {
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

    fn state(listed: &[u64], first: u64) -> RecoveryState {
        let mut state = RecoveryState::blank("g", ReplicaId(1));
        state.snapshots = listed.iter().map(|index| desc(*index)).collect();
        state.first_index = first;
        state
    }

    fn shown(plan: &Plan) -> (Vec<u64>, u64) {
        (plan.snapshots.iter().map(|d| d.index).collect(), plan.first_index)
    }

    fn corrupt(indexes: &[u64]) -> BTreeSet<ObjectName> {
        indexes.iter().map(|index| name(&desc(*index))).collect()
    }

    #[derive(Default)]
    struct Row {
        listed: &'static [u64],
        first: u64,
        new: u64,
        sending: &'static [u64],
        follower: Option<u64>,
        outgrown: u64,
        budget: u64,
        corrupt: &'static [u64],
        want: (&'static [u64], u64),
    }

    const TWO: &[u64] = &[20_000, 9_000];

    fn row() -> Row {
        Row { first: 1, outgrown: 1, ..Row::default() }
    }

    fn plain_rows() -> Vec<Row> {
        vec![
            Row { new: 100, want: (&[100], 1), ..row() },
            Row { new: 9_000, want: (&[9_000], 4_001), ..row() },
            Row { new: 9_000, outgrown: 8_001, want: (&[9_000], 8_001), ..row() },
            Row {
                new: 9_000,
                follower: Some(5_000),
                outgrown: 8_001,
                want: (&[9_000], 5_001),
                ..row()
            },
            Row { listed: &[9_000], first: 4_001, new: 20_000, want: (TWO, 9_001), ..row() },
            Row {
                listed: TWO,
                first: 9_001,
                new: 30_000,
                want: (&[30_000, 20_000], 20_001),
                ..row()
            },
            Row {
                listed: &[20_000],
                first: 9_001,
                new: 30_000,
                sending: &[12_000],
                want: (&[30_000, 20_000], 12_001),
                ..row()
            },
            Row {
                listed: &[20_000],
                first: 9_001,
                new: 30_000,
                follower: Some(15_000),
                want: (&[30_000, 20_000], 15_001),
                ..row()
            },
            Row {
                listed: &[20_000],
                first: 9_001,
                new: 30_000,
                follower: Some(3),
                want: (&[30_000, 20_000], 10_001),
                ..row()
            },
            Row {
                listed: &[20_000],
                first: 15_001,
                new: 30_000,
                sending: &[3],
                want: (&[30_000, 20_000], 15_001),
                ..row()
            },
        ]
    }

    /// Beyond the budget only recovery points hold the log. A corrupt recovery point is given up
    /// before an old one. A peer's object may be older than the listed ones if those are corrupt.
    fn pressed_rows() -> Vec<Row> {
        vec![
            Row {
                listed: &[20_000],
                first: 9_001,
                new: 30_000,
                sending: &[12_000],
                follower: Some(3),
                budget: 18_001,
                want: (&[30_000, 20_000], 18_001),
                ..row()
            },
            Row {
                listed: &[20_000],
                first: 9_001,
                new: 30_000,
                sending: &[12_000],
                budget: 29_000,
                want: (&[30_000, 20_000], 20_001),
                ..row()
            },
            Row {
                listed: TWO,
                first: 9_001,
                new: 30_000,
                corrupt: &[20_000],
                want: (&[30_000, 9_000], 9_001),
                ..row()
            },
            Row {
                listed: TWO,
                first: 9_001,
                new: 30_000,
                corrupt: TWO,
                want: (&[30_000], 25_001),
                ..row()
            },
            Row {
                listed: TWO,
                first: 9_001,
                new: 15_000,
                corrupt: TWO,
                want: (&[15_000], 10_001),
                ..row()
            },
        ]
    }

    /// Which recovery points are kept after a new snapshot, and how far the log is cut.
    /// Covers K1 K10 K19.
    #[test]
    fn a_new_snapshot_keeps_and_cuts_as_the_table_says() {
        for (at, row) in plain_rows().into_iter().chain(pressed_rows()).enumerate() {
            let plan = plan(
                &state(row.listed, row.first),
                desc(row.new),
                &pins(&row),
                &corrupt(row.corrupt),
            );
            assert_eq!(shown(&plan), (row.want.0.to_vec(), row.want.1), "row {at}");
        }
    }

    fn pins(row: &Row) -> Pins {
        Pins {
            sending: row.sending.iter().map(|index| (ReplicaId(2), *index)).collect(),
            slowest_follower: row.follower.map(|index| (ReplicaId(3), index)),
            outgrown: row.outgrown,
            unreadable: 0,
            catch_up: 5_000,
            budget: row.budget,
            sent_budget: row.budget,
        }
    }

    /// Whatever needs space, the newest good recovery point is kept.
    /// Covers K12 K13 C1.
    #[test]
    fn the_newest_good_one_is_never_unlisted() {
        // listed, corrupt, wanted -> kept
        type Row<'a> = (&'a [u64], &'a [u64], u64, Option<&'a [u64]>);
        let rows: [Row; 7] = [
            (&[30, 20], &[], 20, Some(&[30])),
            (&[30, 20], &[], 30, None),
            (&[30], &[], 30, None),
            // A corrupt one is unlisted in place of the wanted one.
            (&[30, 20], &[30], 20, Some(&[20])),
            (&[30, 20], &[30], 30, Some(&[20])),
            (&[30, 20], &[30, 20], 20, Some(&[30])),
            (&[30, 20], &[], 10, None),
        ];
        for (listed, rot, wanted, want) in rows {
            let plan = unlist(&state(listed, 5), &desc(wanted), &Pins::default(), &corrupt(rot));
            let all_corrupt = listed.iter().all(|index| rot.contains(index));
            let cut = plan.as_ref().is_some_and(|plan| plan.first_index > 5);
            assert!(!(all_corrupt && cut), "only the log can restore the state");
            let kept = plan.map(|plan| shown(&plan).0);
            assert_eq!(kept.as_deref(), want, "{listed:?} corrupt {rot:?} wanted {wanted}");
        }
    }

    /// Whatever a plan keeps is listed or new, and the log continues all of it.
    /// Covers K11 K16 F9.
    #[test]
    fn a_plan_keeps_what_is_listed_and_the_log_behind_it() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        for round in 0..10_000 {
            let newest = 1_000 + below(1_000);
            let listed = [newest, newest - 1 - below(500)];
            let listed = &listed[..below(3) as usize];
            let state = state(listed, 1 + below(400));
            let rot: Vec<u64> = listed.iter().copied().filter(|_| below(4) == 0).collect();
            let pins = Pins {
                sending: (0..below(3)).map(|to| (ReplicaId(to), below(2_500))).collect(),
                slowest_follower: (below(2) == 0).then(|| (ReplicaId(9), below(2_500))),
                outgrown: below(2_500),
                unreadable: if below(4) == 0 { below(2_500) } else { 0 },
                catch_up: below(2_000),
                budget: below(3_000),
                sent_budget: below(3_000),
            };
            let new = desc(800 + below(1_800));
            let plan = plan(&state, new.clone(), &pins, &corrupt(&rot));
            let kept: Vec<u64> = plan.snapshots.iter().map(|desc| desc.index).collect();
            let case = format!("round {round}: {listed:?} corrupt {rot:?} new {}", new.index);
            let known = |index: &u64| *index == new.index || listed.contains(index);
            assert!(kept.iter().all(known), "{case}: {kept:?}");
            assert!(kept.len() <= limits::RECOVERY_POINTS && !kept.is_empty(), "{case}: {kept:?}");
            assert!(kept.windows(2).all(|pair| pair[0] > pair[1]), "{case}: {kept:?}");
            assert!(kept.iter().any(|index| !rot.contains(index) || *index == new.index), "{case}");
            let oldest = kept.last().expect("it is not empty");
            let first = plan.first_index;
            assert!(first >= state.first_index, "{case}: the log never moves back");
            assert!(first <= (oldest + 1).max(state.first_index), "{case}: from {first}");
        }
    }

    #[test]
    fn a_full_disk_sheds_all_but_the_newest_good_one_and_the_rest_of_the_log() {
        let none = Pins::default();
        let shed = |listed, first, pins: &Pins, rot: &[u64]| {
            super::shed(&state(listed, first), pins, &corrupt(rot)).map(|plan| shown(&plan))
        };
        assert_eq!(shed(&[30, 20], 5, &none, &[]), Some((vec![30], 31)));
        assert_eq!(shed(&[30, 20], 5, &none, &[30]), Some((vec![20], 21)));
        assert_eq!(shed(&[30], 31, &none, &[]), None, "nothing can be shed");
        assert_eq!(shed(&[], 1, &none, &[]), None);
        assert_eq!(shed(&[30], 1, &none, &[30]), None, "only the log restores it");
        let sending = Pins { sending: vec![(ReplicaId(2), 20)], ..Pins::default() };
        let bounded = Pins { budget: 25, ..sending.clone() };
        assert_eq!(shed(&[30, 20], 5, &bounded, &[]), Some((vec![30], 26)));
        assert_eq!(shed(&[30, 20], 5, &sending, &[]), Some((vec![30], 21)));
    }

    /// A recovery point that a hole in the log makes useless is given up once another takes its
    /// place, even if followers hold it.
    /// Covers F9.
    #[test]
    fn log_that_cannot_be_read_is_kept_for_nobody() {
        let pins = |unreadable| Pins {
            sending: vec![(ReplicaId(2), 5)],
            slowest_follower: Some((ReplicaId(3), 7)),
            catch_up: 5_000,
            unreadable,
            ..Pins::default()
        };
        let past = |listed, unreadable, rot: &[u64]| {
            let plan = super::past(&state(listed, 5), &pins(unreadable), &corrupt(rot));
            plan.map(|plan| shown(&plan))
        };
        assert_eq!(past(&[30, 20], 25, &[]), Some((vec![30], 25)));
        assert_eq!(past(&[30, 20], 21, &[]), Some((vec![30, 20], 21)));
        assert_eq!(past(&[30, 20], 31, &[]), Some((vec![30], 31)));
        assert_eq!(past(&[30, 20], 32, &[]), None, "the newest needs what is damaged");
        assert_eq!(past(&[30, 20], 25, &[30]), None, "the good one needs what is damaged");
        let plan = |unreadable, new| {
            let plan = super::plan(&state(&[20], 5), desc(new), &pins(unreadable), &corrupt(&[]));
            shown(&plan)
        };
        assert_eq!(plan(25, 30), (vec![30], 25));
        assert_eq!(plan(35, 30), (vec![30, 20], 21), "both need what is damaged");
        let shed = super::shed(&state(&[30, 20], 5), &pins(25), &corrupt(&[]));
        assert_eq!(shed.map(|plan| shown(&plan)), Some((vec![30], 25)));
    }

    #[test]
    fn who_pins_the_log_is_named() {
        let state = state(&[30_000, 20_000], 1);
        let pins = |sending: &[u64], follower: Option<u64>| Pins {
            sending: sending.iter().map(|index| (ReplicaId(2), *index)).collect(),
            slowest_follower: follower.map(|index| (ReplicaId(3), index)),
            catch_up: 5_000,
            ..Pins::default()
        };
        let by = |pins: Pins| pinned_by(&state, &pins);
        assert_eq!(by(pins(&[], None)), Some((Pin::RecoveryPoint, 20_000)));
        assert_eq!(by(pins(&[10], None)), Some((Pin::Sending(ReplicaId(2)), 10)));
        assert_eq!(by(pins(&[], Some(12_000))), Some((Pin::Follower(ReplicaId(3)), 12_000)));
        let nothing = RecoveryState::blank("g", ReplicaId(1));
        assert_eq!(pinned_by(&nothing, &Pins::default()), None);
    }
}
