//! How a group comes to run another module.
//!
//! 1. *Prepare*: the leader names the module in its frames. Each replica gets it, compiles it and
//!    votes that it is ready, or says why not. The group serves meanwhile.
//! 2. *Move*: once every voter that is heard is ready, and they are a majority, the leader holds
//!    commands and wake-ups back. Each replica that has applied the log up to there copies its
//!    guest's state into a guest of the new module: one snapshot and one restore. The old guest
//!    stays, and is the one that counts.
//! 3. *Switch*: once these have done so, the leader puts one entry into the log. There, every
//!    replica goes over to the new guest. Commands go on.
//!
//! - Before the entry of step 3 nothing is decided. A trial that fails on one replica, takes too
//!   long or loses its leader is over without a trace, and the old module goes on.
//! - From step 2 to the entry, all that is in the log is of one leader, which holds back what would
//!   call the guest: what was tried is what is switched to. A replica of which that is not true,
//!   because it was down or applies the log again, moves its state at the entry itself.
//! - One that cannot do so at the entry halts before it, and goes on from another's snapshot. If
//!   none can, the entry is skipped like any other at which all halt: [`crate::amendment`].
//! - If the group is halted at an entry, the new module may apply that: the states are moved before
//!   it, under the conditions under which it might be skipped. There is nothing to be held back, so
//!   step 2 is left out.

use std::collections::BTreeSet;

use crate::apply::LogClock;
use crate::fault::Refusal;
use crate::group::Shared;
use crate::group::effect::{ApplyJob, Effect};
use crate::group::frame::Body;
use crate::group::orders::{Order, Orders, Resume};
use crate::group::pipeline::Pipeline;
use crate::group::raft_node::RaftNode;
use crate::group::trial::{Preparation, Stage, Trial, TrialId, TrialStatus, Vote};
use crate::ids::{ModuleId, NodeId, ReplicaId, Ticket};
use crate::limits;
use crate::mutant::planted;

/// The modules that a replica runs and tries.
pub(super) struct Modules {
    /// The one that applies what follows.
    pub(super) running: ModuleId,
    /// The one before the last upgrade.
    pub(super) previous: Option<ModuleId>,
    /// As a leader, the trial under way.
    pub(super) trial: Option<Trial>,
    part: Option<Part>,
}

/// This replica's part in a trial.
struct Part {
    trial: Trial,
    stage: Stage,
    /// The lane was told to move the state.
    moving: bool,
}

/// A leader's trial, from the order on until every replica has followed.
#[derive(Default)]
pub(super) struct Upgrades {
    under_way: Option<UnderWay>,
    /// How many this process began.
    begun: u64,
    /// Why the last one came to nothing.
    failure: Option<String>,
}

struct UnderWay {
    trial: Trial,
    /// Who waits for it, until the entry is in the log.
    ticket: Option<Ticket>,
    resume: Option<Resume>,
    /// The tick at which the present step began.
    since: u64,
    /// Those that were ready when the leader began to hold commands back. Others, which were not
    /// heard then, are not waited for.
    movers: BTreeSet<ReplicaId>,
    /// The index of the entry that switches, once there is one.
    entered: Option<u64>,
}

/// What the voters' votes come to.
enum Poll {
    /// These are as far: every voter that is waited for and heard, and a majority.
    Ready(BTreeSet<ReplicaId>),
    /// These are not as far, or not heard.
    Waiting(BTreeSet<NodeId>),
    Failed(String),
}

impl Modules {
    pub(super) fn of(running: ModuleId) -> Self {
        Self { running, previous: None, trial: None, part: None }
    }

    /// What frames say of the trial that this replica leads or takes part in.
    pub(super) fn trial_status(&self) -> Option<Box<TrialStatus>> {
        let status = TrialStatus { trial: self.trial, vote: self.vote() };
        (status != TrialStatus::default()).then(|| Box::new(status))
    }

    /// How far this replica is with a trial.
    fn vote(&self) -> Option<Vote> {
        let part = self.part.as_ref()?;
        Some(Vote { trial: part.trial.id, stage: part.stage.clone() })
    }
}

impl Shared {
    /// The ledger says this of the modules.
    pub(super) fn runs(&mut self, clock: &LogClock) {
        self.modules.running = clock.module.unwrap_or(self.modules.running);
        self.modules.previous = clock.previous;
    }

    /// What the leader has this replica try; `None` if there is no trial, or no longer.
    pub(super) fn hear_of_trial(&mut self, trial: Option<Trial>, effects: &mut Vec<Effect>) {
        if let (Some(part), Some(Trial { id, from, .. })) = (&mut self.modules.part, trial)
            && part.trial.id == id
        {
            part.trial.from = part.trial.from.max(from);
            return;
        }
        if self.modules.part.take().is_some_and(|part| part.moving) {
            effects.push(Effect::Apply(ApplyJob::DropTried));
        }
        if let Some(trial) = trial {
            let (id, module, running) = (trial.id, trial.module, self.modules.running);
            effects.push(Effect::Prepare(Preparation { trial: id, module, running }));
            self.modules.part = Some(Part { trial, stage: Stage::Preparing, moving: false });
        }
    }

    /// This replica has come so far with a trial, and tells its leader at once.
    pub(super) fn reached(
        &mut self,
        raw: &RaftNode,
        trial: TrialId,
        stage: Stage,
        effects: &mut Vec<Effect>,
    ) {
        let part = self.modules.part.as_mut().filter(|part| part.trial.id == trial);
        let Some(()) = part.map(|part| part.stage = stage) else { return };
        if let Some(leader) = raw.leader().filter(|leader| *leader != self.me()) {
            self.send(leader.node(), Some(leader), Body::Have, effects);
        }
    }

    /// Has the lane move a copy of the state, if it is time.
    fn move_state(&mut self, pipeline: &Pipeline, effects: &mut Vec<Effect>) {
        let Some(part) = &mut self.modules.part else { return };
        let Trial { id: trial, module, from } = part.trial;
        let due = from > 0 && pipeline.is_applying() && pipeline.applied() >= from;
        if part.stage == Stage::Prepared && due && !part.moving {
            part.moving = true;
            effects.push(Effect::Apply(ApplyJob::Try { trial, module }));
        }
    }

    /// How far a voter is with this trial.
    fn vote_of(&self, voter: ReplicaId, trial: TrialId) -> Option<Stage> {
        let vote = if voter == self.me() {
            self.modules.vote()
        } else {
            self.seen.get(&voter).and_then(|seen| seen.trial.as_ref()?.vote.clone())
        };
        vote.filter(|vote| vote.trial == trial && !self.is_silent(voter)).map(|vote| vote.stage)
    }

    fn poll(&self, it: &UnderWay) -> Poll {
        let (trial, stage) = (&it.trial, it.stage());
        let configuration = &self.recovery.configuration;
        let (mut ready, mut waiting) = (BTreeSet::new(), BTreeSet::new());
        for voter in configuration.voters.union(&configuration.voters_outgoing) {
            match self.vote_of(*voter, trial.id) {
                Some(Stage::Failed(why)) => {
                    return Poll::Failed(format!("node {}: {why}", voter.node()));
                }
                Some(reached) if reached == stage => drop(ready.insert(*voter)),
                _other => drop(waiting.insert(*voter)),
            }
        }
        let majority = |voters: &BTreeSet<ReplicaId>| {
            voters.is_empty() || 2 * voters.intersection(&ready).count() > voters.len()
        };
        let enough = majority(&configuration.voters) && majority(&configuration.voters_outgoing);
        let is_late = |voter: &ReplicaId| trial.from > 0 && !it.movers.contains(voter);
        if enough && waiting.iter().all(|voter| self.is_silent(*voter) || is_late(voter)) {
            return Poll::Ready(ready);
        }
        Poll::Waiting(waiting.into_iter().map(ReplicaId::node).collect())
    }

    /// Tells all other replicas at once what frames say of this one.
    fn tell_all(&self, effects: &mut Vec<Effect>) {
        for replica in self.recovery.configuration.replicas().filter(|id| *id != self.me()) {
            self.send(replica.node(), Some(replica), Body::Have, effects);
        }
    }
}

impl Upgrades {
    /// Whether commands and wake-ups are held back.
    pub(super) fn hold(&self) -> bool {
        let moves = |it: &UnderWay| it.trial.from > 0 && it.entered.is_none();
        self.under_way.as_ref().is_some_and(moves) && !planted("upgrade_under_commands")
    }

    /// An operator has this leader begin.
    pub(super) fn begin(
        &mut self,
        raw: &RaftNode,
        shared: &Shared,
        module: ModuleId,
        resume: Option<Resume>,
        ticket: Ticket,
    ) -> Result<(), Refusal> {
        let not_now = |why: String| Err(Refusal::NotNow { why });
        // One whose entry is in the log needs this leader no more.
        if let Some(UnderWay { trial, entered: None, .. }) = &self.under_way {
            return not_now(format!(
                "an upgrade to module {} is under way: wait until it is over, or abort it",
                trial.module
            ));
        }
        if module == shared.modules.running {
            return not_now(format!("the group runs module {module} already"));
        }
        self.begun += 1;
        let id = TrialId { term: raw.raft.term, number: self.begun };
        let trial = Trial { id, module, from: 0 };
        let (ticket, since) = (Some(ticket), shared.now);
        let (movers, entered) = (BTreeSet::new(), None);
        self.under_way = Some(UnderWay { trial, ticket, resume, since, movers, entered });
        self.failure = None;
        Ok(())
    }

    /// An operator ends the trial.
    pub(super) fn abort(
        &mut self,
        shared: &Shared,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if self.under_way.as_ref().is_none_or(|it| it.entered.is_some()) {
            let why = "no upgrade is under way that could be aborted".to_owned();
            return Err(Refusal::NotNow { why });
        }
        self.give_up("an operator has aborted it".to_owned(), effects);
        effects.push(Effect::Entered { ticket, index: shared.recovery.commit });
        Ok(())
    }

    /// This replica no longer leads or serves: the trial is over, unless its entry is in the log.
    pub(super) fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let Some(UnderWay { ticket, entered, .. }) = self.under_way.take() else { return };
        if entered.is_none() {
            self.failure = Some(refusal.to_string());
        }
        let answer = Err(refusal.clone());
        effects.extend(ticket.map(|ticket| Effect::Answer { ticket, answer }));
    }

    fn give_up(&mut self, why: String, effects: &mut Vec<Effect>) {
        let Some(UnderWay { trial, ticket, .. }) = self.under_way.take() else { return };
        let why = format!("the upgrade to module {} is aborted: {why}", trial.module);
        let answer = Err(Refusal::NotNow { why: why.clone() });
        effects.extend(ticket.map(|ticket| Effect::Answer { ticket, answer }));
        self.failure = Some(why);
    }

    /// Goes on with the trial that this replica leads, and with the one that it takes part in.
    /// Returns whether the group has just been upgraded.
    pub(super) fn drive(
        &mut self,
        raw: &mut RaftNode,
        orders: &mut Orders,
        pipeline: &Pipeline,
        shared: &mut Shared,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let upgraded = self.lead(raw, orders, pipeline, shared, effects);
        let trial = self.under_way.as_ref().map(|it| it.trial);
        if trial != shared.modules.trial {
            shared.modules.trial = trial;
            shared.hear_of_trial(trial, effects);
            shared.tell_all(effects);
        }
        shared.move_state(pipeline, effects);
        upgraded
    }

    /// Goes on to the next step if it is time; returns whether the last one is over.
    fn lead(
        &mut self,
        raw: &mut RaftNode,
        orders: &mut Orders,
        pipeline: &Pipeline,
        shared: &mut Shared,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(it) = &mut self.under_way else { return false };
        if let Some(index) = it.entered {
            let over = has_followed(shared, pipeline, index) || it.is_late(shared.now);
            if over {
                self.under_way = None;
            }
            return over;
        }
        let moves = it.trial.from > 0;
        match shared.poll(it) {
            Poll::Ready(_) if moves || it.resume.is_some() => {
                let (module, resume) = (it.trial.module, it.resume.clone());
                let order = Order::Upgrade { module, resume };
                match orders.enter(raw, pipeline, shared, &order, it.ticket) {
                    Ok(index) => {
                        (it.ticket, it.since, it.entered) = (None, shared.now, Some(index));
                    }
                    // Another order is in the log, and not committed yet.
                    Err(Refusal::Overloaded) => {}
                    Err(refusal) => self.give_up(refusal.to_string(), effects),
                }
            }
            Poll::Ready(movers) => {
                (it.movers, it.since) = (movers, shared.now);
                it.trial.from = raw.raft.raft_log.last_index();
            }
            Poll::Failed(why) => self.give_up(why, effects),
            Poll::Waiting(nodes) if it.is_late(shared.now) => {
                let step = if moves { "move its state" } else { "have the module ready" };
                let (nodes, seconds) = (list(&nodes), it.ticks_max() * limits::TICK_MS / 1_000);
                let why = format!("node {nodes} was not heard, or did not {step} in {seconds} s");
                self.give_up(why, effects);
            }
            Poll::Waiting(_) => {}
        }
        false
    }

    /// What there is to tell of an upgrade.
    pub(super) fn told(&self, shared: &Shared) -> Option<String> {
        let Some(it) = &self.under_way else { return self.failure.clone() };
        let module = it.trial.module;
        let does = match (it.entered, it.trial.from) {
            (Some(index), _) => return Some(format!("module {module} applies from entry {index}")),
            (None, 0) => "is prepared",
            (None, _) => "takes over the state",
        };
        Some(match shared.poll(it) {
            Poll::Waiting(nodes) => {
                format!("module {module} {does}; not done on node {}", list(&nodes))
            }
            Poll::Ready(_) | Poll::Failed(_) => format!("module {module} {does}"),
        })
    }
}

impl UnderWay {
    /// How far the voters have to be for the next step.
    fn stage(&self) -> Stage {
        if self.trial.from > 0 { Stage::Moved } else { Stage::Prepared }
    }

    /// The most ticks that the present step may take.
    fn ticks_max(&self) -> u64 {
        match (self.entered, self.trial.from) {
            (None, 0) => limits::UPGRADE_PREPARE_TICKS,
            _later => limits::UPGRADE_MOVE_TICKS,
        }
    }

    fn is_late(&self, now: u64) -> bool {
        now >= self.since + self.ticks_max()
    }
}

/// Whether every member that is heard has applied the entry at `index`.
fn has_followed(shared: &Shared, pipeline: &Pipeline, index: u64) -> bool {
    let mut others = shared.recovery.configuration.replicas().filter(|id| *id != shared.me());
    let has = |id| shared.seen.get(&id).is_some_and(|seen| seen.applied >= index);
    pipeline.applied() >= index && others.all(|id| shared.is_silent(id) || has(id))
}

fn list(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}
