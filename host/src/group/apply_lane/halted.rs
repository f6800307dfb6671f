//! A halted lane: it applies nothing until the core has the guest built again, and answers local
//! queries meanwhile if it can.

use lockstep_core::apply::LogClock;
use lockstep_core::fault::{Fault, GuestFault, Refusal};
use lockstep_core::group::Event;
use lockstep_core::snapshot::SnapshotDesc;

use super::{ApplyLane, Output};
use crate::group::HaltedAt;

/// How often the goal of a rebuild is moved back. The rebuild may itself fail at an earlier entry,
/// because the memory that a guest uses depends on how it was built.
const GOALS_MAX: usize = 3;

impl ApplyLane {
    /// Builds the guest as it was after entry `goal`, for local queries.
    pub(super) fn stand(&mut self, goal: u64) -> Output {
        let at = self.fault.is_some().then(|| self.stand_at(goal)).flatten();
        match at {
            Some((at, _)) => tracing::info!(group = %self.tools.group, at,
                "the halted replica answers local queries"),
            None => {
                tracing::warn!(group = %self.tools.group, goal,
                    "the state before the halting entry could not be rebuilt: local queries are \
                     refused");
                self.clear();
            }
        }
        Output::Event(Event::Stands { at })
    }

    fn stand_at(&mut self, mut goal: u64) -> Option<(u64, LogClock)> {
        for _ in 0..GOALS_MAX {
            match self.rebuilt(goal) {
                Ok(()) => return Some((goal, self.ledger.clock())),
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

    /// Halts the lane after a panic. The caller reports the panic; events that the lane has not
    /// reported yet are discarded.
    pub(crate) fn give_up(&mut self, fault: Fault) {
        self.place = None;
        self.clear();
        self.aside.clear();
        (self.fault, self.untold) = (Some(fault), None);
    }

    /// Reports that the object which raft installed cannot be read. The core then asks a peer for a
    /// copy, as it does when a start finds no readable object.
    pub(super) fn not_restored(&mut self, snapshot: SnapshotDesc, why: String) -> Output {
        let index = snapshot.index;
        tracing::error!(group = %self.tools.group, index, why, "the snapshot that a peer sent \
            cannot be read; the replica asks for a copy");
        self.clear();
        self.waiting = true;
        self.aside.push(Event::Corrupt { snapshot, why: why.clone() });
        Output::Event(Event::NotRestored { build: self.build, index, why })
    }

    /// Refuses a query if there is no guest, or if it must see more than the halted guest applied.
    pub(super) fn halted_refusal(&self, fault: &Fault, index: u64) -> Option<Refusal> {
        let cause = match self.live {
            Some(_) if index <= self.applied() => return None,
            Some(_) => format!("{fault}; only local queries are answered, from an earlier state"),
            None => format!("{fault}; there is no state to query"),
        };
        Some(Refusal::Halted { cause })
    }

    /// Where and why the replica halted, for an answer; `None` if it is not halted.
    pub(super) fn halted_at(&self) -> Option<HaltedAt> {
        let fault = self.fault.as_ref()?;
        Some(HaltedAt { entry: fault.entry().unwrap_or(0), cause: fault.to_string() })
    }
}
