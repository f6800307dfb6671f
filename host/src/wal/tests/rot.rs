//! Damaged logs: corruption is told from a torn tail, and a corrupt log is not touched.

use lockstep_core::wal::record::{BatchBuilder, BatchPlace, FileHeader};

use super::*;
use crate::fs::mem::{DiskFault, LateFull};

/// A log in one segment: three batches of one entry, then what `last` does. Returns where each
/// batch begins, and where the last one ends.
fn log(last: impl FnOnce(&mut Wal)) -> (MemFs, PathBuf, Vec<u64>) {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let mut begins = vec![wal.end];
    for index in 1..4 {
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(index..index + 1, 1, 30))])
            .expect("space");
        begins.push(wal.end);
    }
    last(&mut wal);
    (fs, dir().join("0000000000000001.wal"), begins)
}

fn last_index(recovered: &Recovered) -> u64 {
    recovered.get(&GroupId(1)).map_or(0, |group| group.last_index)
}

/// Opening reports corruption, names the file, and leaves the directory as it was.
fn check_corrupt(fs: &MemFs, path: &Path, story: &str) {
    let image = fs.image();
    match open(fs) {
        Err(WalError::Corrupt { path: named, .. }) => assert_eq!(named, path, "{story}"),
        Err(other) => panic!("{story}: {other}"),
        Ok((_wal, found)) => panic!("{story}: opened up to {}", last_index(&found)),
    }
    assert!(fs.image() == image, "{story}: nothing is touched");
}

#[test]
fn a_flipped_bit_before_the_last_batch_is_corruption() {
    let (_fs, _path, begins) = log(|_wal| {});
    // The rest of the header's block is not used.
    for offset in (0..64).chain(512..begins[2]) {
        let (fs, path, _begins) = log(|_wal| {});
        fs.corrupt(&path, offset).expect("the file is there");
        check_corrupt(&fs, &path, &format!("bit of byte {offset}"));
    }
}

#[test]
fn a_flipped_bit_in_the_last_batch_is_a_torn_tail_and_the_log_goes_on_over_it() {
    let (_fs, _path, begins) = log(|_wal| {});
    for offset in begins[2]..begins[3] {
        let (fs, path, _begins) = log(|_wal| {});
        fs.corrupt(&path, offset).expect("the file is there");
        let (mut wal, found) = open_well(&fs);
        assert_eq!(last_index(&found), 2, "bit of byte {offset}");
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(3..5, 2, 9))])
            .expect("there is space");
        assert_eq!(wal.stats().segments, 1, "nothing is rolled for it");
        drop(wal);
        assert_eq!(last_index(&open_well(&fs).1), 4);
    }
}

/// Covers U2.
#[test]
fn a_torn_tail_stays_one_as_long_as_its_segment_stays() {
    let (fs, path, begins) = log(|_wal| {});
    fs.corrupt(&path, begins[2]).expect("the file is there");
    for life in 0..3 {
        let (mut wal, found) = open_well(&fs);
        assert_eq!(last_index(&found), 2 + life);
        let add = entries(3 + life..4 + life, 1, 600);
        wal.append_and_tidy(&[job(1, state(1, 0, 0), add)]).expect("there is space");
    }
}

#[test]
fn behind_a_seal_rot_in_the_last_batch_is_corruption_too() {
    let (_fs, _path, begins) = log(|_wal| {});
    let seal = |wal: &mut Wal| {
        assert!(wal.seal_idle().expect("there is space"));
        assert!(!wal.seal_idle().expect("there is nothing to do"));
    };
    for offset in begins[2]..begins[3] {
        let (fs, path, _begins) = log(seal);
        fs.corrupt(&path, offset).expect("the file is there");
        check_corrupt(&fs, &path, &format!("bit of byte {offset}"));
    }
    let (fs, path, begins) = log(seal);
    fs.corrupt(&path, begins[3] + 1).expect("the file is there");
    assert_eq!(last_index(&open_well(&fs).1), 3, "damage to the seal loses nothing");
}

/// Batch k is corrupt, and a crash tore batch k+1 after it: the header of batch k+1 shows that k
/// was durable.
#[test]
fn the_head_of_a_torn_batch_proves_the_one_before_it() {
    for (torn, from) in [("end", 100), ("whole body", 56)] {
        let (_fs, _path, begins) = log(|_wal| {});
        for offset in begins[1]..begins[2] {
            let (fs, path, _begins) = log(|_wal| {});
            fs.corrupt(&path, offset).expect("the file is there");
            let zeros = vec![0; (begins[3] - begins[2] - from) as usize];
            let file = fs.open(&path, true).expect("it is there");
            file.write_at(&zeros, begins[2] + from)
                .and_then(|()| file.sync())
                .expect("the disk works");
            check_corrupt(&fs, &path, &format!("bit of byte {offset}, {torn} of the next torn"));
        }
    }
}

/// No block that holds a part of an acknowledged batch is written again.
#[test]
fn batches_share_no_block() {
    let (_fs, _path, begins) = log(|_wal| {});
    assert!(begins.iter().all(|at| at % u64::from(BLOCK_BYTES) == 0), "{begins:?}");
}

#[test]
fn a_restarted_log_is_sealed_as_well() {
    let (fs, _path, _begins) = log(|_wal| {});
    let (mut wal, _found) = open_well(&fs);
    assert!(wal.seal_idle().expect("there is space"));
    drop(wal);
    let (mut wal, _found) = open_well(&fs);
    assert!(!wal.seal_idle().expect("there is nothing to do"));
}

#[test]
fn a_cut_file_is_corruption_wherever_it_was_cut() {
    for len in (0..SEGMENT_BYTES).step_by(13) {
        let (fs, path, _begins) = log(|_wal| {});
        fs.cut(&path, len).expect("the file is there");
        check_corrupt(&fs, &path, &format!("cut to {len} bytes"));
    }
}

/// A log of three segments that all hold live entries.
fn long_log() -> (MemFs, Vec<PathBuf>) {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let mut index = 1;
    while wal.stats().segments < 3 {
        wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(index..index + 1, 1, 500))])
            .expect("space");
        index += 1;
    }
    let files = wal_files(&wal);
    assert_eq!(files.len(), 3);
    (fs, files)
}

#[test]
fn rot_in_an_older_segment_is_corruption_up_to_its_last_batch() {
    let (fs, files) = long_log();
    let image = fs.image();
    let used =
        image[&files[0]].iter().rposition(|byte| *byte != 0).expect("it is not empty") as u64;
    for offset in (0..=used).rev().step_by(7).filter(|at| !(64..512).contains(at)) {
        let (fs, files) = long_log();
        fs.corrupt(&files[0], offset).expect("the file is there");
        check_corrupt(&fs, &files[0], &format!("bit of byte {offset}"));
    }
}

#[test]
fn a_missing_renamed_or_copied_segment_is_corruption() {
    let (fs, files) = long_log();
    fs.remove(&files[1]).expect("the file is there");
    check_corrupt(&fs, &files[2], "the middle one is missing");

    let (fs, files) = long_log();
    fs.remove(&files[0]).expect("the file is there");
    check_corrupt(&fs, &files[1], "the oldest one is missing, and entries with it");

    let (fs, files) = long_log();
    fs.rename(&files[2], &dir().join("0000000000000004.wal")).expect("the file is there");
    check_corrupt(&fs, &dir().join("0000000000000004.wal"), "the last one has another's name");

    let (fs, files) = long_log();
    let bytes = fs.image()[&files[0]].clone();
    fs.open(&files[1], true).and_then(|f| f.write_at(&bytes[512..2048], 512)).expect("it is there");
    check_corrupt(&fs, &files[1], "batches were copied from another segment");
}

#[test]
fn rot_below_a_reader_is_an_error_and_not_an_entry() {
    let (fs, path, begins) = log(|_wal| {});
    let (wal, _found) = open_well(&fs);
    let reader = wal.reader();
    let place = wal.shared.groups()[&GroupId(1)].extents().from(2).next().expect("entry 2").1.place;
    assert!((begins[1]..begins[2]).contains(&place.offset));
    fs.corrupt(&path, place.offset + 40).expect("the file is there");
    let read = reader.entries(GroupId(1), 2, 3, 99);
    assert!(matches!(read, Err(WalError::Corrupt { .. })), "{read:?}");
    assert_eq!(reader.entries(GroupId(1), 3, 4, 99).expect("it is well").len(), 1);
}

/// A log of one batch that holds a state with these bytes; all checksums are good.
fn log_of_a_state(state: &[u8]) -> (MemFs, PathBuf) {
    let (fs, path, _begins) = log(|_wal| {});
    let bytes = fs.image()[&path].clone();
    let head = bytes[..64].try_into().expect("a file has a header");
    let header = FileHeader::decode(head).expect("it was just written");
    let place = BatchPlace { number: 1, segment: 1, previous: 0, oldest: 1 };
    let mut batch = BatchBuilder::new(&header, place);
    batch.state(GroupId(1), state, false);
    let mut whole = batch.finish();
    whole.resize(bytes.len() - 512, 0);
    let file = fs.open(&path, true).expect("it is there");
    file.write_at(&whole, 512).expect("there is space");
    file.sync().expect("the disk is well");
    (fs, path)
}

fn encoded(state: &RecoveryState) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.encode(&mut bytes);
    bytes
}

/// A state that is impossible although its checksums are good is corruption: it is not repaired by
/// guesses.
#[test]
fn a_state_that_breaks_its_own_rules_is_corruption() {
    assert!(open(&log_of_a_state(&encoded(&state(1, 0, 0))).0).is_ok(), "this one is good");
    let mut without_snapshot = state(9, 1, 9);
    without_snapshot.snapshots.clear();
    let mut uncommitted_floor = state(1, 0, 3);
    uncommitted_floor.floor = 4;
    let short = encoded(&state(1, 0, 0)).split_off(1);
    let longer = [encoded(&state(1, 0, 0)), vec![0]].concat();
    for bad in [encoded(&without_snapshot), encoded(&uncommitted_floor), short, longer] {
        let (fs, path) = log_of_a_state(&bad);
        check_corrupt(&fs, &path, "a state that cannot be");
    }
}

/// Data of a later version is not reported as damage, so that it is not thrown away.
#[test]
fn a_state_of_a_later_version_is_newer_and_not_corrupt() {
    let mut bytes = encoded(&state(1, 0, 0));
    bytes[0] = 9;
    let (fs, _path) = log_of_a_state(&bytes);
    let image = fs.image();
    let said = open(&fs).err().expect("it is newer").to_string();
    for word in ["recovery state of version 9", "knows 3", "touched", "start the newer program"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(fs.image() == image, "nothing is touched");
}

/// Damage that is found in a deleted segment says nothing about the log: no start would read it.
#[test]
fn damage_of_a_segment_that_went_is_forgotten() {
    let (fs, files) = long_log();
    let (mut wal, _found) = open_well(&fs);
    let late = Arc::clone(&wal.shared.segments()[&1]);
    let (from, extent) = {
        let groups = wal.shared.groups();
        groups[&GroupId(1)].extents().in_segment(1).next().expect("it holds something")
    };
    let place = extent.place;
    fs.corrupt(&files[0], place.offset + 40).expect("the file is there");
    assert!(wal.reader().entries(GroupId(1), from, from + 1, 99).is_err());
    assert_eq!((wal.stats().damaged, wal.damaged().len()), (1, 1));
    let last = wal.reader().last_index(GroupId(1)).expect("it is there");
    wal.append_and_tidy(&[job(1, state(last, 1, last), vec![])]).expect("there is space");
    assert!(!fs.has(&files[0]), "a file that is not to be trusted is not used again");
    assert!(late.entries(GroupId(1), &place).is_err());
    assert!(!wal.shared.note_damage(1), "it is gone");
    assert_eq!((wal.stats().damaged, wal.damaged().len()), (0, 0));
}

/// A power loss undoes a removal that is not durable, and a start would refuse a file with a
/// corrupt header. So the segment is forgotten only once its file is gone for good.
#[test]
fn a_corrupt_file_that_was_removed_does_not_come_back() {
    let (fs, files) = long_log();
    let (mut wal, _found) = open_well(&fs);
    fs.corrupt(&files[0], 0).expect("the file is there");
    let last = wal.reader().last_index(GroupId(1)).expect("it is there");

    // While the directory cannot be synced for lack of space, the segment stays in the log.
    fs.set_late_full(LateFull { sync_dir: true, ..LateFull::default() });
    wal.files.settle_names().expect("there is space");
    fs.set_capacity(1);
    wal.append_and_tidy(&[job(1, state(last, 1, last), vec![])]).expect("it fits in place");
    assert!(wal.shared.segments().contains_key(&1), "its file may come back");

    fs.set_capacity(1 << 30);
    while wal.housekeep().expect("there is space") {}
    assert!(!wal.shared.segments().contains_key(&1) && !fs.has(&files[0]));
    drop(wal);
    fs.crash();
    assert_eq!(open_well(&fs).1[&GroupId(1)].last_index, last);
}

/// A sector that cannot be read is damage, as a corrupt one is, in a read as well as in a scrub. A
/// lack of descriptors to read it is not.
#[test]
fn what_cannot_be_read_is_damage_and_a_shortage_is_none() {
    let (fs, files) = long_log();
    let (mut wal, _found) = open_well(&fs);
    let (from, extent) = {
        let groups = wal.shared.groups();
        groups[&GroupId(1)].extents().in_segment(1).next().expect("it holds something")
    };
    let reader = wal.reader();
    let read = || reader.entries(GroupId(1), from, from + 1, 99);
    let next_read_lacks_descriptors = || fs.fail_read(fs.reads() + 1, DiskFault::Descriptors);
    next_read_lacks_descriptors();
    assert!(read().expect_err("it cannot be read").is_short());
    next_read_lacks_descriptors();
    assert!(reader.scrub(&mut |_bytes| ()).is_empty());
    assert_eq!(wal.damaged().len(), 0);

    fs.bad_sectors(&files[0], extent.place.offset..extent.place.offset + 1).expect("it is there");
    let failed = read().expect_err("it cannot be read");
    assert!(matches!(failed, WalError::Io { .. }), "{failed}");
    assert_eq!(wal.damaged().into_iter().collect::<Vec<_>>(), [1]);
    assert_eq!(reader.scrub(&mut |_bytes| ()).len(), 1);
    let last = reader.last_index(GroupId(1)).expect("it is there");
    wal.append_and_tidy(&[job(1, state(last, 1, last), vec![])]).expect("there is space");
    assert!(!fs.has(&files[0]), "its file is not used again");
    drop(wal);
    assert_eq!(open_well(&fs).1[&GroupId(1)].last_index, last);

    // The scrubber alone finds it, too.
    let (fs, files) = long_log();
    let (wal, _found) = open_well(&fs);
    fs.bad_sectors(&files[0], 512..513).expect("it is there");
    assert_eq!(wal.reader().scrub(&mut |_bytes| ()).len(), 1);
    assert_eq!(wal.damaged().len(), 1);
}

/// Damage in the segment that is being written. The next batch begins another one, however little
/// is written, so that the damaged one can be deleted and a start does not refuse the log.
#[test]
fn a_damaged_segment_is_written_no_more_and_goes() {
    let (fs, path, _begins) = log(|_wal| {});
    let (mut wal, _found) = open_well(&fs);
    let first = wal.active.number();
    wal.seal_idle().expect("there is space");
    assert!(!wal.seal_idle().expect("it is sealed"), "there is nothing to do");
    let place = wal.shared.groups()[&GroupId(1)].extents().from(2).next().expect("entry 2").1.place;
    fs.corrupt(&path, place.offset + 40).expect("the file is there");
    assert!(wal.reader().entries(GroupId(1), 2, 3, 99).is_err());
    assert_eq!(wal.damaged().len(), 0, "nothing can be done about it yet");

    assert!(wal.seal_idle().expect("there is space"), "another segment begins");
    assert_eq!(wal.damaged().into_iter().collect::<Vec<_>>(), [first]);
    let last = wal.reader().last_index(GroupId(1)).expect("it is there");
    assert_eq!(wal.live_up_to(first), [(GroupId(1), last + 1)]);
    wal.append_and_tidy(&[job(1, state(last + 1, 1, last), vec![])]).expect("there is space");
    assert!(!fs.has(&path) && wal.stats().damaged == 0);
    drop(wal);
    assert_eq!(open_well(&fs).1[&GroupId(1)].last_index, last);
}

/// Nothing that a spare holds is needed, so that a start does not read more of it than its head.
#[test]
fn a_bad_sector_in_a_spare_keeps_no_log_from_opening() {
    let (fs, files) = long_log();
    let (mut wal, _found) = open_well(&fs);
    let last = wal.reader().last_index(GroupId(1)).expect("it is there");
    wal.append_and_tidy(&[job(1, state(last, 1, last), vec![])]).expect("there is space");
    let spare = wal.spares.iter().map(|spare| spare.path.clone()).find(|path| files.contains(path));
    let spare = spare.expect("a segment that was deleted left its file");
    assert!(wal.seal_idle().expect("there is space"), "the last batch says where the log begins");
    drop(wal);
    let length = fs.image()[&spare].len() as u64;
    fs.bad_sectors(&spare, length / 2..length).expect("it is there");
    assert_eq!(open_well(&fs).1[&GroupId(1)].last_index, last);
}
