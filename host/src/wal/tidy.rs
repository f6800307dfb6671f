//! Old segments go: deletion in order, and moving what little keeps the oldest one.
//!
//! Done behind batches that began a segment or let entries die, when nobody waits for the log, and
//! within a budget, so that the next batch waits for little. Segments go oldest first. Once the chain is long, what is more than a little
//! is moved in parts: no group, however idle, pins the log without end.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::wal::record::Span;
use lockstep_core::wal::replay::GroupLog;
use lockstep_core::wal::{MOVED_BYTES_MAX, RECORD_BYTES_MAX};
use raft::eraftpb::Entry;

use super::plan::{Piece, Plan, slices};
use super::segment::Segment;
use super::{Wal, WalError};

/// Segments above which what pins the oldest one is moved, however much it is.
const SEGMENTS_MAX: usize = 8;

/// A group's live entries in one segment: group, first index, the index behind the last one.
type Leftover = (GroupId, u64, u64);

impl Wal {
    /// Lets segments go that may, and sees to the spares. Nothing that was appended waits for it.
    pub fn housekeep(&mut self) -> Result<(), WalError> {
        self.healthy()?;
        if !std::mem::take(&mut self.untidy) {
            return self.ensure_reserve();
        }
        // In small logs of tests a whole segment would count as a leftover.
        let mut budget = MOVED_BYTES_MAX.min(self.options.segment_bytes / 8);
        while let Some(oldest) = self.oldest().filter(|_| !planted("keep_every_segment")) {
            let (mut leftovers, bytes) = self.leftovers(oldest.number());
            let early = planted("delete_a_needed_segment") && self.shared.segments().len() > 2;
            if !leftovers.is_empty() && !early {
                let part = bytes > budget;
                let long = self.shared.segments().len() > SEGMENTS_MAX;
                if part && long {
                    self.cut(&mut leftovers, budget);
                    // The rest has its turn behind the next batch.
                    self.untidy = true;
                }
                if part && !long {
                    break;
                }
                if !self.move_out(&leftovers)? || part {
                    break;
                }
                budget -= bytes;
            }
            let number = oldest.number();
            drop(oldest);
            self.free(number)?;
        }
        self.ensure_reserve()
    }

    /// The group with the most live bytes in the oldest segment.
    pub(super) fn pinned_by(&self) -> Option<GroupId> {
        let number = self.oldest()?.number();
        let groups = self.shared.groups();
        let sizes = groups.iter().map(|(group, log)| (live_in(log, number), *group));
        sizes.filter(|(bytes, _group)| *bytes > 0).max().map(|(_bytes, group)| group)
    }

    /// The oldest segment, unless it is the active one.
    fn oldest(&self) -> Option<Arc<Segment>> {
        let segments = self.shared.segments();
        let (number, segment) = segments.first_key_value()?;
        (*number != self.active.number()).then(|| Arc::clone(segment))
    }

    fn leftovers(&self, number: u64) -> (Vec<Leftover>, u64) {
        let mut found: Vec<Leftover> = Vec::new();
        let mut bytes = 0;
        for (group, log) in self.shared.groups().iter() {
            bytes += live_in(log, number);
            for (from, extent) in log.extents().filter(|(_, e)| e.place.segment == number) {
                match found.last_mut() {
                    Some(last) if last.0 == *group && last.2 == from => last.2 = extent.end,
                    Some(_) | None => found.push((*group, from, extent.end)),
                }
            }
        }
        (found, bytes)
    }

    /// Leaves of `leftovers` what takes about `budget` bytes, and at least one entry.
    fn cut(&self, leftovers: &mut Vec<Leftover>, budget: u64) {
        let (_, first, end) = leftovers[0];
        let entries = self.reader().entries(leftovers[0].0, first, end, budget);
        let count = entries.map_or(1, |entries| entries.len() as u64);
        leftovers.truncate(1);
        leftovers[0].2 = first + count.max(1);
    }

    /// Writes live entries once more, into the active segment. `false` if they cannot be read or do
    /// not fit: the segment stays, nothing is lost.
    fn move_out(&mut self, leftovers: &[Leftover]) -> Result<bool, WalError> {
        let mut read: Vec<(GroupId, Vec<Entry>)> = Vec::new();
        for (group, from, end) in leftovers {
            match self.reader().entries(*group, *from, *end, u64::MAX) {
                Ok(entries) => read.push((*group, entries)),
                Err(error) => {
                    tracing::error!(%group, index = from, %error, "live entries cannot be moved");
                    return Ok(false);
                }
            }
        }
        let mut plan = Plan::default();
        for (group, entries) in &read {
            for slice in slices(entries, RECORD_BYTES_MAX) {
                let (entries, span) = (Cow::Borrowed(slice), Span::of(slice));
                plan.push(Piece::Entries { group: *group, entries, span, moved: true });
            }
        }
        if plan.body_bytes > self.batch_body_max() {
            return Ok(false);
        }
        // A long chain is worth a new segment.
        if !self.fits(&plan) && self.shared.segments().len() <= SEGMENTS_MAX {
            return Ok(false);
        }
        self.commit_own(plan)
    }

    /// The segment counts no more. Its file serves a later one, unless there are enough of them,
    /// somebody still reads it, or it is not to be trusted.
    fn free(&mut self, number: u64) -> Result<(), WalError> {
        let (segment, damaged) = self.shared.forget_segment(number);
        let segment = segment.expect("a segment is freed once");
        // The next batch says so, and the last one is to have one behind it.
        self.sealed = false;
        let path = segment.path().to_owned();
        let wanted = !damaged && self.spares.len() < self.spares_max();
        match Arc::try_unwrap(segment) {
            Ok(segment) if wanted && self.is_usual(&segment.file) && segment.file.is_sound() => {
                tracing::debug!(segment = number, "log segment ended, its file stays");
                self.spares.push(segment.file);
                Ok(())
            }
            Ok(_) | Err(_) => {
                tracing::debug!(segment = number, "log segment ended, its file goes");
                self.files.remove(path).map_err(|error| self.poison(error))
            }
        }
    }
}

fn live_in(log: &GroupLog, number: u64) -> u64 {
    let here = log.extents().filter(|(_from, extent)| extent.place.segment == number);
    here.map(|(from, extent)| GroupLog::live_bytes(from, &extent)).sum()
}
