//! Three nodes in one process, with real files and sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::Refusal;
use lockstep_core::group::{Role, SnapshotPolicy};

use super::*;

fn addresses(count: u16) -> BTreeMap<NodeId, String> {
    let held: Vec<std::net::TcpListener> = (0..count)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a port"))
        .collect();
    let address = |s: &std::net::TcpListener| s.local_addr().expect("it is bound").to_string();
    (1..=count).map(NodeId).zip(held.iter().map(address)).collect()
}

fn config(node: NodeId, addresses: &BTreeMap<NodeId, String>, data: &Path) -> NodeConfig {
    NodeConfig {
        cluster: "test".into(),
        node,
        data_dir: data.join(node.to_string()),
        listen: addresses[&node].clone(),
        nodes: addresses.clone(),
        log_segment_bytes: 4 << 20,
        snapshot_budget: None,
        snapshot_rate_bytes: 0,
        scrub_seconds: 0,
        metrics_listen: None,
        clients: Default::default(),
        groups: vec![GroupSpec {
            name: "reg".into(),
            lineage: None,
            module: ModuleSource::Native("register".into()),
            nodes: addresses.keys().copied().collect(),
            limits: Default::default(),
            config: String::new(),
            snapshot_policy: SnapshotPolicy {
                entries: 100,
                log_bytes: 1 << 20,
                ..SnapshotPolicy::default()
            },
            snapshot_dir: None,
            snapshot_cap: None,
        }],
        clock_offset_ms: 0,
    }
}

/// Waits until `holds` says so.
async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited in vain: {what}");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("it can be read");
    bytes[at] ^= 0x10;
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("it can be written");
    let place = at as u64;
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], place).expect("a byte");
}

/// Files in a directory whose names end like this, the oldest first.
fn files(dir: &Path, ends: &str) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(dir).expect("it is there").map(|e| e.expect("its files").path());
    let fits = |path: &PathBuf| path.to_string_lossy().ends_with(ends);
    let mut found: Vec<PathBuf> = entries.filter(fits).collect();
    found.sort();
    found
}

fn call(text: String) -> Call {
    Call { session: 0, sequence: 0, lowest_unanswered: 0, payload: text.into() }
}

async fn leader(nodes: &[Node]) -> GroupHandle {
    for _ in 0..200 {
        for node in nodes {
            let group = node.router().group("reg").expect("the group is hosted");
            if group.report().status.role == Role::Leader
                && group.watch().borrow().refusal().is_none()
            {
                return group.clone();
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!(
        "no leader: {:?}",
        nodes
            .iter()
            .map(|n| n.router().group("reg").map(|g| g.report().status))
            .collect::<Vec<_>>()
    );
}

async fn apply(nodes: &[Node], text: &str) -> Answer {
    for _ in 0..100 {
        match leader(nodes).await.propose(call(text.into())).await {
            Ok(answer) => return answer,
            Err(Refusal::NotLeader { .. } | Refusal::Lost | Refusal::NotServing { .. }) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("{text} was never applied")
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_found_a_group_snapshot_and_take_a_wiped_one_back() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let addresses = addresses(3);
    let mut nodes = Vec::new();
    for id in addresses.keys() {
        nodes.push(
            Node::start(config(*id, &addresses, data.path()), false).await.expect("it starts"),
        );
    }
    for number in 0..300 {
        let answer = apply(&nodes, &format!("set k{number} v{number}")).await;
        assert!(matches!(answer, Answer::Ok(_)), "{answer:?}");
    }
    let answer = leader(&nodes).await.query("get k299".into(), true).await.expect("it is read");
    assert_eq!(answer.result, Ok("v299".into()));

    let wiped = nodes.pop().expect("there are three");
    let old = wiped.router().group("reg").expect("hosted").report().status.replica;
    wiped.stop().await;
    std::fs::remove_dir_all(data.path().join("3")).expect("it is wiped");
    let node =
        Node::start(config(NodeId(3), &addresses, data.path()), false).await.expect("it starts");
    nodes.push(node);
    for number in 0..1000 {
        let group = nodes[2].router().group("reg").expect("hosted");
        let status = group.report().status;
        if status.applied > 300 && status.configuration.is_voter(status.replica) {
            assert_ne!(status.replica, old);
            assert!(!status.snapshots.is_empty());
            break;
        }
        assert!(number < 999, "{status:?} {:?}", leader(&nodes).await.report().status);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer =
        nodes[2].router().group("reg").expect("hosted").query("get k7".into(), false).await;
    assert_eq!(answer.expect("it is read").result, Ok("v7".into()));
    for node in nodes {
        node.stop().await;
    }
}

/// Only the scrubber reads what is corrupt here: a snapshot is repaired with a peer's bytes, and a
/// segment of the log is deleted because snapshots are taken that make it unnecessary.
#[tokio::test(flavor = "multi_thread")]
async fn the_scrubber_finds_rot_and_has_it_repaired() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let addresses = addresses(3);
    let mut nodes = Vec::new();
    for id in addresses.keys() {
        let scrubbed = NodeConfig { scrub_seconds: 1, ..config(*id, &addresses, data.path()) };
        nodes.push(Node::start(scrubbed, false).await.expect("it starts"));
    }
    let large = "x".repeat(64 << 10);
    for number in 0..150 {
        apply(&nodes, &format!("set k{number} {large}")).await;
    }
    let leads = leader(&nodes).await.report().status.replica.node();
    let other = nodes.iter().find(|node| node.router().node() != leads).expect("there are three");
    let (id, group) = (other.router().node(), other.router().group("reg").expect("hosted").clone());
    let dir = data.path().join(id.to_string());
    let snapshots = snapshot_dir(&dir, "reg");
    until("two snapshots", || group.report().status.snapshots.len() == 2).await;
    // Checkpoints go on as long as the log is large: wait until there are no more of them.
    let listed = || group.report().status.snapshots;
    let mut before = Vec::new();
    while before != listed() {
        before = listed();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let newest = files(&snapshots, "snap").pop().expect("there are two");
    let good = std::fs::read(&newest).expect("it is there");
    flip(&newest, good.len() / 2);
    until("the snapshot to be repaired", || {
        std::fs::read(&newest).is_ok_and(|bytes| bytes == good)
            && group.report().status.corrupt.is_empty()
    })
    .await;

    let led = leader(&nodes).await;
    let wal = data.path().join(leads.to_string()).join("wal");
    let named = |path: &PathBuf| path.to_string_lossy().contains("/wal/0000");
    let segments: Vec<PathBuf> = files(&wal, ".wal").into_iter().filter(named).collect();
    assert!(segments.len() > 1, "the oldest is written no more: {segments:?}");
    flip(&segments[0], 5_000);
    until("the damaged segment to go", || !segments[0].exists()).await;
    until("nothing to be damaged", || led.report().log_damaged == 0).await;
    assert_eq!(led.watch().borrow().name(), "serving", "it goes on");
    assert_eq!(group.watch().borrow().name(), "serving", "it goes on");
    for node in nodes {
        node.stop().await;
    }
}

/// A snapshot directory outside of the data directory is used by one node at a time. If it is gone
/// at a start, the group says so, and nothing is made in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_directory_is_locked_and_is_never_made_again() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let addresses = addresses(1);
    let (mounted, away) = (data.path().join("mounted"), data.path().join("away"));
    let mut config = config(NodeId(1), &addresses, data.path());
    config.groups[0].snapshot_dir = Some(mounted.join("test-1/reg/snap"));
    let node = Node::start(config.clone(), false).await.expect("it starts");
    let mut copy = config.clone();
    (copy.data_dir, copy.listen) = (data.path().join("copy"), "127.0.0.1:0".into());
    let refused = Node::start(copy, false).await.err().expect("it is in use").to_string();
    assert!(refused.contains("test-1/reg/snap is locked"), "{refused}");
    node.stop().await;

    std::fs::rename(&mounted, &away).expect("it can be moved");
    let node = Node::start(config.clone(), false).await.expect("the node starts");
    let state = node.router().group("reg").expect("hosted").watch().borrow().clone();
    assert!(format!("{state:?}").contains("test-1/reg/snap is missing"), "{state:?}");
    node.stop().await;
    assert!(!mounted.exists(), "nothing was made");

    std::fs::rename(&away, &mounted).expect("it can be moved back");
    let nodes = [Node::start(config, false).await.expect("it starts")];
    assert!(matches!(apply(&nodes, "set a 1").await, Answer::Ok(_)));
    for node in nodes {
        node.stop().await;
    }
}
