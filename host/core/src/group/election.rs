//! Ticks, and which replicas may campaign.
//!
//! - raft-rs draws election timeouts from the thread's random generator, at moments of its own
//!   choice. Only a tick reads the timeout, so before every tick it is replaced by one that is
//!   drawn from this group's seed for the present term and role. That makes runs repeatable.
//! - A *reluctant* replica (its clock is far off, or its guest cannot serve) ticks, votes and
//!   appends, but its election timer is held just below the timeout until ten timeouts have passed
//!   without a leader. If it leads nevertheless, it hands over. A group of one is never reluctant,
//!   because there is no other replica to lead it.
//! - A replica whose disk hangs is reluctant as well, and never campaigns: its messages would wait
//!   for the disk. A leader with such a disk hands over if the other voters are a majority, and
//!   steps down after a few failed attempts.
//! - Ticks are never withheld: without them a replica would keep to its leader forever and
//!   refuse every vote. The exception is a single voter that does not lead: it first waits for its
//!   own disk.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use crate::group::Shared;
use crate::group::chance::Chance;
use crate::group::effect::{ReplicaState, Running};
use crate::group::raft_node::RaftNode;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;

/// Election state that raft does not keep.
#[derive(Default)]
pub(super) struct Election {
    /// The timeout drawn for a term and role: (term, role, timeout).
    pinned: Option<(u64, StateRole, usize)>,
    /// The tick at which a leader was last heard.
    heard: u64,
    reluctant: bool,
    /// The tick of the last attempt to hand over leadership.
    handed: u64,
    /// The replica that was last asked to take over.
    asked: Option<u64>,
    /// Attempts to hand over since the disk began to hang.
    tries: u32,
    /// The tick at which a leader was last known.
    led: u64,
    /// How many leaders this process learnt of, and the term of the last one.
    leaders: (u64, u64),
}

/// The longest election timeout that raft accepts here.
const TIMEOUT_MAX: usize = limits::ELECTION_TICKS_MAX - 1;

impl Election {
    /// Counts the leader that raft knows now. A term has at most one.
    pub(super) fn count_leader(&mut self, raw: &RaftNode) {
        let term = raw.raft.term;
        if raw.leader().is_some() && self.leaders.1 != term {
            self.leaders = (self.leaders.0 + 1, term);
        }
    }

    /// How many leaders this process learnt of.
    pub(super) fn leaders(&self) -> u64 {
        self.leaders.0
    }

    /// Notes whether there is a leader now.
    pub(super) fn note_leader(&mut self, raw: &RaftNode, now: u64) {
        if self.led_by(raw, now).is_some() {
            self.led = now;
        }
    }

    /// Ticks for which no leader has been known.
    pub(super) fn leaderless(&self, now: u64) -> u64 {
        now - self.led
    }

    pub(super) fn is_reluctant(&self) -> bool {
        self.reluctant
    }

    /// Whether to ignore this message: a reluctant replica accepts no leadership that is handed to
    /// it, not even before its first tick.
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

    /// Replaces raft's election timeout with the one for this term and role.
    fn pin(&mut self, raw: &mut RaftNode, chance: &mut Chance) {
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

    fn hold_back(&self, raw: &mut RaftNode, shared: &Shared) {
        let patience = (limits::RELUCTANT_TIMEOUTS * limits::ELECTION_TICKS_MAX) as u64;
        if shared.now >= self.heard + patience && shared.stalled.is_none() {
            return;
        }
        raw.raft.set_randomized_election_timeout(TIMEOUT_MAX);
        raw.raft.election_elapsed = raw.raft.election_elapsed.min(TIMEOUT_MAX - 2);
    }

    /// The leader, if this is it or it was heard lately. raft forgets a silent leader only when the
    /// election timer runs out, which a reluctant replica holds back and a learner does not have.
    pub(super) fn led_by(&self, raw: &RaftNode, now: u64) -> Option<ReplicaId> {
        let silent = now >= self.heard + 2 * limits::ELECTION_TICKS_MAX as u64;
        let known = raw.is_leader() || !silent || planted("led_by_the_silent");
        raw.leader().filter(|_| known)
    }

    pub(super) fn tick(&mut self, raw: &mut RaftNode, shared: &mut Shared) {
        let alone = raw.raft.prs().is_singleton();
        self.reluctant = !alone && is_reluctant(shared);
        self.pin(raw, &mut shared.chance);
        if raw.is_leader() {
            self.heard = shared.now;
            self.hand_over_if_reluctant(raw, shared);
        } else if self.reluctant {
            self.hold_back(raw, shared);
        } else if alone && raw.raft.promotable() && all_persisted(raw) {
            // A group of one has no other replica to wait for.
            let _ = raw.campaign();
        }
        let log = &raw.raft.raft_log;
        // A single voter becomes leader in the same step that campaigns, and raft then requires its
        // log to be persisted. A leader always ticks, because its learners need its heartbeats.
        if !alone || raw.is_leader() || log.persisted == log.last_index() {
            raw.tick();
        }
        if planted("lead_without_votes") && raw.raft.state == StateRole::Candidate {
            raw.raft.become_leader();
        }
    }

    /// Asks the follower with the longest log to take over; returns false if none can. The follower
    /// that was asked last is the last choice, because it may be unwilling to lead.
    pub(super) fn transfer_to_best(&mut self, raw: &mut RaftNode, shared: &Shared) -> bool {
        if !raw.is_leader() {
            return false;
        }
        let raft = &raw.raft;
        let voters = raft.prs().conf().voters();
        // A leader short of space refuses commands, but one that cannot write does not even answer.
        let stalled = shared.stalled.is_some();
        let has_space = |id: &u64| shared.shortage_of(ReplicaId(*id)).is_none();
        let best = raft
            .prs()
            .iter()
            // `recent_active` alone does not tell who can be reached: each quorum check clears it.
            .filter(|(id, _)| **id != raft.id && voters.contains(**id))
            .filter(|(id, _)| !shared.is_silent(ReplicaId(**id)))
            .filter(|(id, _)| !shared.is_halted(ReplicaId(**id)))
            .filter(|(id, _)| !shared.is_stalled(ReplicaId(**id)))
            .filter(|(id, _)| stalled || has_space(id))
            .filter(|(id, _)| stalled || shared.has_memory_to_lead(ReplicaId(**id)))
            .max_by_key(|(id, peer)| {
                let again = Some(**id) == self.asked;
                (has_space(id), !again, peer.recent_active, peer.matched, std::cmp::Reverse(**id))
            })
            .map(|(id, _)| *id);
        if let Some(id) = best {
            raw.transfer_leader(id);
            self.asked = best;
        }
        best.is_some()
    }

    fn hand_over_if_reluctant(&mut self, raw: &mut RaftNode, shared: &Shared) {
        let (now, stalled) = (shared.now, shared.stalled.is_some());
        if !stalled {
            self.tries = 0;
        }
        let due = now >= self.handed + limits::ELECTION_TICKS_MAX as u64;
        if !self.reluctant || !due || stalled && !shared.others_suffice() {
            return;
        }
        if stalled && self.tries >= limits::STALLED_HAND_OVERS_MAX {
            self.tries = 0;
            return step_down(raw);
        }
        // Finding no target does not start the retry interval: by the next tick a follower may have
        // answered a heartbeat.
        if self.transfer_to_best(raw, shared) {
            self.handed = now;
            self.tries += u32::from(stalled);
        }
    }
}

fn all_persisted(raw: &RaftNode) -> bool {
    raw.raft.raft_log.persisted == raw.raft.raft_log.last_index()
}

/// Gives up leadership without naming a successor, so that the others elect one: a leadership
/// transfer may be lost, or its target may be unwilling.
fn step_down(raw: &mut RaftNode) {
    let term = raw.raft.term;
    raw.raft.become_follower(term, raft::INVALID_ID);
}

fn is_reluctant(shared: &Shared) -> bool {
    let able = match &shared.state {
        ReplicaState::Running(Running::Serving | Running::DiskStalled(_) | Running::Frozen) => true,
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
