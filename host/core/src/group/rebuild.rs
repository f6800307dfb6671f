//! A guest's memory never shrinks. Where it pays, a replica drops its guest and rebuilds it, which
//! releases the memory that the guest freed.
//!
//! - A rebuild pays if memory is high and a guest restored from the newest recovery point would
//!   take much less ([`limits::REBUILD_GAIN_PARTS`]). So while memory is high on some replica, the
//!   leader proposes a checkpoint after the commands that may have freed some.
//! - Replicas take turns. A leader gives a follower its turn only while the other voters that have
//!   a guest are a majority. When its own guest is the last one left, it hands over leadership and
//!   has its turn as a follower. A single voter rebuilds while nothing is under way.
//! - The recovery point is read again before the guest is dropped. A replica that dies during a
//!   rebuild starts as usual.
//! - A guest is not built twice from the same recovery point, and a rebuild that released little
//!   delays the next one.

use std::collections::BTreeSet;

use crate::entry::CheckpointReason;
use crate::group::Shared;
use crate::group::checkpoint::Checkpoints;
use crate::group::frame::GuestIs;
use crate::group::pipeline::Pipeline;
use crate::group::proposals::Proposals;
use crate::group::raft_node::RaftNode;
use crate::group::reconcile::Retention;
use crate::ids::ReplicaId;
use crate::limits;
use crate::memory::{Footprint, Footprints, MemoryUse};
use crate::mutant::{plant, planted};
use crate::snapshot::SnapshotDesc;

/// Ticks for which a leader listens to the others before it gives a turn. Within them, the replica
/// that had the last turn hears that it is over.
const LISTEN_TICKS: u64 = 2 * limits::ELECTION_TICKS_MAX as u64;
/// Ticks after which a turn passes to the next replica if this one has not begun. It first reads
/// its recovery point, which takes at most a minute on a healthy disk.
const TURN_TICKS: u64 = 600;
/// Ticks that a leader waits for followers whose snapshots are taken later, before it hands over to
/// be rebuilt itself.
const YIELD_TICKS: u64 = 100;
/// Ticks before the next rebuild after one that released little; doubled with each such rebuild.
const RETRY_TICKS: u64 = 600;
/// How often [`RETRY_TICKS`] is doubled at most: up to about an hour.
const RETRY_DOUBLINGS_MAX: u32 = 6;
/// Ticks without a command after which a checkpoint captures what commands freed.
const QUIET_TICKS: u64 = 10;
/// Ticks between two checkpoints that capture what commands freed; doubled with each, as long as
/// memory stays high.
const CHECKPOINT_TICKS: u64 = 100;
/// How often [`CHECKPOINT_TICKS`] is doubled at most: a snapshot of a large state takes each
/// replica seconds.
const CHECKPOINT_DOUBLINGS_MAX: u32 = 3;

/// How often a guest was rebuilt to release memory, and to what effect.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RebuildTally {
    pub done: u64,
    /// How many of these released too little to be worthwhile.
    pub in_vain: u64,
    /// Bytes of memory that all of them released.
    pub bytes: u64,
}

/// The replica whose turn it is, as this leader says.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    replica: ReplicaId,
    since: u64,
}

/// Whose turn it is on a leader.
#[derive(Default)]
pub(super) struct Turns {
    /// The replica that this leader allows to rebuild its guest now.
    turn: Option<Turn>,
    /// This leader's own guest is the last one whose rebuild would pay.
    yields: bool,
}

impl Turns {
    pub(super) fn yields(&self) -> bool {
        self.yields
    }
}

#[derive(Default)]
pub(super) struct Rebuilds {
    footprints: Footprints,
    /// The memory use of the guest that was dropped for a rebuild, until there is a guest again.
    before: Option<MemoryUse>,
    /// The index of the recovery point that the guest was built from.
    from: u64,
    in_vain_in_a_row: u32,
    not_before: u64,
    tally: RebuildTally,
    /// The tick since which this replica leads, or since which the last turn that it gave is over.
    listens_since: Option<u64>,
    /// The replica that had the last turn.
    last: Option<ReplicaId>,
    /// The tick since which a rebuild of the leader's own guest would pay.
    wanted_since: Option<u64>,
    checkpoints: MemoryCheckpoints,
}

/// When the next checkpoint for the sake of memory is due.
#[derive(Default)]
struct MemoryCheckpoints {
    /// The tick before which none is requested; `None` while memory is not high.
    after: Option<u64>,
    in_a_row: u32,
    /// The last entry that called the guest, and the tick at which it was first seen.
    command: (u64, u64),
}

impl Rebuilds {
    pub(super) fn before(&self) -> Option<MemoryUse> {
        self.before
    }

    pub(super) fn tally(&self) -> RebuildTally {
        self.tally
    }

    /// A guest was built from the recovery point at `index`.
    pub(super) fn built(&mut self, index: u64, footprint: Footprint) {
        self.from = index;
        self.footprints.built(footprint);
    }

    /// A snapshot of the live guest is complete.
    pub(super) fn captured(&mut self, snapshot: &SnapshotDesc, memory: Option<MemoryUse>) {
        if let Some(MemoryUse { bytes, .. }) = memory {
            self.footprints.captured(Footprint { snapshot: snapshot.length, memory: bytes });
        }
    }

    /// The rebuild is over: there is a guest again.
    pub(super) fn is_over(&mut self, shared: &Shared) {
        let Some(before) = self.before.take() else { return };
        let after = shared.memory.map_or(before.bytes, |memory| memory.bytes);
        let gain = before.bytes.saturating_sub(after);
        self.tally.done += 1;
        self.tally.bytes += gain;
        if gain >= before.worthwhile() {
            self.in_vain_in_a_row = 0;
            return;
        }
        self.tally.in_vain += 1;
        self.not_before = shared.now + (RETRY_TICKS << self.in_vain_in_a_row);
        self.in_vain_in_a_row = (self.in_vain_in_a_row + 1).min(RETRY_DOUBLINGS_MAX);
    }
}

impl MemoryCheckpoints {
    /// Whether a checkpoint is due after the entry at `command`.
    fn due(&mut self, command: u64, now: u64) -> bool {
        if self.command.0 != command {
            self.command = (command, now);
        }
        let wait = CHECKPOINT_TICKS << self.in_a_row;
        let after = *self.after.get_or_insert(now);
        let quiet = now >= self.command.1 + QUIET_TICKS;
        // If commands never pause, the checkpoint comes one such wait later.
        let due = now >= after + if quiet { 0 } else { wait };
        if due {
            self.after = Some(now + wait);
            self.in_a_row = (self.in_a_row + 1).min(CHECKPOINT_DOUBLINGS_MAX);
        }
        due
    }
}

impl Shared {
    /// The condition of a replica's guest, as the replica reported it last.
    pub(super) fn guest_of(&self, replica: ReplicaId) -> GuestIs {
        if replica == self.me() {
            self.own.guest
        } else {
            self.seen.get(&replica).map_or(GuestIs::Absent, |seen| seen.guest)
        }
    }

    /// Whether a frame to this replica says that it may rebuild its guest.
    pub(super) fn grants(&self, to: Option<ReplicaId>) -> bool {
        to.is_some() && self.turns.turn.map(|turn| turn.replica) == to
    }

    fn is_due(&self, replica: ReplicaId) -> bool {
        !self.is_silent(replica) && self.guest_of(replica) == GuestIs::ToBeRebuilt
    }

    /// Whether a guest is being built on this replica and will be there soon.
    fn is_building(&self, replica: ReplicaId) -> bool {
        let absent = !self.is_silent(replica) && self.guest_of(replica) == GuestIs::Absent;
        absent && !self.is_halted(replica)
    }

    fn has_ended(&self, turn: &Turn) -> bool {
        match self.guest_of(turn.replica) {
            _ if self.is_silent(turn.replica) || self.is_halted(turn.replica) => true,
            GuestIs::Live => true,
            GuestIs::ToBeRebuilt => self.now >= turn.since + TURN_TICKS,
            GuestIs::Absent => false,
        }
    }

    /// The next replica after `last` to get a turn, if one can.
    fn next_turn(&self, last: Option<ReplicaId>) -> Option<Turn> {
        let members: BTreeSet<ReplicaId> = self.recovery.configuration.replicas().collect();
        if members.iter().any(|id| self.is_building(*id)) {
            return None;
        }
        let behind = members.iter().filter(|id| Some(**id) > last);
        let fits =
            |id: &&ReplicaId| **id != self.me() && self.is_due(**id) && self.can_do_without(**id);
        let replica = *behind.chain(&members).find(fits)?;
        Some(Turn { replica, since: self.now })
    }

    /// Whether the other voters that have a guest are a majority, or all other voters: the group
    /// then keeps serving even if this rebuild fails.
    fn can_do_without(&self, replica: ReplicaId) -> bool {
        let serves = |id: &ReplicaId| !self.is_silent(*id) && self.guest_of(*id) != GuestIs::Absent;
        let configuration = &self.recovery.configuration;
        [&configuration.voters, &configuration.voters_outgoing].into_iter().all(|voters| {
            let others = || voters.iter().filter(|id| **id != replica);
            others().filter(|id| serves(id)).count() >= others().count().min(voters.len() / 2 + 1)
        })
    }
}

impl Rebuilds {
    /// What this replica reports of its guest.
    pub(super) fn guest(
        &self,
        shared: &Shared,
        pipeline: &Pipeline,
        checkpoints: &Checkpoints,
        retention: &Retention,
    ) -> GuestIs {
        if !pipeline.is_applying() {
            GuestIs::Absent
        } else if self.pays(shared, checkpoints, retention) {
            GuestIs::ToBeRebuilt
        } else {
            GuestIs::Live
        }
    }

    /// Whether a rebuild of the guest would release enough memory.
    fn pays(&self, shared: &Shared, checkpoints: &Checkpoints, retention: &Retention) -> bool {
        let Some(memory) = shared.memory.filter(|memory| memory.is_high()) else { return false };
        let Some(newest) = shared.recovery.newest() else { return false };
        let after = self.footprints.after_restore(newest.length);
        let worthwhile = memory.bytes.saturating_sub(after) >= memory.worthwhile();
        (worthwhile || planted("rebuild_for_nothing"))
            && newest.index > self.from
            && shared.now >= self.not_before
            && !retention.is_corrupt(newest)
            && !checkpoints.is_capturing_in_time(shared.now)
    }

    /// A rebuild of the live guest begins.
    pub(super) fn begins(&mut self, memory: Option<MemoryUse>) {
        self.before = memory;
    }

    /// On a leader, gives turns and takes note of turns that are over.
    pub(super) fn tick_turns(&mut self, raw: &RaftNode, shared: &mut Shared) {
        if !raw.is_leader() {
            shared.turns = Turns::default();
            (self.listens_since, self.wanted_since) = (None, None);
            return;
        }
        if let Some(turn) = shared.turns.turn.filter(|turn| shared.has_ended(turn)) {
            (shared.turns.turn, self.last) = (None, Some(turn.replica));
            self.listens_since = None;
        }
        let since = *self.listens_since.get_or_insert(shared.now);
        if shared.turns.turn.is_none() && shared.now >= since + LISTEN_TICKS {
            shared.turns.turn = shared.next_turn(self.last);
        }
        let wanted = (shared.own.guest == GuestIs::ToBeRebuilt).then_some(shared.now);
        self.wanted_since = self.wanted_since.or(wanted).filter(|_| wanted.is_some());
        let waited = |since: u64| shared.now >= since + YIELD_TICKS;
        let others = || shared.recovery.configuration.replicas().filter(|id| *id != shared.me());
        shared.turns.yields = shared.turns.turn.is_none()
            && self.wanted_since.is_some_and(waited)
            && !others().any(|id| shared.is_due(id) || shared.is_building(id));
    }

    /// On a leader, requests a checkpoint after the last commands while memory is high on some
    /// replica and no guest is due for a rebuild or being built.
    pub(super) fn tick_checkpoints(
        &mut self,
        raw: &RaftNode,
        checkpoints: &mut Checkpoints,
        shared: &Shared,
    ) {
        let members = || shared.recovery.configuration.replicas();
        let high = |id| !shared.is_silent(id) && shared.is_memory_high(id);
        if !raw.is_leader() || !members().any(high) {
            self.checkpoints = MemoryCheckpoints::default();
        } else if !members().any(|id| shared.is_due(id) || shared.is_building(id))
            && let Some(command) = checkpoints.uncovered()
            && self.checkpoints.due(command, shared.now)
        {
            checkpoints.want(CheckpointReason::Memory);
        }
    }
}

/// Whether this replica may rebuild its guest now.
pub(super) fn has_turn(
    raw: &RaftNode,
    proposals: &Proposals,
    pipeline: &Pipeline,
    shared: &Shared,
) -> bool {
    plant!("rebuild_at_once" does return true);
    if raw.is_leader() {
        let idle =
            !proposals.has_waiting() && proposals.bytes() == 0 && pipeline.backlog_bytes() == 0;
        return raw.raft.prs().is_singleton() && shared.turns.turn.is_none() && idle;
    }
    let grants = |id: ReplicaId| {
        !shared.is_silent(id) && shared.seen.get(&id).is_some_and(|seen| seen.grants)
    };
    raw.leader().is_some_and(grants)
}
