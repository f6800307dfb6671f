//! What opening a store finds in a snapshot directory, and what it removes.

use super::*;
use crate::fs::DiskFs;
use crate::fs::mem::LateFull;

/// Directory names with the characters of glob patterns are taken literally.
/// Covers O9.
#[test]
fn directory_names_are_no_patterns() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let (odd, other) = (Path::new("/data/g[1]*?"), Path::new("/data/g1xx"));
    let open = |dir: &Path| {
        let quota = Budget::new(limits_of(1 << 40, 0, 4)).quota(u64::MAX);
        SnapshotStore::open(Arc::new(fs.clone()), dir.into(), identity(), quota, &state(&[]))
    };
    let (mut odd_store, _) = open(odd).expect("the store opens");
    let (mut other_store, _) = open(other).expect("the store opens");
    std::mem::forget(take(&mut odd_store, 10, b"garbage").expect("it is taken"));
    let kept = take(&mut other_store, 10, b"in use").expect("it is taken");
    let (_, swept) = open(odd).expect("the store opens");
    assert_eq!(swept.removed.len(), 1, "its own garbage is removed");
    assert_eq!(other_store.recoverable(&kept.desc), Ok(()), "but no object of another directory");
}

/// A listed object, an unlisted one, a staging file, and foreign files.
fn littered() -> (Bed, Vec<SnapshotDesc>) {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, b"listed")]);
    std::mem::forget(reach(&mut bed.store, At::Staged, true));
    std::mem::forget(bed.store.reserve_local(local(30, 9, true)).and_then(|r| bed.store.create(r)));
    for foreign in ["notes.txt", "part/x.tmp", "part/README.in"] {
        Fs::create(&bed.fs, &dir().join(foreign)).expect("a foreign file");
    }
    (bed, listed)
}

/// Covers O1 O2 O6.
#[test]
fn opening_removes_what_is_unlisted_and_nothing_else() {
    let (bed, listed) = littered();
    let (_, swept) = open(&bed.fs, &bed.budget, &state(&listed)).expect("the store opens");
    assert_eq!((swept.removed.len(), swept.errors.len()), (2, 0), "{swept:?}");
    assert_eq!(swept.foreign, ["notes.txt", "README.in", "x.tmp"]);
    assert_eq!(swept.missing, []);
    assert_eq!(bed.files().len(), 1 + 3);
}

/// Covers O3 O7.
#[test]
fn with_nothing_listed_everything_of_ours_goes() {
    let (bed, _) = littered();
    let (_, swept) = open(&bed.fs, &bed.budget, &state(&[])).expect("the store opens");
    assert_eq!(swept.removed.len(), 3, "{swept:?}");
    assert_eq!(bed.files().len(), 3);
}

/// Without descriptors an object's group cannot be read: the object is kept, and removed at the
/// next start.
/// Covers O3.
#[test]
fn what_cannot_be_read_for_now_is_left_alone() {
    let mut left = 0;
    for read in 1..20 {
        let (bed, _) = littered();
        bed.fs.fail_read(bed.fs.reads() + read, DiskFault::Descriptors);
        let Ok((_, swept)) = open(&bed.fs, &bed.budget, &state(&[])) else { continue };
        // Some of the other reads look up directories, which exist anyway.
        let (removed, foreign) = (swept.removed.len(), swept.foreign.len());
        assert!([(3, 3), (2, 4)].contains(&(removed, foreign)), "read {read}: {swept:?}");
        left += u32::from(foreign == 4);
        bed.fs.heal();
        let (_, then) = open(&bed.fs, &bed.budget, &state(&[])).expect("the store opens");
        assert_eq!((removed + then.removed.len(), then.foreign.len()), (3, 3), "{then:?}");
    }
    assert_eq!(left, 4, "two objects are opened and read");
}

/// An unlisted object is removed whatever its index, above or below that of the listed one.
/// Covers O4.
#[test]
fn the_index_of_what_is_unlisted_does_not_matter() {
    for index in [1, 9, 11, 1 << 40] {
        let mut bed = Bed::new();
        let listed = bed.take_listed(&[(10, b"listed")]);
        let reservation = bed.store.reserve(&header(&desc(index, b"stray"))).expect("it fits");
        let mut writer = bed.store.create(reservation).expect("a staging file");
        writer.write_all(b"stray").expect("it writes");
        std::mem::forget(bed.store.seal(writer.finish().expect("whole")).expect("it is sealed"));
        let (_, swept) = open(&bed.fs, &bed.budget, &state(&listed)).expect("the store opens");
        assert_eq!(swept.removed.len(), 1, "index {index}");
        assert_eq!(bed.files(), [ObjectName::of(&listed[0]).file()]);
    }
}

/// Opening a store reads no payload; restoring an object reads and verifies all of it.
/// Covers O10 K18.
#[test]
fn opening_leaves_judging_to_the_restore() {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, &payload(BLOCK)), (20, &payload(BLOCK + 1))]);
    bed.fs.corrupt(&bed.path(&listed[0]), BLOCK as u64 / 2).expect("the file is there");
    let (mut store, swept) = open(&bed.fs, &bed.budget, &state(&listed)).expect("it opens");
    assert_eq!((swept.missing.len(), swept.removed.len()), (0, 0));
    assert!(matches!(store.recoverable(&listed[0]), Err(OpenError::Bad { .. })));
    assert_eq!(store.recoverable(&listed[1]), Ok(()), "the older one is good");
    let mut reader = store.open_object(&listed[0], Use::Restoring).expect("its header is good");
    assert!(reader.read_to_end(&mut Vec::new()).is_err(), "a restore finds it corrupt, too");
}

/// Covers O8.
#[test]
fn without_this_groups_own_state_nothing_is_touched() {
    let mut bed = Bed::new();
    bed.take_listed(&[(10, b"precious")]);
    let before = bed.fs.image();
    let mut foreign = state(&[]);
    foreign.group = "another".into();
    let error = open(&bed.fs, &bed.budget, &foreign).err().expect("another group's state");
    assert!(error.to_string().contains("another"), "{error}");
    let listed = list_objects(&bed.fs, Path::new("/data")).expect("it lists");
    assert_eq!(listed.len(), 1);
    assert_eq!(bed.fs.image(), before);
}

/// Covers K2.
#[test]
fn a_listed_snapshot_without_an_object_is_reported_and_not_recoverable() {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, b"x")]);
    Fs::remove(&bed.fs, &bed.path(&listed[0])).expect("it was there");
    let (mut store, swept) = open(&bed.fs, &bed.budget, &state(&listed)).expect("the store opens");
    assert_eq!(swept.missing, listed);
    assert!(matches!(store.recoverable(&listed[0]), Err(OpenError::Missing { .. })));
}

/// A store opens on a full disk without its directory; the first snapshot that finds space creates
/// it.
/// Covers U6.
#[test]
fn a_store_opens_on_a_full_disk_and_makes_its_directory_later() {
    let fs = MemFs::with_dir(Path::new("/data"));
    let budget = Budget::new(limits_of(1 << 40, 0, 4));
    for op in 1..40 {
        let fs = MemFs::with_dir(Path::new("/data"));
        fs.fail_op(op, DiskFault::Full);
        open(&fs, &budget, &state(&[])).unwrap_or_else(|error| panic!("operation {op}: {error}"));
    }
    fs.set_capacity(0);
    fs.set_late_full(LateFull { name: true, ..LateFull::default() });
    let (mut store, _) = open(&fs, &budget, &state(&[])).expect("the store opens");
    let refused = take(&mut store, 10, b"x").expect_err("the disk is full");
    assert_eq!(refused.reason(), "no_space");
    fs.set_capacity(1 << 40);
    let taken = take(&mut store, 10, b"x").expect("there is space");
    assert_eq!(store.recoverable(&taken.desc), Ok(()));
}

/// A lack of space or descriptors is no broken disk: at whichever operation it shows, the writer is
/// refused with the reason `no_space`.
/// Covers C1.
#[test]
fn what_lacks_space_or_descriptors_is_refused_as_no_space() {
    let mut refused = 0;
    for (op, fault) in (1..40).flat_map(|op| [(op, DiskFault::Full), (op, DiskFault::Descriptors)])
    {
        let mut bed = Bed::new();
        bed.fs.fail_op(bed.fs.ops() + op, fault);
        match take(&mut bed.store, 10, &payload(3 * BLOCK)) {
            Ok(_) => {}
            Err(refusal) => {
                assert_eq!(refusal.reason(), "no_space", "operation {op}, {fault:?}: {refusal}");
                refused += 1;
            }
        }
        bed.fs.heal();
        let taken = take(&mut bed.store, 20, b"later").expect("there is space");
        assert_eq!(bed.store.recoverable(&taken.desc), Ok(()));
        drop(taken);
        bed.store.collect();
        assert_eq!(bed.files().len(), 0, "operation {op}, {fault:?}: nothing is left behind");
    }
    assert!(refused > 10, "{refused}");
}

/// A snapshot directory that opening created, however deep, survives a power loss.
/// Covers F2.
#[test]
fn a_fresh_directory_is_durable() {
    let fs = MemFs::with_dir(Path::new("/mnt"));
    let dir = Path::new("/mnt/a/b/c/d/e/g/snap");
    let quota = Budget::new(limits_of(1 << 40, 0, 4)).quota(u64::MAX);
    let opened =
        SnapshotStore::open(Arc::new(fs.clone()), dir.into(), identity(), quota, &state(&[]));
    drop(opened.expect("the store opens"));
    fs.crash();
    assert!(fs.has(&layout::part_dir(dir)));
}

/// A sealed object survives a power loss, whichever operation failed while its directories were
/// created.
#[test]
fn what_is_taken_stays_whatever_failed_before() {
    let mut taken = 0;
    for (first, second) in (1..20).flat_map(|first| (1..20).map(move |second| (first, second))) {
        let fs = MemFs::with_dir(Path::new("/mnt"));
        let dir = Path::new("/mnt/g/snap");
        let quota = Budget::new(limits_of(1 << 40, 0, 4)).quota(u64::MAX);
        fs.fail_op(fs.ops() + first, DiskFault::Full);
        let door: Arc<dyn Fs> = Arc::new(fs.clone());
        let opened = SnapshotStore::open(door, dir.into(), identity(), quota, &state(&[]));
        let (mut store, _) = opened.expect("a full disk is waited for");
        fs.fail_op(fs.ops() + second, DiskFault::Full);
        let Ok(verified) = take(&mut store, 10, b"x") else { continue };
        fs.crash();
        let object = dir.join(ObjectName::of(&verified.desc).file());
        assert!(fs.has(&object), "operations {first} and {second} failed");
        taken += 1;
    }
    assert!(taken > 0);
}

/// A directory that disappears while its store is open, as when its filesystem is unmounted, is not
/// created again: snapshots would lie on another disk. Once it is back, the store continues.
#[test]
fn a_directory_that_is_gone_is_not_made_again() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let (mounted, away) = (temporary.path().join("mounted"), temporary.path().join("away"));
    let dir = mounted.join("g/snap");
    let quota = Budget::new(limits_of(1 << 40, 0, 4)).quota(u64::MAX);
    let opened = SnapshotStore::open(Arc::new(DiskFs), dir.clone(), identity(), quota, &state(&[]));
    let (mut store, _) = opened.expect("the store opens");
    std::fs::rename(&mounted, &away).expect("it can be moved");
    let captured = take(&mut store, 10, b"x").expect_err("it is gone");
    let received = store.receive(&header(&desc(20, b"y"))).expect_err("it is gone");
    for refusal in [captured, received] {
        let said = refusal.to_string();
        assert!(said.contains("g/snap is gone; mount its filesystem"), "{said}");
    }
    assert!(!mounted.exists(), "nothing was made");
    std::fs::rename(&away, &mounted).expect("it can be moved back");
    let taken = take(&mut store, 10, b"x").expect("it is back");
    assert_eq!(store.recoverable(&taken.desc), Ok(()));
    drop(taken);
    std::fs::remove_dir(layout::part_dir(&dir)).expect("nothing is staged");
    take(&mut store, 30, b"z").expect("what lies in the directory may be made again");
}
