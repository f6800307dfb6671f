//! Tests of the log on the in-memory disk: a small model, and what survives crashes, failures and
//! corruption.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::ids::{Digest, GroupId, ModuleId, NodeId, ReplicaId};
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::snapshot::{Configuration, SnapshotDesc};
use lockstep_core::wal::LogJob;
use raft::eraftpb::Entry;

use super::{Appended, RecoveredGroup, Wal, WalError, WalOptions};
use crate::fs::Fs;
use crate::fs::mem::MemFs;

mod basics;
mod cleaning;
mod crash;
mod full;
mod random;
mod retention;
mod rot;

const SEGMENT_BYTES: u64 = 8192;
/// A sector of the in-memory disk.
const BLOCK_BYTES: u32 = 512;

type Recovered = BTreeMap<GroupId, RecoveredGroup>;

fn dir() -> PathBuf {
    PathBuf::from("/d/wal")
}

fn disk() -> MemFs {
    MemFs::with_dir(Path::new("/d"))
}

fn options() -> WalOptions {
    let (block_bytes, spares) = (BLOCK_BYTES, 1);
    let of = WalOptions::new([7; 16], NodeId(3), SEGMENT_BYTES, 5);
    WalOptions { block_bytes, spares, ..of }
}

fn open(fs: &MemFs) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(fs.clone()), &dir(), options())
}

fn open_well(fs: &MemFs) -> (Wal, Recovered) {
    open(fs).expect("the log is well")
}

/// A state whose log begins at `first` after an entry of term `previous`; committed to `commit`.
fn state(first: u64, previous: u64, commit: u64) -> RecoveryState {
    let mut state = RecoveryState::blank("g", ReplicaId(9));
    (state.first_index, state.previous_term, state.commit) = (first, previous, commit);
    state.term = previous;
    if first > 1 {
        state.snapshots.push(SnapshotDesc {
            term: previous,
            index: first - 1,
            length: 0,
            digest: Digest([0; 32]),
            module: ModuleId([0; 32]),
            format: 0,
            configuration: Configuration::default(),
        });
    }
    state
}

fn entries(range: std::ops::Range<u64>, term: u64, bytes: usize) -> Vec<Entry> {
    let data = |index: u64| Bytes::from(vec![(index + term) as u8; bytes]);
    let entry = |index| Entry { index, term, data: data(index), ..Entry::default() };
    range.map(entry).collect()
}

fn job(group: u64, state: RecoveryState, entries: Vec<Entry>) -> LogJob {
    LogJob { group: GroupId(group), state, entries }
}

impl Wal {
    /// Appends, then tidies as the log lane does while nothing else waits.
    fn append_and_tidy(&mut self, jobs: &[LogJob]) -> Result<Appended, WalError> {
        let appended = self.append(jobs, &mut |_| {})?;
        while self.housekeep()? {}
        Ok(appended)
    }
}

/// What a log should hold: the rules in their simplest form.
#[derive(Clone, PartialEq, Debug, Default)]
struct Model {
    groups: BTreeMap<GroupId, (RecoveryState, BTreeMap<u64, Entry>)>,
}

impl Model {
    fn apply(&mut self, jobs: &[LogJob]) {
        for LogJob { group, state, entries } in jobs {
            let known = self.groups.entry(*group);
            let (last_state, log) = known.or_insert_with(|| (state.clone(), BTreeMap::new()));
            let before = state.first_index - 1;
            let term = match log.get(&before) {
                Some(entry) => Some(entry.term),
                None if before + 1 == last_state.first_index => Some(last_state.previous_term),
                None => None,
            };
            if term != Some(state.previous_term) || state.replica != last_state.replica {
                log.clear();
            }
            log.retain(|index, _entry| *index > before);
            if let Some(first) = entries.first() {
                log.split_off(&first.index);
            }
            log.extend(entries.iter().map(|entry| (entry.index, entry.clone())));
            *last_state = state.clone();
        }
    }

    /// For messages: each group's boot, first and last index, and commit.
    fn brief(&self) -> String {
        let group = |(group, (state, log)): (&GroupId, &(RecoveryState, BTreeMap<u64, Entry>))| {
            let last = state.first_index - 1 + log.len() as u64;
            let RecoveryState { boot, first_index, commit, .. } = state;
            format!("[{group:?} boot {boot}, {first_index}..={last}, commit {commit}]")
        };
        self.groups.iter().map(group).collect()
    }

    /// Reads a whole log back as a model.
    fn of(wal: &Wal, recovered: &Recovered) -> Self {
        let mut groups = BTreeMap::new();
        for (group, found) in recovered {
            let (first, end) = (found.state.first_index, found.last_index + 1);
            let read = wal.reader().entries(*group, first, end, u64::MAX);
            let read = read.expect("live entries are readable");
            assert_eq!(read.len() as u64, end - first, "all entries up to the last are there");
            for (index, term) in read.iter().map(|entry| (entry.index, entry.term)) {
                let run = found.terms.iter().rev().find(|run| run.0 <= index);
                assert_eq!(run.map(|run| run.1), Some(term), "term at {index} of {group}");
            }
            assert_eq!(found.terms[0], (first - 1, found.state.previous_term));
            let log = read.into_iter().map(|entry| (entry.index, entry)).collect();
            groups.insert(*group, (found.state.clone(), log));
        }
        Self { groups }
    }
}

/// A step in the scripted life of a log. Each append is small enough for one batch.
enum Step {
    Append(Vec<LogJob>),
    Seal,
    Reopen,
}

/// The model before the first step and after each one.
fn models(steps: &[Step]) -> Vec<Model> {
    let mut models = vec![Model::default()];
    for step in steps {
        let mut next = models.last().expect("the first is there").clone();
        match step {
            Step::Append(jobs) => next.apply(jobs),
            Step::Seal | Step::Reopen => {}
        }
        models.push(next);
    }
    models
}

/// Writes the pending batches, now that there is space again.
fn go_on(wal: &mut Wal) -> Result<(), WalError> {
    wal.ensure_reserve()?;
    wal.resume(&mut |_| {})
}

/// Runs steps until one fails. Returns how many succeeded, the log if one was open, and the error.
fn run(fs: &MemFs, steps: &[Step]) -> (usize, Option<Wal>, Option<WalError>) {
    let mut wal = match open(fs) {
        Ok((wal, _recovered)) => wal,
        Err(error) => return (0, None, Some(error)),
    };
    for (at, step) in steps.iter().enumerate() {
        let done = match step {
            Step::Append(jobs) => wal.append_and_tidy(jobs).map(drop),
            Step::Seal => wal.seal_idle().map(drop),
            Step::Reopen => {
                drop(wal);
                match open(fs) {
                    Ok((opened, _recovered)) => wal = opened,
                    Err(error) => return (at, None, Some(error)),
                }
                Ok(())
            }
        };
        if let Err(error) = done {
            return (at, Some(wal), Some(error));
        }
    }
    (steps.len(), Some(wal), None)
}

/// Several groups over several segments: appends, conflicts, truncation, a reset by a snapshot, an
/// idle group, a replica that begins anew, seals and restarts.
fn scenario() -> Vec<Step> {
    use Step::{Append, Reopen, Seal};
    let mut steps = vec![
        Append(vec![job(1, state(1, 0, 0), vec![]), job(2, state(1, 0, 0), vec![])]),
        Append(vec![job(1, state(1, 0, 0), entries(1..4, 1, 40))]),
        Append(vec![
            job(2, state(1, 0, 1), entries(1..3, 1, 30)),
            job(1, state(1, 0, 2), entries(4..6, 2, 50)),
            job(1, state(1, 0, 2), entries(5..8, 3, 20)),
        ]),
        Seal,
        Append(vec![job(3, state(1, 0, 0), entries(1..2, 1, 200))]),
        Reopen,
    ];
    for round in 0..6 {
        let first = 8 + round * 2;
        let add = entries(first..first + 2, 4, 300);
        steps.push(Append(vec![job(1, state(1, 0, first - 1), add)]));
    }
    steps.push(Append(vec![job(1, state(15, 4, 19), vec![])]));
    steps.push(Seal);
    for round in 0..8 {
        let first = 2 + round;
        let add = entries(first..first + 1, 5, 700);
        steps.push(Append(vec![job(3, state(1, 0, first - 1), add)]));
    }
    steps.push(Append(vec![
        job(3, state(31, 9, 30), vec![]),
        job(2, state(1, 0, 2), entries(3..4, 6, 10)),
    ]));
    steps.push(Reopen);
    let mut anew = state(1, 0, 0);
    anew.replica = ReplicaId(77);
    steps.push(Append(vec![job(1, anew.clone(), entries(1..2, 1, 900))]));
    for first in 31..36 {
        let add = entries(first..first + 1, 9, 800);
        steps.push(Append(vec![job(3, state(31, 9, first - 1), add)]));
    }
    steps.push(Append(vec![job(3, state(35, 9, 35), vec![]), job(1, anew, vec![])]));
    steps.push(Seal);
    steps
}

/// The files of the segments, oldest first.
fn wal_files(wal: &Wal) -> Vec<PathBuf> {
    let segments = wal.shared.segments();
    segments.values().map(|segment| segment.path().to_owned()).collect()
}

/// Every file in the directory.
fn all_files(fs: &MemFs) -> Vec<String> {
    fs.list(&dir()).expect("the directory is there")
}
