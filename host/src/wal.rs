//! The log of a node: one chain of segment files for all groups, one write and one sync a batch.
//!
//! Owns `<data>/wal/`: segments `<number:016x>.wal`, preallocated, one spare, `reserve.wal`, and
//! `ballast.wal`, which gives its room to a spare on a full disk.
//! The bytes and what they mean are `lockstep_core::wal`'s; which jobs share a batch is the log
//! lane's.
//!
//! - What [`Wal::append`] returned `Ok` for is found by every later [`Wal::open`], whole, in order.
//! - Batch k+1 is written after batch k is durable. So a bad batch with a whole one behind it was
//!   damaged later: corruption, and nothing is touched. A bad last batch is a torn tail: it was
//!   never acknowledged, the log goes on in a new segment, and its bytes stay.
//! - A segment gets its name after its header and its head, every group's state, are durable; so
//!   those are never torn, and older segments can go without a state being lost.
//! - A segment goes when no live entry stands in it and all older ones are gone. Small leftovers in
//!   the oldest one are moved, so that an idle group pins nothing.
//! - After a failed write, sync, rename or removal nothing is tried again: the log is poisoned.
//!   Only a full disk, met before a batch was written, leaves it as it was: what could not be
//!   written yet waits inside ([`WalError::Full`], [`Wal::resume`]).
//! - A *shortage* is told before that happens: when the ballast had to be given up there are still
//!   a segment and a spare for what is under way.
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
use lockstep_core::wal::record::{BatchBuilder, SegmentHeader, batch_size};
use lockstep_core::wal::replay::GroupLog;

use self::plan::Plan;
use self::segment::{Reserve, Segment};
use self::shared::Shared;
use crate::fs::{Fs, make_durable};

mod error;
mod open;
mod plan;
mod reader;
mod segment;
mod shared;
mod tidy;
mod window;

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
    /// Bytes of the ballast; 0 = none.
    pub ballast_bytes: u64,
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
    /// Bytes of all segments, the reserve and the ballast, as preallocated.
    pub bytes: u64,
    pub segments: u64,
    /// Bytes that the active segment has left.
    pub room: u64,
    /// Whether a preallocated segment waits for the next roll.
    pub reserve: bool,
    /// Since the log was opened: syncs of files and directories.
    pub fsyncs: u64,
    /// Since the log was opened: batches made durable, heads of segments included.
    pub batches: u64,
    /// Since the log was opened: bytes written.
    pub written_bytes: u64,
    /// The group with the most live bytes in the oldest segment, unless that is the active one.
    pub pinned_by: Option<GroupId>,
    /// Segments that turned out not to be what was written: a start would refuse them.
    pub damaged: u64,
    /// Bytes that its filesystem has left.
    pub available: u64,
}

/// The writer; there is one, in the log lane.
pub struct Wal {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    options: WalOptions,
    shared: Arc<Shared>,
    active: Arc<Segment>,
    /// Where the next batch begins in the active segment.
    end: u64,
    next_batch: u64,
    /// Whether rot in the last batch could not be taken for a torn tail.
    sealed: bool,
    reserve: Option<Reserve>,
    /// Whether the ballast lies there.
    ballast: bool,
    /// Batches that wait for room.
    pending: VecDeque<Plan<'static>>,
    poisoned: Option<String>,
    /// Whether a segment may have become free since the last look.
    untidy: bool,
    buffer: Vec<u8>,
    counters: Counters,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    fsyncs: u64,
    batches: u64,
    written_bytes: u64,
}

/// How the file of the first segment is named; for fuzzers.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn first_segment_name() -> String {
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
    /// are larger than a batch. A job that does not fit its group's log is refused with all others,
    /// and nothing is written. After `Full` the jobs are taken all the same: [`Wal::resume`] goes
    /// on with them, and nothing else may be appended before that succeeded.
    pub fn append(&mut self, jobs: &[LogJob]) -> Result<Appended, WalError> {
        self.healthy()?;
        assert!(self.pending.is_empty(), "what waits for room comes first");
        let before = self.counters;
        let spoilt = planted("write_other_bytes").then(|| self.spoil(jobs));
        let jobs = spoilt.as_deref().unwrap_or(jobs);
        let mut plans =
            VecDeque::from(plan::plan(&self.shared.groups(), jobs, self.batch_body_max())?);
        while let Some(plan) = plans.pop_front() {
            if let Err(error) = self.make_room(&plan) {
                if matches!(error, WalError::Full { .. }) {
                    plans.push_front(plan);
                    self.pending = plans.into_iter().map(Plan::into_owned).collect();
                }
                return Err(error);
            }
            self.write(plan)?;
        }
        self.tidy()?;
        Ok(Appended {
            bytes: self.counters.written_bytes - before.written_bytes,
            syncs: self.counters.fsyncs - before.fsyncs,
        })
    }

    /// Jobs whose entries are not those that were handed in, on each node in its own way.
    fn spoil(&self, jobs: &[LogJob]) -> Vec<LogJob> {
        let mut jobs = jobs.to_vec();
        for entry in jobs.iter_mut().flat_map(|job| &mut job.entries).filter(|e| e.index > 50) {
            entry.data = [&entry.data[..], &self.options.node.0.to_le_bytes()].concat().into();
        }
        jobs
    }

    /// Goes on with what waits for room; `Full` if there still is none.
    pub fn resume(&mut self) -> Result<(), WalError> {
        self.healthy()?;
        while let Some(plan) = self.pending.pop_front() {
            if let Err(error) = self.make_room(&plan) {
                self.pending.push_front(plan);
                return Err(error);
            }
            self.write(plan)?;
        }
        self.tidy()
    }

    /// Ends a group in this log, its entries and its state.
    pub fn drop_group(&mut self, group: GroupId) -> Result<(), WalError> {
        self.healthy()?;
        if !self.shared.groups().contains_key(&group) {
            return Err(WalError::UnknownGroup { group });
        }
        let mut plan = Plan { frees: true, ..Plan::default() };
        plan.push(plan::Piece::Drop { group });
        self.make_room(&plan)?;
        self.write(plan)?;
        self.tidy()
    }

    /// Appends an empty batch if the last one has none behind it, so that rot in it is told from a
    /// torn tail. Returns whether it wrote.
    pub fn seal_idle(&mut self) -> Result<bool, WalError> {
        self.healthy()?;
        let plan = Plan::default();
        if self.sealed || !self.pending.is_empty() {
            return Ok(false);
        }
        match self.make_room(&plan) {
            Err(WalError::Full { .. }) => return Ok(false),
            made => made?,
        }
        self.write(plan)?;
        self.tidy()?;
        Ok(true)
    }

    pub fn reader(&self) -> WalReader {
        WalReader::new(Arc::clone(&self.shared))
    }

    pub fn stats(&self) -> WalStats {
        let segments = self.shared.segments();
        let reserve = self.reserve.as_ref().map_or(0, |reserve| reserve.length);
        let ballast = if self.ballast { self.options.ballast_bytes } else { 0 };
        let spare = reserve + ballast;
        WalStats {
            bytes: segments.values().map(|segment| segment.length).sum::<u64>() + spare,
            segments: segments.len() as u64,
            room: self.active.length.saturating_sub(self.end),
            reserve: self.reserve.is_some(),
            fsyncs: self.counters.fsyncs,
            batches: self.counters.batches,
            written_bytes: self.counters.written_bytes,
            pinned_by: self.pinned_by(),
            damaged: self.shared.damaged().len() as u64,
            available: self.fs.space(&self.dir).map_or(0, |space| space.available),
        }
    }

    /// Tries to have a reserve segment, from the ballast if there is no other room, and then a
    /// ballast. The log lane asks again while the disk is full.
    pub fn ensure_reserve(&mut self) -> Result<(), WalError> {
        self.healthy()?;
        if self.reserve.is_none() {
            let bytes = self.options.segment_bytes;
            match self.new_reserve(bytes) {
                Ok(reserve) => self.reserve = Some(reserve),
                Err(WalError::Full { .. }) => return Ok(()),
                Err(error) => return Err(self.poison(error)),
            }
        }
        if !self.ballast && self.options.ballast_bytes > 0 {
            let made = segment::create_ballast(&*self.fs, &self.dir, self.options.ballast_bytes);
            match made {
                Ok(()) => self.ballast = true,
                Err(WalError::Full { .. }) => {}
                Err(error) => return Err(self.poison(error)),
            }
        }
        Ok(())
    }

    /// What is missing to a log with a spare and a ballast.
    pub fn shortage(&self) -> Option<Shortage> {
        let reserve = if self.reserve.is_some() { 0 } else { self.options.segment_bytes };
        let ballast = if self.ballast { 0 } else { self.options.ballast_bytes };
        let need = reserve + ballast;
        let have = || self.fs.space(&self.dir).map_or(0, |space| space.available);
        (need > 0).then(|| Shortage::Disk { need, have: have() })
    }

    /// Segments that turned out not to be what was written, and are still there.
    pub fn damaged(&self) -> BTreeSet<u64> {
        self.shared.damaged().clone()
    }

    /// What has to go so that segments up to this one can: for each group with live entries in
    /// them, the index behind the last of these.
    pub fn live_up_to(&self, segment: u64) -> Vec<(GroupId, u64)> {
        let below = |(group, log): (&GroupId, &GroupLog)| {
            let here = log.extents().filter(|(_, extent)| extent.place.segment <= segment);
            here.map(|(_, extent)| extent.end).max().map(|end| (*group, end))
        };
        self.shared.groups().iter().filter_map(below).collect()
    }

    /// Whether something waits for room.
    pub fn is_stalled(&self) -> bool {
        !self.pending.is_empty()
    }

    fn new_reserve(&mut self, bytes: u64) -> Result<Reserve, WalError> {
        match segment::create_reserve(&*self.fs, &self.dir, bytes) {
            Err(WalError::Full { .. }) if self.ballast => {
                self.give_up_ballast()?;
                segment::create_reserve(&*self.fs, &self.dir, bytes)
            }
            made => made,
        }
    }

    fn give_up_ballast(&mut self) -> Result<(), WalError> {
        segment::remove_ballast(&*self.fs, &self.dir)?;
        self.ballast = false;
        tracing::warn!("the disk of the log is full: the ballast was given up");
        Ok(())
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

    /// Sees to it that the active segment has room for a batch.
    fn make_room(&mut self, plan: &Plan<'_>) -> Result<(), WalError> {
        let size = batch_size(plan.body_bytes);
        match self.end + size > self.active.length {
            true => self.roll(size),
            false => Ok(()),
        }
    }

    /// Writes one batch, makes it durable, and only then lets readers see it.
    fn write(&mut self, plan: Plan<'_>) -> Result<(), WalError> {
        let size = batch_size(plan.body_bytes);
        assert!(self.end + size <= self.active.length, "room was made for the batch");
        let buffer = std::mem::take(&mut self.buffer);
        let mut batch = BatchBuilder::reusing(self.active.salt(), self.next_batch, buffer);
        let places: Vec<_> = plan.pieces.iter().map(|piece| piece.write(&mut batch)).collect();
        let bytes = batch.finish();
        assert_eq!(bytes.len() as u64, size, "a plan knows the size of its batch");
        let active = Arc::clone(&self.active);
        let synced = || match planted("skip_fsync") {
            true => Ok(()),
            false => active.sync(),
        };
        let written = active.write(&bytes, self.end).and_then(|()| synced());
        let written = written.or_else(|error| match planted("retry_failed_sync") {
            true => active.sync(),
            false => Err(error),
        });
        written.map_err(|error| self.poison(error))?;
        self.counters.fsyncs += 1;
        self.counters.batches += 1;
        self.counters.written_bytes += size;
        self.sealed = plan.pieces.is_empty();
        let begin = self.end;
        self.end += size;
        self.next_batch += 1;
        self.buffer = bytes;
        self.untidy |= plan.frees;
        self.shared.publish(plan.pieces, &places, active.number(), begin);
        Ok(())
    }

    /// Begins the next segment, with room for a batch of `need` bytes behind its head.
    fn roll(&mut self, need: u64) -> Result<(), WalError> {
        let number = self.active.number() + 1;
        self.begin(number, need)
    }

    /// Begins segment `number`: header and head become durable, then the name, then it is active.
    fn begin(&mut self, number: u64, need: u64) -> Result<(), WalError> {
        let header = SegmentHeader {
            cluster: self.options.cluster,
            node: self.options.node,
            segment: number,
            first_batch: self.next_batch,
            file_length: self.options.segment_bytes,
        };
        let mut head = BatchBuilder::new(header.salt(), self.next_batch);
        for (group, log) in self.shared.groups().iter() {
            let mut state = Vec::new();
            log.tail.state.encode(&mut state);
            head.state(*group, &state, false);
        }
        let (reserve, started) = self.take_reserve(header, head.finish(), need)?;
        let (fs, dir) = (Arc::clone(&self.fs), self.dir.clone());
        let segment = segment::name(&*fs, &dir, reserve, started.header, &started.bytes);
        let segment = Arc::new(segment.map_err(|error| self.poison(error))?);
        self.counters.fsyncs += 2;
        self.counters.batches += 1;
        self.counters.written_bytes += started.bytes.len() as u64;
        self.end = started.bytes.len() as u64;
        self.next_batch += 1;
        self.sealed = true;
        self.untidy = true;
        self.active = Arc::clone(&segment);
        self.shared.add_segment(segment);
        Ok(())
    }

    /// A preallocated file that is large enough, and the bytes it begins with. `Full` leaves the
    /// log as it was, its reserve included.
    fn take_reserve(
        &mut self,
        mut header: SegmentHeader,
        head: Vec<u8>,
        need: u64,
    ) -> Result<(Reserve, Started), WalError> {
        let total = (header.encode().len() + head.len()) as u64 + need;
        header.file_length = total.max(self.options.segment_bytes);
        if self.reserve.is_none() {
            let made = self.new_reserve(header.file_length);
            self.reserve = Some(made.map_err(|error| self.poison_unless_full(error))?);
        }
        let mut reserve = self.reserve.take().expect("a reserve was made if there was none");
        let grown = match reserve.grow(header.file_length) {
            Err(WalError::Full { .. }) if self.ballast => {
                self.give_up_ballast().and_then(|()| reserve.grow(header.file_length))
            }
            grown => grown,
        };
        if let Err(error) = grown {
            self.reserve = Some(reserve);
            return Err(self.poison_unless_full(error));
        }
        header.file_length = reserve.length;
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&head);
        Ok((reserve, Started { header, bytes }))
    }

    fn poison_unless_full(&mut self, error: WalError) -> WalError {
        if matches!(error, WalError::Full { .. }) { error } else { self.poison(error) }
    }

    /// Syncs the directory.
    fn make_names_durable(&mut self, path: &Path) -> Result<(), WalError> {
        let synced =
            make_durable(&*self.fs, path).map_err(WalError::io("sync the parent of", path));
        synced.map_err(|error| self.poison(error))?;
        self.counters.fsyncs += 1;
        Ok(())
    }
}

/// What a new segment begins with.
struct Started {
    header: SegmentHeader,
    bytes: Vec<u8>,
}
