//! A lane that applies nothing more, for good or until another object comes, and what it can be
//! asked meanwhile.

use lockstep_core::fault::{Fault, GuestFault, Refusal};
use lockstep_core::group::Event;
use lockstep_core::snapshot::SnapshotDesc;

use super::{ApplyLane, Output};
use crate::group::HaltedAt;

/// A rebuild may itself fail at an earlier entry (what a guest has of memory depends on how it was
/// built): so many times the goal is moved before that.
const GOALS_MAX: usize = 3;

impl ApplyLane {
    /// Builds the guest as it was after `goal`, to be asked.
    pub(super) fn stand(&mut self, goal: u64) -> Output {
        let at = self.fault.is_some().then(|| self.stand_at(goal)).flatten();
        match at {
            Some(at) => tracing::info!(group = %self.tools.group, at, "the halted state is there"),
            None => {
                tracing::warn!(group = %self.tools.group, goal, "there is no state to ask");
                self.clear();
            }
        }
        Output::Event(Event::Stands { at })
    }

    fn stand_at(&mut self, mut goal: u64) -> Option<u64> {
        for _ in 0..GOALS_MAX {
            match self.rebuilt(goal) {
                Ok(()) => return Some(goal),
                Err(Fault::Guest(GuestFault { index: Some(index), .. }))
                    if (2..=goal).contains(&index) =>
                {
                    goal = index - 1;
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// The object that raft installed cannot be read: a peer's copy does as well, as at a start.
    pub(super) fn not_restored(&mut self, snapshot: SnapshotDesc, why: String) -> Output {
        let index = snapshot.index;
        tracing::error!(group = %self.tools.group, index, why, "the snapshot does not restore");
        self.clear();
        self.waiting = true;
        self.aside.push(Event::Rotten { snapshot, why: why.clone() });
        Output::Event(Event::NotRestored { index, why })
    }

    /// How a query is refused that must see more than a halted guest knows, or that has none.
    pub(super) fn halted_refusal(&self, fault: &Fault, index: u64) -> Option<Refusal> {
        let cause = match self.guest {
            Some(_) if index <= self.applied() => return None,
            Some(_) => format!("{fault}; only local queries are answered, from the state before"),
            None => format!("{fault}; there is no state to ask"),
        };
        Some(Refusal::Halted { cause })
    }

    /// What an answer says of the halt.
    pub(super) fn halted_at(&self) -> Option<HaltedAt> {
        let fault = self.fault.as_ref()?;
        Some(HaltedAt { entry: fault.entry().unwrap_or(0), cause: fault.to_string() })
    }
}
