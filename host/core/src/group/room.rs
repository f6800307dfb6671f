//! A full disk is a state: what a replica does while the log has too little room, or would take the
//! room that the next snapshot needs.
//!
//! - It takes no commands, and drops appends that carry commands before raft takes them: no vote
//!   queues behind an entry that cannot be written, and the log of a replica that the group goes on
//!   without takes no room that its next snapshot needs. Both come back by themselves.
//! - It answers queries, votes, and hands leadership to a replica with room; every frame says how
//!   it stands. A leader refuses commands as well while a majority of the voters can take none for
//!   want of room, or for another reason: silent, stalled, or waiting for a snapshot.
//! - It frees what it may: recovery points beyond the newest, log kept for others' convenience.
//!
//! Where no snapshot succeeds for another reason (budget, cap, a disk of its own, the guest), or
//! none can be taken (the replica is halted, needs a snapshot, restores, or applies slower than the
//! group commits), the log behind the newest one is bounded as well: beyond
//! [`limits::LOG_PIN_MARKS`] marks' worth of it the replica takes no more either, and tries again
//! by itself. The group goes on without it, and gives it a snapshot once it has cut what that
//! replica lacks.

use raft::ProgressState;
use raft::eraftpb::{EntryType, Message, MessageType};

use crate::entry::{MarkReason, is_clients};
use crate::fault::{Refusal, Shortage};
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::hosting::Hosting;
use crate::group::ready;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;
use crate::retention::{self, Plan};
use crate::snapshot::Room;

impl Shared {
    /// How a replica stands with room, as it said last.
    pub(super) fn shortage_of(&self, replica: ReplicaId) -> Option<Shortage> {
        match replica == self.me() {
            true => self.short,
            false => self.seen.get(&replica)?.short,
        }
    }

    /// Whether one recovery point has to do: an older one takes room itself, or keeps log for which
    /// there is none.
    pub(super) fn keeps_one(&self) -> bool {
        let shares = self.config.snapshots_share_log_disk;
        self.log_short.is_some() || (shares && self.short.is_some())
    }

    /// Whether another replica was not heard for longer than an election takes.
    pub(super) fn is_silent(&self, replica: ReplicaId) -> bool {
        let heard = self.seen.get(&replica).map_or(0, |seen| seen.tick);
        replica != self.me() && self.now >= heard + 2 * limits::ELECTION_TICKS_MIN as u64
    }
}

impl Hosting {
    /// The log lane says how the disk stands.
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
            self.installs.press(self.raw.store().listed());
        }
        self.shed(shared, effects);
    }

    /// A snapshot is overdue if the log behind the newest one is as long as it may be, and close to
    /// taking the room that the next one needs; or if it is longer than anybody may make it, and
    /// none succeeds. Commands wait, a mark is asked for, and if none comes the snapshot is taken
    /// here, if it still fits.
    pub(super) fn tick_room(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        if let Err(refusal) = self.has_room(shared) {
            self.proposals.refuse_waiting(&refusal, effects);
        }
        let newest = shared.recovery.newest().map_or(0, |desc| desc.index);
        // What raft may still take back does not count: it can be cut by no snapshot.
        let bytes = self.raw.store().bytes_between(newest, shared.recovery.floor);
        let outgrew = bytes > shared.config.snapshot_policy.log_bytes;
        let shares = shared.config.snapshots_share_log_disk && !planted("log_without_bound");
        let room = self.marks.room();
        let disk = room.filter(|_| shares && outgrew).and_then(Room::shortage);
        let bound = self.log_pin_bytes;
        let stuck = bytes > bound && !self.snapshots_come(shared) && !planted("log_without_bound");
        let overdue = disk.or(stuck.then_some(Shortage::Log { bytes, bound }));
        if overdue != shared.overdue {
            shared.overdue = overdue;
            self.settle_room(shared, effects);
        }
        let tries = shared.short.is_some() && bytes > 0 && shared.now >= shared.tries_at;
        // While commands are refused no mark comes. Whether it fits is only a guess.
        if tries && !planted("wait_for_a_mark") && self.capture_here(shared) {
            shared.tries_at = shared.now + limits::SHORT_CAPTURE_TICKS;
        }
        let Some(since) = self.marks.overdue_since(overdue.is_some(), shared.now) else { return };
        // At each tick: what a transfer held, or a start still needed, may go later.
        self.shed(shared, effects);
        let waited = shared.now >= since + limits::OVERDUE_MARK_TICKS;
        if waited && room.is_none_or(Room::fits) && !planted("wait_for_a_mark") {
            let _ = self.capture_here(shared);
        }
    }

    /// Whether the next snapshot will cut the log before long: none fails, and a guest applies what
    /// is handed over, as fast as it comes.
    fn snapshots_come(&self, shared: &Shared) -> bool {
        let fails = self.marks.fails() || self.marks.room().is_some_and(|room| !room.fits());
        let log = self.raw.store();
        let lag_bytes = log.bytes_between(self.pipeline.applied(), shared.recovery.floor);
        // Once it is too far behind it takes no more before half of that is done.
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
            self.marks.want(MarkReason::LogBytes);
        }
    }

    /// Frees what is kept only for comfort; where a snapshot is overdue and snapshots have a disk
    /// of their own, only the log.
    pub(super) fn shed(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        // Until the newest one proved good the others are needed.
        if shared.recovery.snapshots.is_empty() || self.pipeline.is_reading() {
            return;
        }
        let now = |plan: &Plan| {
            plan.snapshots == shared.recovery.snapshots
                && plan.first_index == shared.recovery.first_index
        };
        if let Some(mut plan) =
            retention::shed(&shared.recovery, &self.pins(shared), self.wants.rotten())
        {
            if !shared.keeps_one() {
                let oldest = shared.recovery.snapshots.last().map_or(0, |desc| desc.index);
                plan.snapshots.clone_from(&shared.recovery.snapshots);
                plan.first_index = plan.first_index.min(oldest + 1);
            }
            // A list that says the same again would only cost room.
            if !now(&plan) && self.is_proven(shared, effects) {
                ready::list_local(self, shared, plan, None, effects);
            }
        }
    }

    /// Whether commands are refused for want of room, here or on too many of the voters.
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

    /// What the voter lacks that is worst off, if those that lack something, or take no entries for
    /// another reason, leave no majority.
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

    /// Whether another replica takes no entries now, whatever room it has: it is not heard, its
    /// disk hangs, or what it needs next is not in this leader's log.
    fn takes_nothing(&self, shared: &Shared, replica: ReplicaId) -> bool {
        let log = self.raw.store();
        let waits =
            self.raw.raft.prs().get(replica.0).filter(|_| self.is_leader()).is_some_and(|peer| {
                peer.state == ProgressState::Snapshot || peer.next_idx < log.first()
            });
        let waits = waits && !planted("who_waits_has_room");
        shared.is_silent(replica) || shared.is_stalled(replica) || waits
    }

    /// Whether an append has to wait for room. One that raft refuses takes none, and its leader has
    /// to hear where this log ends.
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
