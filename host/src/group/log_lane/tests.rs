//! The log lane, a step at a time, on the disk in memory.

use std::path::Path;

use bytes::Bytes;
use lockstep_core::ids::{NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::LogJob;
use raft::eraftpb::Entry;

use super::*;
use crate::fs::Fs as _;
use crate::fs::mem::MemFs;
use crate::wal::WalOptions;

const SEGMENT_BYTES: u64 = 8192;

fn writer(fs: &MemFs) -> LogWriter {
    let of = WalOptions::new([7; 16], NodeId(1), SEGMENT_BYTES, 5);
    let options = WalOptions { block_bytes: 512, spares: 1, ..of };
    let dir = Path::new("/d/wal");
    LogWriter::new(Wal::open(Arc::new(fs.clone()), dir, options).expect("a new log").0)
}

fn disk() -> MemFs {
    MemFs::with_dir(Path::new("/d"))
}

/// A job with entries of `bytes` bytes each.
fn job(group: u64, indexes: std::ops::Range<u64>, bytes: usize) -> LogJob {
    let data = Bytes::from(vec![7; bytes]);
    let entry = |index| Entry { index, term: 1, data: data.clone(), ..Entry::default() };
    let state = RecoveryState::blank("g", ReplicaId(group));
    LogJob { group: GroupId(group), state, entries: indexes.map(entry).collect() }
}

fn persisted(group: u64, seq: u64) -> LogOutput {
    LogOutput::Persisted { group: GroupId(group), seq }
}

/// Writes a round: the outputs of each of its batches, in order, and last those that belong to
/// none.
fn write(writer: &mut LogWriter, round: Vec<(u64, LogJob)>) -> Vec<Vec<LogOutput>> {
    let mut told = Vec::new();
    let rest = writer.write(round, &mut |outputs| told.push(outputs));
    told.push(rest.expect("the disk is well"));
    told
}

/// A refused job ends its group: later jobs of that group are not written, even if they fit. The
/// other groups go on.
#[test]
fn behind_a_refused_job_nothing_of_its_group_is_written() {
    let mut writer = writer(&disk());
    let mut write = |round| write(&mut writer, round).concat();
    assert_eq!(write(vec![(1, job(1, 1..3, 10))]), [persisted(1, 1)]);
    let outputs = write(vec![(2, job(1, 9..10, 10)), (1, job(2, 1..2, 10))]);
    let [other, LogOutput::Refused { group: GroupId(1), why }] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert!(why.contains("entries at 9"), "{why}");
    assert_eq!(*other, persisted(2, 1));
    let state_only = job(1, 0..0, 0);
    assert_eq!(write(vec![(3, state_only), (2, job(2, 2..3, 10))]), [persisted(2, 2)]);
    assert_eq!(writer.reader().last_index(GroupId(1)), Some(2));
}

/// Each job is reported with the batch that completes it, and waits for no later one. Batches are
/// cut across jobs: a job that begins in one batch and ends in the next is not reported before
/// that.
#[test]
fn each_job_is_told_with_its_batch() {
    let fs = disk();
    let mut writer = writer(&fs);
    // A batch holds half a segment.
    let round = vec![
        (1, job(1, 1..2, 100)),
        (1, job(2, 1..2, 100)),
        (2, job(1, 2..8, 900)),
        (2, job(2, 2..3, 100)),
        (3, job(2, 3..4, 3500)),
        (4, job(2, 4..4, 0)),
    ];
    let expected = [
        vec![persisted(1, 1), persisted(2, 1)],
        // This batch holds only a part of the third job.
        vec![],
        vec![persisted(1, 2), persisted(2, 2)],
        vec![persisted(2, 4)],
        vec![],
    ];
    let found = write(&mut writer, round);
    assert_eq!(found, expected);
    assert_eq!(writer.stats().batches - 1, 4 + 1, "and the head of a second segment");
}

/// Between a batch and its report nothing else is done on the disk: no file is made or removed.
#[test]
fn a_batch_does_not_wait_for_housekeeping() {
    let fs = disk();
    let mut writer = writer(&fs);
    let mut seen = Vec::new();
    for index in 1..40 {
        let state = RecoveryState { commit: index - 1, ..job(1, 0..0, 0).state };
        let mut round = job(1, index..index + 1, 2500);
        round.state = state;
        let (names, before) = (fs.list(Path::new("/d/wal")).expect("it is there"), fs.ops());
        let rest = writer.write(vec![(index, round)], &mut |_outputs| seen.push(fs.ops() - before));
        assert!(rest.expect("the disk is well").iter().all(|o| matches!(o, LogOutput::Space(_))));
        assert_eq!(fs.list(Path::new("/d/wal")).expect("it is there"), names);
        assert_eq!(fs.ops() - before, seen[seen.len() - 1], "nothing is done after the report");
        assert_eq!(writer.must_housekeep(), fs.ops() - before == 4, "a spare was taken");
        while writer.housekeep().expect("the disk is well").1 {}
        assert!(!writer.must_housekeep());
    }
    assert!(
        seen.iter().all(|ops| [2, 4].contains(ops)),
        "a write and a sync, or with a head: {seen:?}"
    );
    assert!(seen.contains(&4), "segments began");
}

/// If a read finds that a segment cannot be read, the groups that keep it are told.
#[test]
fn a_segment_that_cannot_be_read_is_told() {
    let fs = disk();
    let mut writer = writer(&fs);
    for (seq, first) in (1..).zip([1, 4, 7, 10, 13, 16, 19, 22]) {
        let round = vec![(seq, job(1, first..first + 3, 1000)), (seq, job(2, 1..1, 0))];
        write(&mut writer, round);
    }
    let reader = writer.reader();
    let (oldest, path) = reader.segments().swap_remove(0);
    assert!(oldest == 1 && reader.segments().len() > 2);
    fs.bad_sectors(&path, 512..SEGMENT_BYTES).expect("it is there");
    assert!(reader.entries(GroupId(1), 1, 2, 1).is_err());
    let outputs = writer.tend(&mut |_outputs| ()).expect("the disk can be written");
    let [LogOutput::Damaged { group: GroupId(1), below }] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(writer.keepers(&outputs, |group| group == GroupId(1)), [""; 0]);
    assert_eq!(writer.keepers(&outputs, |group| group == GroupId(2)), ["g"], "it may not run");
    assert!(reader.entries(GroupId(1), below, below + 1, 1).is_ok());
    assert!(reader.entries(GroupId(1), below - 1, below, 1).is_err());
}
