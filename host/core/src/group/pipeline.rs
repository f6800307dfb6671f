//! From committed to applied: what the apply lane is given, in order and within bounds.
//!
//! What raft calls *applied* is "handed over to this pipeline". The lane gets work while less than
//! [`limits::APPLY_INFLIGHT_BYTES_MAX`] of it is under way. Beyond what may wait in memory only the
//! indexes are kept, and the lane reads those entries from the log.

use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::Entry;

use crate::entry::footprint;
use crate::group::effect::{ApplyJob, Effect};
use crate::limits;
use crate::recovery_state::RecoveryState;
use crate::snapshot::{Configuration, SnapshotDesc};

/// The queue in front of the apply lane.
pub(super) struct Pipeline {
    queue: VecDeque<Item>,
    /// Bytes of entries held in the queue.
    queued_bytes: usize,
    /// Bytes of entries that the lane was given and has not reported back.
    inflight_bytes: usize,
    /// The lane was given everything up to this index.
    dispatched: u64,
    /// The guest's applied index, as last reported.
    applied: u64,
    /// The number of the last build, of a start or a restore, that the lane was given.
    build: u64,
    /// The lane rebuilds the guest from a recovery point.
    rebuilding: bool,
    /// Restores that the lane was given and has not reported back.
    restores: usize,
    /// raft accepted a snapshot that the log does not durably list yet.
    installing: bool,
    /// The capture that the lane was given. Later items wait until the guest has written it,
    /// because it may have to be retried.
    capturing: Option<Capture>,
    /// There is nothing to build a guest from. Entries handed over meanwhile are not queued: the
    /// start that comes later covers them.
    waiting: bool,
    /// Bytes of entries handed over and not reported back.
    backlog_bytes: usize,
    /// The last entry handed over.
    handed: u64,
    /// Nothing is applied any more: entries handed over are not queued.
    halted: bool,
    /// The lane rebuilds the guest of a halted replica for local queries.
    standing: bool,
}

enum Item {
    Range { first: u64, last: u64, bytes: usize, entries: Vec<Entry>, awaited: BTreeSet<u64> },
    Capture(Capture),
}

/// A snapshot for the lane to take.
#[derive(Clone)]
pub(super) struct Capture {
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) configuration: Configuration,
    /// Bytes of log that the replica can cut once it has the snapshot.
    pub(super) gain: u64,
}

impl Pipeline {
    /// The lane begins by rebuilding the guest up to the floor.
    pub(super) fn start(state: &RecoveryState, effects: &mut Vec<Effect>) -> Self {
        let (build, floor) = (0, state.floor);
        effects.push(start_of(build, state));
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            inflight_bytes: 0,
            dispatched: floor,
            applied: 0,
            build,
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

    /// Whether the lane was given no newer build than this one.
    pub(super) fn is_newest(&self, build: u64) -> bool {
        self.build == build
    }

    pub(super) fn is_open(&self) -> bool {
        // A pipeline that is waiting or halted queues nothing, so it need not be closed.
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

    /// Whether the lane is so far behind that a leader proposes no more commands.
    pub(super) fn is_behind(&self) -> bool {
        self.backlog_bytes > limits::APPLY_BACKLOG_BYTES_MAX
            || self.handed.saturating_sub(self.applied) > limits::APPLY_BACKLOG_ENTRIES_MAX
    }

    /// Whether the lane may still have to open a snapshot that it was given.
    pub(super) fn is_reading(&self) -> bool {
        self.standing || self.rebuilding || self.restores > 0
    }

    /// Whether an installed snapshot will replace the guest that is being built.
    pub(super) fn is_superseded(&self) -> bool {
        self.installing || self.restores > 0
    }

    pub(super) fn give_up_rebuilding(&mut self) {
        self.rebuilding = false;
    }

    /// Queues committed entries, which follow the earlier ones. Tickets wait for the `awaited`
    /// ones.
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

    /// Whether there is, or will be, a guest to capture at the index that is handed over now.
    pub(super) fn captures(&self) -> bool {
        !self.halted && !self.waiting
    }

    /// Queues a capture: the lane takes it after the range that ends at its index.
    pub(super) fn push_capture(&mut self, capture: Capture) {
        self.queue.push_back(Item::Capture(capture));
    }

    /// The guest wrote the capture at `index`, or it failed: the items after it may be dispatched.
    pub(super) fn captured(&mut self, index: u64) {
        self.capturing.take_if(|capture| capture.index == index);
    }

    /// Gives the lane the capture at `index` again.
    pub(super) fn capture_again(&mut self, index: u64, effects: &mut Vec<Effect>) {
        if let Some(capture) = self.capturing.clone().filter(|capture| capture.index == index) {
            effects.push(Effect::Apply(capture.job()));
        }
    }

    /// Gives the lane as much as it may have.
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
        // The restored guest replaces whatever the lane was building.
        self.rebuilding = false;
        self.go_on();
        self.progressed(index, 0);
    }

    pub(super) fn progressed(&mut self, applied: u64, bytes: usize) {
        self.inflight_bytes -= bytes.min(self.inflight_bytes);
        self.backlog_bytes -= bytes.min(self.backlog_bytes);
        self.applied = self.applied.max(applied);
    }

    /// raft accepted a snapshot above everything queued: the queue is dropped, and the lane waits
    /// until the log durably lists the snapshot.
    pub(super) fn supersede(&mut self) {
        self.clear();
        self.installing = true;
    }

    /// The object that the lane was to restore cannot be read.
    pub(super) fn not_restored(&mut self) {
        self.restores = self.restores.saturating_sub(1);
    }

    /// There is no guest, and nothing to build one from.
    pub(super) fn wait_for_snapshot(&mut self) {
        self.clear();
        self.rebuilding = false;
        self.waiting = true;
    }

    /// The lane rebuilds the guest up to the floor.
    pub(super) fn start_again(&mut self, state: &RecoveryState, effects: &mut Vec<Effect>) {
        self.clear();
        self.go_on();
        self.rebuilding = true;
        self.dispatched = state.floor;
        self.build += 1;
        effects.push(start_of(self.build, state));
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

    /// The log durably lists the snapshot: the lane restores it, and later items may follow.
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

    /// The lane begins to rebuild the guest of a halted replica.
    pub(super) fn stand(&mut self) {
        self.standing = true;
    }

    /// The lane rebuilt that guest as of entry `at`; `None`: it could not.
    pub(super) fn stands(&mut self, at: Option<u64>) {
        if std::mem::take(&mut self.standing) {
            self.applied = at.unwrap_or(self.applied);
        }
    }
}

fn start_of(build: u64, state: &RecoveryState) -> Effect {
    Effect::Apply(ApplyJob::Start { build, state: Box::new(state.clone()) })
}

impl Capture {
    fn job(self) -> ApplyJob {
        let Self { term, index, configuration, gain } = self;
        ApplyJob::Capture { term, index, configuration, gain }
    }
}
