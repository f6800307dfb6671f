//! A full disk is a state: what a replica does while the log has too little space, or would take
//! the space that the next snapshot needs.
//!
//! - It accepts no commands, and drops appends that carry commands before raft sees them. So no
//!   vote waits for an entry that cannot be written, and a replica that the group goes on without
//!   does not fill the space for its next snapshot with log. Both are sent again later.
//! - It answers queries, votes, and hands leadership to a replica with space; every frame reports
//!   the shortage. A leader also refuses commands while no majority of the voters can accept them,
//!   for lack of space or because they are silent, stalled, or waiting for a snapshot.
//! - It deletes what it can do without: recovery points beyond the newest, and log that is kept
//!   only for the convenience of others.
//!
//! Snapshots may also fail for another reason (budget, cap, a disk of their own, the guest), or not
//! be possible (the replica is halted, needs a snapshot, restores, or applies more slowly than the
//! group commits). The log since the newest snapshot is bounded in these cases as well: beyond
//! [`limits::LOG_PIN_CHECKPOINTS`] checkpoints' worth of it the replica accepts no more either, and
//! retries a snapshot by itself. The group goes on without it, and sends it a snapshot once it has
//! cut the log that this replica lacks.

use raft::ProgressState;
use raft::eraftpb::{EntryType, Message, MessageType};

use crate::entry::{CheckpointReason, is_clients};
use crate::fault::{Refusal, Shortage};
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::snapshot::Room;

impl Shared {
    /// What a replica is short of, as it reported last.
    pub(super) fn shortage_of(&self, replica: ReplicaId) -> Option<Shortage> {
        if replica == self.me() { self.short } else { self.seen.get(&replica)?.short }
    }

    /// Whether another replica has not been heard for longer than an election takes.
    pub(super) fn is_silent(&self, replica: ReplicaId) -> bool {
        let heard = self.seen.get(&replica).map_or(0, |seen| seen.tick);
        replica != self.me() && self.now >= heard + 2 * limits::ELECTION_TICKS_MIN as u64
    }
}

impl Hosting {
    /// The log lane reports whether the disk is short of space.
    pub(super) fn room(
        &mut self,
        shared: &mut Shared,
        shortage: Option<Shortage>,
        effects: &mut Vec<Effect>,
    ) {
        let began = shared.log_short.is_none();
        shared.log_short = shortage;
        self.settle_room(shared, effects);
        if shortage.is_none() {
            return;
        }
        if began && shared.config.snapshots_share_log_disk {
            self.retention.press();
        }
        self.retention.log_asks();
    }

    /// A snapshot is overdue if the log since the newest one has reached the policy's limit and is
    /// close to taking the space that the next one needs, or if it has reached its bound and no
    /// snapshot succeeds. Then commands are refused and a checkpoint is requested. If none comes,
    /// the snapshot is taken between checkpoints, if it seems to fit.
    pub(super) fn tick_room(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        if let Err(refusal) = self.has_room(shared) {
            self.proposals.refuse_waiting(&refusal, effects);
        }
        let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
        // Entries above the floor do not count: raft may still replace them, so no snapshot can cut
        // them.
        let bytes = self.raw.store().bytes_between(newest, shared.recovery.floor);
        let outgrew = bytes > shared.config.snapshot_policy.log_bytes;
        let shares = shared.config.snapshots_share_log_disk && !planted("log_without_bound");
        let room = self.checkpoints.room();
        let disk = room.filter(|_| shares && outgrew).and_then(Room::shortage);
        let bound = self.log_pin_bytes;
        let stuck = bytes > bound && !self.snapshots_come(shared) && !planted("log_without_bound");
        let overdue = disk.or(stuck.then_some(Shortage::Log { bytes, bound }));
        if overdue != shared.overdue {
            shared.overdue = overdue;
            self.settle_room(shared, effects);
        }
        let tries = shared.short.is_some() && bytes > 0 && shared.now >= shared.tries_at;
        // No checkpoint comes while commands are refused. Whether the snapshot fits is only
        // estimated, so it is tried in any case.
        if tries && !planted("wait_for_a_checkpoint") && self.capture_here(shared) {
            shared.tries_at = shared.now + limits::SHORT_CAPTURE_TICKS;
        }
        let Some(since) = self.checkpoints.overdue_since(overdue.is_some(), shared.now) else {
            return;
        };
        // At each tick: what a transfer or a start still needs now can be deleted later.
        self.retention.log_asks();
        let waited = shared.now >= since + limits::OVERDUE_CHECKPOINT_TICKS;
        if waited && room.is_none_or(Room::fits) && !planted("wait_for_a_checkpoint") {
            let _ = self.capture_here(shared);
        }
    }

    /// Whether the next snapshot will cut the log before long: captures do not fail, and a guest
    /// applies entries as fast as they are committed.
    fn snapshots_come(&self, shared: &Shared) -> bool {
        let fails =
            self.checkpoints.fails() || self.checkpoints.room().is_some_and(|room| !room.fits());
        let log = self.raw.store();
        let lag_bytes = log.bytes_between(self.pipeline.applied(), shared.recovery.floor);
        // Once the guest has fallen too far behind, it must catch up to half of that.
        let most = match shared.overdue {
            Some(Shortage::Log { .. }) => limits::APPLY_LAG_BYTES_MAX / 2,
            Some(Shortage::Disk { .. }) | None => limits::APPLY_LAG_BYTES_MAX,
        };
        let applies = self.pipeline.is_applying() && lag_bytes <= most;
        !fails && (applies || planted("append_without_applying"))
    }

    fn settle_room(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        let began = shared.short.is_none();
        shared.short = shared.log_short.or(shared.overdue);
        self.settle_state(shared, effects);
        if let Some(shortage) = shared.short.filter(|_| began) {
            shared.tries_at = shared.now + limits::SHORT_CAPTURE_TICKS;
            self.proposals.refuse_waiting(&shortage.refusal(), effects);
            self.checkpoints.want(CheckpointReason::LogBytes);
        }
    }

    /// Refuses commands for lack of space, here or on too many of the voters.
    pub(super) fn has_room(&self, shared: &Shared) -> Result<(), Refusal> {
        if let Some(shortage) = shared.short {
            return Err(shortage.refusal());
        }
        let short = |voter| shared.shortage_of(voter);
        match self.worst_of_too_many(shared, short, |shortage| shortage.lacks()) {
            Some(worst) => Err(worst.refusal()),
            None => Ok(()),
        }
    }

    /// The worst lack among the voters, if those that lack something and those that accept no
    /// entries for another reason leave no majority.
    pub(super) fn worst_of_too_many<T>(
        &self,
        shared: &Shared,
        lacks: impl Fn(ReplicaId) -> Option<T>,
        how_much: impl Fn(&T) -> u64,
    ) -> Option<T> {
        let configuration = &shared.recovery.configuration;
        [&configuration.voters, &configuration.voters_outgoing].into_iter().find_map(|voters| {
            let lacking = voters.iter().filter_map(|voter| lacks(*voter));
            let worst = lacking.clone().max_by_key(&how_much)?;
            let others = voters
                .iter()
                .filter(|voter| lacks(**voter).is_none() && self.takes_nothing(shared, **voter));
            (lacking.count() + others.count() > (voters.len() - 1) / 2).then_some(worst)
        })
    }

    /// Whether another replica accepts no entries now, whatever space it has: it is silent, its
    /// disk hangs, or the next entry that it needs is no longer in this leader's log.
    fn takes_nothing(&self, shared: &Shared, replica: ReplicaId) -> bool {
        let log = self.raw.store();
        let lacks_log =
            self.raw.raft.prs().get(replica.0).filter(|_| self.is_leader()).is_some_and(|peer| {
                peer.state == ProgressState::Snapshot || peer.next_idx < log.first()
            });
        let waits = lacks_log && !planted("who_waits_has_room");
        shared.is_silent(replica) || shared.is_stalled(replica) || waits
    }

    /// Whether to drop an append until there is space. One that raft would reject takes no space
    /// and is let through, because its leader must learn where this log ends.
    pub(super) fn waits_for_room(&self, shared: &Shared, message: &Message) -> bool {
        let carries = |entry: &raft::eraftpb::Entry| {
            entry.get_entry_type() == EntryType::EntryNormal && is_clients(&entry.data)
        };
        shared.short.is_some()
            && message.get_msg_type() == MessageType::MsgAppend
            && message.entries.iter().any(carries)
            && self.raw.raft.raft_log.match_term(message.index, message.log_term)
    }
}
