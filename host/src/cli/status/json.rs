//! What nodes report of themselves, for programs: everything that the protocol has.

use lockstep_client::v1::{GroupStatus, Peer, Snapshot, SnapshotObject, StatusResponse, Stranger};
use lockstep_core::ids::{GroupId, ReplicaId, hex};

use super::role_name;

/// An object for each group of a node.
pub(super) fn groups(node: &StatusResponse) -> impl Iterator<Item = serde_json::Value> + '_ {
    node.groups.iter().map(move |group| group_to_json(node, group))
}

/// What a node says of connections that fail.
pub(super) fn peer_errors(node: &StatusResponse) -> impl Iterator<Item = serde_json::Value> + '_ {
    node.peer_errors.iter().map(|peer| {
        serde_json::json!({
            "node": node.node, "peer": peer.node, "peer_address": peer.address, "error": peer.error,
        })
    })
}

/// A node that gave no answer.
pub(in crate::cli) fn unreachable(address: &str, why: &str) -> serde_json::Value {
    serde_json::json!({ "unreachable": address, "error": why })
}

fn strangers(group: &GroupStatus) -> Vec<serde_json::Value> {
    let one = |s: &Stranger| {
        serde_json::json!({
            "node": s.node, "address": s.address, "lineage": hex(&s.lineage),
        })
    };
    group.strangers.iter().map(one).collect()
}

fn snapshots(group: &GroupStatus) -> Vec<serde_json::Value> {
    let one = |s: &Snapshot| {
        serde_json::json!({
            "term": s.term, "index": s.index, "length": s.length, "format": s.format,
            "digest": hex(&s.digest), "module": hex(&s.module),
        })
    };
    group.snapshots.iter().map(one).collect()
}

fn peers(group: &GroupStatus) -> Vec<serde_json::Value> {
    let one = |p: &Peer| {
        serde_json::json!({
            "node": p.node, "address": p.address, "replica": ReplicaId(p.replica).to_string(),
            "matched": p.matched, "active": p.active, "sending_snapshot": p.sending_snapshot,
            "snapshots_in_a_row": p.snapshots_in_a_row, "log_kept_bytes": p.log_kept_bytes,
            "snapshot_sent_bytes": p.snapshot_sent_bytes, "snapshot_bytes": p.snapshot_bytes,
        })
    };
    group.peers.iter().map(one).collect()
}

fn objects(group: &GroupStatus) -> Vec<serde_json::Value> {
    let one = |object: &SnapshotObject| {
        serde_json::json!({
            "file": object.file, "bytes": object.bytes, "listed": object.listed,
            "held": object.held, "corrupt": object.corrupt,
        })
    };
    group.objects.iter().map(one).collect()
}

fn group_to_json(node: &StatusResponse, group: &GroupStatus) -> serde_json::Value {
    let replicas =
        |ids: &[u64]| -> Vec<String> { ids.iter().map(|id| ReplicaId(*id).to_string()).collect() };
    let configuration = group.configuration.clone().unwrap_or_default();
    let leader = Some(group.leader_replica).filter(|id| *id != 0);
    let alarm = Some(&group.divergence_alarm).filter(|alarm| !alarm.is_empty());
    let mut json = serde_json::json!({
        "group": group.name, "node": group.node, "replica": ReplicaId(group.replica).to_string(),
        "boot": group.boot, "state": group.state, "cause": group.cause, "role": role_name(group),
        "leader_node": group.leader_node, "leader_address": group.leader_address,
        "term": group.term, "commit": group.commit, "applied": group.applied,
        "first_index": group.first_index, "last_index": group.last_index,
        "log_bytes": group.log_bytes, "log_fsyncs": group.log_fsyncs,
        "snapshot_bytes": group.snapshot_bytes, "snapshots": snapshots(group),
        "voters": replicas(&configuration.voters), "learners": replicas(&configuration.learners),
        "voters_outgoing": replicas(&configuration.voters_outgoing),
        "learners_next": replicas(&configuration.learners_next), "peers": peers(group),
        "guest_memory_bytes": group.guest_memory_bytes, "guest_faults": group.guest_faults,
        "sessions": group.sessions, "sessions_evicted": group.sessions_evicted,
        "sessions_refused": group.sessions_refused,
        "snapshot_stall_ms": group.snapshot_stall_ms,
        "last_capture_error": group.last_capture_error, "reluctant": group.reluctant,
        "clock_is_off": group.clock_is_off, "checkpoints_skipped": group.checkpoints_skipped,
        "captures_failed": group.captures_failed,
    });
    let more = serde_json::json!({
        "id": GroupId::of_name(&group.name).to_string(),
        "address": node.address, "cluster": node.cluster, "version": node.version,
        "leader_replica": leader.map(|id| ReplicaId(id).to_string()),
        "divergence_alarms": group.divergence_alarms, "divergence_alarm": alarm,
        "log_pin": group.log_pin, "log_pin_index": group.log_pin_index,
        "log_pinned_by": group.log_pinned_by,
        "log_damaged_segments": group.log_damaged_segments, "leaderless_ms": group.leaderless_ms,
        "objects": objects(group), "suspended_bytes": group.suspended_bytes,
        "budget_used": group.budget_used, "budget": group.budget,
        "disk_available": group.disk_available, "disk_total": group.disk_total,
        "module": hex(&group.module), "previous_module": hex(&group.previous_module),
        "upgrade": group.upgrade,
        "lineage": hex(&group.lineage), "strangers": strangers(group),
        "guest_memory_most": group.guest_memory_most,
        "memory_soft_bytes": group.memory_soft_bytes,
        "memory_warning_bytes": group.memory_warning_bytes,
        "relief_commands": group.relief_commands,
        "rebuilds": group.rebuilds, "rebuilds_in_vain": group.rebuilds_in_vain,
        "rebuilds_gave_back_bytes": group.rebuilds_gave_back_bytes,
        "log_time_ms": group.log_time_ms, "log_time_ahead_ms": group.log_time_ahead_ms,
        "wakes_at_ms": group.wakes_at_ms,
        "log_stalled_ms": group.log_stalled_ms,
        "log_stalled_directory": group.log_stalled_directory,
        "snapshots_stalled_ms": group.snapshots_stalled_ms,
        "snapshots_stalled_directory": group.snapshots_stalled_directory,
        "frames_misdirected": group.frames_misdirected, "frames_dropped": group.frames_dropped,
    });
    if let (Some(json), serde_json::Value::Object(more)) = (json.as_object_mut(), more) {
        json.extend(more);
    }
    json
}
