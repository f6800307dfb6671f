//! Memory as a state: what a replica does while its guest has little memory left.
//!
//! - From the soft bound on it accepts no commands except those meant to free memory, which are
//!   counted and accepted up to a second bound. A leader refuses commands as well while the voters
//!   below the bound are no majority, by the same rule as for a full disk. Unlike with a full disk,
//!   appends are accepted, because they will be applied sooner or later.
//! - It answers queries and votes, but does not lead while a voter with enough memory can.
//! - Memory that the guest freed is released by rebuilding the guest, where that pays (`rebuild`).
//! - The nearer the bound, the less a leader has under way, down to a single commands entry, whose
//!   memory use is known before the next one is proposed. An entry has no more commands than the
//!   memory above the bounds can hold answers of ([`MemoryUse::commands_max`]).

use crate::fault::Refusal;
use crate::group::Shared;
use crate::group::effect::{Effect, ReplicaState, Running};
use crate::group::frame::GuestIs;
use crate::group::proposals::Proposals;
use crate::group::raft_node::RaftNode;
use crate::ids::ReplicaId;
use crate::memory::MemoryUse;
use crate::mutant::{plant, planted};

impl Shared {
    /// The memory use of a replica's guest, as it reported it last.
    pub(super) fn memory_of(&self, replica: ReplicaId) -> Option<MemoryUse> {
        if replica == self.me() { self.memory } else { self.seen.get(&replica)?.memory }
    }

    pub(super) fn is_memory_high(&self, replica: ReplicaId) -> bool {
        self.memory_of(replica).is_some_and(MemoryUse::is_high)
    }

    /// The memory use to show in the state while memory is high; `None` while it is not. It is
    /// updated only when it changed by more than a little.
    pub(super) fn memory_high(&self) -> Option<MemoryUse> {
        let now = self.memory.filter(|memory| memory.is_high())?;
        match &self.state {
            ReplicaState::Running(Running::MemoryHigh(told))
                if told.most == now.most && now.bytes.abs_diff(told.bytes) < now.most / 64 =>
            {
                Some(*told)
            }
            _other => Some(now),
        }
    }

    /// Whether a voter has enough memory to lead. If this leader's own guest is the last one to be
    /// rebuilt, a voter whose memory is as high will do.
    pub(super) fn has_memory_to_lead(&self, voter: ReplicaId) -> bool {
        match self.guest_of(voter) {
            GuestIs::Absent => false,
            GuestIs::ToBeRebuilt => !self.is_memory_high(voter),
            GuestIs::Live => self.turns.yields() || !self.is_memory_high(voter),
        }
    }

    /// Whether another replica should lead because this one's memory is high.
    pub(super) fn leads_for_memory(&self) -> bool {
        let voters = &self.recovery.configuration.voters;
        let others = voters.iter().filter(|voter| **voter != self.me());
        let able = |voter: &ReplicaId| !self.is_silent(*voter) && self.has_memory_to_lead(*voter);
        self.is_memory_high(self.me()) && others.copied().any(|voter| able(&voter))
    }

    /// Refuses the waiting commands that would be refused if they came now. A command may have been
    /// accepted before the commands ahead of it took the memory.
    pub(super) fn refuse_for_memory(
        &self,
        raw: &RaftNode,
        proposals: &mut Proposals,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(refusal) = self.has_memory(raw, true)
            && !planted("relief_without_bound")
        {
            proposals.refuse_calls(&refusal, effects);
        } else if let Err(refusal) = self.has_memory(raw, false) {
            proposals.refuse_all_but_relief(&refusal, effects);
        }
    }

    /// Refuses commands if memory is too high for them here or on too many voters.
    pub(super) fn has_memory(&self, raw: &RaftNode, relief: bool) -> Result<(), Refusal> {
        plant!("memory_without_bound" does return Ok(()));
        let over = |replica| self.memory_of(replica).filter(|memory| !memory.takes(relief));
        if let Some(memory) = over(self.me()) {
            return Err(memory.refusal(relief));
        }
        match self.worst_of_too_many(raw, over, |memory| memory.bytes) {
            Some(worst) => Err(worst.refusal(relief)),
            None => Ok(()),
        }
    }

    /// Whether another commands entry may be proposed while entries of `under_way` bytes are not
    /// applied yet.
    pub(super) fn has_memory_for_more(&self, under_way: usize) -> bool {
        let (Some(memory), under_way) = (self.memory, under_way as u64) else { return true };
        let relief = memory.is_high();
        under_way == 0 || under_way < memory.under_way_max(relief)
    }
}
