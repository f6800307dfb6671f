//! The log of a node: one chain of segments for all groups, one write and one sync a batch.
//!
//! Owns `<data>/wal/`: files `<number:016x>.wal`, made once and used again and again. The active
//! one holds the newest segment, a few *spares* hold none that counts and wait to be the next.
//! The bytes and what they mean are `lockstep_core::wal`'s; which jobs share a batch is the log
//! lane's.
//!
//! - What [`Wal::append`] returned `Ok` for is found by every later [`Wal::open`], whole, in order.
//! - Batch k+1 is written after batch k is durable, and into blocks of its own. So a bad batch with
//!   the head of a later one behind it was damaged later: corruption, and nothing is touched. A bad
//!   last batch is a torn tail: it was never acknowledged, and the log goes on over it.
//! - A segment begins with its head, every group's state: one sync, no new name, no new block. A
//!   segment counts from the moment its head is durable, so that older ones can go without a state
//!   being lost.
//! - A segment goes when no live entry stands in it and all older ones are gone. Nothing is written
//!   for it: the file becomes a spare, or is removed, and the next batch names the oldest segment
//!   that counts. What keeps the oldest one is moved if it is little, or if the log takes more than
//!   twice what lives in it; no faster than a quarter of what is appended, and never by an append.
//! - After a failure nothing is tried again: the log is poisoned. Only what is *short* (room,
//!   descriptors, memory) leaves it as it was, at whichever operation it shows: what could not be
//!   written yet waits inside ([`WalError::Full`], [`Wal::resume`]).
//! - A *shortage* is told before that happens: when the last spare but one cannot be replaced there
//!   are still a segment and a spare for what is under way.
//! - The index holds a few words per record of entries, shared with [`WalReader`]s, and never
//!   speaks of entries that are not durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::fault::Shortage;
use lockstep_core::ids::{GroupId, NodeId};
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use lockstep_core::recovery_state::RecoveryState;
use lockstep_core::wal::LogJob;
use lockstep_core::wal::replay::GroupLog;

use prometheus_client::metrics::histogram::Histogram;

use self::files::Files;
use self::plan::Plan;
use self::segment::{LogFile, Segment};
use self::shared::Shared;
use crate::fs::Fs;

mod error;
mod files;
mod open;
mod plan;
mod reader;
mod segment;
mod shared;
mod tidy;
mod window;
mod write;

#[cfg(test)]
mod tests;

pub use error::WalError;
pub use open::inspect;
pub use reader::WalReader;

/// Whose log it is, and how large its files are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalOptions {
    pub cluster: [u8; 16],
    pub node: NodeId,
    /// Bytes of a segment, at least `limits::LOG_SEGMENT_BYTES_MIN` outside of tests.
    pub segment_bytes: u64,
    /// Batches begin at multiples of it: what the filesystem writes at once.
    pub block_bytes: u32,
    /// Files that should wait for the next segments; when one is lacking, there is a shortage.
    pub spares: usize,
    /// Drawn anew for each opening.
    pub nonce: u64,
}

impl WalOptions {
    /// As nodes open their logs.
    pub fn new(cluster: [u8; 16], node: NodeId, segment_bytes: u64, nonce: u64) -> Self {
        let (block_bytes, spares) = (limits::LOG_BLOCK_BYTES, limits::LOG_SPARES);
        Self { cluster, node, segment_bytes, block_bytes, spares, nonce }
    }
}

/// What the log holds of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredGroup {
    pub state: RecoveryState,
    pub last_index: u64,
    /// Runs of equal terms, first index and term, from the entry before the first one to the last.
    pub terms: Vec<(u64, u64)>,
    /// Bytes of the log in pieces: first index and bytes, ascending.
    pub sizes: Vec<(u64, u64)>,
}

/// What one append cost.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Appended {
    pub bytes: u64,
    /// Syncs of files and directories, those of a new segment included.
    pub syncs: u64,
}

/// The log in figures.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalStats {
    /// Bytes of all files, as preallocated, spares included.
    pub bytes: u64,
    pub segments: u64,
    /// Bytes that the active segment has left.
    pub room: u64,
    /// Whether a spare waits to be the next segment.
    pub reserve: bool,
    /// Since the log was opened: syncs of files and directories.
    pub fsyncs: u64,
    /// Since the log was opened: batches made durable, heads of segments included.
    pub batches: u64,
    /// Since the log was opened: bytes written.
    pub written_bytes: u64,
    /// Bytes of records that hold live entries.
    pub live: u64,
    /// Since the log was opened: bytes written once more, so that an old segment could go.
    pub moved_bytes: u64,
    /// The group with the most live bytes in the oldest segment, unless that is the active one.
    pub pinned_by: Option<GroupId>,
    /// Segments that turned out not to be what was written: a start would refuse them.
    pub damaged: u64,
    /// Bytes that its filesystem has left.
    pub available: u64,
}

/// The writer; there is one, in the log lane.
pub struct Wal {
    options: WalOptions,
    files: Files,
    shared: Arc<Shared>,
    active: Arc<Segment>,
    /// Where the next batch begins in the active segment.
    end: u64,
    /// The active segment takes no more: a write or sync there found no room, or the head of the
    /// next one was begun.
    given_up: bool,
    /// The segment before the active one; 0 if that is the first.
    previous: u64,
    next_segment: u64,
    next_batch: u64,
    /// Whether rot in the last batch could not be taken for a torn tail.
    sealed: bool,
    /// Files that wait to be the next segment; the last one is taken first.
    spares: Vec<LogFile>,
    /// Why there is no further spare, or why what waits could not be written.
    lacking: Option<String>,
    /// Batches that wait for room.
    pending: VecDeque<Plan<'static>>,
    poisoned: Option<String>,
    /// Whether the oldest segment may have become free, or may be emptied, since the last look.
    untidy: bool,
    /// Bytes of live entries that may be moved: a part of what was appended.
    credit: u64,
    buffer: Vec<u8>,
    counters: Counters,
    /// How long it took to sync batches and heads, seconds.
    syncs: Histogram,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    fsyncs: u64,
    batches: u64,
    written_bytes: u64,
    moved_bytes: u64,
}

/// How the first file is named; for fuzzers.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn first_file_name() -> String {
    segment::file_name(1)
}

impl Wal {
    /// Opens the log in `dir`, or begins one if there is none, and says what each group has in it.
    /// A log that cannot be taken as it is, is left as it is.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: WalOptions,
    ) -> Result<(Self, BTreeMap<GroupId, RecoveredGroup>), WalError> {
        let wal = open::open(fs, dir, options)?;
        let recover = |(group, log): (&GroupId, &GroupLog)| {
            let tail = &log.tail;
            let (state, last_index) = (tail.state.clone(), tail.last_index);
            (*group, RecoveredGroup { state, last_index, terms: tail.terms(), sizes: log.sizes() })
        };
        let groups = wal.shared.groups().iter().map(recover).collect();
        Ok((wal, groups))
    }

    /// Makes the jobs durable, in order: one write and one sync for all of them, or a few if they
    /// are larger than a batch. After each, `durable` hears how many jobs more are whole by it. A
    /// job that does not fit its group's log is refused with all others, and nothing is written.
    /// After `Full` the jobs are taken all the same: [`Wal::resume`] goes on with them, and nothing
    /// else may be appended before that succeeded.
    pub fn append(
        &mut self,
        jobs: &[LogJob],
        durable: &mut dyn FnMut(usize),
    ) -> Result<Appended, WalError> {
        self.healthy()?;
        assert!(self.pending.is_empty(), "what waits for room comes first");
        let before = self.counters;
        let spoilt = planted("write_other_bytes").then(|| self.spoil(jobs));
        let jobs = spoilt.as_deref().unwrap_or(jobs);
        let mut plans =
            VecDeque::from(plan::plan(&self.shared.groups(), jobs, self.batch_body_max())?);
        self.earn(plans.iter().map(|plan| plan.body_bytes as u64).sum());
        if let Err(error) = self.commit(&mut plans, durable) {
            if matches!(error, WalError::Full { .. }) {
                self.pending = plans.into_iter().map(Plan::into_owned).collect();
            }
            return Err(error);
        }
        Ok(Appended {
            bytes: self.counters.written_bytes - before.written_bytes,
            syncs: self.counters.fsyncs - before.fsyncs,
        })
    }

    /// Jobs whose entries are not those that were handed in, on each node in its own way.
    fn spoil(&self, jobs: &[LogJob]) -> Vec<LogJob> {
        let mut jobs = jobs.to_vec();
        for entry in jobs.iter_mut().flat_map(|job| &mut job.entries).filter(|e| e.index > 50) {
            // Nobody reads it: what is applied stays the same.
            entry.context = self.options.node.0.to_le_bytes().to_vec().into();
        }
        jobs
    }

    /// Goes on with what waits for room; `Full` if there still is none.
    pub fn resume(&mut self, durable: &mut dyn FnMut(usize)) -> Result<(), WalError> {
        self.healthy()?;
        let mut pending = std::mem::take(&mut self.pending);
        let written = self.commit(&mut pending, durable);
        self.pending = pending;
        written
    }

    /// Ends a group in this log, its entries and its state.
    pub fn drop_group(&mut self, group: GroupId) -> Result<(), WalError> {
        self.healthy()?;
        if !self.shared.groups().contains_key(&group) {
            return Err(WalError::UnknownGroup { group });
        }
        let mut plan = Plan { frees: true, ..Plan::default() };
        plan.push(plan::Piece::Drop { group });
        self.commit(&mut VecDeque::from([plan]), &mut |_jobs| {})
    }

    /// Appends an empty batch if the last one has none behind it, so that rot in it is told from a
    /// torn tail. Returns whether it wrote.
    pub fn seal_idle(&mut self) -> Result<bool, WalError> {
        self.healthy()?;
        if self.sealed || !self.pending.is_empty() {
            return Ok(false);
        }
        self.commit_own(Plan::default())
    }

    /// The file that is written now.
    pub fn active_path(&self) -> PathBuf {
        self.active.path().to_owned()
    }

    pub fn reader(&self) -> WalReader {
        WalReader::new(Arc::clone(&self.shared))
    }

    /// How long the syncs took that batches wait for, seconds.
    pub fn syncs(&self) -> Histogram {
        self.syncs.clone()
    }

    /// Looks at no record of the log: a few words for each group and segment.
    pub fn stats(&self) -> WalStats {
        let (available, live) = (self.files.available(), self.live());
        let pinned_by = self.pinned_by();
        let segments = self.shared.segments();
        let files = segments.values().map(|segment| &segment.file).chain(&self.spares);
        WalStats {
            bytes: files.map(|file| file.length).sum(),
            segments: segments.len() as u64,
            room: self.active.file.length.saturating_sub(self.end),
            reserve: !self.spares.is_empty(),
            fsyncs: self.counters.fsyncs,
            batches: self.counters.batches,
            written_bytes: self.counters.written_bytes,
            live,
            moved_bytes: self.counters.moved_bytes,
            pinned_by,
            damaged: self.shared.damaged().len() as u64,
            available,
        }
    }

    /// Whether there are fewer spares than there should be.
    pub fn lacks_spare(&self) -> bool {
        self.spares.len() < self.options.spares
    }

    /// What is missing to a log with all its spares, or to what waits for room.
    pub fn shortage(&self) -> Option<Shortage> {
        if self.lacking.is_none() && self.pending.is_empty() {
            return None;
        }
        let missing = self.options.spares.saturating_sub(self.spares.len()).max(1) as u64;
        let need = missing * self.options.segment_bytes;
        Some(Shortage::Disk { need, have: self.files.available() })
    }

    /// Segments that turned out not to be what was written, and are still there.
    pub fn damaged(&self) -> BTreeSet<u64> {
        self.shared.damaged().clone()
    }

    /// What has to go so that segments up to this one can: for each group with live entries in
    /// them, the index behind the last of these.
    pub fn live_up_to(&self, segment: u64) -> Vec<(GroupId, u64)> {
        let below = |(group, log): (&GroupId, &GroupLog)| {
            log.extents().end_up_to(segment).map(|end| (*group, end))
        };
        self.shared.groups().iter().filter_map(below).collect()
    }

    /// Whether something waits for room.
    pub fn is_stalled(&self) -> bool {
        !self.pending.is_empty()
    }

    fn healthy(&self) -> Result<(), WalError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(WalError::Poisoned { cause: cause.clone() }),
        }
    }

    /// Nothing is written to this log any more.
    fn poison(&mut self, error: WalError) -> WalError {
        self.poisoned = Some(error.to_string());
        error
    }

    /// Largest body of a planned batch. Two of them fit in a segment, whatever its size.
    fn batch_body_max(&self) -> usize {
        let half = usize::try_from(self.options.segment_bytes / 2).unwrap_or(usize::MAX);
        half.min(limits::LOG_BATCH_BYTES_MAX)
    }
}
