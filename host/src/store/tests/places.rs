//! Places bound how many groups of a host capture or restore at once, and each group gets its turn.

use super::*;

/// Stores of one host, and what each gains by a capture.
struct Host {
    budget: Arc<Budget>,
    groups: Vec<(SnapshotStore, u64)>,
}

impl Host {
    fn new(gains: impl Iterator<Item = u64>) -> Self {
        let bed = Bed::new();
        let open = |(number, gain)| {
            let name = format!("g{number}");
            let identity = Identity { cluster: CLUSTER, group: GroupId::of_name(&name) };
            let dir = layout::snapshot_dir(Path::new("/data"), &name);
            let state = RecoveryState { group: name, ..state(&[]) };
            let (fs, quota) = (Arc::new(bed.fs.clone()), bed.budget.quota(u64::MAX));
            let opened = SnapshotStore::open(fs, dir, identity, quota, &state);
            (opened.expect("the store opens").0, gain)
        };
        let groups = gains.enumerate().map(open).collect();
        Self { budget: bed.budget, groups }
    }

    fn asks(&mut self, group: usize) -> Result<Reservation, SnapshotRefusal> {
        let (store, gain) = &mut self.groups[group];
        store.reserve_local(LocalHeader { gain: *gain, ..local(10, 0, true) })
    }

    /// Whether the group has a place now.
    fn has_one(&mut self, group: usize) -> Option<Reservation> {
        let most = self.budget.limits().captures;
        self.asks(group)
            .inspect_err(|refusal| assert_eq!(*refusal, SnapshotRefusal::NoPlace { most }))
            .ok()
    }

    fn tend(&mut self, now_ms: u64) {
        self.groups[0].0.tend(now_ms);
    }

    fn held(&self) -> usize {
        self.budget.places(Work::Capture).0
    }
}

/// A hundred groups want a snapshot at the same moment.
#[test]
fn a_hundred_groups_take_turns_and_the_largest_gain_is_first() {
    let gains: Vec<u64> = (0..100).map(|group| group * 37 % 100).collect();
    let mut host = Host::new(gains.iter().copied());
    let most = host.budget.limits().captures;
    let mut waiting: Vec<usize> = (0..gains.len()).collect();
    let (mut under_way, mut order) = (Vec::new(), Vec::new());
    for now_ms in (0..).step_by(100) {
        host.tend(now_ms);
        for group in waiting.clone() {
            let Some(place) = host.has_one(group) else { continue };
            waiting.retain(|other| *other != group);
            under_way.push(place);
            order.push(gains[group]);
        }
        assert_eq!((host.held(), under_way.len()), (most, most), "{waiting:?} wait");
        if waiting.is_empty() {
            break;
        }
        under_way.remove(0);
    }
    let (first, rest) = order.split_at(most);
    assert_eq!(first, &gains[..most], "the first ones find free places");
    assert_eq!(rest.len(), gains.len() - most);
    assert!(rest.is_sorted_by(|one, next| one > next), "{rest:?}");
    under_way.clear();
    assert_eq!(host.budget.places(Work::Capture), (0, 0));
}

/// Three groups gain much and keep asking; one gains nothing, and still gets a place.
#[test]
fn nobody_asks_in_vain_for_ever() {
    let mut host = Host::new([0, 50, 60, 70].into_iter());
    let mut under_way: Vec<_> = (1..3).map(|group| (group, host.has_one(group))).collect();
    assert!(under_way.iter().all(|(_, place)| place.is_some()));
    let mut served = 0;
    for second in 0..60 {
        host.tend(second * 1_000);
        if host.has_one(0).is_some() {
            assert!((30..=33).contains(&second), "it waited for {second} s");
            assert!(served > 20, "the others went first, {served} times");
            return;
        }
        under_way.remove(0);
        let waiting = (1..4).filter(|group| under_way.iter().all(|(other, _)| other != group));
        let next: Vec<_> = waiting.map(|group| (group, host.has_one(group))).collect();
        served += next.iter().filter(|(_, place)| place.is_some()).count();
        under_way.extend(next.into_iter().filter(|(_, place)| place.is_some()));
    }
    panic!("it starves");
}

#[test]
fn a_place_is_kept_for_the_greater_gain_while_it_asks() {
    let mut host = Host::new([1, 2, 3, 4].into_iter());
    let first = host.has_one(0).expect("a place is free");
    let second = host.has_one(1).expect("two places are free");
    assert!(host.has_one(2).is_none());
    assert!(host.has_one(3).is_none());
    drop(first);
    assert!(host.has_one(2).is_none(), "it is kept for the group that gains more");
    drop(second);
    assert!(host.has_one(2).is_some(), "there is one for each");
    let held: Vec<_> = (0..2).map(|group| host.has_one(group)).collect();
    assert!(held[0].is_some() && held[1].is_none(), "the last one is still kept for the other");

    host.tend(1_000);
    host.tend(10_999);
    assert!(host.has_one(1).is_none());
    host.tend(11_000);
    assert!(host.has_one(1).is_some(), "a group that stopped asking is forgotten");
}

/// When a disk hangs, the other groups go on after a while; places given back late do no harm.
#[test]
fn a_place_that_is_held_for_too_long_does_not_count() {
    let mut host = Host::new([1, 2, 3].into_iter());
    let hang: Vec<_> = (0..2).map(|group| host.has_one(group)).collect();
    assert!(hang.iter().all(Option::is_some));
    host.tend(1_000);
    for now_ms in (1_000..31_000).step_by(5_000) {
        host.tend(now_ms);
        assert!(host.has_one(2).is_none());
    }
    host.tend(31_000);
    let place = host.has_one(2).expect("the two no longer count");
    drop(hang);
    assert_eq!(host.held(), 1);
    drop(place);
    assert_eq!(host.held(), 0);
}

#[test]
fn a_group_that_is_gone_asks_no_more_and_restores_have_places_of_their_own() {
    let budget = Budget::new(limits_of(u64::MAX, 0, 4));
    let groups: Vec<_> = (0..4).map(|_| budget.quota(u64::MAX)).collect();
    let place = |group: &Arc<Quota>| group.take_place(Work::Restore, 0);
    let mut held: Vec<_> = groups.iter().map(place).collect();
    assert_eq!(held.iter().flatten().count(), budget.limits().restores);
    assert_eq!(budget.places(Work::Restore), (2, 2));
    assert!(groups[2].take_place(Work::Capture, 0).is_some());
    held.clear();
    let [_, _, gone, last] = <[_; 4]>::try_from(groups).expect("four");
    drop(gone);
    let other = budget.quota(u64::MAX);
    let held = [place(&last), place(&other)];
    assert!(held.iter().all(Option::is_some));
    assert_eq!(budget.places(Work::Restore), (2, 0));
}
