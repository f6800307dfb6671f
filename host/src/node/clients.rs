//! How many connections and how much memory clients may take of the process.

use lockstep_core::limits;

use crate::config::{GroupSpec, NodeConfig};
use crate::fs::disk::raise_descriptor_limit;
use crate::metrics::serve;
use crate::rpc::port::PortLimits;

/// Connections of clients, unless configured.
const CONNECTIONS: usize = 4_096;
/// Connections that clients get however few descriptors there are.
const CONNECTIONS_MIN: usize = 8;
/// Descriptors that are not given to clients' connections: for the process and its log, for a
/// group's snapshots and lanes, for the connections with each node, and for those that are about to
/// be closed.
const DESCRIPTORS_KEPT: usize = 56 + serve::CONNECTIONS;
const DESCRIPTORS_A_GROUP: usize = 8;
const DESCRIPTORS_A_NODE: usize = 4;

/// The limits of the clients' port, with what is left to it: descriptors are kept for the log, for
/// snapshots and for peers.
pub(super) fn port_limits(config: &NodeConfig) -> PortLimits {
    let descriptors = usize::try_from(raise_descriptor_limit()).unwrap_or(usize::MAX);
    let kept = DESCRIPTORS_KEPT
        + log_files(config).min(descriptors / 2)
        + DESCRIPTORS_A_GROUP * config.groups.len()
        + DESCRIPTORS_A_NODE * config.nodes.len();
    let most = descriptors.saturating_sub(kept).max(CONNECTIONS_MIN);
    let wanted = config.clients.connections.unwrap_or(CONNECTIONS);
    if config.clients.connections.is_some_and(|wanted| wanted > most) {
        tracing::warn!(
            wanted,
            most,
            descriptors,
            "there are too few descriptors for the configured `connections`: raise this process's \
             limit of open files"
        );
    }
    let client_bytes = usize::try_from(config.clients.memory_bytes).unwrap_or(usize::MAX);
    PortLimits { connections: wanted.min(most), client_bytes, ..PortLimits::default() }
}

/// How many files the log may have, given how much of it the groups may keep.
fn log_files(config: &NodeConfig) -> usize {
    let most = |group: &GroupSpec| {
        limits::LOG_PIN_CHECKPOINTS.saturating_mul(group.snapshot_policy.log_bytes)
    };
    let bytes = config.groups.iter().map(most).fold(0, u64::saturating_add);
    usize::try_from(bytes / config.log_segment_bytes.max(1)).unwrap_or(usize::MAX)
}
