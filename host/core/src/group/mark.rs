//! Snapshots at marks: the log names the indexes at which every replica captures.
//!
//! So the objects of one mark are equal on all nodes: any peer can serve any other, a transfer
//! survives a change of leader, and unequal digests at a mark tell of divergence. A replica that is
//! still capturing when the next mark comes lets that one pass; a failed capture costs nothing but
//! the chance.

use raft::eraftpb::{Entry, EntryType};

use crate::entry::{self, EntryBody, MarkReason, footprint};
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::group::ready;
use crate::retention::{self, Pins};
use crate::snapshot::Verified;

/// What has been written since the last mark, and what is being captured.
pub(super) struct Marks {
    /// The last mark's index, or the snapshot this replica started from.
    last: u64,
    handed: u64,
    bytes: u64,
    wanted: Option<MarkReason>,
    /// A mark this leader proposed and has not seen come back, by (term, index).
    proposed: Option<(u64, u64)>,
    /// Index of the mark being captured here.
    capturing: Option<u64>,
    /// Marks that passed while another was being captured.
    skipped: u64,
    failed: u64,
    /// Captures that failed in a row, and the tick before which no further mark is proposed.
    failed_in_a_row: u32,
    not_before: u64,
}

/// Ticks between a failed capture and the next mark this leader proposes; doubled with each
/// failure.
const RETRY_TICKS: u64 = 10;
/// Doublings of that wait, at most: ten minutes.
const RETRY_DOUBLINGS_MAX: u32 = 9;

impl Marks {
    pub(super) fn since(index: u64) -> Self {
        Self {
            last: index,
            handed: index,
            bytes: 0,
            wanted: None,
            proposed: None,
            capturing: None,
            skipped: 0,
            failed: 0,
            failed_in_a_row: 0,
            not_before: 0,
        }
    }

    pub(super) fn want(&mut self, reason: MarkReason) {
        self.wanted.get_or_insert(reason);
    }

    /// Counts a committed entry.
    pub(super) fn passed(&mut self, entry: &Entry) {
        self.handed = entry.index;
        self.bytes += footprint(entry) as u64;
        if entry.get_entry_type() == EntryType::EntryNormal && entry::is_mark(&entry.data) {
            self.last = entry.index;
            self.bytes = 0;
            self.proposed = None;
        }
    }

    /// A mark was committed: whether this replica captures it.
    pub(super) fn begin_capture(&mut self, index: u64) -> bool {
        if self.capturing.is_some() {
            self.skipped += 1;
            return false;
        }
        self.capturing = Some(index);
        true
    }

    /// A capture failed at tick `now`.
    pub(super) fn capture_failed(&mut self, index: u64, now: u64) {
        if self.capturing == Some(index) {
            self.capturing = None;
            self.failed += 1;
            self.not_before = now + (RETRY_TICKS << self.failed_in_a_row);
            self.failed_in_a_row = (self.failed_in_a_row + 1).min(RETRY_DOUBLINGS_MAX);
        }
    }

    /// An installed snapshot stands in for every mark below it; captures queued before it are gone.
    pub(super) fn installed(&mut self, index: u64) {
        self.last = self.last.max(index);
        self.handed = self.handed.max(index);
        self.bytes = 0;
        self.capturing = None;
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.skipped, self.failed)
    }

    fn due(&self, shared: &Shared) -> Option<MarkReason> {
        let policy = shared.config.snapshot_policy;
        self.wanted
            .or_else(|| (self.handed - self.last >= policy.entries).then_some(MarkReason::Entries))
            .or_else(|| (self.bytes >= policy.log_bytes).then_some(MarkReason::LogBytes))
    }
}

impl Hosting {
    /// A leader proposes a mark when one is due; a follower in need of a snapshot makes one due.
    pub(super) fn tick_marks(&mut self, shared: &Shared) {
        if !self.is_leader() {
            self.marks.proposed = None;
            return;
        }
        let term = self.raw.raft.term;
        let under_way = self.marks.proposed.is_some_and(|(proposed, _)| proposed == term);
        let too_soon = shared.now < self.marks.not_before;
        if under_way || too_soon || self.marks.capturing.is_some() {
            return;
        }
        if self.raw.store().take_wanted_snapshot().is_some() {
            self.marks.want(MarkReason::Learner);
        }
        let Some(reason) = self.marks.due(shared) else { return };
        let body = EntryBody::Mark { time_ms: shared.wall_ms, reason };
        if let Some((index, term)) = self.propose(&body) {
            self.marks.proposed = Some((term, index));
            self.marks.wanted = None;
        }
    }

    /// A local snapshot is whole: list it and cut the log, unless an installed one overtook it.
    pub(super) fn captured(
        &mut self,
        shared: &mut Shared,
        snapshot: Verified,
        effects: &mut Vec<Effect>,
    ) {
        let Verified { desc, hold } = snapshot;
        if self.marks.capturing == Some(desc.index) {
            self.marks.capturing = None;
        }
        self.marks.failed_in_a_row = 0;
        if shared.recovery.newest().is_some_and(|newest| newest.index >= desc.index) {
            return;
        }
        let plan = retention::plan(&shared.recovery, desc, &self.pins());
        let previous_term = self.raw.store().term_before(plan.first_index);
        ready::list_local(shared, plan.snapshots, plan.first_index, previous_term, hold, effects);
    }

    fn pins(&self) -> Pins {
        let raft = &self.raw.raft;
        let followers = raft
            .prs()
            .iter()
            .filter(|(id, peer)| self.is_leader() && **id != raft.id && peer.recent_active)
            .map(|(_, peer)| peer.matched);
        Pins {
            sending: self.sending.values().map(|desc| desc.index).collect(),
            slowest_follower: followers.min(),
            outgrown: self.raw.store().outgrown(),
        }
    }
}
