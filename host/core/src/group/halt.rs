//! A halted replica: something, usually one entry, keeps it from applying any further.
//!
//! - It votes and keeps the log, says in its frames that it is halted, and does not lead while
//!   another replica can. Entries committed meanwhile are not queued: when the replica resumes, it
//!   reads them from the log.
//! - If an entry halted it, its guest is rebuilt as it was before that entry and answers local
//!   queries from there.
//! - If another replica applied that entry, the two have diverged. The halted one raises an alarm,
//!   asks for a snapshot taken at or after the entry, and goes on from there. The group never
//!   stops.
//! - If its machine halted it (for lack of memory, say), it retries by itself: see
//!   [`super::retry`].

use crate::fault::Fault;
use crate::group::Shared;
use crate::group::effect::{ApplyJob, Effect, Halt, ReplicaState, Running, Stands, Stopped};
use crate::group::hosting::Hosting;
use crate::ids::ReplicaId;
use crate::mutant::planted;

/// What a replica remembers of its halts.
#[derive(Default)]
pub(super) struct Halts {
    /// How many entries another replica applied and this one could not.
    alarms: u64,
    /// The last of these alarms, in words.
    alarm: Option<String>,
}

impl Halts {
    pub(super) fn alarms(&self) -> (u64, Option<&str>) {
        (self.alarms, self.alarm.as_deref())
    }
}

impl Shared {
    /// Why this replica is halted; `None` if it is not.
    pub(super) fn halt(&self) -> Option<&Halt> {
        match &self.state {
            ReplicaState::Running(Running::Halted(halt)) => Some(halt),
            ReplicaState::Running(_) | ReplicaState::Stopped(_) => None,
        }
    }

    /// A member that said it had applied the entry at `index`.
    fn applied_by(&self, index: u64) -> Option<ReplicaId> {
        let members = &self.recovery.configuration;
        let seen = self.seen.iter().filter(|(replica, _)| members.contains(**replica));
        seen.filter(|(_, seen)| seen.applied >= index).map(|(replica, _)| *replica).next()
    }

    /// Whether a replica's last frame said that it is halted.
    pub(super) fn is_halted(&self, replica: ReplicaId) -> bool {
        self.seen.get(&replica).is_some_and(|seen| seen.halted)
    }
}

impl Hosting {
    /// The guest of this build failed. If the lane was given a newer build since, the replica does
    /// not halt, and keeps what it has queued for that one.
    pub(super) fn guest_failed(
        &mut self,
        shared: &mut Shared,
        build: u64,
        fault: Fault,
        effects: &mut Vec<Effect>,
    ) {
        if self.pipeline.ended(build) || planted("heed_an_old_fault") {
            self.fault(shared, fault, effects);
        }
    }

    /// The guest failed twice, its state cannot be built, or the log failed. The replica halts (it
    /// votes and keeps the log, but applies nothing), or stops if it was the log.
    pub(super) fn fault(&mut self, shared: &mut Shared, fault: Fault, effects: &mut Vec<Effect>) {
        self.pipeline.halt();
        self.checkpoints.abandon_capture();
        self.wants.guest_failed();
        if shared.state.is_stopped() {
            return self.tell_list(effects);
        }
        let refused = matches!(fault, Fault::LogRefused(_)) && !planted("outlive_a_refusal");
        if refused || matches!(fault, Fault::Log(_)) {
            // A replica that cannot write its log can neither vote nor append. The messages that
            // wait for the failed batch must never leave, so no later batch may release them.
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
            self.retry.failed(shared.now);
        } else {
            self.retry.over();
        }
        self.tell_list(effects);
        let halt = Halt { fault, stands, applied_by: None };
        shared.set_state(ReplicaState::Running(Running::Halted(halt)), effects);
        self.refuse_everything(shared, effects);
        self.transfer_to_best(shared);
    }

    /// The lane rebuilt the guest as it was after entry `at`; `None`: it could not.
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
        if halt.applied_by.is_none()
            && let Some(entry) = halt.fault.entry()
            && let Some(replica) = shared.applied_by(entry)
        {
            let halt = Halt { applied_by: Some(replica), ..halt.clone() };
            self.halts.alarms += 1;
            self.halts.alarm = Some(format!(
                "entry {entry} could not be applied here ({}), but node {} applied it: the two \
                 replicas had diverged",
                halt.fault,
                replica.node()
            ));
            shared.set_state(ReplicaState::Running(Running::Halted(halt)), effects);
        }
    }

    /// The entry that halted this replica, if another replica applied it.
    pub(super) fn applied_elsewhere(&self, shared: &Shared) -> Option<u64> {
        let goes_on = self.pipeline.is_restoring();
        let halt = shared.halt().filter(|halt| halt.applied_by.is_some() && !goes_on)?;
        halt.fault.entry().filter(|_| !planted("halted_alone_asks_nobody"))
    }
}
