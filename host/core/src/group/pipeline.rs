//! From committed to applied: what the apply lane is given, in order and bounded.
//!
//! What raft calls *applied* is "handed over to this pipeline". The lane gets work while less than
//! [`limits::APPLY_INFLIGHT_BYTES_MAX`] of it is under way; what has to wait longer keeps only its
//! indexes, and the lane reads those entries from the log.

use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::Entry;

use crate::entry::footprint;
use crate::group::effect::{ApplyJob, Effect};
use crate::limits;
use crate::snapshot::{Configuration, SnapshotDesc};

/// The queue in front of the apply lane.
pub(super) struct Pipeline {
    queue: VecDeque<Item>,
    /// Bytes of entries held in the queue.
    queued_bytes: usize,
    /// Bytes given to the lane and not reported back.
    inflight_bytes: usize,
    /// The lane was given everything up to here.
    dispatched: u64,
    /// The guest's applied index, as last reported.
    applied: u64,
    /// The number of the last build, of a start or a restore, that the lane was given.
    build: u64,
    /// The lane rebuilds the guest from a recovery point.
    rebuilding: bool,
    /// Restores given to the lane and not reported back.
    restores: usize,
    /// raft accepted a snapshot that the log does not list durably yet.
    installing: bool,
    /// A capture was given to the lane; what follows waits until the guest wrote it, because it may
    /// have to be tried again.
    capturing: Option<Capture>,
    /// There is nothing to build a guest from: a start will come, and cover what is handed over
    /// until then.
    waiting: bool,
    /// Bytes of entries handed over and not reported back.
    backlog_bytes: usize,
    /// The last entry handed over.
    handed: u64,
    /// Nothing is applied any more: what is handed over is known by its bounds only.
    halted: bool,
    /// The lane builds the guest of a halted replica, to be asked.
    standing: bool,
}

enum Item {
    Range { first: u64, last: u64, bytes: usize, entries: Vec<Entry>, awaited: BTreeSet<u64> },
    Capture(Capture),
}

/// A snapshot that the lane is to take.
#[derive(Clone)]
pub(super) struct Capture {
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) configuration: Configuration,
    /// Bytes of log that the replica lets go of then.
    pub(super) gain: u64,
}

impl Pipeline {
    /// The lane begins by rebuilding up to `floor`.
    pub(super) fn rebuilding(floor: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            inflight_bytes: 0,
            dispatched: floor,
            applied: 0,
            build: 0,
            rebuilding: true,
            restores: 0,
            installing: false,
            capturing: None,
            waiting: false,
            backlog_bytes: 0,
            handed: floor,
            halted: false,
            standing: false,
        }
    }

    pub(super) fn dispatched(&self) -> u64 {
        self.dispatched
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) fn build(&self) -> u64 {
        self.build
    }

    pub(super) fn is_open(&self) -> bool {
        // While it waits or is halted nothing is queued.
        !(self.rebuilding || self.installing)
    }

    /// Whether a guest applies what is handed over.
    pub(super) fn is_applying(&self) -> bool {
        self.is_open() && self.restores == 0 && self.captures()
    }

    /// Bytes of entries handed over and not applied yet.
    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    /// Whether the lane is so far behind that a leader packs no more commands.
    pub(super) fn is_behind(&self) -> bool {
        self.backlog_bytes > limits::APPLY_BACKLOG_BYTES_MAX
            || self.handed.saturating_sub(self.applied) > limits::APPLY_BACKLOG_ENTRIES_MAX
    }

    /// Whether the lane may still have to open a snapshot that it was given.
    pub(super) fn is_reading(&self) -> bool {
        self.standing || self.rebuilding || self.restores > 0
    }

    /// Whether a snapshot that was installed takes the place of whatever is being rebuilt.
    pub(super) fn is_superseded(&self) -> bool {
        self.installing || self.restores > 0
    }

    pub(super) fn give_up_rebuilding(&mut self) {
        self.rebuilding = false;
    }

    /// Committed entries, contiguous with what came before; tickets wait for `awaited` ones.
    pub(super) fn push(&mut self, mut entries: Vec<Entry>, awaited: BTreeSet<u64>) {
        let (Some(head), Some(tail)) = (entries.first(), entries.last()) else { return };
        self.handed = tail.index;
        if !self.captures() {
            return;
        }
        let (first, last) = (head.index, tail.index);
        let bytes = entries.iter().map(footprint).sum();
        self.backlog_bytes += bytes;
        if self.queued_bytes + bytes > limits::WINDOW_BYTES_MAX {
            entries = Vec::new();
        } else {
            self.queued_bytes += bytes;
        }
        self.queue.push_back(Item::Range { first, last, bytes, entries, awaited });
    }

    /// Whether there is, or will be, a guest to capture at what is handed over now.
    pub(super) fn captures(&self) -> bool {
        !self.halted && !self.waiting
    }

    /// A mark: the lane captures between the range that ends with it and the next.
    pub(super) fn push_capture(&mut self, capture: Capture) {
        self.queue.push_back(Item::Capture(capture));
    }

    /// The guest wrote the capture at `index`, or it failed: what follows may follow.
    pub(super) fn captured(&mut self, index: u64) {
        self.capturing.take_if(|capture| capture.index == index);
    }

    /// Room was made: the capture at `index` is tried again.
    pub(super) fn capture_again(&mut self, index: u64, effects: &mut Vec<Effect>) {
        if let Some(capture) = self.capturing.clone().filter(|capture| capture.index == index) {
            effects.push(Effect::Apply(capture.job()));
        }
    }

    /// Gives the lane what it may have.
    pub(super) fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        while self.is_open()
            && self.capturing.is_none()
            && self.inflight_bytes < limits::APPLY_INFLIGHT_BYTES_MAX
        {
            let Some(item) = self.queue.pop_front() else { return };
            effects.push(Effect::Apply(match item {
                Item::Range { first, last, bytes, entries, awaited } => {
                    if !entries.is_empty() {
                        self.queued_bytes -= bytes;
                    }
                    self.inflight_bytes += bytes;
                    self.dispatched = last;
                    ApplyJob::Range { first, last, bytes, entries, awaited }
                }
                Item::Capture(capture) => {
                    self.capturing = Some(capture.clone());
                    capture.job()
                }
            }));
        }
    }

    /// The lane finished the rebuild.
    pub(super) fn started(&mut self, applied: u64) {
        self.rebuilding = false;
        self.applied = self.applied.max(applied);
    }

    pub(super) fn restored(&mut self, index: u64) {
        self.restores = self.restores.saturating_sub(1);
        // Whatever the lane built before, this took its place.
        self.rebuilding = false;
        self.go_on();
        self.progressed(index, 0);
    }

    pub(super) fn progressed(&mut self, applied: u64, bytes: usize) {
        self.inflight_bytes -= bytes.min(self.inflight_bytes);
        self.backlog_bytes -= bytes.min(self.backlog_bytes);
        self.applied = self.applied.max(applied);
    }

    /// raft accepted a snapshot: what is queued lies below it; the lane waits until the log lists
    /// it.
    pub(super) fn supersede(&mut self) {
        self.clear();
        self.installing = true;
    }

    /// What the lane was to restore is not there any more.
    pub(super) fn not_restored(&mut self) {
        self.restores = self.restores.saturating_sub(1);
    }

    /// There is no guest, and nothing to build one from.
    pub(super) fn wait_for_snapshot(&mut self) {
        self.clear();
        self.rebuilding = false;
        self.waiting = true;
    }

    /// The lane builds the guest anew, up to `floor`.
    pub(super) fn start_again(&mut self, floor: u64) {
        self.clear();
        self.go_on();
        self.rebuilding = true;
        self.build += 1;
        self.dispatched = floor;
    }

    fn go_on(&mut self) {
        (self.waiting, self.halted, self.standing) = (false, false, false);
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.backlog_bytes = self.inflight_bytes;
        self.capturing = None;
    }

    /// The log lists the snapshot durably: the lane restores it, and what follows may follow.
    pub(super) fn restore(&mut self, snapshot: SnapshotDesc, effects: &mut Vec<Effect>) {
        self.dispatched = snapshot.index;
        self.build += 1;
        effects.push(Effect::Apply(ApplyJob::Restore { build: self.build, snapshot }));
        self.restores += 1;
        self.installing = false;
        self.go_on();
    }

    /// Nothing is applied any more, until the lane is given a start or a restore.
    pub(super) fn halt(&mut self) {
        self.clear();
        (self.rebuilding, self.restores) = (false, 0);
        (self.halted, self.standing) = (true, false);
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted
    }

    /// The lane builds the guest of a halted replica.
    pub(super) fn stand(&mut self) {
        self.standing = true;
    }

    /// It did, as of this entry, or could not.
    pub(super) fn stands(&mut self, at: Option<u64>) {
        if std::mem::take(&mut self.standing) {
            self.applied = at.unwrap_or(self.applied);
        }
    }
}

impl Capture {
    fn job(self) -> ApplyJob {
        let Self { term, index, configuration, gain } = self;
        ApplyJob::Capture { term, index, configuration, gain }
    }
}
