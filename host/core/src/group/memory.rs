//! Memory as a state: what a replica does while its guest has little memory left.
//!
//! - From the soft bound on it takes no commands but those that are to make room, which are counted
//!   and go on to a second bound. A leader refuses as well while a majority of the voters has come
//!   there: by the same rule as for a full disk. Unlike there, what is appended is taken: it will
//!   be applied sooner or later.
//! - It answers queries, votes, and does not lead while a voter with memory can.
//! - What was freed comes back by a rebuild of the guest, where that pays (`rebuild`).
//! - Near the bound a leader has less and less under way, at last one pack: what that took is known
//!   before the next one is packed.

use crate::fault::Refusal;
use crate::group::Shared;
use crate::group::effect::{Effect, ReplicaState, Running};
use crate::group::frame::GuestIs;
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;
use crate::memory::MemoryUse;
use crate::mutant::planted;

impl Shared {
    /// What a replica's guest has of its memory, as it said last.
    pub(super) fn memory_of(&self, replica: ReplicaId) -> Option<MemoryUse> {
        match replica == self.me() {
            true => self.memory,
            false => self.seen.get(&replica)?.memory,
        }
    }

    pub(super) fn is_memory_high(&self, replica: ReplicaId) -> bool {
        self.memory_of(replica).is_some_and(MemoryUse::is_high)
    }

    /// What the state tells of memory that is high. It tells it anew once that has changed by more
    /// than a little.
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

    /// Whether a voter has memory to lead with. One that has as little will do where this replica's
    /// guest is the last that is to be rebuilt.
    pub(super) fn has_memory_to_lead(&self, voter: ReplicaId) -> bool {
        match self.guest_of(voter) {
            GuestIs::Absent => false,
            GuestIs::ToBeRebuilt => !self.is_memory_high(voter),
            GuestIs::Live => self.yields || !self.is_memory_high(voter),
        }
    }

    /// Whether somebody else should lead because of this replica's memory.
    pub(super) fn leads_for_memory(&self) -> bool {
        let voters = &self.recovery.configuration.voters;
        let others = voters.iter().filter(|voter| **voter != self.me());
        let able = |voter: &ReplicaId| !self.is_silent(*voter) && self.has_memory_to_lead(*voter);
        self.is_memory_high(self.me()) && others.copied().any(|voter| able(&voter))
    }
}

impl Hosting {
    /// The apply lane says what the guest has.
    pub(super) fn memory(
        &mut self,
        shared: &mut Shared,
        memory: MemoryUse,
        effects: &mut Vec<Effect>,
    ) {
        let was_high = shared.is_memory_high(shared.me());
        shared.memory = Some(memory);
        self.settle_state(shared, effects);
        if memory.is_high() && !was_high {
            self.proposals.refuse_all_but_relief(&memory.refusal(false), effects);
        }
    }

    /// Whether commands are refused for want of memory, here or on too many of the voters.
    pub(super) fn has_memory(&self, shared: &Shared, relief: bool) -> Result<(), Refusal> {
        if planted("memory_without_bound") {
            return Ok(());
        }
        let over = |replica| shared.memory_of(replica).filter(|memory| !memory.takes(relief));
        if let Some(memory) = over(shared.me()) {
            return Err(memory.refusal(relief));
        }
        match self.worst_of_too_many(shared, over, |memory| memory.bytes) {
            Some(worst) => Err(worst.refusal(relief)),
            None => Ok(()),
        }
    }

    /// Whether another pack may be under way.
    pub(super) fn has_memory_for_more(&self, shared: &Shared) -> bool {
        let Some(memory) = shared.memory else { return true };
        let under_way = self.proposals.bytes().max(self.pipeline.backlog_bytes()) as u64;
        let relief = memory.is_high();
        under_way == 0 || under_way < memory.under_way_max(relief)
    }
}
