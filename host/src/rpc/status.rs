//! The status of a node and its groups: converts types of the core and the host to those of
//! `client.proto`.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::group::{GroupStatus, PeerStatus, ReplicaState, Role, Running};
use lockstep_core::ids::{Lineage, NodeId, ReplicaId};
use lockstep_core::limits;
use lockstep_core::memory::MemoryUse;
use lockstep_core::retention::Pin;
use lockstep_core::snapshot::chunk::ObjectRef;
use lockstep_core::snapshot::{Configuration, SnapshotDesc};

use crate::group::join_watch::unheard;
use crate::group::{GroupHandle, GroupReport};
use crate::metrics::TransferTally;
use crate::router::Router;
use crate::rpc::HelloInfo;
use crate::rpc::modules::id_bytes;
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::proto::client as wire;
use crate::store::ObjectStatus;
use crate::transport::Transport as _;

/// Builds the answer to a status call.
pub(super) struct StatusSource {
    cluster: String,
    transport: Arc<GrpcTransport>,
}

impl StatusSource {
    pub(super) fn new(hello: &HelloInfo, transport: Arc<GrpcTransport>) -> Self {
        Self { cluster: hello.cluster_name.clone(), transport }
    }

    fn group(&self, group: &GroupHandle, router: &Router) -> wire::GroupStatus {
        let mut shown = group_to_wire(group, router);
        if *group.watch().borrow() == ReplicaState::Running(Running::Joining) {
            let address = |node| router.address(node).unwrap_or_default().to_owned();
            let nodes = group.report().status.unheard.into_iter();
            shown.cause += &waits_for(
                nodes.map(|node| (node, address(node), self.transport.trouble_with(node))),
            );
        }
        shown
    }

    /// This node's view of `groups`.
    pub(super) fn status<'a>(
        &self,
        router: &Router,
        groups: impl Iterator<Item = &'a GroupHandle>,
    ) -> wire::StatusResponse {
        let errors = self.transport.peer_errors().into_iter();
        wire::StatusResponse {
            node: u32::from(router.node().0),
            address: router.address(router.node()).unwrap_or_default().to_owned(),
            cluster: self.cluster.clone(),
            groups: groups.map(|group| self.group(group, router)).collect(),
            peer_errors: errors
                .map(|(node, error)| wire::PeerError {
                    node: u32::from(node.0),
                    address: router.address(node).unwrap_or_default().to_owned(),
                    error,
                })
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Says which nodes a joining replica waits for, and why it hears nothing from each.
fn waits_for(nodes: impl Iterator<Item = (NodeId, String, Option<String>)>) -> String {
    nodes
        .map(|(node, address, trouble)| {
            format!("; node {node} ({address}) does not answer: {}", unheard(trouble))
        })
        .collect()
}

/// The fields of a group's status that concern its disks.
fn disks_to_wire(report: &GroupReport) -> wire::GroupStatus {
    let (log, snapshots) = (report.log_hangs.as_ref(), report.snapshots_hang.as_ref());
    wire::GroupStatus {
        log_bytes: report.log_bytes,
        log_fsyncs: report.log_fsyncs,
        log_damaged_segments: report.log_damaged,
        log_stalled_ms: log.map_or(0, |hangs| hangs.ms),
        log_stalled_directory: log.map(|hangs| hangs.dir.clone()).unwrap_or_default(),
        snapshots_stalled_ms: snapshots.map_or(0, |hangs| hangs.ms),
        snapshots_stalled_directory: snapshots.map(|hangs| hangs.dir.clone()).unwrap_or_default(),
        suspended_bytes: report.stored.usage.suspended,
        budget_used: report.stored.budget_used,
        budget: report.stored.budget,
        disk_available: report.stored.space.map_or(0, |space| space.available),
        disk_total: report.stored.space.map_or(0, |space| space.total),
        ..Default::default()
    }
}

fn group_to_wire(group: &GroupHandle, router: &Router) -> wire::GroupStatus {
    let report: GroupReport = group.report();
    let disks = disks_to_wire(&report);
    let status: GroupStatus = report.status;
    // The watch channel is ahead of the report, which is published only now and then.
    let state = group.watch().borrow().clone();
    let leader = status.leader;
    let peer = |peer| peer_to_wire(peer, &report.transfers, router);
    let peers = status.peers.iter().map(peer).collect();
    let objects = report.stored.objects.iter();
    let objects = objects.map(|object| object_to_wire(object, &status.corrupt)).collect();
    wire::GroupStatus {
        name: status.name,
        node: u32::from(status.node.0),
        replica: status.replica.0,
        boot: status.boot,
        lineage: status.lineage.map(|id| Bytes::copy_from_slice(&id.0)).unwrap_or_default(),
        strangers: strangers_to_wire(&status.strangers, router),
        state: state_word(&state, status.leaderless_ticks).to_owned(),
        cause: state.cause().unwrap_or_default(),
        role: role_to_wire(status.role).into(),
        leader_replica: leader.map_or(0, |leader| leader.0),
        leader_node: leader.map_or(0, |leader| u32::from(leader.node().0)),
        leader_address: leader.map(|leader| address(leader, router)).unwrap_or_default(),
        term: status.term,
        commit: status.commit,
        applied: status.applied,
        first_index: status.first_index,
        last_index: status.last_index,
        snapshot_bytes: report.snapshot_bytes,
        snapshots: status.snapshots.iter().map(snapshot_to_wire).collect(),
        configuration: Some(configuration_to_wire(&status.configuration)),
        peers,
        guest_memory_bytes: report.guest_memory_bytes,
        guest_faults: report.guest_faults,
        sessions: report.sessions,
        sessions_evicted: report.sessions_evicted,
        sessions_refused: report.sessions_refused,
        snapshot_stall_ms: report.snapshot_stall_ms,
        last_capture_error: status.capture_failure.unwrap_or_default(),
        log_pin: status.log_pin.map(|(pin, _)| pin_word(pin)).unwrap_or_default(),
        log_pin_index: status.log_pin.map_or(0, |(_, index)| index),
        log_pinned_by: report.log_pinned_by.unwrap_or_default(),
        leaderless_ms: status.leaderless_ticks * limits::TICK_MS,
        objects,
        divergence_alarms: status.alarms,
        divergence_alarm: status.alarm.clone().unwrap_or_default(),
        reluctant: status.reluctant,
        clock_is_off: status.clock_is_off,
        log_time_ms: status.log_time_ms,
        log_time_ahead_ms: status.log_time_ahead_ms,
        wakes_at_ms: status.wakes_at_ms,
        module: id_bytes(status.module),
        previous_module: status.previous_module.map(id_bytes).unwrap_or_default(),
        upgrade: status.upgrade.unwrap_or_default(),
        guest_memory_most: status.memory.map_or(0, |memory| memory.most),
        memory_soft_bytes: status.memory.map_or(0, MemoryUse::soft),
        memory_warning_bytes: status.memory.map_or(0, MemoryUse::warning),
        relief_commands: status.relief_commands,
        rebuilds: status.rebuilds.done,
        rebuilds_in_vain: status.rebuilds.in_vain,
        rebuilds_gave_back_bytes: status.rebuilds.bytes,
        checkpoints_skipped: status.checkpoints_skipped,
        captures_failed: status.captures_failed,
        frames_misdirected: status.frames_misdirected,
        frames_dropped: group.frames_dropped(),
        ..disks
    }
}

/// The name of a state in status and metrics: the core's name, or "no leader".
pub(crate) fn state_word(state: &ReplicaState, leaderless_ticks: u64) -> &'static str {
    match state {
        ReplicaState::Running(Running::Serving)
            if leaderless_ticks * limits::TICK_MS > limits::LEADERLESS_MS =>
        {
            "no leader"
        }
        other => other.name(),
    }
}

fn strangers_to_wire(strangers: &[(NodeId, Lineage)], router: &Router) -> Vec<wire::Stranger> {
    let stranger = |(node, lineage): &(NodeId, Lineage)| wire::Stranger {
        node: u32::from(node.0),
        address: router.address(*node).unwrap_or_default().to_owned(),
        lineage: Bytes::copy_from_slice(&lineage.0),
    };
    strangers.iter().map(stranger).collect()
}

fn pin_word(pin: Pin) -> String {
    match pin {
        Pin::RecoveryPoint => "recovery point".to_owned(),
        Pin::CatchUp => "catch-up".to_owned(),
        Pin::Follower(replica) => format!("follower {replica}"),
        Pin::Sending(replica) => format!("sending to {replica}"),
    }
}

fn object_to_wire(object: &ObjectStatus, corrupt: &[ObjectRef]) -> wire::SnapshotObject {
    let mut held: Vec<String> = object.uses.iter().map(ToString::to_string).collect();
    if object.promised {
        held.push("promised".to_owned());
    }
    if object.in_use && held.is_empty() {
        held.push("being listed".to_owned());
    }
    wire::SnapshotObject {
        file: object.file.clone(),
        bytes: object.bytes,
        listed: object.listed,
        held,
        corrupt: corrupt.iter().any(|bad| (bad.term, bad.index) == (object.term, object.index)),
    }
}

fn role_to_wire(role: Role) -> wire::group_status::Role {
    match role {
        Role::Leader => wire::group_status::Role::Leader,
        Role::Follower => wire::group_status::Role::Follower,
        Role::Candidate => wire::group_status::Role::Candidate,
        Role::Learner => wire::group_status::Role::Learner,
        Role::None => wire::group_status::Role::None,
    }
}

fn snapshot_to_wire(desc: &SnapshotDesc) -> wire::Snapshot {
    wire::Snapshot {
        term: desc.term,
        index: desc.index,
        length: desc.length,
        digest: Bytes::copy_from_slice(&desc.digest.0),
        module: id_bytes(desc.module),
        format: desc.format,
    }
}

fn configuration_to_wire(configuration: &Configuration) -> wire::Configuration {
    let list = |ids: &std::collections::BTreeSet<ReplicaId>| ids.iter().map(|id| id.0).collect();
    wire::Configuration {
        voters: list(&configuration.voters),
        learners: list(&configuration.learners),
        voters_outgoing: list(&configuration.voters_outgoing),
        learners_next: list(&configuration.learners_next),
    }
}

fn peer_to_wire(peer: &PeerStatus, transfers: &TransferTally, router: &Router) -> wire::Peer {
    let (sent, length) = transfers.under_way.get(&peer.replica).copied().unwrap_or_default();
    wire::Peer {
        snapshot_sent_bytes: sent,
        snapshot_bytes: length,
        replica: peer.replica.0,
        node: u32::from(peer.replica.node().0),
        address: address(peer.replica, router),
        matched: peer.matched,
        active: peer.active,
        sending_snapshot: peer.sending_snapshot,
        snapshots_in_a_row: peer.snapshots_in_a_row,
        log_kept_bytes: match peer.snapshots_in_a_row {
            0 => 0,
            _some => peer.log_kept_bytes,
        },
    }
}

/// The address of a replica for clients; empty if the address is unknown, or known to be wrong.
fn address(replica: ReplicaId, router: &Router) -> String {
    router.hint(replica.node()).unwrap_or_default().to_owned()
}
