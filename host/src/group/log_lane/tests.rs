//! The log lane, a step at a time, on the disk in memory.

use std::path::Path;

use bytes::Bytes;
use lockstep_core::ids::{NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::LogJob;
use raft::eraftpb::Entry;

use super::*;
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

/// A job of a group's entries, of so many bytes each.
fn job(group: u64, indexes: std::ops::Range<u64>, bytes: usize) -> LogJob {
    let data = Bytes::from(vec![7; bytes]);
    let entry = |index| Entry { index, term: 1, data: data.clone(), ..Entry::default() };
    let state = RecoveryState::unfounded("g", ReplicaId(group));
    LogJob { group: GroupId(group), state, entries: indexes.map(entry).collect() }
}

fn persisted(group: u64, seq: u64) -> LogOutput {
    LogOutput::Persisted { group: GroupId(group), seq }
}

/// E12: a refused job ends its group. What that had queued behind it is not written, not even if it
/// fits; the others go on.
#[test]
fn behind_a_refused_job_nothing_of_its_group_is_written() {
    let mut writer = writer(&disk());
    let mut write = |round| writer.write(round).expect("the disk is well");
    assert_eq!(write(vec![(1, job(1, 1..3, 10))]), [persisted(1, 1)]);
    let outputs = write(vec![(2, job(1, 9..10, 10)), (1, job(2, 1..2, 10))]);
    let [LogOutput::Refused { group: GroupId(1), why }, other] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert!(why.contains("entries at 9"), "{why}");
    assert_eq!(*other, persisted(2, 1));
    let state_only = job(1, 0..0, 0);
    assert_eq!(write(vec![(3, state_only), (2, job(2, 2..3, 10))]), [persisted(2, 2)]);
    assert_eq!(writer.reader().last_index(GroupId(1)), Some(2));
}
