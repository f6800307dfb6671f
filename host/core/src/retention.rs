//! Which recovery points to keep and how far the log may be cut: pure functions.
//!
//! - [`goal`] goes from [`Facts`] to the whole list and the log's first index.
//! - The log continues every kept snapshot without a gap, and its first index never falls.
//! - The newest recovery point that is not corrupt is never given up; corrupt ones are given up
//!   first.
//! - A follower that lags holds the log only within [`Pins::budget`], one that is sent a snapshot
//!   only within [`Pins::sent_budget`]. Beyond that a lagging follower gets a snapshot, and a
//!   transfer that took too long is followed by another one.
//! - Log that cannot be read is kept for no follower. A recovery point that needs such log is given
//!   up once there is one that does not.

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
    /// Snapshots that are being sent or promised, and those of followers that were sent one and
    /// have not caught up: their receivers continue from these indexes.
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

impl Plan {
    /// The plan that keeps the present list and first index.
    pub fn of(state: &RecoveryState) -> Self {
        Self { snapshots: state.snapshots.clone(), first_index: state.first_index }
    }
}

/// All that decides which recovery points are listed and where the log begins.
pub struct Facts<'a> {
    /// What is listed, and the log's first index.
    pub state: &'a RecoveryState,
    pub corrupt: &'a BTreeSet<ObjectName>,
    pub pins: &'a Pins,
    pub short: Short,
    /// The log asks for space. If it does not, a shortage has an effect only when a new object is
    /// listed.
    pub asked: bool,
    /// An object that was just read whole and is not listed yet.
    pub new: Option<&'a SnapshotDesc>,
    /// A recovery point whose space another object needs.
    pub victim: Option<&'a SnapshotDesc>,
}

/// What is short of space, which decides what is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Short {
    #[default]
    Nothing,
    /// The log is short: the part that is kept for followers that lag is given up.
    Log,
    /// A disk that holds recovery points, or log that they need, is short: all recovery points but
    /// one are given up as well.
    Disk,
}

/// What to list and where to begin the log; `None` if both are as they should be.
///
/// 1. When a new object is listed, corrupt recovery points are dropped, and all but the newest
///    [`limits::RECOVERY_POINTS`].
/// 2. Recovery points that need unreadable log are dropped if a good one does not.
/// 3. On a disk that is short of space, only the newest good one is kept, if it is the new one or
///    the log asks for space.
/// 4. To make space for another object, a corrupt recovery point, or else the victim, is dropped,
///    unless it is the newest good one.
/// 5. The log is cut whenever the list changes and when it is damaged. If the log asks for space,
///    the part that followers that lag would need is cut as well.
pub fn goal(facts: &Facts<'_>) -> Option<Plan> {
    let Facts { state, corrupt, pins, short, .. } = *facts;
    let good = |desc: &SnapshotDesc| !corrupt.contains(&name(desc));
    let mut kept = state.snapshots.clone();
    if let Some(new) = facts.new {
        kept.retain(|desc| good(desc) && desc.index != new.index);
        kept.push(new.clone());
        kept.sort_by_key(|desc| std::cmp::Reverse(desc.index));
    }
    let survives = survives_damage(&kept, corrupt, pins.unreadable);
    if survives {
        kept.retain(|desc| is_readable(desc, pins.unreadable));
    }
    if facts.new.is_some() {
        kept.truncate(limits::RECOVERY_POINTS);
    }
    let stays = newest_good(&kept, corrupt).cloned();
    if let Some(stays) = &stays
        && short == Short::Disk
        && (facts.asked || facts.new == Some(stays))
    {
        kept = vec![stays.clone()];
    }
    if let Some(wanted) = facts.victim {
        let spared = stays.as_ref().or(kept.first()).cloned();
        let may_go = |desc: &&SnapshotDesc| Some(*desc) != spared.as_ref();
        let is_corrupt = kept.iter().filter(may_go).find(|desc| !good(desc));
        let victim = is_corrupt.or_else(|| kept.iter().filter(may_go).find(|desc| *desc == wanted));
        if let Some(victim) = victim.cloned() {
            kept.retain(|desc| *desc != victim);
        }
    }
    let damaged = survives && pins.unreadable > state.first_index;
    let first_index = if stays.is_none() {
        // Only the log can restore the state.
        state.first_index
    } else if facts.asked && short != Short::Nothing {
        state.first_index.max(cut_short(&kept, pins) + 1)
    } else if damaged || kept != state.snapshots {
        state.first_index.max(cut(&kept, pins) + 1)
    } else {
        state.first_index
    };
    Some(Plan { snapshots: kept, first_index }).filter(|plan| *plan != Plan::of(state))
}

/// Whether a listed recovery point is good and needs none of the log that cannot be read.
pub fn survives_damage(
    listed: &[SnapshotDesc],
    corrupt: &BTreeSet<ObjectName>,
    unreadable: u64,
) -> bool {
    listed.iter().any(|desc| !corrupt.contains(&name(desc)) && is_readable(desc, unreadable))
}

/// Whether the log that continues this recovery point can be read.
fn is_readable(desc: &SnapshotDesc, unreadable: u64) -> bool {
    desc.index + 1 >= unreadable
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

/// The last entry that nothing needs any more.
fn cut(kept: &[SnapshotDesc], pins: &Pins) -> u64 {
    let newest = kept.first().map_or(0, |desc| desc.index);
    let oldest = kept.last().map_or(0, |desc| desc.index);
    let needed = holders(newest, oldest, pins).into_iter().map(|(_, index)| index).min();
    let needed = needed.expect("the oldest kept index is one of them");
    if planted("truncate_too_far") { newest } else { needed }
}

/// The last entry that nothing needs while space is short: only the recovery points and the
/// receivers of snapshots hold the log.
fn cut_short(kept: &[SnapshotDesc], pins: &Pins) -> u64 {
    let least = pins.budget.max(pins.unreadable.saturating_sub(1));
    let sending = pins.sending.iter().map(|(_, index)| (*index).max(least));
    let oldest = kept.last().map_or(0, |desc| desc.index);
    sending.chain([oldest]).min().expect("the oldest kept index is one of them")
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

    /// The facts of a test: recovery points, the log's first index, and which recovery points are
    /// corrupt.
    struct Case<'a> {
        listed: &'a [u64],
        first: u64,
        rot: &'a [u64],
        pins: Pins,
        short: Short,
        asked: bool,
    }

    impl Case<'_> {
        /// The goal, once there is a new object and once another object needs a victim's space.
        fn goal(&self, new: Option<u64>, victim: Option<u64>) -> Option<(Vec<u64>, u64)> {
            let (state, corrupt) = (state(self.listed, self.first), corrupt(self.rot));
            let (new, victim) = (new.map(desc), victim.map(desc));
            let facts = Facts {
                state: &state,
                corrupt: &corrupt,
                pins: &self.pins,
                short: self.short,
                asked: self.asked,
                new: new.as_ref(),
                victim: victim.as_ref(),
            };
            goal(&facts).map(|plan| shown(&plan))
        }
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
            let Row { listed, first, corrupt: rot, .. } = row;
            let (pins, short) = (pins(&row), Short::Nothing);
            let case = Case { listed, first, rot, pins, short, asked: false };
            let want = (row.want.0.to_vec(), row.want.1);
            assert_eq!(case.goal(Some(row.new), None), Some(want), "row {at}");
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
            let (first, pins, short) = (5, Pins::default(), Short::Nothing);
            let case = Case { listed, first, rot, pins, short, asked: false };
            let goal = case.goal(None, Some(wanted));
            let all_corrupt = listed.iter().all(|index| rot.contains(index));
            let cut = goal.as_ref().is_some_and(|(_, first)| *first > 5);
            assert!(!(all_corrupt && cut), "only the log can restore the state");
            let kept = goal.map(|(kept, _)| kept);
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
        let mut changed = 0;
        for round in 0..10_000 {
            let newest = 1_000 + below(1_000);
            let listed = [newest, newest - 1 - below(500)];
            let listed = &listed[..below(3) as usize];
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
            let first = 1 + below(400);
            let short = [Short::Nothing, Short::Log, Short::Disk][below(3) as usize];
            let new = (below(2) == 0).then(|| 800 + below(1_800));
            let victim = listed.get(below(4) as usize).copied();
            let asked = below(2) == 0;
            let case = Case { listed, first, rot: &rot, pins, short, asked };
            let Some((kept, now)) = case.goal(new, victim) else { continue };
            changed += 1;
            let case = format!("round {round}: {listed:?} corrupt {rot:?} new {new:?} {short:?}");
            let known = |index: &u64| Some(*index) == new || listed.contains(index);
            assert!(kept.iter().all(known), "{case}: {kept:?}");
            assert!(kept.len() <= limits::RECOVERY_POINTS && !kept.is_empty(), "{case}: {kept:?}");
            assert!(kept.windows(2).all(|pair| pair[0] > pair[1]), "{case}: {kept:?}");
            let good = |index: &u64| !rot.contains(index) || Some(*index) == new;
            let any_good = new.is_some() || listed.iter().any(good);
            assert_eq!(kept.iter().any(good), any_good, "{case}: {kept:?}");
            let oldest = kept.last().expect("it is not empty");
            assert!(now >= first, "{case}: the log never moves back");
            assert!(now <= (oldest + 1).max(first), "{case}: from {now}");
        }
        assert!(changed > 5_000, "{changed} of 10,000 rounds");
    }

    #[test]
    fn a_full_disk_leaves_only_the_newest_good_one_and_the_rest_of_the_log() {
        let goal = |listed: &[u64], first, pins: &Pins, rot: &[u64], short| {
            Case { listed, first, rot, pins: pins.clone(), short, asked: true }.goal(None, None)
        };
        let none = Pins::default();
        let disk = Short::Disk;
        assert_eq!(goal(&[30, 20], 5, &none, &[], disk), Some((vec![30], 31)));
        assert_eq!(goal(&[30, 20], 5, &none, &[30], disk), Some((vec![20], 21)));
        assert_eq!(goal(&[30], 31, &none, &[], disk), None, "nothing can be given up");
        assert_eq!(goal(&[], 1, &none, &[], disk), None);
        assert_eq!(goal(&[30], 1, &none, &[30], disk), None, "only the log restores it");
        let sending = Pins { sending: vec![(ReplicaId(2), 20)], ..Pins::default() };
        let bounded = Pins { budget: 25, ..sending.clone() };
        assert_eq!(goal(&[30, 20], 5, &bounded, &[], disk), Some((vec![30], 26)));
        assert_eq!(goal(&[30, 20], 5, &sending, &[], disk), Some((vec![30], 21)));
        let unread = Pins { unreadable: 25, ..sending.clone() };
        assert_eq!(goal(&[30, 20], 5, &unread, &[], disk), Some((vec![30], 25)));

        let log = Short::Log;
        let lagging = Pins { slowest_follower: Some((ReplicaId(3), 7)), catch_up: 9, ..none };
        assert_eq!(goal(&[30, 20], 5, &lagging, &[], log), Some((vec![30, 20], 21)));
        assert_eq!(goal(&[30, 20], 21, &lagging, &[], log), None, "the older one needs the rest");
        assert_eq!(goal(&[30, 20], 5, &lagging, &[], Short::Nothing), None, "no need to cut");

        // A snapshot that is new takes the place of all others and leaves the trailing entries.
        let pins = Pins { catch_up: 9, ..Pins::default() };
        let (listed, first, rot): (&[u64], _, _) = (&[30, 20], 21, &[]);
        let case = Case { listed, first, rot, pins, short: disk, asked: false };
        assert_eq!(case.goal(Some(40), None), Some((vec![40], 32)));
        assert_eq!(case.goal(None, None), None, "nothing is asked for");
    }

    /// A recovery point that a hole in the log makes useless is given up once another takes its
    /// place, even if followers hold it.
    /// Covers F9.
    #[test]
    fn log_that_cannot_be_read_is_kept_for_nobody() {
        let case = |listed, unreadable, rot| {
            let pins = Pins {
                sending: vec![(ReplicaId(2), 5)],
                slowest_follower: Some((ReplicaId(3), 7)),
                catch_up: 5_000,
                unreadable,
                ..Pins::default()
            };
            Case { listed, first: 5, rot, pins, short: Short::Nothing, asked: false }
        };
        let past = |listed, unreadable, rot| case(listed, unreadable, rot).goal(None, None);
        assert_eq!(past(&[30, 20], 25, &[]), Some((vec![30], 25)));
        assert_eq!(past(&[30, 20], 21, &[]), Some((vec![30, 20], 21)));
        assert_eq!(past(&[30, 20], 31, &[]), Some((vec![30], 31)));
        assert_eq!(past(&[30, 20], 32, &[]), None, "the newest needs what is damaged");
        assert_eq!(past(&[30, 20], 25, &[30]), None, "the good one needs what is damaged");
        let beside = |unreadable| case(&[20], unreadable, &[]).goal(Some(30), None);
        assert_eq!(beside(25), Some((vec![30], 25)));
        assert_eq!(beside(35), Some((vec![30, 20], 21)), "both need what is damaged");
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
