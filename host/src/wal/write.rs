//! Writing: a batch into the active segment, and the next segment once that one is full.
//!
//! Running out of space loses nothing, whichever operation notices it:
//!
//! - A batch whose write or sync ran out of space was never acknowledged. The active segment ends
//!   before it: nothing is written or synced there again, and the batch goes into the next segment,
//!   under the same number. That segment's head tells how far the batches before it reached.
//! - A file whose head could not be made durable holds no segment. If the write failed, the file
//!   may be tried again; if the sync failed, its content is unknown and it is removed. The
//!   segment's number is not used again.
//! - Such a head may still be on the disk, and it would say where the segment before it ends. So
//!   that segment takes no further batch in this process. A later process does not know of the
//!   file, and first makes the file's removal durable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::wal::record::{BatchBuilder, BatchPlace, RECORD_OVERHEAD_BYTES, batch_size};

use super::plan::Plan;
use super::segment::{LogFile, Segment};
use super::{Wal, WalError};
use crate::fs::{is_full, is_short};

/// Files kept besides the active one while the disk has plenty of space: syncing a file that was
/// written before takes a third of the time.
const SPARES_MAX: usize = 4;
/// What counts as plenty of space, in segments.
const PLENTY_SEGMENTS: u64 = 16;

/// Where a batch was written.
struct Written {
    begin: u64,
    /// For each piece, its offset in the batch and its length.
    places: Vec<(u32, u32)>,
}

impl Wal {
    /// Writes the batches one after the other, and removes each from the queue once it is durable.
    /// Batches that are left after `Full` can be written later. After each batch, `durable` is
    /// called with the number of jobs that the batch completed.
    pub(super) fn commit(
        &mut self,
        plans: &mut VecDeque<Plan<'_>>,
        durable: &mut dyn FnMut(usize),
    ) -> Result<(), WalError> {
        while let Some(plan) = plans.front() {
            let written = self.put(plan)?;
            let plan = plans.pop_front().expect("it was just written");
            self.sealed = plan.pieces.is_empty();
            self.untidy |= plan.frees;
            let Written { begin, places } = written;
            self.shared.publish(plan.pieces, &places, self.active.number(), begin);
            durable(plan.completes);
        }
        Ok(())
    }

    /// Makes a batch durable that no job waits for. Returns false if there is no space for it now.
    pub(super) fn commit_own(&mut self, plan: Plan<'_>) -> Result<bool, WalError> {
        match self.commit(&mut VecDeque::from([plan]), &mut |_jobs| {}) {
            Err(WalError::Full { .. }) => Ok(false),
            committed => committed.map(|()| true),
        }
    }

    /// Whether the batch fits in the active segment.
    pub(super) fn fits(&self, plan: &Plan<'_>) -> bool {
        let size = batch_size(plan.body_bytes, self.active.file.header.block_bytes);
        !self.given_up && !self.is_damaged() && self.end + size <= self.active.file.length
    }

    /// Whether the active segment was found damaged: it takes no further batch, because it can be
    /// deleted only once it is no longer the active one.
    pub(super) fn is_damaged(&self) -> bool {
        let damaged = self.shared.damaged().contains(&self.active.number());
        damaged && !planted("write_on_in_a_damaged_segment")
    }

    /// Makes one batch durable, in the next segment if it does not fit in the active one. If only
    /// the attempt shows that, a second attempt writes to the next segment.
    fn put(&mut self, plan: &Plan<'_>) -> Result<Written, WalError> {
        if !planted("write_beside_unsettled_names") {
            self.files.settle_names().map_err(|error| self.not_made(error))?;
        }
        for last in [false, true] {
            if !self.fits(plan) {
                self.roll(plan)?;
            }
            match self.write(plan) {
                Err(WalError::Full { .. }) if !last && self.given_up => {}
                written => return written,
            }
        }
        unreachable!("the second attempt is the last")
    }

    fn write(&mut self, plan: &Plan<'_>) -> Result<Written, WalError> {
        let active = Arc::clone(&self.active);
        let place = BatchPlace {
            number: self.next_batch,
            segment: active.number(),
            previous: self.previous,
            oldest: self.oldest_number(),
        };
        let buffer = std::mem::take(&mut self.buffer);
        let mut batch = BatchBuilder::reusing(&active.file.header, place, buffer);
        let places: Vec<_> = plan.pieces.iter().map(|piece| piece.write(&mut batch)).collect();
        let bytes = batch.finish();
        let size = bytes.len() as u64;
        let expected = batch_size(plan.body_bytes, active.file.header.block_bytes);
        assert_eq!(size, expected, "a plan knows the size of its batch");
        assert!(self.end + size <= active.file.length, "the segment has space for the batch");
        let written = match active.file.write(&bytes, self.end) {
            Err(error) if is_short(&error) => {
                self.given_up = is_full(&error);
                return Err(self.short(size, &error));
            }
            written => written.map_err(|error| self.failed("write", &active.file, error))?,
        };
        let synced = || if planted("skip_fsync") { Ok(()) } else { self.sync(&active.file) };
        let retried =
            |error| if planted("retry_failed_sync") { self.sync(&active.file) } else { Err(error) };
        match synced().or_else(retried) {
            Err(error) if is_full(&error) => {
                self.given_up = true;
                return Err(self.short(size, &error));
            }
            synced => synced.map_err(|error| self.failed("sync", &active.file, error))?,
        }
        self.counters.fsyncs += 1;
        self.counters.batches += 1;
        self.counters.written_bytes += written;
        self.buffer = bytes;
        self.next_batch += 1;
        let begin = self.end;
        self.end += size;
        Ok(Written { begin, places })
    }

    /// Syncs a file, and records the time for which acknowledgements had to wait.
    fn sync(&self, file: &LogFile) -> std::io::Result<()> {
        let began = Instant::now();
        file.sync().inspect(|()| self.syncs.observe(began.elapsed().as_secs_f64()))
    }

    /// Begins the next segment, with space for a batch after its head. Tries every spare.
    fn roll(&mut self, plan: &Plan<'_>) -> Result<(), WalError> {
        let mut states = Vec::new();
        for (group, log) in self.shared.groups().iter() {
            let mut state = Vec::new();
            log.tail.state.encode(&mut state);
            states.push((*group, state));
        }
        for left in (0..self.spares.len().max(1)).rev() {
            let place = BatchPlace {
                number: self.next_batch,
                segment: self.next_segment,
                previous: self.active.number(),
                oldest: self.oldest_number(),
            };
            let file = self.take_spare(plan, &states)?;
            let head = file.head(place, &states);
            self.next_segment += 1;
            match self.begin(file, place, &head) {
                Err(WalError::Full { .. }) if left > 0 => {}
                begun => return begun,
            }
        }
        unreachable!("there is a last attempt")
    }

    /// Writes a segment's head into a file and makes it the active segment. Takes one sync and no
    /// new name.
    fn begin(&mut self, file: LogFile, place: BatchPlace, head: &[u8]) -> Result<(), WalError> {
        self.given_up = true;
        let written = match file.write(head, file.header.head_offset()) {
            Err(error) if is_short(&error) => {
                self.spares.insert(0, file);
                return Err(self.short(head.len() as u64, &error));
            }
            written => written.map_err(|error| self.failed("write", &file, error))?,
        };
        match self.sync(&file) {
            Err(error) if is_full(&error) => {
                let path = file.path.clone();
                drop(file);
                self.files.remove(path).map_err(|error| self.poison(error))?;
                return Err(self.short(head.len() as u64, &error));
            }
            synced => synced.map_err(|error| self.failed("sync", &file, error))?,
        }
        self.counters.fsyncs += 1;
        self.counters.batches += 1;
        self.counters.written_bytes += written;
        self.end = file.header.head_offset() + head.len() as u64;
        self.next_batch += 1;
        self.previous = place.previous;
        (self.given_up, self.sealed, self.untidy) = (false, true, true);
        self.active = Arc::new(Segment::new(file, place));
        self.shared.add_segment(Arc::clone(&self.active));
        Ok(())
    }

    /// A file with space for a head and a batch. `Full` leaves the log as it was.
    fn take_spare(
        &mut self,
        plan: &Plan<'_>,
        states: &[(GroupId, Vec<u8>)],
    ) -> Result<LogFile, WalError> {
        let block = self.options.block_bytes;
        let state = |(_, bytes): &(_, Vec<u8>)| RECORD_OVERHEAD_BYTES + bytes.len();
        let head = batch_size(states.iter().map(state).sum(), block);
        let need = u64::from(block) + head + batch_size(plan.body_bytes, block);
        if let Some(at) = self.spares.iter().rposition(|file| file.length >= need) {
            return Ok(self.spares.remove(at));
        }
        self.make_file(need.max(self.options.segment_bytes))
    }

    /// Creates the spares that are missing, and removes those that are too many. The log lane calls
    /// it again while the disk is full.
    pub fn ensure_reserve(&mut self) -> Result<(), WalError> {
        self.healthy()?;
        self.files.sweep().map_err(|error| self.poison(error))?;
        while self.spares.len() < self.options.spares {
            match self.make_file(self.options.segment_bytes) {
                // The last spare is taken first, and new files should be taken last: files that
                // were written before sync faster.
                Ok(file) => self.spares.insert(0, file),
                Err(WalError::Full { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        while self.spares.len() > self.options.spares && self.spares.len() > self.spares_max() {
            let path = self.spares.remove(0).path;
            self.files.remove(path).map_err(|error| self.poison(error))?;
        }
        if self.lacking.take().is_some() {
            tracing::info!("the log has space again");
        }
        Ok(())
    }

    /// How many spares may be kept now: other users of the disk get the space if it is scarce.
    pub(super) fn spares_max(&self) -> usize {
        let (segment, least) = (self.options.segment_bytes, self.options.spares);
        if self.files.available() < PLENTY_SEGMENTS.saturating_mul(segment) {
            return least;
        }
        let files = self.files_max() / segment;
        let beside = files.saturating_sub(self.shared.segments().len() as u64);
        usize::try_from(beside).unwrap_or(usize::MAX).clamp(least, least.max(SPARES_MAX))
    }

    /// Whether a file has the size and block size that new files get.
    pub(super) fn is_usual(&self, file: &LogFile) -> bool {
        let (length, block) = (self.options.segment_bytes, self.options.block_bytes);
        file.length == length && file.header.block_bytes == block
    }

    fn make_file(&mut self, length: u64) -> Result<LogFile, WalError> {
        let file = self.files.make(length).map_err(|error| self.not_made(error))?;
        self.counters.fsyncs += 2;
        Ok(file)
    }

    /// Handles a failure to create a file or its name: a lack of space leaves the log as it was,
    /// any other failure poisons it.
    fn not_made(&mut self, error: WalError) -> WalError {
        match &error {
            WalError::Full { why, .. } => {
                self.lacks(why);
                error
            }
            _other => self.poison(error),
        }
    }

    /// The number of the oldest segment.
    fn oldest_number(&self) -> u64 {
        let segments = self.shared.segments();
        segments.first_key_value().map_or(self.next_segment, |(number, _)| *number)
    }

    fn short(&mut self, bytes: u64, error: &std::io::Error) -> WalError {
        let full = WalError::full(self.files.dir(), bytes, error);
        self.lacks(&error.to_string());
        full
    }

    /// Notes that the log lacks something that may become available again.
    fn lacks(&mut self, why: &str) {
        if self.lacking.is_none() {
            tracing::warn!(
                why,
                "the log lacks space, descriptors or memory: commands wait until it has some"
            );
        }
        self.lacking = Some(why.to_owned());
    }

    fn failed(&mut self, doing: &'static str, file: &LogFile, error: std::io::Error) -> WalError {
        self.poison(WalError::io(doing, &file.path)(error))
    }
}
