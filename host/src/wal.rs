//! The log of a node: one chain of segments for all groups, with one write and one sync per batch.
//!
//! Owns `<data>/wal/`: files `<number:016x>.wal`, each created once and reused again and again. The
//! active file holds the newest segment. A few *spares* hold no segment of the log and wait to hold
//! the next one. The bytes and their meaning belong to `lockstep_core::wal`; the log lane chooses
//! which jobs share a batch.
//!
//! - Whatever [`Wal::append`] returned `Ok` for is found by every later [`Wal::open`], complete and
//!   in order.
//! - Batch k+1 is written after batch k is durable, and into blocks of its own. A bad batch that is
//!   followed by the header of a later one was therefore damaged afterwards: that is corruption,
//!   and nothing is touched. A bad last batch is a torn tail: it was never acknowledged, and the
//!   next batch overwrites it.
//! - A segment begins with its head, which holds every group's state. Beginning a segment takes one
//!   sync, no new name and no new block. A segment belongs to the log from the moment its head is
//!   durable, so older ones can be deleted without losing a state.
//! - A segment is deleted when it holds no live entry and all older ones are deleted. Nothing is
//!   written for that: its file becomes a spare or is removed, and the next batch names the segment
//!   that is now the oldest. Live entries in the oldest segment are moved if they are few, or if
//!   the log takes more than twice the space of its live entries. Moving writes at most a quarter
//!   of the bytes that are appended, and no append waits for it.
//! - After a failure nothing is retried: the log is poisoned. A lack of space, descriptors or
//!   memory is no failure, at whichever operation it shows: the log is left as it was, and batches
//!   that could not be written wait inside it ([`WalError::Full`], [`Wal::resume`]).
//! - A *shortage* is reported before writes have to wait: when a used spare cannot be replaced, the
//!   active segment and another spare still have space for the writes under way.
//! - The index, which is shared with [`WalReader`]s, holds a few words per record of entries and
//!   never refers to entries that are not durable.

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
pub use open::{inspect, open_to_read};
pub use reader::WalReader;

/// The owner of a log, and the layout of its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalOptions {
    pub cluster: [u8; 16],
    pub node: NodeId,
    /// Bytes of a segment; at least `limits::LOG_SEGMENT_BYTES_MIN` except in tests.
    pub segment_bytes: u64,
    /// Batches begin at multiples of this: the unit in which the filesystem writes.
    pub block_bytes: u32,
    /// How many spares the log should have; if one is missing, there is a shortage.
    pub spares: usize,
    /// Drawn anew each time the log is opened.
    pub nonce: u64,
}

impl WalOptions {
    /// The options with which nodes open their logs.
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
    /// Runs of equal terms, (first index, term), from the entry before the first one to the last.
    pub terms: Vec<(u64, u64)>,
    /// The size of the group's live entries in pieces, (first index, bytes), ascending.
    pub sizes: Vec<(u64, u64)>,
}

/// What an append wrote and synced.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Appended {
    pub bytes: u64,
    /// Syncs of files and directories, including those for a new segment.
    pub syncs: u64,
}

/// Figures about the log, for status and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalStats {
    /// Bytes of all files as preallocated, including spares.
    pub bytes: u64,
    pub segments: u64,
    /// Bytes left in the active segment.
    pub left: u64,
    /// Whether a spare waits to be the next segment.
    pub reserve: bool,
    /// Syncs of files and directories since the log was opened.
    pub fsyncs: u64,
    /// Batches made durable since the log was opened, including the heads of segments.
    pub batches: u64,
    /// Bytes written since the log was opened.
    pub written_bytes: u64,
    /// Bytes of records that hold live entries.
    pub live: u64,
    /// Bytes of live entries moved since the log was opened, so that old segments could be deleted.
    pub moved_bytes: u64,
    /// The name of the group with the most live bytes in the oldest segment, unless that is the
    /// active one; the node need not run this group.
    pub pinned_by: Option<String>,
    /// Segments that were found damaged: a restart would refuse them.
    pub damaged: u64,
    /// Bytes left on the log's filesystem.
    pub available: u64,
}

/// The log's only writer; the log lane owns it.
pub struct Wal {
    options: WalOptions,
    files: Files,
    shared: Arc<Shared>,
    active: Arc<Segment>,
    /// The offset in the active segment at which the next batch begins.
    end: u64,
    /// The active segment takes no further batch: a write or sync found no space there, or the head
    /// of the next segment was begun.
    given_up: bool,
    /// The segment before the active one; 0 if the active one is the first.
    previous: u64,
    next_segment: u64,
    next_batch: u64,
    /// Whether damage to the last batch would be recognised as corruption, not taken for a torn
    /// tail.
    sealed: bool,
    /// Files that wait to be the next segment; the last one is taken first.
    spares: Vec<LogFile>,
    /// Why a spare is missing, or why pending batches could not be written.
    lacking: Option<String>,
    /// Batches that wait for space.
    pending: VecDeque<Plan<'static>>,
    poisoned: Option<String>,
    /// Whether the oldest segment may have become free, or worth emptying, since it was last
    /// checked.
    untidy: bool,
    /// Bytes of live entries that may be moved: earned as a fraction of what is appended.
    credit: u64,
    buffer: Vec<u8>,
    counters: Counters,
    /// How long the syncs of batches and heads took, seconds.
    syncs: Histogram,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    fsyncs: u64,
    batches: u64,
    written_bytes: u64,
    moved_bytes: u64,
}

/// The name of a log's first file; for fuzzers.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn first_file_name() -> String {
    segment::file_name(1)
}

impl Wal {
    /// Opens the log in `dir`, or begins one if there is none, and returns what it holds of each
    /// group. A log that is refused is left unchanged.
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
    /// do not fit in a batch. After each batch, `durable` is called with the number of jobs that
    /// the batch completed. If a job does not fit its group's log, all jobs are refused and nothing
    /// is written. After `Full` the jobs are accepted nevertheless: [`Wal::resume`] continues with
    /// them, and nothing else may be appended before it has succeeded.
    pub fn append(
        &mut self,
        jobs: &[LogJob],
        durable: &mut dyn FnMut(usize),
    ) -> Result<Appended, WalError> {
        self.healthy()?;
        assert!(self.pending.is_empty(), "batches that wait for space come first");
        let before = self.counters;
        let changed = planted("write_other_bytes").then(|| self.changed(jobs));
        let jobs = changed.as_deref().unwrap_or(jobs);
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

    /// The planted bug `write_other_bytes`: changes the jobs' entries, differently on each node.
    fn changed(&self, jobs: &[LogJob]) -> Vec<LogJob> {
        let mut jobs = jobs.to_vec();
        for entry in jobs.iter_mut().flat_map(|job| &mut job.entries).filter(|e| e.index > 50) {
            // The context is never read: what is applied stays the same.
            entry.context = self.options.node.0.to_le_bytes().to_vec().into();
        }
        jobs
    }

    /// Writes the batches that wait for space; `Full` if there still is not enough.
    pub fn resume(&mut self, durable: &mut dyn FnMut(usize)) -> Result<(), WalError> {
        self.healthy()?;
        let mut pending = std::mem::take(&mut self.pending);
        let written = self.commit(&mut pending, durable);
        self.pending = pending;
        written
    }

    /// Removes a group from this log: its entries and its state.
    pub fn drop_group(&mut self, group: GroupId) -> Result<(), WalError> {
        self.healthy()?;
        if !self.shared.groups().contains_key(&group) {
            return Err(WalError::UnknownGroup { group });
        }
        let mut plan = Plan { frees: true, ..Plan::default() };
        plan.push(plan::Piece::Drop { group });
        self.commit(&mut VecDeque::from([plan]), &mut |_jobs| {})
    }

    /// Appends an empty batch if none has followed the last records yet, so that later damage to
    /// them is not taken for a torn tail. Also appends one if the active segment is damaged, so
    /// that another segment begins. Returns whether it wrote.
    pub fn seal_idle(&mut self) -> Result<bool, WalError> {
        self.healthy()?;
        if (self.sealed && !self.is_damaged()) || !self.pending.is_empty() {
            return Ok(false);
        }
        self.commit_own(Plan::default())
    }

    /// The file of the active segment.
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

    /// Figures about the log as it is now. Reads no records, so the cost depends only on the number
    /// of groups and segments.
    pub fn stats(&self) -> WalStats {
        let (available, live) = (self.files.available(), self.live());
        let pinned_by = self.pinned_by();
        let segments = self.shared.segments();
        let files = segments.values().map(|segment| &segment.file).chain(&self.spares);
        WalStats {
            bytes: files.map(|file| file.length).sum(),
            segments: segments.len() as u64,
            left: self.active.file.length.saturating_sub(self.end),
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

    /// The disk space that missing spares or pending batches need; `None` if nothing is lacking.
    pub fn shortage(&self) -> Option<Shortage> {
        if self.lacking.is_none() && self.pending.is_empty() {
            return None;
        }
        let missing = self.options.spares.saturating_sub(self.spares.len()).max(1) as u64;
        let need = missing * self.options.segment_bytes;
        Some(Shortage::Disk { need, have: self.files.available() })
    }

    /// Segments that were found damaged and still exist, except the active one: which entries must
    /// be dropped to delete the active one is known only once the next segment has begun.
    pub fn damaged(&self) -> BTreeSet<u64> {
        let mut damaged = self.shared.damaged().clone();
        damaged.remove(&self.active.number());
        damaged
    }

    /// A group's name as the log records it; empty if the log does not have the group.
    pub fn name_of(&self, group: GroupId) -> String {
        let groups = self.shared.groups();
        groups.get(&group).map(|log| log.tail.state.group.clone()).unwrap_or_default()
    }

    /// The entries that must be dropped before the segments up to this one can be deleted: for each
    /// group with live entries in them, the index after the last of these.
    pub fn live_up_to(&self, segment: u64) -> Vec<(GroupId, u64)> {
        let below = |(group, log): (&GroupId, &GroupLog)| {
            log.extents().end_up_to(segment).map(|end| (*group, end))
        };
        self.shared.groups().iter().filter_map(below).collect()
    }

    /// Whether batches wait for space.
    pub fn is_stalled(&self) -> bool {
        !self.pending.is_empty()
    }

    fn healthy(&self) -> Result<(), WalError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(WalError::Poisoned { cause: cause.clone() }),
        }
    }

    /// Ends all writing to this log.
    fn poison(&mut self, error: WalError) -> WalError {
        self.poisoned = Some(error.to_string());
        error
    }

    /// The largest body of a planned batch. Two of them fit in a segment of any size.
    fn batch_body_max(&self) -> usize {
        let half = usize::try_from(self.options.segment_bytes / 2).unwrap_or(usize::MAX);
        half.min(limits::LOG_BATCH_BYTES_MAX)
    }
}
