//! A disk that hangs: no operation fails, but one of them does not return.
//!
//! A leader with such a disk would stall its group: its heartbeats continue and the others commit,
//! but it applies nothing that is not durable on its own disk.
//!
//! - It accepts no commands, and refuses those that were not proposed yet. Commands under way end
//!   when the disk answers, or as unknown once it no longer leads.
//! - It does not lead while there is a majority of voters whose disks answer (`election`), and
//!   every frame reports the stall. Messages that promise durability wait for their batch, as
//!   always: the others see a silent replica and go on without it.
//! - If the others are no majority, it keeps leading: no other replica could do better, and the
//!   group recovers as soon as the disk does.

use crate::fault::{Refusal, Stall};
use crate::group::Shared;
use crate::group::effect::{ReplicaState, Running};
use crate::ids::ReplicaId;

impl Shared {
    /// Whether another replica's disk hangs, as it reported last.
    pub(super) fn is_stalled(&self, replica: ReplicaId) -> bool {
        self.seen.get(&replica).is_some_and(|seen| seen.stalled)
    }

    /// Whether the other voters, as far as they are heard and their disks answer, are a majority.
    pub(super) fn others_suffice(&self) -> bool {
        let configuration = &self.recovery.configuration;
        let suffice = |voters: &std::collections::BTreeSet<ReplicaId>| {
            let able = voters
                .iter()
                .filter(|voter| **voter != self.me())
                .filter(|voter| !self.is_silent(**voter) && !self.is_stalled(**voter));
            able.count() > voters.len() / 2
        };
        let outgoing = &configuration.voters_outgoing;
        suffice(&configuration.voters) && (outgoing.is_empty() || suffice(outgoing))
    }

    /// Refuses commands while the disk of the log hangs.
    pub(super) fn may_write(&self) -> Result<(), Refusal> {
        match &self.stalled {
            None => Ok(()),
            Some(stall) => Err(refusal(stall)),
        }
    }

    /// The log's disk hangs, or answers again. Returns how waiting commands are to be refused.
    pub(super) fn disk_stalled(&mut self, stall: Option<Stall>) -> Option<Refusal> {
        let refused = stall.as_ref().map(refusal);
        self.stalled = stall;
        refused
    }
}

fn refusal(stall: &Stall) -> Refusal {
    let state = ReplicaState::Running(Running::DiskStalled(stall.clone()));
    state.refusal().expect("a replica whose disk hangs refuses commands")
}
