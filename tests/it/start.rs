//! Starts that find a problem: how the node goes on, what the user sees, and that nothing is
//! deleted.

use std::fs;
use std::time::Duration;

use lockstep_client::v1::group_status::Role;
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;

use crate::rejoin::{damage, digests, snapshot_files};
use crate::solo::{
    GROUP, MODULE, apply, assert_logs, assert_says, contents, lockstep, query, refused_untouched,
};

/// Three nodes with two recovery points each, and logs that begin after the older one.
async fn three_with_cut_logs() -> Cluster {
    let mut spec = Spec::of_module(GROUP, MODULE, 3).with_snapshot_entries(1_000_000);
    spec.groups[0].settings.push("catch-up-entries = 0".to_owned());
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    for round in 1..=3 {
        apply(&client, &format!("set round {round}")).await;
        cluster.capture(&client, GROUP).await.expect("it takes a snapshot");
    }
    apply(&client, "set behind 4").await;
    let status = cluster.group(3, GROUP).await.expect("it answers");
    assert!(status.first_index > 1, "the log was never cut: {status:?}");
    cluster
}

/// A node whose recovery points are all corrupt votes and appends, and an object from a peer brings
/// it back. The bad files stay until good ones take their place.
/// Covers U4 U1.
#[tokio::test]
async fn a_node_whose_snapshots_are_all_bad_asks_its_peers() {
    let mut cluster = three_with_cut_logs().await;
    let old = cluster.group(3, GROUP).await.expect("it answers").replica;
    cluster.stop(3).await.expect("it stops");
    let files = snapshot_files(&cluster, 3, GROUP);
    assert_eq!(files.len(), 2, "{files:?}");
    files.iter().for_each(|file| damage(file));
    cluster.start_node(3).expect("it starts");
    let serves = async |cluster: &Cluster| {
        cluster.group(3, GROUP).await.filter(|status| status.state == "serving")
    };
    let status = cluster.wait_for("node 3 to serve", PATIENCE, serves).await.expect("it does");
    assert_eq!(status.replica, old, "the same replica: it never lost its vote or its log");
    let says = ["recovery point does not restore", "asking the peers for a snapshot"];
    assert_logs(&mut cluster, 3, &says).await;
    let client = cluster.client().expect("good addresses");
    assert_eq!(query(&client, "get behind").await, "4");
    cluster.capture(&client, GROUP).await.expect("all take a snapshot").equal().expect("one state");
    cluster.stop_all().await.expect("they stop");
}

/// A node whose recovery points are all corrupt and whose peers are all down reports what it waits
/// for and deletes nothing.
/// Covers K13.
#[tokio::test]
async fn bad_snapshots_that_nobody_can_replace_stay() {
    let mut cluster = three_with_cut_logs().await;
    for node in 1..=3 {
        cluster.stop(node).await.expect("it stops");
    }
    let files = snapshot_files(&cluster, 3, GROUP);
    files.iter().for_each(|file| damage(file));
    let damaged = digests(&files);
    cluster.start_node(3).expect("it starts");
    let needs = async |cluster: &Cluster| {
        cluster.group(3, GROUP).await.filter(|status| status.state == "needs snapshot")
    };
    let status = cluster.wait_for("it to say so", PATIENCE, needs).await.expect("it says");
    assert_says(&status.cause, &["asking the peers for a snapshot", "checksum"]);
    cluster.stop_all().await.expect("it stops");
    assert_eq!(digests(&files), damaged, "no file was added, deleted or written");
}

#[tokio::test]
async fn a_hole_in_the_log_is_refused() {
    let spec = Spec::of_module(GROUP, MODULE, 1).with_snapshot_entries(1_000_000);
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    for number in 0..14 {
        apply(&client, &format!("set large-{number} {}", "x".repeat(900_000))).await;
    }
    cluster.stop_all().await.expect("it stops");
    let wal = cluster.data_dir(1).join("wal");
    let mut segments: Vec<_> = fs::read_dir(&wal)
        .expect("there is a log")
        .map(|entry| entry.expect("its files can be listed").path())
        .filter(|path| path.file_stem().is_some_and(|s| s.to_string_lossy().starts_with("0000")))
        .collect();
    segments.sort();
    assert!(segments.len() >= 3, "{segments:?}");
    fs::remove_file(&segments[1]).expect("it was there");
    refused_untouched(&cluster, 1, &["/wal", "missing", "nothing was touched", "--rejoin"]).await;
}

/// A first start needs every node; nodes that start early wait.
#[tokio::test]
async fn a_group_is_bootstrapped_with_a_node_that_comes_30_seconds_late() {
    let mut cluster = Cluster::prepare(Spec::of_module(GROUP, MODULE, 3)).expect("a directory");
    for node in [1, 2] {
        cluster.start_node(node).expect("it starts");
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for node in [1, 2] {
        let status = cluster.group(node, GROUP).await.expect("it answers");
        assert_eq!(
            (&*status.state, status.commit),
            ("joining", 0),
            "no node bootstraps before all are there"
        );
    }
    // Status and log say which node is missing, and why.
    let address = cluster.address(3).to_owned();
    let refused = format!("cannot reach {address}: Connection refused");
    for node in [1, 2] {
        let cause = cluster.group(node, GROUP).await.expect("it answers").cause;
        assert_says(&cause, &[&format!("node 3 ({address}) does not answer: {refused}")]);
        assert!(!cause.contains("node 1") && !cause.contains("node 2"), "{cause}");
        let waits = ["joining waits for a node that does not answer", "node=3", &refused];
        assert_logs(&mut cluster, node, &waits).await;
    }
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    apply(&client, "set a 1").await;
    cluster.stop_all().await.expect("they stop");
}

#[tokio::test]
async fn a_node_that_is_wiped_twice_in_a_row_comes_back() {
    let mut cluster = three_with_cut_logs().await;
    for _ in 0..2 {
        cluster.kill(3).expect("it runs");
        cluster.wipe(3).expect("it is stopped");
        cluster.start_node(3).expect("it starts");
        let answers = async |cluster: &Cluster| cluster.group(3, GROUP).await;
        cluster.wait_for("it to answer", PATIENCE, answers).await.expect("it does");
    }
    cluster.wait_serving(GROUP).await.expect("it is a voter again");
    let status = cluster.group(3, GROUP).await.expect("it answers");
    let voters = status.configuration.expect("there is one").voters;
    assert!(voters.len() == 3 && voters.contains(&status.replica), "{voters:?}");
    let client = cluster.client().expect("good addresses");
    assert_eq!(query(&client, "get behind").await, "4");
    cluster.stop_all().await.expect("they stop");
}

/// In a group of two where one node lost its disk, no quorum can take that node in again. Both
/// wait, nothing is lost, and the operator may make the survivor the whole group.
#[tokio::test]
async fn a_wiped_node_of_two_waits_until_somebody_decides() {
    let mut cluster = Cluster::start(Spec::of_module(GROUP, MODULE, 2)).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    apply(&client, "set a 1").await;
    let index = cluster.settled_index(&client).await.expect("it is served");
    cluster.wait_applied(1, GROUP, index, PATIENCE).await.expect("it follows");
    cluster.kill(2).expect("it runs");
    cluster.wipe(2).expect("it is stopped");
    cluster.start_node(2).expect("it starts");
    let waits = async |cluster: &Cluster| {
        let (one, two) = (cluster.group(1, GROUP).await?, cluster.group(2, GROUP).await?);
        (one.role() != Role::Leader && two.state == "joining").then_some(two)
    };
    let two = cluster.wait_for("both to wait", PATIENCE, waits).await.expect("they do");
    assert_says(&two.cause, &["waiting for the group to take this replica in"]);
    assert_eq!(two.applied, 0);

    cluster.stop(1).await.expect("it stops");
    cluster.kill(2).expect("it runs");
    let config = cluster.config_file(1).display().to_string();
    let args = ["recover", "--config", &config, "--group", GROUP, "--confirm", GROUP];
    let done = lockstep(&[&args[..], &["--keep-only-me"]].concat()).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    cluster.start_node(1).expect("it starts");
    let leads = async |cluster: &Cluster| cluster.leader(GROUP).await;
    cluster.wait_for("node 1 to lead", PATIENCE, leads).await.expect("it leads alone");
    assert_eq!(query(&client, "get a").await, "1", "nothing was lost");
    cluster.start_node(2).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it is taken in");
    cluster.stop_all().await.expect("they stop");
}

/// A data directory that was copied from another node is refused and left as it is.
#[tokio::test]
async fn a_directory_that_was_copied_to_another_node_is_refused() {
    let mut cluster = three_with_cut_logs().await;
    for node in [1, 2] {
        cluster.stop(node).await.expect("it stops");
    }
    cluster.wipe(2).expect("it is stopped");
    copy(&cluster.data_dir(1), &cluster.data_dir(2));
    let before = contents(&cluster.data_dir(1));
    refused_untouched(&cluster, 2, &["node=1", "node=2", "nothing was touched"]).await;
    assert_eq!(contents(&cluster.data_dir(1)), before);
    cluster.wipe(2).expect("it is stopped");
    for node in [1, 2] {
        cluster.start_node(node).expect("it starts");
    }
    cluster.wait_serving(GROUP).await.expect("it serves with a directory of its own");
    cluster.stop_all().await.expect("they stop");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("it can be read") {
        let path = entry.expect("its entries as well").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("it can be copied");
        }
    }
}

/// A process none of whose groups can serve exits with 1 and names each group with its cause.
/// Covers L4.
#[tokio::test]
async fn a_process_without_a_group_that_can_serve_ends_and_says_why() {
    let cluster = crate::solo::stopped_node(&["set a 1"]).await;
    let groups = cluster.data_dir(1).join("groups");
    let snapshots = groups.join(GROUP).join("snap");
    fs::remove_dir_all(&snapshots).expect("it is there");
    fs::write(&snapshots, "a file where a folder must be").expect("it can be written");
    let said = crate::solo::refused(&cluster, 1, 1).await;
    let says = ["no group can serve", GROUP, "snapshot directory", "can read and write it"];
    assert_says(&said, &says);
    assert!(snapshots.is_file(), "nothing was touched");
}
