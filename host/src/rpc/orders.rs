//! Operators' orders, and what they are shown of a halted replica.

use std::collections::BTreeSet;

use lockstep_core::entry::{EntryBody, Limits, OnFault};
use lockstep_core::fault::Fault;
use lockstep_core::group::{Order, ReplicaState, Resume, Running, Stands};
use lockstep_core::ids::NodeId;
use lockstep_core::limits;

use crate::config::check_limits;
use crate::group::GroupHandle;
use crate::rpc::modules;
use crate::rpc::proto::client as wire;

/// The order in a request; `Err` says what is wrong with it.
pub(super) fn order(request: wire::OrderRequest) -> Result<Order, String> {
    use wire::order_request::Order as Wire;
    Ok(match request.order.ok_or("the request holds no order")? {
        Wire::Skip(wire::Skip { index, abandon }) => {
            Order::Skip { index, abandon: nodes(abandon)? }
        }
        Wire::Limits(wire::Limits { fuel_entry, fuel_command, memory_bytes }) => {
            let given = |limit: u64| Some(limit).filter(|limit| *limit > 0);
            let limits = Limits {
                fuel_entry: given(fuel_entry),
                fuel_command: given(fuel_command),
                memory_bytes: given(memory_bytes),
            };
            if limits == Limits::default() {
                return Err("no limit is given".to_owned());
            }
            check_limits(&limits)?;
            Order::Limits(limits)
        }
        Wire::Upgrade(wire::Upgrade { module, resume_at, abandon }) => {
            let module = modules::id(&module)?;
            let resume = match (resume_at, abandon.is_empty()) {
                (0, true) => None,
                (0, false) => return Err("nodes are abandoned only with resume_at".to_owned()),
                (index, _) => Some(Resume { index, abandon: nodes(abandon)? }),
            };
            Order::Upgrade { module, resume }
        }
        Wire::AbortUpgrade(wire::AbortUpgrade {}) => Order::AbortUpgrade,
        Wire::Freeze(freeze) => Order::Freeze(freeze),
        Wire::OnFault(what) => Order::OnFault(match wire::OnFault::try_from(what) {
            Ok(wire::OnFault::Halt) => OnFault::Halt,
            Ok(wire::OnFault::Skip) => OnFault::Skip,
            Ok(wire::OnFault::Unspecified) | Err(_) => {
                return Err(format!("on_fault is {what}; use HALT or SKIP"));
            }
        }),
    })
}

/// The nodes that are abandoned.
fn nodes(abandon: Vec<u32>) -> Result<BTreeSet<NodeId>, String> {
    if abandon.len() > limits::REPLICAS_MAX {
        return Err(format!("a group has at most {} replicas", limits::REPLICAS_MAX));
    }
    let node = |node: u32| u16::try_from(node).map(NodeId);
    let nodes = abandon.into_iter().map(node).collect::<Result<_, _>>();
    nodes.map_err(|_| "nodes are 1 to 65535".to_owned())
}

/// Why the replica is halted, and the entry's commands.
pub(super) async fn fault(group: &GroupHandle, commands: bool) -> wire::FaultResponse {
    let report = group.report();
    let mut told = wire::FaultResponse {
        node: report.status.node.0.into(),
        module: modules::id_bytes(report.status.module),
        ..wire::FaultResponse::default()
    };
    let ReplicaState::Running(Running::Halted(halt)) = &report.status.state else { return told };
    told.cause = halt.cause();
    told.entry = halt.fault.entry().unwrap_or(0);
    if let Fault::Guest(fault) = &halt.fault {
        told.class = fault.class.to_string();
        told.call = fault.call.to_owned();
        told.message = fault.message.clone();
    }
    if let Stands::At(index) = halt.stands {
        told.stands_at = index;
    }
    told.never_applied = halt.is_first;
    told.applied_by = halt.applied_by.map_or(0, |replica| replica.node().0.into());
    if told.entry > 0
        && let Some(entry) = group.entry(told.entry).await
        && let Ok(EntryBody::Commands(entry)) = EntryBody::decode(entry.data)
    {
        told.command_count = entry.calls.len() as u64;
        if commands {
            told.commands = entry.calls.into_iter().map(|call| call.payload).collect();
        }
    }
    told
}
