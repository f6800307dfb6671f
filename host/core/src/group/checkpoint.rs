//! Snapshots at checkpoints: entries of the log name the indexes at which every replica captures.
//!
//! The objects of one checkpoint are therefore equal on all nodes: any peer can serve any other, a
//! transfer survives a change of leader, and unequal digests at a checkpoint would reveal
//! divergence. A replica skips a checkpoint if it is still capturing an earlier one or gets no
//! place in time. A failed capture is tried again at a later checkpoint, and delays it; captures
//! that keep failing let the log grow to its bound. A replica that is short of space, or soon would
//! be, does not wait for a checkpoint.

use raft::Storage as _;
use raft::eraftpb::{Entry, EntryType};

use crate::entry::{self, CheckpointReason, EntryBody, footprint};
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::guest::Capture;
use crate::group::pipeline::Pipeline;
use crate::group::places::{PlaceTry, PlaceWait};
use crate::group::raft_log::RaftLog;
use crate::group::raft_node::RaftNode;
use crate::limits;
use crate::mutant::planted;
use crate::snapshot::SnapshotSpace;

/// What was written since the last checkpoint, and the capture under way.
pub(super) struct Checkpoints {
    /// The index of the last checkpoint, or of the snapshot that this replica started from.
    last: u64,
    handed: u64,
    /// The index of the last entry that may have changed the state.
    command: u64,
    bytes: u64,
    /// Entries since the last checkpoint that may have changed the state.
    changes: u64,
    wanted: Option<CheckpointReason>,
    /// The checkpoint that this leader proposed and that is not committed yet, as (term, index).
    proposed: Option<(u64, u64)>,
    /// The index of the capture under way.
    capturing: Option<u64>,
    /// The tick at which that capture began, and how many ticks the last finished one took.
    began: u64,
    took: u64,
    /// The tick at which the guest finished writing that capture.
    written: Option<u64>,
    /// Checkpoints skipped because another capture was under way or no place was free.
    skipped: u64,
    failed: u64,
    /// Why the last capture failed; `None` once one has succeeded.
    failure: Option<String>,
    /// Whether that failure is temporary: what the capture needed is in use and will be free again.
    postponed: bool,
    /// The space for the next snapshot, as the host reported it last.
    space: Option<SnapshotSpace>,
    /// The tick at which the next snapshot became overdue.
    overdue_since: Option<u64>,
    /// The index of the capture that waits until a recovery point is unlisted.
    waiting_for_unlisting: Option<u64>,
    /// What happens to a capture that got no place.
    place: PlaceWait,
    /// Captures that failed in a row, and the tick before which no further checkpoint is proposed.
    failed_in_a_row: u32,
    not_before: u64,
}

/// A capture that failed.
pub(super) struct CaptureFailed {
    pub(super) index: u64,
    pub(super) why: String,
    /// The failure is temporary: what the capture needed is in use and will be free again.
    pub(super) postponed: bool,
}

/// Ticks between a failed capture and the next checkpoint that this leader proposes; doubled with
/// each failure.
const RETRY_TICKS: u64 = 10;
/// How often [`RETRY_TICKS`] is doubled at most, up to half a minute: space may be freed at any
/// time, and a client or a follower may be waiting for the snapshot.
const RETRY_DOUBLINGS_MAX: u32 = 5;

impl Checkpoints {
    /// Counts from the snapshot at `index`; `bytes` is the size of the log from there to the floor.
    pub(super) fn since(index: u64, bytes: u64) -> Self {
        Self {
            // The entries after the snapshot are not examined: assume that they changed something.
            changes: 1,
            began: 0,
            written: None,
            took: 0,
            last: index,
            handed: index,
            // If there are entries after the snapshot, assume that the first one changed the state.
            command: index + u64::from(bytes > 0),
            bytes,
            wanted: None,
            proposed: None,
            capturing: None,
            skipped: 0,
            failed: 0,
            failure: None,
            postponed: false,
            space: None,
            overdue_since: None,
            waiting_for_unlisting: None,
            place: PlaceWait::default(),
            failed_in_a_row: 0,
            not_before: 0,
        }
    }

    /// The index of the last checkpoint, or of the snapshot that counts as one.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Whether a checkpoint is proposed and not committed yet, or a capture is under way here.
    pub(super) fn is_under_way(&self, now: u64) -> bool {
        self.proposed.is_some() || self.is_capturing_in_time(now)
    }

    /// Whether a checkpoint is to be proposed.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether a checkpoint is proposed and not committed yet.
    pub(super) fn is_proposed(&self) -> bool {
        self.proposed.is_some()
    }

    /// The index of the last checkpoint, if nothing changed since and no capture is under way.
    pub(super) fn settled(&self) -> Option<u64> {
        (self.changes == 0 && self.capturing.is_none() && self.last > 0).then_some(self.last)
    }

    /// Ticks for which no checkpoint is proposed because a capture failed.
    pub(super) fn rests_for(&self, now: u64) -> Option<u64> {
        self.not_before.checked_sub(now).filter(|ticks| *ticks > 0)
    }

    /// How many ticks the last capture took.
    pub(super) fn took(&self) -> u64 {
        self.took
    }

    pub(super) fn want(&mut self, reason: CheckpointReason) {
        self.wanted.get_or_insert(reason);
    }

    /// Counts a committed entry.
    pub(super) fn passed(&mut self, entry: &Entry) {
        self.handed = entry.index;
        if entry::calls_guest(&entry.data) {
            self.command = entry.index;
        }
        self.bytes += footprint(entry) as u64;
        // The empty entry that begins a leader's term changes nothing.
        self.changes += u64::from(!entry.data.is_empty());
        if entry.get_entry_type() == EntryType::EntryNormal && entry::is_checkpoint(&entry.data) {
            self.last = entry.index;
            (self.bytes, self.changes) = (0, 0);
            self.proposed = None;
        }
    }

    /// Begins a capture at `index`. Returns false, and counts a skipped one, if another is under
    /// way.
    pub(super) fn begin_capture(&mut self, index: u64, now: u64) -> bool {
        if self.capturing.is_some() {
            self.skipped += 1;
            return false;
        }
        (self.capturing, self.place) = (Some(index), PlaceWait::default());
        (self.began, self.written) = (now, None);
        true
    }

    /// Notes that the capture at `index` failed at tick `now`.
    fn note_failure(&mut self, failed: CaptureFailed, now: u64) {
        let CaptureFailed { index, why, postponed } = failed;
        if self.capturing == Some(index) {
            self.abandon_capture();
            self.failed += 1;
            (self.failure, self.postponed) = (Some(why), postponed);
            self.not_before = now + (RETRY_TICKS << self.failed_in_a_row);
            self.failed_in_a_row = (self.failed_in_a_row + 1).min(RETRY_DOUBLINGS_MAX);
        }
    }

    /// Counts an installed snapshot as the last checkpoint; captures queued before it were dropped.
    pub(super) fn installed(&mut self, index: u64) {
        self.last = self.last.max(index);
        self.handed = self.handed.max(index);
        (self.bytes, self.changes) = (0, 0);
        self.abandon_capture();
    }

    /// Forgets the capture under way: it failed, or its guest is gone.
    pub(super) fn abandon_capture(&mut self) {
        self.capturing = None;
        self.waiting_for_unlisting = None;
        self.place = PlaceWait::default();
    }

    /// The index of the last entry that may have changed the state, if it comes after the last
    /// checkpoint.
    pub(super) fn uncovered(&self) -> Option<u64> {
        Some(self.command).filter(|index| *index > self.last)
    }

    /// Whether the capture under way should have ended by now: the guest wrote it long ago.
    fn is_late(&self, now: u64) -> bool {
        let late = |written: u64| now >= written + limits::CAPTURE_TICKS_MAX;
        let written = self.written.filter(|_| self.capturing.is_some());
        written.is_some_and(late) && !planted("wait_for_a_capture")
    }

    /// Whether a capture is under way and may be expected to end.
    pub(super) fn is_capturing_in_time(&self, now: u64) -> bool {
        self.capturing.is_some() && !self.is_late(now)
    }

    /// The capture at `index` is tried again once a recovery point is unlisted.
    pub(super) fn waits_for_unlisting(&mut self, index: u64) {
        self.waiting_for_unlisting = Some(index);
    }

    pub(super) fn is_capturing_at(&self, index: u64) -> bool {
        self.capturing == Some(index)
    }

    /// Gives up a capture that waited too long for a place. The cause of an earlier failure is
    /// kept.
    pub(super) fn gave_up_for_a_place(&mut self, why: String) {
        self.skipped += u64::from(self.capturing == Some(self.last));
        self.abandon_capture();
        if !self.fails() {
            (self.failure, self.postponed) = (Some(why), true);
        }
    }

    /// The space for the next snapshot, if it is known.
    pub(super) fn space(&self) -> Option<SnapshotSpace> {
        self.space
    }

    /// Cancels the wait that follows a failed capture: the cause of the failure is gone.
    pub(super) fn wait_no_more(&mut self) {
        self.not_before = 0;
    }

    pub(super) fn told_of_space(&mut self, space: SnapshotSpace) {
        self.space = Some(space);
    }

    /// The tick since which the next snapshot is overdue; `overdue` says whether it is now.
    pub(super) fn overdue_since(&mut self, overdue: bool, now: u64) -> Option<u64> {
        self.overdue_since = self.overdue_since.or(Some(now)).filter(|_| overdue);
        self.overdue_since
    }

    /// Why the last capture failed; `None` if it succeeded.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the last capture failed for a reason that does not pass by itself, or for a
    /// temporary one that has lasted until the wait between tries reached its maximum.
    pub(super) fn fails(&self) -> bool {
        let passes = self.postponed && self.failed_in_a_row < RETRY_DOUBLINGS_MAX;
        self.failure.is_some() && !passes
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.skipped, self.failed)
    }

    /// Why a checkpoint is due, if one is; the policy's limits are multiplied by `patience`.
    fn due(&self, shared: &Shared, patience: u64) -> Option<CheckpointReason> {
        let policy = shared.config.snapshot_policy;
        let entries = policy.entries.saturating_mul(patience);
        let bytes = policy.log_bytes.saturating_mul(patience);
        self.wanted
            .or_else(|| (self.handed - self.last >= entries).then_some(CheckpointReason::Entries))
            .or_else(|| (self.bytes >= bytes).then_some(CheckpointReason::LogBytes))
    }

    /// Counts a capture that does not end as failed, until it does end. The other replicas do not
    /// wait for it, and the log of this one stays within its bound.
    pub(super) fn tick_capture(&mut self, now: u64) {
        if let Some(index) = self.capturing
            && self.is_late(now)
            && !self.fails()
        {
            let why = format!("the snapshot at {index} was written and does not become complete");
            (self.failure, self.postponed) = (Some(why), false);
        }
    }

    /// On a leader, proposes a checkpoint when one is due. A follower that needs a snapshot makes
    /// one due; while a snapshot is being sent, checkpoints come later, so that it is not
    /// superseded so soon.
    pub(super) fn tick(&mut self, raw: &mut RaftNode, is_busy: bool, shared: &mut Shared) {
        if !raw.is_leader() {
            self.proposed = None;
            return;
        }
        let term = raw.raft.term;
        let under_way = self.proposed.is_some_and(|(proposed, _)| proposed == term);
        let too_soon = shared.now < self.not_before;
        if under_way || too_soon || self.is_capturing_in_time(shared.now) {
            return;
        }
        if raw.store().take_wanted_snapshot().is_some() {
            self.want(CheckpointReason::Learner);
        }
        let patience = if is_busy { limits::CHECKPOINT_PATIENCE } else { 1 };
        let Some(reason) = self.due(shared, patience) else { return };
        let body = EntryBody::Checkpoint { time_ms: shared.stamp(), reason };
        if let Some((index, term)) = raw.propose_body(&body) {
            self.proposed = Some((term, index));
            self.wanted = None;
        }
    }

    /// The guest wrote its snapshot at `index`; the lane applies entries again.
    pub(super) fn written(&mut self, pipeline: &mut Pipeline, shared: &mut Shared, index: u64) {
        pipeline.captured(index);
        self.written.get_or_insert(shared.now);
        // The interval is counted from the end of this group's own capture, so that groups that
        // captured one after the other do not all try again at the same time.
        shared.space.tried(shared.now);
    }

    /// The capture at `index` is complete: sealed and read back.
    pub(super) fn captured(&mut self, index: u64, now: u64) {
        if self.capturing == Some(index) {
            self.capturing = None;
            self.took = now - self.began;
        }
        self.failed_in_a_row = 0;
        self.failure = None;
    }

    pub(super) fn capture_failed(
        &mut self,
        pipeline: &mut Pipeline,
        failed: CaptureFailed,
        now: u64,
    ) {
        pipeline.captured(failed.index);
        self.note_failure(failed, now);
    }

    /// Captures at the floor, between two checkpoints, for a replica that cannot wait for the next
    /// one: it is short of space, its log is damaged, it got no place at the checkpoint, no peer
    /// could repair its object, or its newest snapshot was read too late for the last capture.
    /// Returns false if no capture began.
    pub(super) fn capture_here(
        &mut self,
        pipeline: &mut Pipeline,
        log: &RaftLog,
        shared: &Shared,
    ) -> bool {
        let index = shared.recovery.floor;
        let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
        let waits = self.capturing.is_some()
            || shared.now < self.not_before
            || self.place.asks_later(shared.now);
        if waits || index <= newest || !pipeline.captures() {
            return false;
        }
        let Ok(term) = log.term(index) else { return false };
        self.begin_capture(index, shared.now);
        pipeline.push_capture(capture(log, shared, term, index));
        true
    }

    /// The capture at `index` got no place.
    pub(super) fn no_place(
        &mut self,
        pipeline: &mut Pipeline,
        shared: &mut Shared,
        index: u64,
        why: String,
    ) {
        if !self.is_capturing_at(index) {
            return pipeline.captured(index);
        }
        if self.last == index && shared.now < self.began + limits::CHECKPOINT_PLACE_TICKS {
            return self.place.stays(index);
        }
        pipeline.captured(index);
        self.gave_up_for_a_place(why);
        self.place.comes_back(shared.now, &mut shared.chance);
    }

    pub(super) fn tick_places(
        &mut self,
        pipeline: &mut Pipeline,
        log: &RaftLog,
        shared: &Shared,
        effects: &mut Vec<Effect>,
    ) {
        match self.place.next(shared.now) {
            Some(PlaceTry::Again(index)) => pipeline.capture_again(index, effects),
            Some(PlaceTry::Anew) => drop(self.capture_here(pipeline, log, shared)),
            None => {}
        }
    }

    /// Retries a capture that waited for a recovery point to be unlisted: the list is durable now.
    pub(super) fn retry_capture(&mut self, pipeline: &mut Pipeline, effects: &mut Vec<Effect>) {
        if let Some(index) = self.waiting_for_unlisting.take() {
            pipeline.capture_again(index, effects);
        }
    }
}

/// A capture at (term, index). Everything up to there was handed to the pipeline.
pub(super) fn capture(log: &RaftLog, shared: &Shared, term: u64, index: u64) -> Capture {
    let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
    let gain = log.bytes_between(newest, index);
    let configuration = shared.recovery.configuration.clone();
    Capture { term, index, configuration, gain }
}
