//! Old segments go: deletion in order, and moving what keeps the oldest one.
//!
//! - Done a step at a time ([`Wal::housekeep`]), while nobody waits for the log.
//! - Segments go oldest first: an entry that was overwritten has to go before what overwrote it.
//! - What is *little* in the oldest segment is moved, so that an idle group pins nothing. More is
//!   moved only while the log is *large*: soon the files would take more than twice what lives in
//!   them, and four segments.
//! - At most a quarter of the bytes that are appended is moved. So an idle log comes to rest, and a
//!   log of which nearly everything lives for ever grows beyond twice that rather than being
//!   written again and again.
//! - While the disk is short of room only what frees a segment at once is moved, and only into the
//!   segment that is there.

use std::borrow::Cow;
use std::sync::Arc;

use lockstep_core::ids::GroupId;
use lockstep_core::mutant::planted;
use lockstep_core::wal::record::Span;
use lockstep_core::wal::{MOVED_BYTES_MAX, RECORD_BYTES_MAX};
use raft::eraftpb::Entry;

use super::plan::{Piece, Plan, slices};
use super::{Wal, WalError};

/// So many bytes are appended for each that may be moved.
const APPENDED_PER_MOVED: u64 = 4;

/// A group's live entries in one segment: group, first index, the index behind the last one.
type Leftover = (GroupId, u64, u64);

impl Wal {
    /// One step of keeping the log small and its spares ready; whether there may be another one to
    /// take at once. Nothing that was appended waits for it.
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

    /// The group with the most live bytes in the oldest segment.
    pub(super) fn pinned_by(&self) -> Option<GroupId> {
        let number = self.oldest()?;
        let groups = self.shared.groups();
        let sizes = groups.iter().map(|(group, log)| (log.extents().live_in(number), *group));
        sizes.filter(|(bytes, _group)| *bytes > 0).max().map(|(_bytes, group)| group)
    }

    /// Bytes of records that hold live entries.
    pub(super) fn live(&self) -> u64 {
        self.shared.groups().values().map(|log| log.extents().live()).sum()
    }

    /// Bytes that all files may take, spares included.
    pub(super) fn files_max(&self) -> u64 {
        2 * self.live() + 4 * self.options.segment_bytes
    }

    /// Whether old segments have to be emptied so that files stay within their bound. Moving is
    /// slow, so it begins an eighth before, and leaves room for two spares and a segment that
    /// begins meanwhile.
    fn is_large(&self) -> bool {
        let bytes: u64 = self.shared.segments().values().map(|segment| segment.file.length).sum();
        let (live, segment) = (self.live(), self.options.segment_bytes);
        bytes > 2 * live - live / 4 + segment
    }

    /// So many bytes were appended: a part of them may be moved. What was saved up lasts for a
    /// segment.
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

    /// Moves something of what keeps the oldest segment, if that is worth it and may be; whether
    /// that changed anything. If it can come to nothing before a segment begins or entries die,
    /// nobody looks before that.
    fn empty(&mut self, number: u64, live: u64) -> Result<bool, WalError> {
        // In small logs of tests a whole segment would count as little.
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
        // A large log is worth a new segment.
        self.untidy = !read.is_empty() && fits && (large || self.fits(&plan));
        if !self.untidy || !self.commit_own(plan)? {
            return Ok(false);
        }
        self.credit = self.credit.saturating_sub(moved);
        self.counters.moved_bytes += moved;
        // The bug moves something whenever somebody looks: without an end it would only hang.
        Ok(!for_ever)
    }

    /// Live entries in a segment that take about so many bytes, at least one record, and how many
    /// they take.
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

    /// Reads entries that are to be moved; none if one of them cannot be read: their segment stays,
    /// nothing is lost.
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

    /// The segment counts no more. Its file serves a later one, unless there are enough of them,
    /// somebody still reads it, or it is not to be trusted: then it is gone for good before the
    /// segment is forgotten. `false`: there is no room for that now.
    fn free(&mut self, number: u64) -> Result<bool, WalError> {
        let segment = self.shared.segments().get(&number).map(Arc::clone);
        let segment = segment.expect("a segment is freed once");
        let path = segment.path().to_owned();
        let rotted = self.shared.damaged().contains(&number) || !segment.file.is_sound();
        drop(segment);
        if rotted
            && !planted("rotten_file_comes_back")
            && !self.files.remove_for_good(path.clone()).map_err(|error| self.poison(error))?
        {
            return Ok(false);
        }
        let segment = self.shared.forget_segment(number).expect("it is there");
        // The next batch says so, and the last one is to have one behind it.
        self.sealed = false;
        let wanted = !rotted && self.spares.len() < self.spares_max();
        match Arc::try_unwrap(segment) {
            Ok(segment) if wanted && self.is_usual(&segment.file) => {
                tracing::debug!(segment = number, "log segment ended, its file stays");
                self.spares.push(segment.file);
            }
            Ok(_) | Err(_) => {
                tracing::debug!(segment = number, "log segment ended, its file is removed");
                self.files.remove(path).map_err(|error| self.poison(error))?;
            }
        }
        Ok(true)
    }
}
