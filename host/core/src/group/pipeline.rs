//! From committed to applied: what the apply lane is given, in order and within bounds.
//!
//! - What raft calls *applied* is "handed over to this pipeline". The lane gets work while less
//!   than [`limits::APPLY_INFLIGHT_BYTES_MAX`] of it is under way. Beyond what may wait in memory
//!   only the indexes are kept, and the lane reads those entries from the log.
//! - Each start and each restore that the lane is given is a *build* of the guest with a number of
//!   its own. What the lane reports of how a guest began or ended names the build, and ends all
//!   builds up to it: the lane works in order. Only the newest build counts; the others are
//!   replaced by it anyway.

use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::Entry;

use crate::entry::footprint;
use crate::fault::Fault;
use crate::group::effect::{ApplyJob, Effect, Halt, Stands};
use crate::group::guest::{Build, Capture, Guest, Missing};
use crate::ids::ReplicaId;
use crate::limits;
use crate::recovery_state::RecoveryState;
use crate::snapshot::SnapshotDesc;

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
    /// The number of the last build that the lane was given.
    build: u64,
    /// Snapshots that raft accepted and the log does not durably list yet.
    accepted: usize,
    guest: Guest,
    /// An amendment was handed over that the last build did not know.
    amended: bool,
    /// Bytes of entries handed over and not reported back.
    backlog_bytes: usize,
    /// The last entry handed over.
    handed: u64,
}

enum Item {
    Range { first: u64, last: u64, bytes: usize, entries: Vec<Entry>, awaited: BTreeSet<u64> },
    Capture(Capture),
}

impl Pipeline {
    /// The lane begins by rebuilding the guest up to the floor, unless the replica is halted.
    pub(super) fn start(
        state: &RecoveryState,
        halt: Option<Halt>,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut pipeline = Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            inflight_bytes: 0,
            dispatched: state.floor,
            applied: 0,
            build: 0,
            accepted: 0,
            guest: Guest::built(None),
            amended: false,
            backlog_bytes: 0,
            handed: state.floor,
        };
        match halt {
            Some(halt) => pipeline.halts(halt),
            None => pipeline.start_again(state, effects),
        }
        pipeline
    }

    pub(super) fn dispatched(&self) -> u64 {
        self.dispatched
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    /// The lane reported that this build ended or that its guest failed. Returns whether the report
    /// counts: it does not if the lane was given a newer build.
    pub(super) fn ended(&mut self, build: u64) -> bool {
        let counts = build == self.build;
        if counts && let Guest::Applies { build, .. } = &mut self.guest {
            *build = None;
        }
        counts
    }

    /// Whether the lane may be given what is queued.
    fn is_open(&self) -> bool {
        // A start reads from the log what the lane would otherwise be given. If no guest is to
        // come, nothing is queued.
        self.accepted == 0 && !matches!(self.guest.build(), Some(Build::Start { .. }))
    }

    /// Whether a guest is being built, or will be from a snapshot that raft accepted.
    pub(super) fn is_restoring(&self) -> bool {
        self.accepted > 0 || self.guest.build().is_some()
    }

    /// What the replica lacks to build a guest, also while it tries its own objects again; `None`
    /// if it lacks nothing, or is halted.
    pub(super) fn missing(&self) -> Option<&Missing> {
        self.guest.missing()
    }

    /// Why the replica is halted; `None` if it is not.
    pub(super) fn halt(&self) -> Option<&Halt> {
        self.guest.halt()
    }

    /// Whether a snapshot that raft accepted replaces the guest.
    pub(super) fn is_superseded(&self) -> bool {
        self.accepted > 0
    }

    /// An amendment was handed over: if the guest fails, it is built again, once.
    pub(super) fn amend(&mut self) {
        self.amended = true;
    }

    pub(super) fn take_amended(&mut self) -> bool {
        std::mem::take(&mut self.amended)
    }

    /// Whether a guest applies what is handed over.
    pub(super) fn is_applying(&self) -> bool {
        self.captures() && !self.is_restoring()
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
        let stands = self.halt().is_some_and(|halt| halt.stands == Stands::Coming);
        stands || self.guest.build().is_some()
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
        matches!(self.guest, Guest::Applies { .. })
    }

    /// Queues a capture: the lane takes it after the range that ends at its index.
    pub(super) fn push_capture(&mut self, capture: Capture) {
        self.queue.push_back(Item::Capture(capture));
    }

    /// The guest wrote the capture at `index`, or it failed: the items after it may be dispatched.
    pub(super) fn captured(&mut self, index: u64) {
        if let Guest::Applies { capturing, .. } = &mut self.guest {
            capturing.take_if(|capture| capture.index == index);
        }
    }

    /// Gives the lane the capture at `index` again.
    pub(super) fn capture_again(&mut self, index: u64, effects: &mut Vec<Effect>) {
        if let Guest::Applies { capturing: Some(capture), .. } = &self.guest
            && capture.index == index
        {
            effects.push(Effect::Apply(capture.clone().job()));
        }
    }

    /// Gives the lane as much as it may have.
    pub(super) fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        while self.is_open()
            && let Guest::Applies { capturing: capturing @ None, .. } = &mut self.guest
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
                    *capturing = Some(capture.clone());
                    capture.job()
                }
            }));
        }
    }

    pub(super) fn progressed(&mut self, applied: u64, bytes: usize) {
        self.inflight_bytes -= bytes.min(self.inflight_bytes);
        self.backlog_bytes -= bytes.min(self.backlog_bytes);
        self.applied = self.applied.max(applied);
    }

    /// raft accepted a snapshot above everything queued: the queue is dropped, and the lane waits
    /// until the log durably lists the snapshot, from which the next guest is built.
    pub(super) fn supersede(&mut self) {
        self.clear();
        self.accepted += 1;
        // The accepted snapshot is what was lacking.
        match &mut self.guest {
            Guest::Missing(_) => self.guest = Guest::built(None),
            Guest::Applies { build: Some(Build::Start { missing }), .. } => *missing = None,
            Guest::Applies { .. } | Guest::Halted(_) | Guest::Stopped => {}
        }
    }

    /// The replica has no guest, and nothing to build one from.
    pub(super) fn misses(&mut self, missing: Missing) {
        self.clear();
        self.guest = Guest::Missing(missing);
    }

    /// The lane rebuilds the guest up to the floor.
    pub(super) fn start_again(&mut self, state: &RecoveryState, effects: &mut Vec<Effect>) {
        self.begin_start(state, None, effects);
    }

    /// A replica without a guest tries its own recovery points and log again. Until it has a guest,
    /// it still asks its peers for an object, but one helps only if it is newer than those that are
    /// tried now.
    pub(super) fn try_again(&mut self, state: &RecoveryState, effects: &mut Vec<Effect>) {
        let lacked = state.snapshots.first().map_or(0, |desc| desc.index);
        let missing = self.missing().map(|missing| Missing { lacked, ..missing.clone() });
        self.begin_start(state, missing, effects);
    }

    fn begin_start(
        &mut self,
        state: &RecoveryState,
        missing: Option<Missing>,
        effects: &mut Vec<Effect>,
    ) {
        self.clear();
        self.dispatched = state.floor;
        self.build += 1;
        self.amended = false;
        self.guest = Guest::built(Some(Build::Start { missing }));
        let job = ApplyJob::Start { build: self.build, state: Box::new(state.clone()) };
        effects.push(Effect::Apply(job));
    }

    /// The log durably lists the snapshot: the lane restores it, and later items may follow.
    pub(super) fn restore(&mut self, snapshot: SnapshotDesc, effects: &mut Vec<Effect>) {
        self.dispatched = snapshot.index;
        self.accepted -= 1;
        self.build += 1;
        self.guest = Guest::built(Some(Build::Restore));
        effects.push(Effect::Apply(ApplyJob::Restore { build: self.build, snapshot }));
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.backlog_bytes = self.inflight_bytes;
        if let Guest::Applies { capturing, .. } = &mut self.guest {
            *capturing = None;
        }
    }

    /// The replica halts: nothing is applied any more, until the lane is given another build.
    pub(super) fn halts(&mut self, halt: Halt) {
        self.clear();
        self.guest = Guest::Halted(halt);
    }

    /// The replica stops.
    pub(super) fn stop(&mut self) {
        self.clear();
        self.guest = Guest::Stopped;
    }

    /// The lane rebuilt the guest of a halted replica as of entry `at`; `None`: it could not, or
    /// lost it.
    pub(super) fn stands(&mut self, at: Option<u64>) {
        if let Guest::Halted(halt) = &mut self.guest {
            if halt.stands == Stands::Coming {
                self.applied = at.unwrap_or(self.applied);
            }
            halt.stands = at.map_or(Stands::Nowhere, Stands::At);
        }
    }

    /// A replica that has diverged asks for a snapshot from now on. Returns the index at or after
    /// which that has to be; `None` if the replica has not diverged.
    pub(super) fn repair(&mut self) -> Option<u64> {
        let Guest::Halted(Halt { fault: Fault::Diverged { index, repairing }, .. }) =
            &mut self.guest
        else {
            return None;
        };
        *repairing = true;
        Some(*index)
    }

    /// Another replica applied the entry that halted this one.
    pub(super) fn diverges_from(&mut self, replica: ReplicaId) {
        if let Guest::Halted(halt) = &mut self.guest {
            halt.applied_by = Some(replica);
        }
    }
}
