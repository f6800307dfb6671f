//! What an append returns, what is refused, and what a reader sees.

use super::*;

#[test]
fn what_was_appended_is_found_after_a_restart() {
    let fs = disk();
    let steps = scenario();
    let (done, wal, error) = run(&fs, &steps);
    assert!(error.is_none(), "step {done}: {error:?}");
    assert!(wal.expect("it is open").stats().batches > 0);
    let (wal, recovered) = open_well(&fs);
    assert_eq!(Model::of(&wal, &recovered), models(&steps)[steps.len()]);
}

#[test]
fn one_append_is_one_write_and_one_sync_however_many_groups() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let before = (wal.stats().fsyncs, fs.ops());
    let jobs: Vec<_> =
        (1..6).map(|group| job(group, state(1, 0, 0), entries(1..3, 1, 9))).collect();
    let appended = wal.append_and_tidy(&jobs).expect("there is space");
    assert_eq!((appended.syncs, wal.stats().fsyncs, fs.ops()), (1, before.0 + 1, before.1 + 2));
    assert_eq!(wal.append_and_tidy(&[]).expect("nothing to do").syncs, 0);
}

#[test]
fn small_batches_fill_a_new_file_sixteen_blocks_at_once_and_one_that_was_used_not() {
    let fs = disk();
    let options = WalOptions { segment_bytes: 4 * SEGMENT_BYTES, ..options() };
    let (mut wal, _none) = Wal::open(Arc::new(fs.clone()), &dir(), options).expect("it begins");
    let block = u64::from(BLOCK_BYTES);
    let mut written = Vec::new();
    for index in 1..200 {
        // Older entries are not needed.
        let state = state(index, 1.min(index - 1), index - 1);
        let job = job(1, state, entries(index..index + 1, 1, 100));
        let segment = wal.active.number();
        let appended = wal.append_and_tidy(&[job]).expect("there is space");
        if segment == wal.active.number() {
            written.push((segment, appended.bytes));
        }
    }
    let of = |number| written.iter().filter(move |(segment, _)| *segment == number);
    let first: Vec<u64> = of(1).map(|(_, bytes)| *bytes).collect();
    // The header and the head have already begun the first sixteen blocks.
    assert!(first[..12].iter().all(|bytes| *bytes == block), "{first:?}");
    assert_eq!(first.iter().filter(|bytes| **bytes > block).count(), 3, "{first:?}");
    let last: Vec<u64> = of(wal.active.number() - 1).map(|(_, bytes)| *bytes).collect();
    assert!(last.iter().all(|bytes| *bytes == block), "the file was used before: {last:?}");
}

#[test]
fn a_job_larger_than_a_batch_is_cut_and_each_part_is_a_state_of_its_own() {
    let jobs = [job(1, state(1, 0, 11), entries(1..13, 1, 400))];
    let mut total = 0;
    for halt in 0..64 {
        let fs = disk();
        let (mut wal, _none) = open_well(&fs);
        fs.halt_after(fs.ops() + halt);
        let done = wal.append_and_tidy(&jobs).is_ok();
        fs.crash();
        let (wal, recovered) = open_well(&fs);
        let log = Model::of(&wal, &recovered).groups;
        let Some((state, log)) = log.get(&GroupId(1)) else {
            assert!(!done);
            continue;
        };
        assert!(state.commit <= log.len() as u64, "commit is covered after {halt} operations");
        if done {
            assert_eq!((log.len(), state.commit), (12, 11));
            total += 1;
        }
    }
    assert!(total > 0, "the append ends in time");
}

#[test]
fn a_job_that_does_not_fit_is_refused_and_nothing_is_written() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let well = job(1, state(1, 0, 0), entries(1..4, 2, 9));
    wal.append_and_tidy(std::slice::from_ref(&well)).expect("there is space");
    let mut check = |bad: LogJob, expect: &str| {
        let image = fs.image();
        let error =
            wal.append_and_tidy(&[well.clone(), bad]).expect_err("it does not fit").to_string();
        assert!(error.contains(expect), "{error}");
        assert!(error.contains("nothing was written") && fs.image() == image);
    };
    check(job(1, state(1, 0, 0), entries(5..6, 2, 9)), "entries at 5, outside of 1..=4");
    check(job(1, state(1, 0, 0), entries(4..5, 1, 9)), "term 1 at 4 after term 2");
    check(job(1, state(1, 0, 4), vec![]), "commit 4 is beyond the last entry 3");
    check(job(1, state(1, 0, 0), entries(4..5, 2, 9000)), "a batch holds 4096");
    let mut unlisted = state(3, 2, 3);
    unlisted.snapshots.clear();
    check(job(1, unlisted, vec![]), "no snapshot is listed, but the log starts at 3");
    wal.append_and_tidy(&[job(1, state(1, 0, 3), entries(4..5, 2, 9))])
        .expect("it is not poisoned");
}

#[test]
fn a_reader_gets_what_it_asks_for_or_hears_why_not() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    let reader = wal.reader();
    for index in 1..12 {
        let job = job(1, state(1, 0, 0), entries(index..index + 1, 1, 100));
        wal.append_and_tidy(&[job]).expect("there is space");
    }
    wal.append_and_tidy(&[job(1, state(5, 1, 5), entries(12..15, 1, 100))])
        .expect("there is space");
    let read = |from, to, bytes| {
        let read = reader.entries(GroupId(1), from, to, bytes)?;
        Ok::<Vec<u64>, WalError>(read.iter().map(|entry| entry.index).collect())
    };
    let ok = |range: std::ops::Range<u64>| range.collect::<Vec<_>>();
    assert_eq!(read(5, 15, u64::MAX).expect("it is there"), ok(5..15));
    assert_eq!(read(13, 14, u64::MAX).expect("it is there"), ok(13..14));
    assert_eq!(read(6, 15, 250).expect("it is there"), ok(6..8));
    assert_eq!(read(6, 15, 0).expect("one at least"), ok(6..7));
    assert_eq!(read(15, 15, 0).expect("nothing was asked for"), ok(0..0));
    let compacted = read(4, 15, 9).expect_err("it is gone");
    assert!(matches!(compacted, WalError::Compacted { first_index: 5, .. }));
    let beyond = read(5, 16, 9).expect_err("it is not there");
    assert!(matches!(beyond, WalError::Unavailable { index: 15, last_index: 14, .. }));
    let unknown = reader.entries(GroupId(2), 1, 2, 9).expect_err("it is not there");
    assert!(matches!(unknown, WalError::UnknownGroup { .. }));
}

#[test]
fn a_reader_sees_nothing_of_a_batch_that_failed() {
    let fs = disk();
    let (mut wal, _none) = open_well(&fs);
    wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(1..3, 1, 9))]).expect("there is space");
    fs.fail_op(fs.ops() + 2, crate::fs::mem::DiskFault::Io);
    wal.append_and_tidy(&[job(1, state(1, 0, 0), entries(3..4, 1, 9))])
        .expect_err("the sync fails");
    let read = wal.reader().entries(GroupId(1), 3, 4, 99);
    assert!(matches!(read, Err(WalError::Unavailable { .. })), "{read:?}");
}

#[test]
fn a_foreign_or_newer_log_is_left_alone() {
    let fs = disk();
    drop(open_well(&fs));
    let image = fs.image();
    let open = |options| Wal::open(Arc::new(fs.clone()), &dir(), options).map(drop);
    let node = open(WalOptions { node: NodeId(4), ..options() }).expect_err("another node");
    assert!(node.to_string().contains("belongs to node 3 of cluster 0707"), "{node}");
    let cluster = open(WalOptions { cluster: [8; 16], ..options() }).expect_err("another cluster");
    assert!(matches!(cluster, WalError::Foreign { .. }));
    assert_eq!(fs.image(), image);

    let path = dir().join("0000000000000001.wal");
    let mut header = image[&path][..64].to_vec();
    header[8] = 3;
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    fs.open(&path, true).and_then(|file| file.write_at(&header, 0)).expect("it is there");
    let image = fs.image();
    let newer = open(options()).expect_err("a newer format");
    assert!(newer.to_string().contains("log format 3, this program knows 2"), "{newer}");
    assert_eq!(fs.image(), image);
}
