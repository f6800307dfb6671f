//! The guest's timer, on a leader: proposes the entry at which every replica calls its guest.
//!
//! At most one such entry is under way, and at most one is proposed a tick. It may turn out to be
//! for a deadline that is no longer pending; then it calls nobody ([`crate::apply`]).

use crate::apply::{Deadline, LogClock};
use crate::entry::EntryBody;
use crate::group::Shared;
use crate::group::raft_node::RaftNode;
use crate::mutant::{plant, planted};

#[derive(Default)]
pub(super) struct Timer {
    /// What the guest's timer was set to after the last entry that was applied.
    deadline: Option<Deadline>,
    /// The entry that this leader proposed, as (term, index), until it is applied.
    proposed: Option<(u64, u64)>,
}

impl Timer {
    /// The guest applied entries up to `last`.
    pub(super) fn applied(&mut self, last: u64, clock: LogClock) {
        self.deadline = clock.deadline;
        self.proposed = self.proposed.filter(|(_, index)| *index > last);
    }

    /// The time to which the guest's timer is set, ms.
    pub(super) fn at_ms(&self) -> Option<u64> {
        self.deadline.map(|deadline| deadline.at_ms)
    }

    /// On a leader that may propose, proposes to wake the guest if log time has reached the
    /// deadline.
    pub(super) fn tick(&mut self, raw: &mut RaftNode, shared: &mut Shared) {
        let term = raw.raft.term;
        self.proposed = self.proposed.filter(|(proposed, _)| *proposed == term);
        plant!("wake_without_end" does self.proposed = None);
        let Some(Deadline { at_ms, set_by }) = self.deadline else { return };
        let time_ms = shared.stamp();
        let is_due = time_ms >= at_ms || planted("wake_early");
        if self.proposed.is_some() || !is_due {
            return;
        }
        let body = EntryBody::Wake { time_ms, set_by };
        self.proposed = raw.propose_body(&body).map(|(index, term)| (term, index));
    }
}
