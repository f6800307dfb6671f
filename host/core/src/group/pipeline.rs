//! From committed to applied: what the apply lane is given, in order and bounded.
//!
//! What raft calls *applied* is "handed over to this pipeline". The lane gets work while less than
//! [`limits::APPLY_INFLIGHT_BYTES_MAX`] of it is under way; what has to wait longer keeps only its
//! indexes, and the lane reads those entries from the log.

use std::collections::VecDeque;

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
    /// The lane rebuilds the guest from a recovery point.
    rebuilding: bool,
    /// Restores given to the lane and not reported back.
    restores: usize,
    /// raft accepted a snapshot that the log does not list durably yet.
    installing: bool,
    /// Nothing is applied any more.
    parked: bool,
}

enum Item {
    Range { first: u64, last: u64, bytes: usize, entries: Vec<Entry> },
    Capture { term: u64, index: u64, configuration: Configuration },
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
            rebuilding: true,
            restores: 0,
            installing: false,
            parked: false,
        }
    }

    pub(super) fn dispatched(&self) -> u64 {
        self.dispatched
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) fn is_open(&self) -> bool {
        !(self.rebuilding || self.installing || self.parked)
    }

    /// Whether the lane may still have to open a snapshot that it was given.
    pub(super) fn is_reading(&self) -> bool {
        !self.parked && (self.rebuilding || self.restores > 0)
    }

    /// Committed entries, contiguous with what came before.
    pub(super) fn push(&mut self, mut entries: Vec<Entry>) {
        let (Some(head), Some(tail)) = (entries.first(), entries.last()) else { return };
        if self.parked {
            return;
        }
        let (first, last) = (head.index, tail.index);
        let bytes = entries.iter().map(footprint).sum();
        if self.queued_bytes + bytes > limits::WINDOW_BYTES_MAX {
            entries = Vec::new();
        } else {
            self.queued_bytes += bytes;
        }
        self.queue.push_back(Item::Range { first, last, bytes, entries });
    }

    /// A mark: the lane captures between the range that ends with it and the next.
    pub(super) fn push_capture(&mut self, term: u64, index: u64, configuration: Configuration) {
        if !self.parked {
            self.queue.push_back(Item::Capture { term, index, configuration });
        }
    }

    /// Gives the lane what it may have.
    pub(super) fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        while self.is_open() && self.inflight_bytes < limits::APPLY_INFLIGHT_BYTES_MAX {
            let Some(item) = self.queue.pop_front() else { return };
            effects.push(Effect::Apply(match item {
                Item::Range { first, last, bytes, entries } => {
                    if !entries.is_empty() {
                        self.queued_bytes -= bytes;
                    }
                    self.inflight_bytes += bytes;
                    self.dispatched = last;
                    ApplyJob::Range { first, last, bytes, entries }
                }
                Item::Capture { term, index, configuration } => {
                    ApplyJob::Capture { term, index, configuration }
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
        self.progressed(index, 0);
    }

    pub(super) fn progressed(&mut self, applied: u64, bytes: usize) {
        self.inflight_bytes -= bytes.min(self.inflight_bytes);
        self.applied = self.applied.max(applied);
    }

    /// raft accepted a snapshot: what is queued lies below it; the lane waits until the log lists
    /// it.
    pub(super) fn supersede(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.installing = true;
    }

    /// The log lists the snapshot durably: the lane restores it, and what follows may follow.
    pub(super) fn restore(&mut self, snapshot: SnapshotDesc, effects: &mut Vec<Effect>) {
        if self.parked {
            return;
        }
        self.dispatched = snapshot.index;
        effects.push(Effect::Apply(ApplyJob::Restore { snapshot }));
        self.restores += 1;
        self.installing = false;
    }

    pub(super) fn park(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.parked = true;
    }
}
