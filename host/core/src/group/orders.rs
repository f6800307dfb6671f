//! What operators order: to skip an entry, to change limits or the module, to freeze the group, and
//! what becomes of entries at which every voter halts.
//!
//! - The leader judges an order by what it knows of the voters, and puts it into the log; it is
//!   obeyed, by every replica, once it is committed. A halted replica may lead for this.
//! - An entry is skipped, or applied by another module, only if no voter has applied it: each one
//!   reports that it is halted there, and has never applied it. After a restart a replica knows
//!   that of the entry at which it was halted before, and of those that were not in its log yet.
//!   One that is not heard, or cannot say so, may be abandoned: if it did apply the entry, what it
//!   acknowledged then is undone.
//! - If the group's policy is to skip, the leader gives that order itself, once every voter is
//!   halted at the same entry.

use std::collections::{BTreeMap, BTreeSet};

use crate::apply::Switches;
use crate::entry::{EntryBody, Limits, OnFault};
use crate::fault::Refusal;
use crate::group::Shared;
use crate::group::effect::Effect;
use crate::group::pipeline::Pipeline;
use crate::group::raft_node::RaftNode;
use crate::ids::{ModuleId, NodeId, ReplicaId, Ticket};
use crate::limits;
use crate::mutant::planted;

/// An order of an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Skip the entry at this index, at which every voter is halted, except those on these nodes,
    /// which are not heard.
    Skip {
        index: u64,
        abandon: BTreeSet<NodeId>,
    },
    /// Change the group's limits.
    Limits(Limits),
    /// Stop commands and wake-ups, or let them go on.
    Freeze(bool),
    OnFault(OnFault),
    /// Have another module apply what follows, or an entry at which every voter is halted:
    /// [`super::upgrade`].
    Upgrade {
        module: ModuleId,
        resume: Option<Resume>,
    },
    /// End the upgrade that is under way.
    AbortUpgrade,
}

/// The entry from which on another module applies, and the nodes that are abandoned for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resume {
    pub index: u64,
    pub abandon: BTreeSet<NodeId>,
}

/// Orders that are in the log and not committed yet.
#[derive(Default)]
pub(super) struct Orders {
    /// By index: the term, and who waits.
    proposed: BTreeMap<u64, (u64, Option<Ticket>)>,
}

impl Orders {
    /// An operator gives this leader an order.
    pub(super) fn given(
        &mut self,
        raw: &mut RaftNode,
        pipeline: &Pipeline,
        shared: &mut Shared,
        ticket: Ticket,
        order: &Order,
    ) -> Result<(), Refusal> {
        self.enter(raw, pipeline, shared, order, Some(ticket)).map(drop)
    }

    /// Puts an order into the log, if it fits the state of the group; returns its index.
    pub(super) fn enter(
        &mut self,
        raw: &mut RaftNode,
        pipeline: &Pipeline,
        shared: &mut Shared,
        order: &Order,
        ticket: Option<Ticket>,
    ) -> Result<u64, Refusal> {
        if !self.may_propose(raw, order) {
            return Err(Refusal::Overloaded);
        }
        judge(order, pipeline, shared).map_err(|why| Refusal::NotNow { why })?;
        self.propose(raw, shared, order, ticket).ok_or(Refusal::Overloaded)
    }

    /// On a leader, skips the entry at which every voter is halted, if that is the group's policy.
    pub(super) fn tick(&mut self, raw: &mut RaftNode, pipeline: &Pipeline, shared: &mut Shared) {
        let halted = pipeline.halt().and_then(|halt| halt.fault.entry());
        let Some(index) = halted.filter(|_| raw.is_leader()) else { return };
        let order = Order::Skip { index, abandon: BTreeSet::new() };
        if shared.switches().on_fault == OnFault::Skip {
            let _ = self.enter(raw, pipeline, shared, &order, None);
        }
    }

    /// Whether this leader knows all orders that may still be obeyed. An entry must not be skipped
    /// by two orders: a snapshot between them would count as undone.
    fn may_propose(&self, raw: &RaftNode, order: &Order) -> bool {
        let most = match order {
            Order::Skip { .. } | Order::Upgrade { .. } => 1,
            Order::Limits(_) | Order::Freeze(_) | Order::OnFault(_) | Order::AbortUpgrade => {
                limits::ORDERS_MAX
            }
        };
        // What earlier leaders proposed is committed, or will never be.
        raw.raft.commit_to_current_term() && self.proposed.len() < most
    }

    fn propose(
        &mut self,
        raw: &mut RaftNode,
        shared: &mut Shared,
        order: &Order,
        ticket: Option<Ticket>,
    ) -> Option<u64> {
        let time_ms = shared.stamp();
        let body = match order {
            Order::Skip { index, .. } => EntryBody::Skip { time_ms, index: *index },
            Order::Limits(limits) => EntryBody::Limits { time_ms, limits: *limits },
            Order::Freeze(frozen) => EntryBody::Freeze { time_ms, frozen: *frozen },
            Order::OnFault(on_fault) => EntryBody::OnFault { time_ms, on_fault: *on_fault },
            Order::Upgrade { module, resume } => {
                let resume_at = resume.as_ref().map_or(0, |resume| resume.index);
                EntryBody::Upgrade { time_ms, module: *module, resume_at }
            }
            Order::AbortUpgrade => return None,
        };
        let (index, term) = raw.propose_body(&body)?;
        self.proposed.insert(index, (term, ticket));
        Some(index)
    }

    /// The entry of this term at `index` is committed.
    pub(super) fn committed(&mut self, index: u64, term: u64, effects: &mut Vec<Effect>) {
        let Some((of, ticket)) = self.proposed.remove(&index) else { return };
        let Some(ticket) = ticket else { return };
        effects.push(if of == term {
            Effect::Entered { ticket, index }
        } else {
            Effect::Answer { ticket, answer: Err(Refusal::Lost) }
        });
    }

    /// This replica no longer leads: what was proposed may still be committed.
    pub(super) fn abandon(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let refusal = Refusal::Unknown { why: refusal.to_string() };
        for (_, ticket) in std::mem::take(&mut self.proposed).into_values() {
            let answer = Err(refusal.clone());
            effects.extend(ticket.map(|ticket| Effect::Answer { ticket, answer }));
        }
    }
}

/// What operators have set, as of the last entry that was handed over.
#[derive(Default)]
pub(super) struct Standing {
    /// What the ledger said of the entries up to this one.
    told: (u64, Switches),
    /// What was handed over since the start: for each switch, its last entry and what that set.
    frozen: (u64, bool),
    on_fault: (u64, OnFault),
}

impl Shared {
    /// What operators have set. Of each switch, the newer setting counts: a guest that was built
    /// may know entries that were handed over before the start, and not yet those after it.
    pub(super) fn switches(&self) -> Switches {
        let Standing { told: (applied, told), frozen, on_fault } = self.orders;
        Switches {
            frozen: if frozen.0 > applied { frozen.1 } else { told.frozen },
            on_fault: if on_fault.0 > applied { on_fault.1 } else { told.on_fault },
        }
    }

    /// The entry at `index`, which is handed over, freezes the group or lets it go on.
    pub(super) fn freeze(&mut self, index: u64, frozen: bool) {
        self.orders.frozen = (index, frozen);
    }

    /// The entry at `index`, which is handed over, sets this policy.
    pub(super) fn set_on_fault(&mut self, index: u64, on_fault: OnFault) {
        self.orders.on_fault = (index, on_fault);
    }

    /// The ledger says this of the entries up to `applied`.
    pub(super) fn switched(&mut self, applied: u64, switches: Switches) {
        self.orders.told = (applied, switches);
    }
}

/// Whether an upgrade may begin, as far as this can be known before the module is ready.
pub(super) fn may_upgrade(
    order: &Order,
    pipeline: &Pipeline,
    shared: &Shared,
) -> Result<(), Refusal> {
    let halt = pipeline.halt().filter(|_| matches!(order, Order::Upgrade { resume: None, .. }));
    let judged = match halt.and_then(|halt| halt.fault.entry()) {
        Some(entry) => Err(format!(
            "the group is halted at entry {entry}: have the new module apply it (`--resume-at \
             {entry}`), or skip it first"
        )),
        None => judge(order, pipeline, shared),
    };
    judged.map_err(|why| Refusal::NotNow { why })
}

/// Whether the order may be given now; otherwise, why not.
fn judge(order: &Order, pipeline: &Pipeline, shared: &Shared) -> Result<(), String> {
    let amends = match order {
        Order::Skip { .. } | Order::Limits(_) => true,
        Order::Upgrade { resume, .. } => resume.is_some(),
        Order::Freeze(_) | Order::OnFault(_) | Order::AbortUpgrade => false,
    };
    let oldest = shared.recovery.snapshots.last().map_or(0, |desc| desc.index);
    let pending = shared.recovery.amendments.after(oldest).count();
    if amends && pending >= limits::AMENDMENTS_PENDING_MAX {
        return Err(format!(
            "{} entries were skipped, or limits or modules changed, since this node's oldest \
             snapshot: wait \
             for the next checkpoints",
            limits::AMENDMENTS_PENDING_MAX
        ));
    }
    match order {
        Order::Skip { .. } if planted("skip_what_was_applied") => Ok(()),
        Order::Skip { index, abandon }
        | Order::Upgrade { resume: Some(Resume { index, abandon }), .. } => {
            judge_halted(*index, abandon, pipeline, shared)
        }
        Order::Limits(limits) => judge_limits(limits, shared),
        Order::Upgrade { resume: None, .. }
        | Order::Freeze(_)
        | Order::OnFault(_)
        | Order::AbortUpgrade => Ok(()),
    }
}

/// Whether what the entry at `index` does may be changed.
fn judge_halted(
    index: u64,
    abandon: &BTreeSet<NodeId>,
    pipeline: &Pipeline,
    shared: &Shared,
) -> Result<(), String> {
    let halt = pipeline.halt();
    let own = halt.and_then(|halt| halt.fault.entry());
    if own != Some(index) {
        return Err(match own {
            Some(entry) => format!("the group is halted at entry {entry}, not at entry {index}"),
            None => format!("the group is not halted at entry {index}: nothing is to be changed"),
        });
    }
    let may_have = |node: NodeId| {
        format!(
            "node {node} may have applied entry {index} before it was last started: abandon it, \
             which undoes what it may have acknowledged there"
        )
    };
    let me = shared.me().node();
    if !halt.is_some_and(|halt| halt.is_first) && !abandon.contains(&me) {
        return Err(may_have(me));
    }
    for voter in voters(shared).filter(|voter| *voter != shared.me()) {
        let (node, seen) = (voter.node(), shared.seen.get(&voter));
        let (silent, abandoned) = (shared.is_silent(voter), abandon.contains(&node));
        let applied = seen.map_or(0, |seen| seen.applied);
        return Err(match seen.and_then(|seen| seen.halted) {
            _any if applied >= index => format!(
                "node {node} has applied entry {index}: the replicas that are halted there have \
                 diverged from it, and go on from its snapshot"
            ),
            _any if silent && abandoned => continue,
            _any if silent => format!(
                "node {node} is not heard, and may have applied entry {index}: start it, or \
                 abandon it, which undoes what it may have acknowledged there"
            ),
            Some(_) if abandoned => continue,
            Some(halted) if halted == index => continue,
            Some(0) => may_have(node),
            None if abandoned => format!("node {node} goes on, so it cannot be abandoned"),
            Some(_) | None => format!(
                "node {node} is not halted at entry {index}: it has applied entry {applied}; wait \
                 until it gets there"
            ),
        });
    }
    Ok(())
}

fn judge_limits(limits: &Limits, shared: &Shared) -> Result<(), String> {
    let Some(memory_bytes) = limits.memory_bytes else { return Ok(()) };
    let most = u128::from(memory_bytes) * u128::from(limits::LOWERED_MEMORY_PERCENT) / 100;
    for voter in voters(shared) {
        let Some(memory) = shared.memory_of(voter) else { continue };
        if memory_bytes < memory.most && u128::from(memory.bytes) > most {
            return Err(format!(
                "the state machine of node {} has {} bytes of memory, and a limit of {} bytes is \
                 lowered only if it has at most {} % of it",
                voter.node(),
                memory.bytes,
                memory_bytes,
                limits::LOWERED_MEMORY_PERCENT
            ));
        }
    }
    Ok(())
}

fn voters(shared: &Shared) -> impl Iterator<Item = ReplicaId> {
    let configuration = &shared.recovery.configuration;
    configuration.voters.union(&configuration.voters_outgoing).copied()
}
