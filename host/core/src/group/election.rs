//! Ticks and who may campaign.
//!
//! - raft-rs draws election timeouts from the thread's generator, at moments of its own; before
//!   every tick, the only reader, the timeout is set to one drawn from this group's seed for the
//!   present term and role, so that a run can be repeated.
//! - A *reluctant* replica (its clock is far off, or its guest cannot serve) ticks, votes and
//!   appends, but its election timer is held just below the timeout until ten timeouts passed
//!   without a leader; if it leads all the same, it hands over. The last resort must lead: a group
//!   of one is never reluctant.
//! - One whose disk hangs is reluctant too, and never campaigns: what it has to say could not
//!   leave. A leader hands over if the others are a majority, and after a few tries in vain it
//!   steps down.
//! - Ticks are never withheld: a replica without ticks keeps its lease and refuses every vote. Only
//!   a single voter that does not lead waits for its own disk first.

use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};

use crate::group::Chance;
use crate::group::Shared;
use crate::group::effect::{ReplicaState, Running};
use crate::group::hosting::Hosting;
use crate::group::raft_log::RaftLog;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;

/// Election state beside raft's.
#[derive(Default)]
pub(super) struct Election {
    /// Term and role, and the timeout drawn for them.
    pinned: Option<(u64, StateRole, usize)>,
    /// Tick at which a leader was last heard.
    heard: u64,
    reluctant: bool,
    /// Tick of the last attempt to hand over.
    handed: u64,
    /// Who was last asked to take over.
    asked: Option<u64>,
    /// Attempts to hand over since the disk hangs.
    tries: u32,
}

/// The longest timeout raft accepts here.
const TIMEOUT_MAX: usize = limits::ELECTION_TICKS_MAX - 1;

impl Election {
    pub(super) fn is_reluctant(&self) -> bool {
        self.reluctant
    }

    /// A reluctant replica does not take leadership that is handed to it, from its first message
    /// on.
    pub(super) fn drops(&self, message: &Message, shared: &Shared) -> bool {
        message.get_msg_type() == MessageType::MsgTimeoutNow && is_reluctant(shared)
    }

    pub(super) fn hear(&mut self, message: &Message, now: u64) {
        if matches!(
            message.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
        ) {
            self.heard = now;
        }
    }

    /// Puts this term's and role's timeout in the place of raft's own.
    fn pin(&mut self, raw: &mut RawNode<RaftLog>, chance: &mut Chance) {
        let (term, role) = (raw.raft.term, raw.raft.state);
        let timeout = match self.pinned {
            Some((of_term, of_role, timeout)) if (of_term, of_role) == (term, role) => timeout,
            Some(_) | None => {
                let span = (limits::ELECTION_TICKS_MAX - limits::ELECTION_TICKS_MIN) as u64;
                limits::ELECTION_TICKS_MIN + chance.below(span) as usize
            }
        };
        self.pinned = Some((term, role, timeout));
        raw.raft.set_randomized_election_timeout(timeout);
    }

    fn hold_back(&self, raw: &mut RawNode<RaftLog>, shared: &Shared) {
        let patience = (limits::RELUCTANT_TIMEOUTS * limits::ELECTION_TICKS_MAX) as u64;
        if shared.now >= self.heard + patience && shared.stalled.is_none() {
            return;
        }
        raw.raft.set_randomized_election_timeout(TIMEOUT_MAX);
        raw.raft.election_elapsed = raw.raft.election_elapsed.min(TIMEOUT_MAX - 2);
    }
}

impl Hosting {
    pub(super) fn tick_raft(&mut self, shared: &mut Shared) {
        let alone = self.raw.raft.prs().is_singleton();
        self.election.reluctant = !alone && is_reluctant(shared);
        self.election.pin(&mut self.raw, &mut shared.chance);
        if self.is_leader() {
            self.election.heard = shared.now;
            self.hand_over_if_reluctant(shared);
        } else if self.election.reluctant {
            self.election.hold_back(&mut self.raw, shared);
        } else if alone && self.raw.raft.promotable() && self.all_persisted() {
            // A group of one has nobody to wait for.
            let _ = self.raw.campaign();
        }
        let log = &self.raw.raft.raft_log;
        // A single voter leads in the step that campaigns, and raft then demands a persisted log.
        // Whoever leads ticks always: its learners wait for its heartbeats.
        if !alone || self.is_leader() || log.persisted == log.last_index() {
            self.raw.tick();
        }
        if planted("lead_without_votes") && self.raw.raft.state == StateRole::Candidate {
            self.raw.raft.become_leader();
        }
    }

    /// Asks the follower that has most of the log to take over; false if there is none. The one
    /// that was asked last comes last: it may be one that does not want to lead.
    pub(super) fn transfer_to_best(&mut self, shared: &Shared) -> bool {
        if !self.is_leader() {
            return false;
        }
        let raft = &self.raw.raft;
        let voters = raft.prs().conf().voters();
        // One without room takes no commands, but whoever cannot write does not even answer.
        let stalled = shared.stalled.is_some();
        let has_room = |id: &u64| shared.shortage_of(ReplicaId(*id)).is_none();
        let best = raft
            .prs()
            .iter()
            // Not raft's own word alone, which each quorum check takes back.
            .filter(|(id, _)| **id != raft.id && voters.contains(**id))
            .filter(|(id, _)| !shared.is_silent(ReplicaId(**id)))
            .filter(|(id, _)| !shared.is_halted(ReplicaId(**id)))
            .filter(|(id, _)| !shared.is_stalled(ReplicaId(**id)))
            .filter(|(id, _)| stalled || has_room(id))
            .filter(|(id, _)| stalled || shared.has_memory_to_lead(ReplicaId(**id)))
            .max_by_key(|(id, peer)| {
                let again = Some(**id) == self.election.asked;
                (has_room(id), !again, peer.recent_active, peer.matched, std::cmp::Reverse(**id))
            })
            .map(|(id, _)| *id);
        if let Some(id) = best {
            self.raw.transfer_leader(id);
            self.election.asked = best;
        }
        best.is_some()
    }

    fn all_persisted(&self) -> bool {
        self.raw.raft.raft_log.persisted == self.raw.raft.raft_log.last_index()
    }

    fn hand_over_if_reluctant(&mut self, shared: &Shared) {
        let (now, stalled) = (shared.now, shared.stalled.is_some());
        if !stalled {
            self.election.tries = 0;
        }
        let due = now >= self.election.handed + limits::ELECTION_TICKS_MAX as u64;
        if !self.election.reluctant || !due || stalled && !shared.others_suffice() {
            return;
        }
        if stalled && self.election.tries >= limits::STALLED_HAND_OVERS_MAX {
            self.election.tries = 0;
            return self.step_down();
        }
        // A try that found nobody is no try: the next may come in another phase of the heartbeats,
        // when somebody is known to be active.
        if self.transfer_to_best(shared) {
            self.election.handed = now;
            self.election.tries += u32::from(stalled);
        }
    }

    /// Leads no more, so that the others elect somebody: a transfer may be lost, or its heir not
    /// want to lead.
    fn step_down(&mut self) {
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
    }
}

fn is_reluctant(shared: &Shared) -> bool {
    let able = match &shared.state {
        ReplicaState::Running(Running::Serving | Running::DiskStalled(_)) => true,
        ReplicaState::Running(Running::MemoryHigh(_)) => !shared.leads_for_memory(),
        ReplicaState::Running(
            Running::Restoring
            | Running::Rebuilding(_)
            | Running::Joining
            | Running::NeedsSnapshot(_)
            | Running::DiskFull(_)
            | Running::Halted(_),
        )
        | ReplicaState::Stopped(_) => false,
    };
    let stalled = shared.stalled.is_some() && !planted("lead_with_a_stalled_disk");
    !able || stalled || shared.clock_is_off()
}
