//! The operator: takes halted groups on, changes limits, freezes groups, and sometimes orders what
//! must be refused. And the commands at which every replica halts.

use std::collections::BTreeSet;

use lockstep_core::amendment::Change;
use lockstep_core::entry::{Limits, OnFault, Profile};
use lockstep_core::fault::{Fault, FaultClass};
use lockstep_core::group::{Event, Halt, Order, ReplicaState, Resume, Role, Running};
use lockstep_core::ids::{GroupId, ModuleId, NodeId, Ticket};

use crate::guest::{MODULES, NO_STATE, lock, module_id};
use crate::node::Node;
use crate::world::{Action, MS, SECOND, World};

/// The key that commands of nobody write: no client reads it.
const NOBODYS_KEY: u64 = 1_000;
/// What a command may need that higher limits let pass, as a multiple of the fuel of a command.
const RAISES_MAX: u64 = 4;

impl World {
    /// Somebody sends a command that needs more fuel than the group's limits give: every replica
    /// halts there. Some commands need so much that no limit lets them pass.
    pub(crate) fn poison(&mut self, node: NodeId) {
        let names = self.setup.groups.clone();
        let group = GroupId::of_name(self.rng.pick::<String>(&names));
        let fuel = Profile::default().fuel_command;
        let needs = if self.rng.percent(50) { u64::MAX } else { fuel * RAISES_MAX };
        self.ids += 1;
        let numbers = [u64::MAX - self.ids, NOBODYS_KEY, self.ids, 0, needs];
        let payload: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let call = lockstep_core::entry::Call {
            session: 0,
            sequence: 0,
            lowest_unanswered: 0,
            payload: payload.into(),
        };
        let Some(ticket) = self.ticket(node, group) else { return };
        self.counters.add("commands that need too much");
        self.event(node, group, vec![Event::Propose { ticket, call, relief: true }]);
    }

    /// The operator looks at each group, and gives its leader an order if it is time for one.
    pub(crate) fn operate(&mut self) {
        let next = self.rng.between(SECOND, 4 * SECOND);
        self.after(next, Action::Operate);
        let names = self.setup.groups.clone();
        for group in names.iter().map(|name| GroupId::of_name(name)) {
            self.repair_one(group);
            let Some((node, state)) = self.leader_of(group) else { continue };
            if let Some(order) = self.order(group, &state) {
                self.give(node, group, order);
            }
        }
    }

    /// Has a replica go on that has diverged.
    fn repair_one(&mut self, group: GroupId) {
        let waits = |node: &&Node| {
            let replica = node.process.as_ref().and_then(|it| it.replicas.get(&group));
            matches!(replica.map(|it| it.group.state()),
                Some(ReplicaState::Running(Running::Halted(halt))) if halt.waits_for_repair())
        };
        let Some(node) = self.nodes.values().find(waits).map(|node| node.id) else { return };
        if (self.calm || self.rng.percent(30))
            && let Some(ticket) = self.ticket(node, group)
        {
            self.event(node, group, vec![Event::Repair { ticket }]);
        }
    }

    fn leader_of(&self, group: GroupId) -> Option<(NodeId, ReplicaState)> {
        self.nodes.values().find_map(|node| {
            let replica = node.process.as_ref()?.replicas.get(&group)?;
            let leads = replica.group.status().role == Role::Leader && node.copy.is_none();
            leads.then(|| (node.id, replica.group.state().clone()))
        })
    }

    fn order(&mut self, group: GroupId, state: &ReplicaState) -> Option<Order> {
        let fuel = Profile::default().fuel_command;
        let fuel_command = fuel * self.rng.between(1, RAISES_MAX + 1);
        let limits = Limits { fuel_command: Some(fuel_command), ..Limits::default() };
        let skip = |index| Order::Skip { index, abandon: BTreeSet::new() };
        match state {
            ReplicaState::Running(Running::Halted(halt)) => {
                let needs = needs_more(halt)?;
                let enough = Limits { fuel_command: Some(needs), ..Limits::default() };
                Some(match needs {
                    // Nobody can have applied what no limit lets pass.
                    u64::MAX => {
                        let halted = self.nodes.values().filter(|node| is_out(node, group));
                        let abandon = halted.map(|node| node.id).collect();
                        let index = halt.fault.entry()?;
                        if self.calm || self.rng.percent(50) {
                            return Some(Order::Skip { index, abandon });
                        }
                        let resume = Some(Resume { index, abandon });
                        Order::Upgrade { module: self.any_module(), resume }
                    }
                    _raise if self.calm => Order::Limits(enough),
                    _raise => Order::Limits(limits),
                })
            }
            ReplicaState::Running(Running::Frozen) => {
                (self.calm || self.rng.percent(40)).then_some(Order::Freeze(false))
            }
            _any if self.calm => None,
            _any => match self.rng.below(40) {
                0..2 => Some(Order::Freeze(true)),
                2..4 => Some(Order::Limits(limits)),
                4..6 => Some(Order::OnFault(OnFault::Skip)),
                6..9 => Some(Order::OnFault(OnFault::Halt)),
                // The guests have applied this one.
                9..12 => self.applied_last(group).map(skip),
                12..22 => Some(Order::Upgrade { module: self.any_module(), resume: None }),
                22..23 => Some(Order::AbortUpgrade),
                _ => None,
            },
        }
    }

    fn any_module(&mut self) -> ModuleId {
        module_id(self.rng.below(u64::from(MODULES)) as u8)
    }

    fn applied_last(&self, group: GroupId) -> Option<u64> {
        let observed = lock(&self.observed);
        observed.group(group)?.operations.last_key_value().map(|(index, _)| *index)
    }

    fn give(&mut self, node: NodeId, group: GroupId, order: Order) {
        let Some(ticket) = self.ticket(node, group) else { return };
        self.counters.add(match order {
            Order::Skip { .. } => "orders to skip",
            Order::Limits(_) => "orders of limits",
            Order::Freeze(_) => "orders to freeze or go on",
            Order::OnFault(_) => "orders of a policy",
            Order::Upgrade { resume: None, .. } => "orders to upgrade",
            Order::Upgrade { resume: Some(_), .. } => "orders to resume with another module",
            Order::AbortUpgrade => "orders to abort an upgrade",
        });
        self.event(node, group, vec![Event::Order { ticket, order }]);
    }

    /// A ticket that nobody waits for.
    fn ticket(&mut self, node: NodeId, group: GroupId) -> Option<Ticket> {
        if self.is_paused(node) {
            return None;
        }
        let process = self.nodes.get_mut(&node)?.process.as_mut()?;
        let replica = process.replicas.get_mut(&group)?;
        replica.next_ticket += 1;
        Some(Ticket(replica.next_ticket))
    }

    /// What a replica knows of skipped entries is told to those who compare histories.
    pub(crate) fn note_orders(&mut self, node: NodeId, group: GroupId) {
        let Some(process) = &self.nodes[&node].process else { return };
        let Some(replica) = process.replicas.get(&group) else { return };
        // An old copy may know what the group has given up.
        if self.nodes[&node].copy.is_some() {
            return;
        }
        let amendments = &replica.group.recovery_state().amendments;
        if amendments.is_empty() {
            return;
        }
        let mut observed = lock(&self.observed);
        for amendment in amendments.iter() {
            match amendment.change {
                Change::Skip { index } => observed.change(group, index, amendment.at, None),
                Change::Module { index, module } => {
                    observed.change(group, index, amendment.at, Some(module));
                }
                Change::Limits(_) => {}
            }
        }
    }
}

/// Whether a node is down, or its replica is halted.
fn is_out(node: &Node, group: GroupId) -> bool {
    node.process.as_ref().is_none_or(|process| {
        let state = process.replicas.get(&group).map(|replica| replica.group.state());
        matches!(state, None | Some(ReplicaState::Running(Running::Halted(_))))
    })
}

/// The fuel that a command needs at which a replica is halted, and does not get: no restart helps.
pub(crate) fn needs_more(halt: &Halt) -> Option<u64> {
    match &halt.fault {
        Fault::Guest(fault) if fault.class == FaultClass::OutOfFuel => fault.message.parse().ok(),
        // The module takes no state: another one may, or the entry is skipped.
        Fault::Guest(fault) if fault.message.ends_with(NO_STATE) => Some(u64::MAX),
        _other => None,
    }
}

/// The first look of the operator.
pub(crate) const FIRST: u64 = 10 * SECOND + 500 * MS;
