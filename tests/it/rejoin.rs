//! Damaged logs and snapshots: what a node recovers from peers or older snapshots, and what it
//! reports.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lockstep_client::v1::group_status::Role;
use lockstep_client::{Client, Outcome};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{
    GROUP, MODULE, apply, assert_logs, assert_says, contents, query, refused_untouched,
};

/// Bytes of a value that soon fills the log.
const LARGE_BYTES: usize = 1_000_000;
/// Large values between two snapshots: more than the log's window in memory.
const LARGE_VALUES: usize = 20;
/// How many snapshots are taken at most until the log no longer begins at 1.
const SNAPSHOTS_MAX: usize = 4;

/// Flips a bit in the middle of a file.
pub(crate) fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).expect("it can be written");
}

/// Flips a bit in the first occurrence of `needle` in a node's log.
fn damage_log(cluster: &Cluster, node: u16, needle: &str) {
    let wal = cluster.data_dir(node).join("wal");
    for entry in fs::read_dir(&wal).expect("there is a log") {
        let path = entry.expect("its files can be listed").path();
        let mut bytes = fs::read(&path).expect("a segment can be read");
        let place = bytes.windows(needle.len()).position(|bytes| bytes == needle.as_bytes());
        if let Some(place) = place {
            bytes[place] ^= 0x10;
            return fs::write(&path, bytes).expect("it can be written");
        }
    }
    panic!("{} does not hold {needle:?}", wal.display())
}

/// Snapshot files of a node's group, oldest first: their names begin with term and index.
pub(crate) fn snapshot_files(cluster: &Cluster, node: u16, group: &str) -> Vec<PathBuf> {
    let dir = cluster.data_dir(node).join("groups").join(group).join("snap");
    let entries = fs::read_dir(&dir).expect("there are snapshots");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("its files can be listed").path())
        .filter(|path| path.extension().is_some_and(|it| it == "fsnap"))
        .collect();
    files.sort();
    files
}

pub(crate) fn digests(files: &[PathBuf]) -> BTreeMap<PathBuf, blake3::Hash> {
    let digest = |path: &PathBuf| blake3::hash(&fs::read(path).expect("it is still there"));
    files.iter().map(|path| (path.clone(), digest(path))).collect()
}

/// One node of the kv store with two snapshots, the newer one just before the last command.
async fn kv_with_two_snapshots() -> (Cluster, Client) {
    let spec = Spec::of_guest("kv", 1).expect("it is built").with_snapshot_entries(1_000_000);
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("kv").await.expect("it serves");
    let client = cluster.client().expect("its address is valid");
    for round in 1..=2 {
        apply(&client, &format!("set filling {}", "f".repeat(2_000))).await;
        apply(&client, &format!("set round {round}")).await;
        cluster.capture(&client, "kv").await.expect("it takes a snapshot");
    }
    apply(&client, "set behind 3").await;
    (cluster, client)
}

#[tokio::test]
async fn a_node_with_a_damaged_log_rejoins_as_a_new_replica() {
    let spec = Spec::of_module(GROUP, MODULE, 3);
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    for command in ["set early 1", "set needle 2", "set latest 3"] {
        apply(&client, command).await;
    }
    let index = cluster.settled_index(&client).await.expect("it is served");
    cluster.wait_applied(2, GROUP, index, PATIENCE).await.expect("it follows");
    let old = cluster.group(2, GROUP).await.expect("it answers").replica;
    cluster.stop(2).await.expect("it stops");
    damage_log(&cluster, 2, "needle");
    refused_untouched(&cluster, 2, &["corrupt", "offset", "nothing was touched", "--rejoin"]).await;
    let damaged = contents(&cluster.data_dir(2).join("wal"));

    cluster.start_node_with(2, &["--rejoin"]).expect("it starts");
    let back = async |cluster: &Cluster| {
        let status = cluster.group(2, GROUP).await?;
        let voter = matches!(status.role(), Role::Follower | Role::Leader);
        (voter && status.state == "serving" && status.applied >= index).then_some(status)
    };
    let status = cluster.wait_for("node 2 to be a voter", PATIENCE, back).await.expect("it is");
    assert_ne!(status.replica, old, "the old replica may have made promises that are lost");
    let voters = status.configuration.expect("there is one").voters;
    assert!(voters.len() == 3 && voters.contains(&status.replica), "{voters:?}");
    assert!(!voters.contains(&old), "the old replica is replaced: {voters:?}");
    let reply = client.query_at(cluster.address(2), "get needle").await.expect("it answers");
    assert_eq!(reply.outcome, Outcome::Ok("2".into()), "it has what the others kept");

    let aside = cluster.data_dir(2).join("old-1");
    assert!(aside.join("node").is_file(), "the file that names its owner is kept");
    let kept: Vec<blake3::Hash> = contents(&aside.join("wal")).into_values().collect();
    assert_eq!(kept, damaged.into_values().collect::<Vec<_>>(), "the damaged log is kept as it is");

    // The rejoined node now restarts like any other.
    cluster.stop(2).await.expect("it stops");
    cluster.start_node(2).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let again = cluster.group(2, GROUP).await.expect("it answers");
    assert_eq!(again.replica, status.replica);
    cluster.stop_all().await.expect("they stop");
}

/// Covers U4.
#[tokio::test]
async fn a_damaged_snapshot_is_passed_over_for_an_older_one() {
    let (mut cluster, client) = kv_with_two_snapshots().await;
    cluster.stop_all().await.expect("it stops");
    let files = snapshot_files(&cluster, 1, "kv");
    assert_eq!(files.len(), 2, "{files:?}");
    damage(&files[1]);
    cluster.start_node(1).expect("it starts");
    cluster.wait_serving("kv").await.expect("it serves");
    let says = ["recovery point does not restore; trying an older one"];
    assert_logs(&mut cluster, 1, &says).await;
    assert_eq!(query(&client, "get round").await, "2");
    assert_eq!(query(&client, "get behind").await, "3");
    assert_eq!(query(&client, "len").await, "3");
    apply(&client, "set after 4").await;
    cluster.stop_all().await.expect("it stops");
}

/// A group of one without a good snapshot or a whole log says so and leaves its files to the
/// operator.
#[tokio::test]
async fn a_group_of_one_without_a_good_snapshot_or_a_whole_log_says_so() {
    let (mut cluster, client) = kv_with_two_snapshots().await;
    let large = "l".repeat(LARGE_BYTES);
    let begins_at =
        async |cluster: &Cluster| cluster.group(1, "kv").await.expect("it answers").first_index;
    for round in 0..SNAPSHOTS_MAX {
        for number in 0..LARGE_VALUES {
            // Each value has a key of its own, because `set` answers with the previous value.
            apply(&client, &format!("set large-{round}-{number} {large}")).await;
        }
        cluster.capture(&client, "kv").await.expect("it takes a snapshot");
        if begins_at(&cluster).await > 1 {
            break;
        }
    }
    assert!(begins_at(&cluster).await > 1, "the log was never cut");
    // A snapshot that is no longer listed is deleted once the new list is durable. A start before
    // that would find the file.
    let tidy = async |cluster: &Cluster| {
        let listed = cluster.group(1, "kv").await?.snapshots.len();
        (snapshot_files(cluster, 1, "kv").len() == listed).then_some(())
    };
    cluster.wait_for("unlisted snapshots to be deleted", PATIENCE, tidy).await.expect("they are");
    cluster.stop_all().await.expect("it stops");
    let files = snapshot_files(&cluster, 1, "kv");
    files.iter().for_each(|file| damage(file));
    let damaged = digests(&files);

    cluster.start_node(1).expect("it starts");
    let needs = async |cluster: &Cluster| {
        cluster.group(1, "kv").await.filter(|status| status.state == "needs snapshot")
    };
    let status = cluster.wait_for("the group to say so", PATIENCE, needs).await.expect("it says");
    assert_says(&status.cause, &["no peer to ask", "from a copy", "does not match its checksum"]);
    cluster.stop_all().await.expect("it stops");
    assert_eq!(snapshot_files(&cluster, 1, "kv"), files, "no file was added or deleted");
    assert_eq!(digests(&files), damaged, "no file was written");
}

/// While a leader sends a snapshot, its status shows how much it has sent.
#[tokio::test]
async fn a_transfer_shows_how_far_it_is() {
    let mut spec = Spec::of_module(GROUP, "native:ballast:25165824", 3);
    spec.settings.push("snapshot-rate = \"4MiB\"".to_owned());
    spec.groups[0].settings.push("catch-up-entries = 0".to_owned());
    let mut cluster = Cluster::start(spec.with_snapshot_entries(1_000_000)).expect("it starts");
    let leader = cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    for _ in 0..3 {
        apply(&client, "more").await;
        cluster.capture(&client, GROUP).await.expect("it takes a snapshot");
    }
    let other = cluster.nodes().into_iter().find(|node| *node != leader).expect("there are three");
    cluster.kill(other).expect("it runs");
    cluster.wipe(other).expect("it is stopped");
    cluster.start_node(other).expect("it starts");
    let half_way = async |cluster: &Cluster| {
        let leader = cluster.leader(GROUP).await?;
        let status = cluster.group(leader, GROUP).await?;
        let mut sent = status.peers.iter().map(|p| (p.snapshot_sent_bytes, p.snapshot_bytes));
        sent.find(|(sent, all)| *sent > 0 && sent < all)
    };
    let (_, all) = cluster.wait_for("a transfer", PATIENCE, half_way).await.expect("it is shown");
    assert!(all > 24 << 20, "{all} bytes");
    let shown = crate::solo::lockstep(&["status", "--endpoint", cluster.address(leader)]).await;
    assert_says(&shown.stdout, &[&format!("is sending a snapshot to node {other}: "), "MiB of "]);
    cluster.wait_serving(GROUP).await.expect("it arrives");
    cluster.stop_all().await.expect("they stop");
}
