//! How a script's cluster is configured: `cluster` and `grow`.

use std::collections::BTreeSet;

use lockstep_core::group::SnapshotPolicy;
use lockstep_core::ids::NodeId;

use super::cluster::Cluster;

/// Adds the nodes of `cluster N OPTIONS`, and starts them; returns the seed.
pub(crate) fn add(cluster: &mut Cluster, count: &str, options: &[&str]) -> u64 {
    let count: u16 = count.parse().expect("cluster N");
    let option =
        |key: &str| options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
    let number = |key: &str, default: u64| {
        option(key).map_or(default, |number| number.parse().expect("KEY=NUMBER"))
    };
    let seed = number("seed", 1);
    let usual = SnapshotPolicy::default();
    let policy = SnapshotPolicy {
        entries: number("entries", usual.entries),
        log_bytes: number("log_bytes", usual.log_bytes),
        catch_up: number("catch_up", usual.catch_up),
    };
    cluster.time_ms = 1_000_000;
    for node in 1..=count {
        let name = format!("n{node}");
        cluster.add(&name, NodeId(node), count, policy);
        let config = &mut cluster.processes.get_mut(&name).expect("just added").config;
        config.profile.memory_bytes = number("memory", config.profile.memory_bytes);
        config.snapshots_share_log_disk = option("snapshots") != Some("apart");
        if let Some(length) = option("config") {
            config.guest_config = vec![b'c'; length.parse().expect("config=L")].into();
        }
        if option("absent") != Some(&name) {
            cluster.start(&name, seed);
        }
    }
    seed
}

/// Configures more nodes. A node that runs learns of them at its next start.
pub(crate) fn grow(cluster: &mut Cluster, count: &str) {
    let count: u16 = count.parse().expect("grow N");
    let policy = cluster.processes["n1"].config.snapshot_policy;
    let before = cluster.processes.len();
    for node in (1..=count).map(NodeId).skip(before) {
        cluster.add(&format!("n{node}"), node, count, policy);
    }
    let nodes: BTreeSet<NodeId> = (1..=count).map(NodeId).collect();
    for process in cluster.processes.values_mut() {
        process.config.nodes.clone_from(&nodes);
    }
}
