//! A full disk is a state: what a replica does while the log has too little space, or would take
//! the space that the next snapshot needs.
//!
//! - It accepts no commands, and drops appends that carry commands before raft sees them. So no
//!   vote waits for an entry that cannot be written, and a replica that the group goes on without
//!   does not fill the space for its next snapshot with log. A refused command may be retried, and
//!   a dropped append is sent again.
//! - It answers queries, votes, and hands leadership to a replica with space; every frame reports
//!   the shortage. A leader also refuses commands while voters that lack space, with those that are
//!   silent, stalled, or waiting for a snapshot, leave no majority that can accept them.
//! - It deletes what it can do without: recovery points beyond the newest, and log that is kept
//!   only for the convenience of others.
//!
//! Snapshots may also fail for another reason (budget, cap, a disk of their own, the guest), or not
//! be possible (the replica is halted, needs a snapshot, restores, or applies more slowly than the
//! group commits). The log since the newest snapshot is bounded in these cases as well: beyond
//! [`limits::LOG_PIN_CHECKPOINTS`] checkpoints' worth of it the replica accepts no more commands
//! either, and retries a snapshot by itself. The group goes on without it, and sends it a snapshot
//! when it needs one: see [`super::catch_up`].

use raft::ProgressState;
use raft::eraftpb::{EntryType, Message, MessageType};

use crate::entry::{CheckpointReason, waits_for_space};
use crate::fault::{Refusal, Shortage};
use crate::group::Shared;
use crate::group::checkpoint::Checkpoints;
use crate::group::effect::Effect;
use crate::group::pipeline::Pipeline;
use crate::group::proposals::Proposals;
use crate::group::raft_node::RaftNode;
use crate::group::reconcile::Retention;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::snapshot::SnapshotSpace;

/// What a replica is short of.
pub(super) struct Space {
    /// The log's disk has too little free space, as the log lane reported.
    log: Option<Shortage>,
    /// A snapshot is overdue: the log is at its bound, or close to taking the space that the next
    /// snapshot needs.
    overdue: Option<Shortage>,
    /// The tick from which a replica short of space takes a snapshot without a checkpoint.
    tries_at: u64,
}

impl Default for Space {
    fn default() -> Self {
        Self { log: None, overdue: None, tries_at: limits::SHORT_CAPTURE_TICKS }
    }
}

impl Space {
    /// What is short: the space of the log's disk, else that of the next snapshot.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.log.or(self.overdue)
    }

    /// Whether the disk of the log has too little space now.
    pub(super) fn log_is_short(&self) -> bool {
        self.log.is_some()
    }

    /// The log lane reports whether the disk is short of space.
    pub(super) fn log_reports(&mut self, shortage: Option<Shortage>) {
        self.log = shortage;
    }

    /// A snapshot was tried at tick `now`; the next one is tried a while later.
    pub(super) fn tried(&mut self, now: u64) {
        self.tries_at = now + limits::SHORT_CAPTURE_TICKS;
    }
}

/// The concerns that a lack of space, or of a snapshot, touches.
pub(super) struct Concerns<'a> {
    pub(super) raw: &'a RaftNode,
    pub(super) pipeline: &'a mut Pipeline,
    pub(super) checkpoints: &'a mut Checkpoints,
    pub(super) retention: &'a mut Retention,
    pub(super) proposals: &'a mut Proposals,
    pub(super) effects: &'a mut Vec<Effect>,
}

impl Concerns<'_> {
    pub(super) fn capture_here(&mut self, shared: &Shared) -> bool {
        self.checkpoints.capture_here(self.pipeline, self.raw.store(), shared)
    }
}

impl Shared {
    /// What a replica is short of, as it reported last.
    pub(super) fn shortage_of(&self, replica: ReplicaId) -> Option<Shortage> {
        if replica == self.me() { self.space.shortage() } else { self.seen.get(&replica)?.short }
    }

    /// Whether another replica has not been heard for longer than an election takes.
    pub(super) fn is_silent(&self, replica: ReplicaId) -> bool {
        let heard = self.seen.get(&replica).map_or(0, |seen| seen.tick);
        replica != self.me() && self.now >= heard + 2 * limits::ELECTION_TICKS_MIN as u64
    }

    /// The log lane reports whether the disk is short of space. Returns how to refuse commands from
    /// now on, if a shortage began.
    pub(super) fn log_space(
        &mut self,
        shortage: Option<Shortage>,
        concerns: &mut Concerns<'_>,
    ) -> Option<Refusal> {
        let (began, before) = (self.space.log.is_none(), self.space.shortage());
        self.space.log_reports(shortage);
        if shortage.is_some() {
            if began && self.config.snapshots_share_log_disk {
                concerns.retention.press();
            }
            concerns.retention.log_asks();
        }
        self.settle_space(before, concerns.checkpoints)
    }

    /// A snapshot is overdue if the log since the newest one has reached the policy's limit and is
    /// close to taking the space that the next one needs, or if it has reached its bound and no
    /// snapshot succeeds. Then commands are refused and a checkpoint is requested. If none comes,
    /// the snapshot is taken between checkpoints: after a second if it seems to fit, after ten in
    /// any case.
    ///
    /// Returns how to refuse commands from now on, if a shortage began.
    pub(super) fn tick_space(&mut self, concerns: &mut Concerns<'_>) -> Option<Refusal> {
        if let Err(refusal) = self.has_space(concerns.raw) {
            concerns.proposals.refuse_waiting(&refusal, concerns.effects);
        }
        let log = concerns.raw.store();
        let newest = self.recovery.newest().map_or(0, |desc| desc.index);
        // Entries above the floor do not count: raft may still replace them, so no snapshot can cut
        // them.
        let bytes = log.bytes_between(newest, self.recovery.floor);
        let outgrew = bytes > self.config.snapshot_policy.log_bytes;
        let shares = self.config.snapshots_share_log_disk && !planted("log_without_bound");
        let space = concerns.checkpoints.space();
        let disk = space.filter(|_| shares && outgrew).and_then(SnapshotSpace::shortage);
        let bound = self.config.snapshot_policy.log_pin_bytes();
        let stuck =
            bytes > bound && !self.snapshots_come(concerns) && !planted("log_without_bound");
        let overdue = disk.or(stuck.then_some(Shortage::Log { bytes, bound }));
        let before = self.space.shortage();
        self.space.overdue = overdue;
        let began = self.settle_space(before, concerns.checkpoints);
        let short = self.space.shortage().is_some();
        let tries = short && bytes > 0 && self.now >= self.space.tries_at;
        // While commands are refused, the log does not grow to the next checkpoint. Whether the
        // snapshot fits is only estimated, so it is tried in any case.
        if tries && !planted("wait_for_a_checkpoint") && concerns.capture_here(self) {
            self.space.tried(self.now);
        }
        let since = concerns.checkpoints.overdue_since(overdue.is_some(), self.now);
        let Some(since) = since else { return began };
        // Asked at each tick: what a transfer or a start still needs now can be deleted later.
        concerns.retention.log_asks();
        let waited = self.now >= since + limits::OVERDUE_CHECKPOINT_TICKS;
        if waited && space.is_none_or(SnapshotSpace::fits) && !planted("wait_for_a_checkpoint") {
            let _ = concerns.capture_here(self);
        }
        began
    }

    /// Whether the next snapshot will cut the log before long: captures do not fail, and a guest
    /// applies entries as fast as they are committed.
    fn snapshots_come(&self, concerns: &Concerns<'_>) -> bool {
        let checkpoints = &concerns.checkpoints;
        let fails = checkpoints.fails() || checkpoints.space().is_some_and(|space| !space.fits());
        let (log, applied) = (concerns.raw.store(), concerns.pipeline.applied());
        let lag_bytes = log.bytes_between(applied, self.recovery.floor);
        // Once the guest has fallen too far behind, it must catch up to half of that.
        let most = match self.space.overdue {
            Some(Shortage::Log { .. }) => limits::APPLY_LAG_BYTES_MAX / 2,
            Some(Shortage::Disk { .. }) | None => limits::APPLY_LAG_BYTES_MAX,
        };
        let applies = concerns.pipeline.is_applying() && lag_bytes <= most;
        !fails && (applies || planted("append_without_applying"))
    }

    /// Returns how to refuse commands if there was enough space before.
    fn settle_space(
        &mut self,
        before: Option<Shortage>,
        checkpoints: &mut Checkpoints,
    ) -> Option<Refusal> {
        let shortage = self.space.shortage().filter(|_| before.is_none())?;
        self.space.tried(self.now);
        checkpoints.want(CheckpointReason::LogBytes);
        Some(shortage.refusal())
    }

    /// Refuses commands for lack of space, here or on too many of the voters.
    pub(super) fn has_space(&self, raw: &RaftNode) -> Result<(), Refusal> {
        if let Some(shortage) = self.space.shortage() {
            return Err(shortage.refusal());
        }
        let short = |voter| self.shortage_of(voter);
        match self.worst_of_too_many(raw, short, |shortage| shortage.lacks()) {
            Some(worst) => Err(worst.refusal()),
            None => Ok(()),
        }
    }

    /// The worst lack among the voters; `None` if none lacks anything, or if those that lack
    /// something, with those that accept no entries for another reason, leave a majority.
    pub(super) fn worst_of_too_many<T>(
        &self,
        raw: &RaftNode,
        lacks: impl Fn(ReplicaId) -> Option<T>,
        how_much: impl Fn(&T) -> u64,
    ) -> Option<T> {
        let configuration = &self.recovery.configuration;
        [&configuration.voters, &configuration.voters_outgoing].into_iter().find_map(|voters| {
            let lacking = voters.iter().filter_map(|voter| lacks(*voter));
            let worst = lacking.clone().max_by_key(&how_much)?;
            let others = voters
                .iter()
                .filter(|voter| lacks(**voter).is_none() && self.takes_nothing(raw, **voter));
            (lacking.count() + others.count() > (voters.len() - 1) / 2).then_some(worst)
        })
    }

    /// Whether another replica accepts no entries now, whatever space it has: it is silent, its
    /// disk hangs, or the next entry that it needs is no longer in this leader's log.
    fn takes_nothing(&self, raw: &RaftNode, replica: ReplicaId) -> bool {
        let log = raw.store();
        let lacks_log =
            raw.raft.prs().get(replica.0).filter(|_| raw.is_leader()).is_some_and(|peer| {
                peer.state == ProgressState::Snapshot || peer.next_idx < log.first()
            });
        let waits = lacks_log && !planted("who_waits_has_space");
        self.is_silent(replica) || self.is_stalled(replica) || waits
    }

    /// Whether to drop an append until there is space. One that raft would reject takes no space
    /// and is let through, because its leader must learn where this log ends.
    pub(super) fn drops_for_space(&self, raw: &RaftNode, message: &Message) -> bool {
        let carries = |entry: &raft::eraftpb::Entry| {
            entry.get_entry_type() == EntryType::EntryNormal && waits_for_space(&entry.data)
        };
        self.space.shortage().is_some()
            && message.get_msg_type() == MessageType::MsgAppend
            && message.entries.iter().any(carries)
            && raw.raft.raft_log.match_term(message.index, message.log_term)
    }
}
