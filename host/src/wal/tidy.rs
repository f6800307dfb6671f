//! Deleting old segments: in order, and by moving the live entries that keep the oldest one.
//!
//! - Done a step at a time ([`Wal::housekeep`]), while nothing waits for the log.
//! - Segments are deleted oldest first: an entry that was overwritten must be gone before the one
//!   that overwrote it.
//! - *Few* live entries in the oldest segment are moved, so that an idle group pins no segment.
//!   More are moved only while the log is *large*: soon the files would take more than twice the
//!   space of their live entries, plus four segments.
//! - Moving writes at most a quarter of the bytes that are appended. So an idle log comes to rest,
//!   and a log in which nearly all entries live forever grows beyond that bound rather than being
//!   rewritten again and again.
//! - While the disk is short of space, entries are moved only if that frees a segment at once, and
//!   only into the active segment.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::wal::record::Span;
use lockstep_core::wal::{MOVED_BYTES_MAX, RECORD_BYTES_MAX};
use raft::eraftpb::Entry;

use super::plan::{Piece, Plan, slices};
use super::{Wal, WalError};

/// How many bytes must be appended for each byte that may be moved.
const APPENDED_PER_MOVED: u64 = 4;

/// A group's live entries in one segment: group, first index, the index after the last one.
type Leftover = (GroupId, u64, u64);

impl Wal {
    /// Takes one step to keep the log small and its spares ready; returns whether to call it again
    /// at once. No append waits for it.
    pub fn housekeep(&mut self) -> Result<bool, WalError> {
        self.healthy()?;
        let Some(oldest) = self.oldest().filter(|_| self.untidy) else {
            self.untidy = false;
            return self.ensure_reserve().map(|()| false);
        };
        let live = self.live_in(oldest);
        let early = planted("delete_a_needed_segment") && self.shared.segments().len() > 2;
        if live == 0 || early {
            return self.free(oldest);
        }
        self.ensure_reserve()?;
        self.empty(oldest, live)
    }

    /// The name of the group with the most live bytes in the oldest segment.
    pub(super) fn pinned_by(&self) -> Option<String> {
        let number = self.oldest()?;
        let groups = self.shared.groups();
        let sizes =
            groups.values().map(|log| (log.extents().live_in(number), &log.tail.state.group));
        let most = sizes.filter(|(bytes, _group)| *bytes > 0).max();
        most.map(|(_bytes, group)| group.clone())
    }

    /// Bytes of records that hold live entries.
    pub(super) fn live(&self) -> u64 {
        self.shared.groups().values().map(|log| log.extents().live()).sum()
    }

    /// Bytes that all files may take, including spares.
    pub(super) fn files_max(&self) -> u64 {
        2 * self.live() + 4 * self.options.segment_bytes
    }

    /// Whether old segments must be emptied to keep the files within their bound. Moving is slow,
    /// so it begins an eighth below the bound, and leaves space for two spares and a segment that
    /// begins meanwhile.
    fn is_large(&self) -> bool {
        let bytes: u64 = self.shared.segments().values().map(|segment| segment.file.length).sum();
        let (live, segment) = (self.live(), self.options.segment_bytes);
        bytes > 2 * live - live / 4 + segment
    }

    /// Notes how many bytes were appended: a fraction of them may be moved. At most a segment's
    /// worth is saved up.
    pub(super) fn earn(&mut self, appended: u64) {
        let saved = self.credit + appended / APPENDED_PER_MOVED;
        self.credit = saved.min(self.options.segment_bytes);
    }

    /// The oldest segment, unless it is the active one.
    fn oldest(&self) -> Option<u64> {
        let number = *self.shared.segments().first_key_value()?.0;
        (number != self.active.number() && !planted("keep_every_segment")).then_some(number)
    }

    fn live_in(&self, segment: u64) -> u64 {
        self.shared.groups().values().map(|log| log.extents().live_in(segment)).sum()
    }

    /// Moves some of the live entries that keep the oldest segment, if that is worthwhile and
    /// allowed; returns whether anything changed. An attempt that cannot succeed until a segment
    /// begins or entries become obsolete is not repeated before that.
    fn empty(&mut self, number: u64, live: u64) -> Result<bool, WalError> {
        // In the small logs of tests, a whole segment would otherwise count as few entries.
        let step = MOVED_BYTES_MAX.min(self.options.segment_bytes / 8);
        let short = self.shortage().is_some();
        let for_ever = planted("clean_for_ever");
        let large = !short && (for_ever || self.is_large());
        self.untidy = live <= step || large;
        self.credit = if for_ever { u64::MAX / 2 } else { self.credit };
        if !self.untidy || self.is_stalled() || self.credit < live.min(step) {
            return Ok(false);
        }
        let (leftovers, bytes) = self.leftovers(number, step);
        if self.credit < bytes {
            return Ok(false);
        }
        let read = self.read_out(&leftovers);
        let plan = read.iter().fold(Plan::default(), |plan, (group, entries)| {
            slices(entries, RECORD_BYTES_MAX).into_iter().fold(plan, |mut plan, slice| {
                let (entries, span) = (Cow::Borrowed(slice), Span::of(slice));
                plan.push(Piece::Entries { group: *group, entries, span, moved: true });
                plan
            })
        });
        let (moved, fits) = (plan.body_bytes as u64, plan.body_bytes <= self.batch_body_max());
        // Beginning a new segment for the moved entries is worthwhile only if the log is large.
        self.untidy = !read.is_empty() && fits && (large || self.fits(&plan));
        if !self.untidy || !self.commit_own(plan)? {
            return Ok(false);
        }
        self.credit = self.credit.saturating_sub(moved);
        self.counters.moved_bytes += moved;
        // The planted bug always finds something to move, and would loop forever if this were true.
        Ok(!for_ever)
    }

    /// Live entries of a segment that take about `budget` bytes, at least one record, and how many
    /// bytes they take.
    fn leftovers(&self, number: u64, budget: u64) -> (Vec<Leftover>, u64) {
        let mut found: Vec<Leftover> = Vec::new();
        let mut bytes = 0;
        for (group, log) in self.shared.groups().iter() {
            for (from, extent) in log.extents().in_segment(number) {
                let more = extent.live_bytes(from);
                if bytes > 0 && bytes + more > budget {
                    return (found, bytes);
                }
                bytes += more;
                match found.last_mut() {
                    Some(last) if last.0 == *group && last.2 == from => last.2 = extent.end,
                    Some(_) | None => found.push((*group, from, extent.end)),
                }
            }
        }
        (found, bytes)
    }

    /// Reads entries that are to be moved. Returns none if one of them cannot be read: the segment
    /// is kept, and nothing is lost.
    fn read_out(&self, leftovers: &[Leftover]) -> Vec<(GroupId, Vec<Entry>)> {
        let mut read = Vec::new();
        for (group, from, end) in leftovers {
            match self.reader().entries(*group, *from, *end, u64::MAX) {
                Ok(entries) => read.push((*group, entries)),
                Err(error) => {
                    tracing::error!(%group, index = from, %error, "live entries cannot be moved");
                    return Vec::new();
                }
            }
        }
        read
    }

    /// Deletes a segment. Its file becomes a spare, unless there are enough spares, a reader still
    /// uses the file, or the file is damaged. A damaged file is removed durably before the segment
    /// is forgotten; returns false if there is not enough space for that now.
    fn free(&mut self, number: u64) -> Result<bool, WalError> {
        let known = self.shared.segments().get(&number).map(Arc::clone);
        let segment = known.expect("a segment is freed once");
        let path = segment.path().to_owned();
        let rotted = self.shared.damaged().contains(&number) || !segment.file.is_sound();
        drop(segment);
        if rotted
            && !planted("corrupt_file_comes_back")
            && !self.files.remove_for_good(path.clone()).map_err(|error| self.poison(error))?
        {
            return Ok(false);
        }
        let segment = self.shared.forget_segment(number).expect("it is there");
        // A batch must follow, since only the next batch records which segment is now the oldest.
        self.sealed = false;
        let wanted = !rotted && self.spares.len() < self.spares_max();
        match Arc::try_unwrap(segment) {
            Ok(segment) if wanted && self.is_usual(&segment.file) => {
                tracing::debug!(segment = number, "log segment deleted, its file is now a spare");
                self.spares.push(segment.file);
            }
            Ok(_) | Err(_) => {
                tracing::debug!(segment = number, "log segment deleted with its file");
                self.files.remove(path).map_err(|error| self.poison(error))?;
            }
        }
        Ok(true)
    }
}
