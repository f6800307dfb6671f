//! What holds an object, and what becomes of it once nothing does.

use super::*;

/// The stages of a snapshot, in order.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub(super) enum At {
    Reserved,
    Created,
    HalfWritten,
    Finished,
    Staged,
    Verified,
}

const STAGES: [At; 6] =
    [At::Reserved, At::Created, At::HalfWritten, At::Finished, At::Staged, At::Verified];

/// A value of one stage.
pub(super) fn reach(
    store: &mut SnapshotStore,
    at: At,
    received: bool,
) -> Box<dyn std::any::Any + Send> {
    let bytes = payload(BLOCK + 5);
    let reserved = if received {
        store.reserve(&header(&desc(10, &bytes)))
    } else {
        store.reserve_local(local(10, 0, true))
    };
    let reservation = reserved.expect("there is space");
    if at == At::Reserved {
        return Box::new(reservation);
    }
    let mut writer = store.create(reservation).expect("a staging file");
    if at == At::Created {
        return Box::new(writer);
    }
    let count = if at == At::HalfWritten { BLOCK + 1 } else { bytes.len() };
    writer.write_all(&bytes[..count]).expect("it writes");
    if at == At::HalfWritten {
        return Box::new(writer);
    }
    let finished = writer.finish().expect("it is whole");
    if at == At::Finished {
        return Box::new(finished);
    }
    let staged = store.seal(finished).expect("it is sealed");
    if at == At::Staged {
        return Box::new(staged);
    }
    Box::new(staged.verify(&mut || ()).expect("it is good"))
}

type Value = Box<dyn std::any::Any + Send>;

/// A store with a value of each stage, received or local.
fn at_each_stage(mut check: impl FnMut(At, bool, Bed, Value)) {
    for (at, received) in STAGES.into_iter().flat_map(|at| [(at, true), (at, false)]) {
        let mut bed = Bed::new();
        let value = reach(&mut bed.store, at, received);
        check(at, received, bed, value);
    }
}

/// At every stage, even before the object has a name, the value keeps the object.
/// Covers G1 G2 G3.
#[test]
fn a_value_keeps_its_object_while_it_lives() {
    at_each_stage(|at, _, mut bed, value| {
        assert!(bed.budget.used() > 0, "{at:?} holds bytes");
        let newer = desc(99, b"newer");
        bed.store.list_durable(std::slice::from_ref(&newer), &[]);
        bed.store.collect();
        assert_eq!(bed.files().len(), usize::from(at > At::Reserved), "{at:?}");
        drop(value);
    });
}

/// Covers X1 X2 X15.
#[test]
fn a_value_dropped_at_any_stage_leaves_nothing() {
    at_each_stage(|at, _, mut bed, value| {
        drop(value);
        bed.store.collect();
        assert_eq!(bed.files(), [""; 0], "{at:?} left a name");
        assert_eq!(bed.budget.used(), 0, "{at:?} left bytes");
        assert_eq!(bed.budget.inbound(), 0, "{at:?} left its place taken");
    });
}

/// Dropping a value on another thread does no IO: the lane unlinks the file.
/// Covers X13.
#[test]
fn letting_go_is_no_io() {
    at_each_stage(|at, _, bed, value| {
        let ops = bed.fs.ops();
        std::thread::spawn(move || drop(value)).join().expect("a drop does not panic");
        assert_eq!(bed.fs.ops(), ops, "{at:?}");
    });
}

/// Covers I3.
#[test]
fn a_failed_attempt_is_in_nobodys_way() {
    at_each_stage(|_, received, mut bed, value| {
        drop(value);
        reach(&mut bed.store, At::Verified, received);
    });
}

/// A local and a received object have one name: the file is kept until both are dropped.
/// Covers G7.
#[test]
fn two_who_hold_one_object_hold_it_each() {
    let bytes = payload(100);
    let mut bed = Bed::new();
    let local = bed.take(10, &bytes);
    let reservation = bed.store.reserve(&header(&local.desc)).expect("there is space");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&bytes).expect("it writes");
    let received = bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed");
    assert_eq!(bed.files().len(), 1, "equal bytes are one object");
    drop(local);
    bed.store.collect();
    assert_eq!(bed.files().len(), 1, "the other still holds it");
    drop(received);
    bed.store.collect();
    assert_eq!((bed.files().len(), bed.budget.used()), (0, 0));
}

/// Another object of the same term and index has another name; equal bytes change nothing.
/// Covers G5 M5 I2.
#[test]
fn a_duplicate_never_changes_the_bytes_behind_a_name() {
    let mut bed = Bed::new();
    let mut first = bed.take(10, b"what the log is about to list");
    first.hold.disarm();
    let (path, before) = (bed.path(&first.desc), bed.fs.image());
    for bytes in [&b"what the log is about to list"[..], b"what another leader made of it"] {
        let reservation = bed.store.reserve(&header(&desc(10, bytes))).expect("there is space");
        let mut writer = bed.store.create(reservation).expect("a staging file");
        writer.write_all(bytes).expect("it writes");
        drop(bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed"));
    }
    assert_eq!(bed.fs.image()[&path], before[&path]);
    bed.store.list_durable(std::slice::from_ref(&first.desc), &[]);
    assert_eq!(bed.store.recoverable(&first.desc), Ok(()));
    assert_eq!(bed.files().len(), 1);
}

/// Collecting never takes the staging files of live writers.
/// Covers G9 O5.
#[test]
fn collecting_spares_writers_and_takes_the_rest() {
    for at in [At::Created, At::HalfWritten] {
        let mut bed = Bed::new();
        let listed = bed.take_listed(&[(3, b"old"), (5, b"new")]);
        let writer = reach(&mut bed.store, at, true);
        let collected = bed.store.list_durable(&listed[..1], &[]);
        assert_eq!(collected.removed.len(), 1, "{at:?}: the unlisted one is deleted");
        bed.store.tend(1 << 40);
        bed.store.collect();
        assert_eq!(bed.files().len(), 2, "{at:?}: the listed one and the writer's");
        drop(writer);
    }
}

/// Equal payloads at two indexes are two files.
/// Covers K14.
#[test]
fn objects_of_equal_payloads_are_apart() {
    let mut bed = Bed::new();
    let listed = bed.take_listed(&[(10, b"same"), (20, b"same")]);
    assert_eq!(listed[0].digest, listed[1].digest);
    for (kept, gone) in [(&listed[0], &listed[1]), (&listed[1], &listed[0])] {
        let mut bed = Bed::new();
        bed.take_listed(&[(10, b"same"), (20, b"same")]);
        bed.store.list_durable(std::slice::from_ref(kept), &[]);
        assert_eq!(bed.store.recoverable(kept), Ok(()));
        assert!(matches!(bed.store.recoverable(gone), Err(OpenError::Missing { .. })));
    }
}

/// A value that is leaked costs space until the next start, and not longer.
/// Covers X16.
#[test]
fn what_is_forgotten_goes_at_the_next_start() {
    for at in STAGES {
        let mut bed = Bed::new();
        let listed = bed.take_listed(&[(5, b"old")]);
        std::mem::forget(reach(&mut bed.store, at, true));
        bed.store.collect();
        let mut bed = Bed::reopen(bed.fs, &state(&listed));
        // A staging file that a transfer can resume is kept as suspended, not leaked.
        bed.store.abandon();
        assert_eq!(bed.files().len(), 1, "{at:?}");
        assert_eq!(bed.store.recoverable(&listed[0]), Ok(()), "{at:?}");
    }
}

/// Covers M4 K20.
#[test]
fn an_allocation_keeps_an_unlisted_object_until_it_is_dropped() {
    let mut bed = Bed::new();
    let old = bed.take_listed(&[(10, b"old")]).remove(0);
    let mut reader = bed.store.open_object(&old, Use::Verifying).expect("it opens");
    let new = bed.take(20, b"new").desc;
    bed.store.list_durable(std::slice::from_ref(&new), &[]);
    assert!(bed.store.list().iter().any(|object| !object.listed && object.in_use));
    let mut read = Vec::new();
    reader.read_to_end(&mut read).expect("unlisting does not hurt a reader");
    assert_eq!(read, b"old");
    drop(reader);
    bed.store.collect();
    assert_eq!(bed.files(), [ObjectName::of(&new).file()]);
}

/// Covers K1 M1 M2.
#[test]
fn deleting_spares_what_is_listed_in_use_or_on_its_way_to_the_log() {
    let mut bed = Bed::new();
    let first = bed.take_listed(&[(10, b"first")]).remove(0);
    let mut second = bed.take(20, b"second");
    let reader = bed.store.open_object(&first, Use::Verifying).expect("it opens");
    // The list of an older batch became durable: the second is in a later batch that is under way.
    second.hold.disarm();
    let second_desc = second.desc.clone();
    drop(second);
    bed.store.list_durable(std::slice::from_ref(&first), &[]);
    assert_eq!(bed.files().len(), 2, "dropping after disarm discards nothing");
    bed.store.list_durable(std::slice::from_ref(&second_desc), &[]);
    assert_eq!(bed.files().len(), 2, "the first is unlisted, but held");
    drop(reader);
    bed.store.list_durable(std::slice::from_ref(&second_desc), &[]);
    assert_eq!(bed.files(), [ObjectName::of(&second_desc).file()]);
    // Once listed, it is like any other object: unlisting deletes it.
    let collected = bed.store.list_durable(&[], &[]);
    assert_eq!(collected.removed, [ObjectName::of(&second_desc).file()]);
}

/// Covers K17.
#[test]
fn one_failing_deletion_does_not_stop_the_rest() {
    let mut bed = Bed::new();
    bed.take_listed(&[(10, b"a"), (20, b"b")]);
    bed.fs.fail_op(bed.fs.ops() + 1, DiskFault::Io);
    let collected = bed.store.list_durable(&[], &[]);
    assert_eq!((collected.removed.len(), collected.errors.len()), (1, 1), "{collected:?}");
    // The next call tries again, and only then are the bytes given back.
    assert!(bed.budget.used() > 0);
    bed.store.collect();
    assert_eq!((bed.files().len(), bed.budget.used()), (0, 0));
}

/// Reading back finds what the disk made of the bytes before the object is listed.
/// Covers K3 F3.
#[test]
fn a_sealed_object_is_read_back_before_it_is_listed() {
    let mut bed = Bed::new();
    let reservation = bed.store.reserve_local(local(10, 0, true)).expect("there is space");
    let mut writer = bed.store.create(reservation).expect("a staging file");
    writer.write_all(&payload(BLOCK + 5)).expect("it writes");
    let staged = bed.store.seal(writer.finish().expect("it is whole")).expect("it is sealed");
    let file = bed.files().remove(0);
    bed.fs.corrupt(&dir().join(file), BLOCK as u64 / 2).expect("the file is there");
    let bad = staged.verify(&mut || ()).expect_err("a bit rotted");
    assert!(bad.to_string().contains("checksum"), "{bad}");
    bed.store.collect();
    assert_eq!((bed.files().len(), bed.budget.used()), (0, 0));
}

/// On a filesystem that cannot reserve space, a large object is begun at once, without writing
/// zeros. Its bytes stay promised until they are written.
/// Covers P8.
#[test]
fn a_large_object_is_begun_at_once_where_nothing_can_be_reserved() {
    let mut bed = Bed::new();
    bed.fs.cannot_reserve();
    let mut large = desc(10, &payload(1000));
    large.length = 6 << 30;
    let reservation = bed.store.reserve(&header(&large)).expect("there is space");
    let before = bed.fs.ops();
    let writer = bed.store.create(reservation).expect("a staging file");
    assert!(bed.fs.ops() - before < 10, "{} operations", bed.fs.ops() - before);
    assert_eq!(bed.fs.image_names().len(), 1, "the staging file");
    drop(writer);
    bed.store.collect();
    assert_eq!(bed.files().len(), 0);
}
