//! A halted replica: something keeps it from applying more, mostly one entry.
//!
//! - It votes and keeps the log, says in its frames that it is halted, and does not lead while
//!   another can. What is handed over to it meanwhile is known by its bounds: whatever makes it go
//!   on reads that from the log.
//! - Halted by an entry, it has its guest built once more as it was before, and answers local
//!   queries from there.
//! - Where another replica applied that entry, the two differ. It raises an alarm, asks for a
//!   snapshot at or behind the entry, and goes on from there; the group was never stopped.
//! - Halted by the machine (its memory, say), it tries again by itself, ever more seldom.

use crate::fault::Fault;
use crate::group::Shared;
use crate::group::effect::{ApplyJob, Effect, Halt, ReplicaState, Running, Stands, Stopped};
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;
use crate::limits;
use crate::mutant::planted;

/// What is remembered of halts.
#[derive(Default)]
pub(super) struct Halts {
    /// The tick at which a halt that is the machine's doing is tried again.
    again_at: Option<u64>,
    /// Such halts in a row.
    in_a_row: u32,
    /// Entries that this replica could not apply and another did.
    alarms: u64,
    /// The last of them.
    alarm: Option<String>,
}

impl Halts {
    pub(super) fn alarms(&self) -> (u64, Option<&str>) {
        (self.alarms, self.alarm.as_deref())
    }

    /// The guest was built: the machine can do it.
    pub(super) fn over(&mut self) {
        (self.again_at, self.in_a_row) = (None, 0);
    }
}

impl Shared {
    /// Why this replica is halted, if it is.
    pub(super) fn halt(&self) -> Option<&Halt> {
        match &self.state {
            ReplicaState::Running(Running::Halted(halt)) => Some(halt),
            ReplicaState::Running(_) | ReplicaState::Stopped(_) => None,
        }
    }

    /// A replica that said it applied the entry at `index`.
    fn applied_by(&self, index: u64) -> Option<ReplicaId> {
        let members = &self.recovery.configuration;
        let seen = self.seen.iter().filter(|(replica, _)| members.contains(**replica));
        seen.filter(|(_, seen)| seen.applied >= index).map(|(replica, _)| *replica).next()
    }

    /// Whether a replica said last that it is halted.
    pub(super) fn is_halted(&self, replica: ReplicaId) -> bool {
        self.seen.get(&replica).is_some_and(|seen| seen.halted)
    }
}

impl Hosting {
    /// What this ended may be replaced already: the lane goes on from a newer build then, and what
    /// was handed over since is for that one.
    pub(super) fn guest_failed(
        &mut self,
        shared: &mut Shared,
        build: u64,
        fault: Fault,
        effects: &mut Vec<Effect>,
    ) {
        if build == self.pipeline.build() || planted("heed_an_old_fault") {
            self.fault(shared, fault, effects);
        }
    }

    /// The guest failed twice, or its state cannot be built: vote and keep the log, apply nothing.
    pub(super) fn fault(&mut self, shared: &mut Shared, fault: Fault, effects: &mut Vec<Effect>) {
        self.pipeline.halt();
        self.installs.give_up_restoring();
        self.marks.abandon_capture();
        if shared.state.is_stopped() {
            return self.tell_list(effects);
        }
        let refused = matches!(fault, Fault::LogRefused(_)) && !planted("outlive_a_refusal");
        if refused || matches!(fault, Fault::Log(_)) {
            // A replica that can keep nothing can neither vote nor append, and what waits for the
            // log was never written: no later batch may release it.
            self.tell_list(effects);
            return self.end(shared, Stopped::Failed(fault), effects);
        }
        let machine = fault.is_machines();
        let before = fault.entry().filter(|_| !machine && !planted("halt_without_a_state"));
        let stands = match before {
            Some(entry) => {
                self.pipeline.stand();
                effects.push(Effect::Apply(ApplyJob::Stand { goal: entry - 1 }));
                Stands::Coming
            }
            None => Stands::Nowhere,
        };
        if machine {
            let wait = limits::HALT_RETRY_TICKS << self.halts.in_a_row;
            self.halts.again_at = Some(shared.now + wait);
            self.halts.in_a_row = (self.halts.in_a_row + 1).min(limits::HALT_RETRY_DOUBLINGS_MAX);
        }
        self.tell_list(effects);
        let halt = Halt { fault, stands, applied_by: None };
        shared.set_state(ReplicaState::Running(Running::Halted(halt)), effects);
        self.refuse_everything(shared, effects);
        self.transfer_to_best(shared);
    }

    /// The lane built the guest as it was before the entry; `None`: it could not.
    pub(super) fn stands(
        &mut self,
        shared: &mut Shared,
        at: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        self.pipeline.stands(at);
        self.tell_list(effects);
        if let Some(halt) = shared.halt() {
            let halt = Halt { stands: at.map_or(Stands::Nowhere, Stands::At), ..halt.clone() };
            shared.set_state(ReplicaState::Running(Running::Halted(halt)), effects);
        }
    }

    pub(super) fn tick_halt(&mut self, shared: &mut Shared, effects: &mut Vec<Effect>) {
        let Some(halt) = shared.halt() else { return };
        if self.halts.again_at.is_some_and(|at| shared.now >= at) && !self.pipeline.is_superseded()
        {
            self.halts.again_at = None;
            return self.restart(shared, effects);
        }
        if halt.applied_by.is_none()
            && let Some(entry) = halt.fault.entry()
            && let Some(replica) = shared.applied_by(entry)
        {
            let halt = Halt { applied_by: Some(replica), ..halt.clone() };
            self.halts.alarms += 1;
            self.halts.alarm = Some(format!(
                "entry {entry} could not be applied here ({}), and node {} applied it: the two \
                 differed",
                halt.fault,
                replica.node()
            ));
            shared.set_state(ReplicaState::Running(Running::Halted(halt)), effects);
        }
    }

    /// The entry that this replica is halted by, if another one applied it.
    pub(super) fn applied_elsewhere(&self, shared: &Shared) -> Option<u64> {
        let goes_on = self.pipeline.is_superseded();
        let halt = shared.halt().filter(|halt| halt.applied_by.is_some() && !goes_on)?;
        halt.fault.entry().filter(|_| !planted("halted_alone_asks_nobody"))
    }
}
