//! A disk that hangs: no error, but an operation that does not come back.
//!
//! Such a leader would hold its group still for as long as it lasts: its heartbeats go on, the
//! others commit, and it applies nothing that it does not have durably itself.
//!
//! - It takes no commands, and those that were not proposed yet are refused. What is under way ends
//!   with the disk's answer, or as unknown once it leads no more.
//! - It does not lead while a majority of the voters is there whose disks answer (`election`), and
//!   every frame says how it stands. What it has to promise waits, as ever, for its batch: the
//!   others see a replica that is silent, and go on without it.
//! - Where the others are no majority it goes on leading: nobody could do better, and all is well
//!   again as soon as the disk is.

use crate::fault::{Refusal, Stall};
use crate::group::Shared;
use crate::group::effect::{Effect, ReplicaState, Running};
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;

impl Shared {
    /// Whether the disk of another replica hangs, as it said last.
    pub(super) fn is_stalled(&self, replica: ReplicaId) -> bool {
        self.seen.get(&replica).is_some_and(|seen| seen.stalled)
    }

    /// Whether the voters without this replica are a majority, so far as they are heard and their
    /// disks answer.
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

    /// Whether the log may be given commands.
    pub(super) fn may_write(&self) -> Result<(), Refusal> {
        match &self.stalled {
            None => Ok(()),
            Some(stall) => Err(refusal(stall)),
        }
    }
}

impl Hosting {
    /// The log lane hangs in an operation, or came back.
    pub(super) fn disk_stalled(
        &mut self,
        shared: &mut Shared,
        stall: Option<Stall>,
        effects: &mut Vec<Effect>,
    ) {
        let refused = stall.as_ref().map(refusal);
        shared.stalled = stall;
        self.settle_state(shared, effects);
        match refused {
            Some(refusal) => self.proposals.refuse_waiting(&refusal, effects),
            // Whoever leads by now has a timeout's worth of time to be heard.
            None => self.raw.raft.election_elapsed = 0,
        }
    }
}

fn refusal(stall: &Stall) -> Refusal {
    let state = ReplicaState::Running(Running::DiskStalled(stall.clone()));
    state.refusal().expect("a replica whose disk hangs refuses commands")
}
