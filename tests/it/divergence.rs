//! Replicas that diverge, with real processes: the right one halts, stays halted over restarts, and
//! goes on from another's snapshot when it is told to.

use std::collections::BTreeSet;

use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{apply, assert_equal_states, assert_says, lockstep};

const GROUP: &str = "planted";

/// Three nodes with a guest that has this bug.
async fn nodes_with(bug: &str) -> Cluster {
    let mut spec = Spec::of_guest(GROUP, 3).expect("it is built");
    spec.groups[0].settings.push(format!("config = \"{bug}\""));
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster
}

/// The nodes whose replica is halted because it has diverged.
async fn diverged(cluster: &Cluster) -> Option<BTreeSet<u16>> {
    let mut nodes = BTreeSet::new();
    for node in cluster.running() {
        let status = cluster.group(node, GROUP).await?;
        if status.state == "halted" && status.cause.contains("its state has diverged") {
            nodes.insert(node);
        }
    }
    Some(nodes)
}

async fn wait_diverged(cluster: &mut Cluster, node: u16) {
    let is = async |cluster: &Cluster| {
        (diverged(cluster).await? == BTreeSet::from([node])).then_some(())
    };
    cluster.wait_for("one node to be found out", PATIENCE, is).await.expect("it halts alone");
}

#[tokio::test]
async fn a_restore_that_forgets_a_field_is_found_at_the_next_checkpoint() {
    let mut cluster = nodes_with("careless-restore").await;
    let client = cluster.client().expect("its address is valid");
    for number in 0..5 {
        apply(&client, &format!("set key {number}")).await;
    }
    client.checkpoint().await.expect("it is taken");
    let all_have = async |cluster: &Cluster| {
        for node in cluster.nodes() {
            let status = cluster.group(node, GROUP).await?;
            status.snapshots.first()?;
        }
        Some(())
    };
    cluster.wait_for("all to take a snapshot", PATIENCE, all_have).await.expect("they do");

    // Only the node that restores its guest is wrong.
    cluster.stop(3).await.expect("it stops");
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("all serve");
    apply(&client, "set key 6").await;
    checkpoint_until_found(&mut cluster, 3).await;
    let endpoint = cluster.address(3).to_owned();
    let shown = lockstep(&["status", "--endpoint", &endpoint]).await;
    assert_says(&shown.stdout, &["halted", "differ from those of a majority", "of node 3"]);
    let metrics = cluster.group(3, GROUP).await.expect("it answers");
    assert_eq!(metrics.divergence_alarms, 1);

    // The others go on, and a restart changes nothing.
    apply(&client, "set key 7").await;
    cluster.stop(3).await.expect("it stops");
    cluster.start_node(3).expect("it starts");
    wait_diverged(&mut cluster, 3).await;

    let whole = lockstep(&["repair", "--endpoint", cluster.address(1)]).await;
    assert_eq!(whole.code, Some(1), "{whole:?}");
    assert_says(&whole.stderr, &["has not diverged"]);
    let two = format!("{},{}", cluster.address(1), cluster.address(3));
    let two = lockstep(&["repair", "--endpoint", &two]).await;
    assert_eq!(two.code, Some(2), "{two:?}");
    let repaired = lockstep(&["repair", "--endpoint", &endpoint]).await;
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert_says(&repaired.stdout, &["asks the others for a snapshot"]);
    cluster.wait_serving(GROUP).await.expect("all serve");

    // The bug is still there, so the next checkpoint finds the same node.
    apply(&client, "set key 8").await;
    checkpoint_until_found(&mut cluster, 3).await;
}

/// Takes checkpoints until this node, and no other, is found to have diverged. One is enough if no
/// replica skips it.
async fn checkpoint_until_found(cluster: &mut Cluster, node: u16) {
    let client = cluster.client().expect("its address is valid");
    let is = async |cluster: &Cluster| {
        let found = diverged(cluster).await?;
        if found.is_empty() {
            let _ = client.checkpoint().await;
        }
        (found == BTreeSet::from([node])).then_some(())
    };
    cluster.wait_for("a checkpoint to find it", PATIENCE, is).await.expect("it is found");
}

/// A machine that keeps its promises is not accused, whatever restarts.
#[tokio::test]
async fn nobody_is_accused_who_has_not_diverged() {
    let mut cluster = nodes_with("").await;
    let client = cluster.client().expect("its address is valid");
    for round in 0..3_u16 {
        apply(&client, &format!("set key {round}")).await;
        let node = round % 3 + 1;
        cluster.stop(node).await.expect("it stops");
        cluster.start_node(node).expect("it starts");
        cluster.wait_serving(GROUP).await.expect("all serve");
        assert_equal_states(&mut cluster, GROUP).await;
    }
    assert_eq!(diverged(&cluster).await, Some(BTreeSet::new()));
    for node in cluster.nodes() {
        let status = cluster.group(node, GROUP).await.expect("it answers");
        assert_eq!(status.divergence_alarms, 0, "{status:?}");
    }
}
