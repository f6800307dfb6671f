//! Groups that go over to another module, with real processes: under load, with nodes that are down
//! or wiped, at an entry at which all halted; and upgrades that come to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_client::{Client, Error, Outcome};
use lockstep_tests::cluster::{Cluster, Spec, guest_file};
use lockstep_tests::observe::PATIENCE;
use lockstep_tests::process::{Output, run};
use tokio::task::JoinSet;

use crate::solo::{apply, assert_equal_states, assert_says, lockstep, query};

const GROUP: &str = "kv";

async fn nodes() -> Cluster {
    let mut cluster =
        Cluster::start(Spec::of_guest(GROUP, 3).expect("it is built")).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster
}

fn guest(name: &str) -> String {
    guest_file(name).expect("it is built").display().to_string()
}

/// Runs `lockstep upgrade WORDS --endpoint …` with all nodes.
async fn upgrade(cluster: &Cluster, words: &[&str]) -> Output {
    let endpoints = cluster.endpoints();
    let words = [&["upgrade"], words, &["--endpoint", &endpoints]].concat();
    run(&lockstep_tests::cluster::binary().expect("it is built"), &words, PATIENCE)
        .await
        .expect("it ends")
}

/// Has the group go over to this guest.
async fn upgraded(cluster: &Cluster, name: &str, more: &[&str]) {
    let file = guest(name);
    let told = upgrade(cluster, &[&["start", &file], more].concat()).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_says(&told.stdout, &["the group runs module", "on; it took"]);
}

/// Counts in a session until told to stop; returns how many counts were acknowledged, and how many
/// may or may not have been applied.
async fn count(client: Client, key: String, stop: Arc<AtomicBool>) -> (String, u64, u64) {
    let session = client.open_session().await.expect("a majority is up");
    let (mut acknowledged, mut unknown) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        match session.apply(format!("incr {key}")).await.map(|reply| reply.outcome) {
            Ok(Outcome::Ok(_)) => acknowledged += 1,
            Err(Error::Unknown { .. }) => unknown += 1,
            Err(Error::Refused { .. }) => {}
            other => panic!("a count was answered {other:?}"),
        }
    }
    (key, acknowledged, unknown)
}

#[tokio::test]
async fn a_group_is_upgraded_under_load() {
    let mut cluster = nodes().await;
    let client = cluster.client().expect("its address is valid");
    apply(&client, "set city Basel").await;
    cluster.kill(3).expect("it runs");
    let stop = Arc::new(AtomicBool::new(false));
    let mut counters = JoinSet::new();
    for number in 0..16 {
        let client = cluster.client().expect("its address is valid");
        counters.spawn(count(client, format!("count-{number}"), Arc::clone(&stop)));
    }
    let told = upgrade(&cluster, &["status"]).await;
    assert_says(&told.stdout, &["kv node 1: module"]);
    upgraded(&cluster, "next", &[]).await;
    // The node that was down has lost its disk, and never had either module's file but its own.
    cluster.wipe(3).expect("it is down");
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("all serve");
    stop.store(true, Ordering::Relaxed);
    let mut counted = 0;
    while let Some(done) = counters.join_next().await {
        let (key, acknowledged, unknown) = done.expect("it does not panic");
        let held: u64 = query(&client, &format!("get {key}")).await.parse().expect("a number");
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&held),
            "{key} is {held}; {acknowledged} counts were acknowledged, {unknown} may be applied"
        );
        counted += acknowledged;
    }
    assert!(counted > 0, "nothing was counted");
    assert_eq!(query(&client, "version").await, "2 after 2");
    assert_eq!(query(&client, "get city").await, "Basel");
    assert_equal_states(&mut cluster, GROUP).await;

    // Snapshots name the module, so that a start needs neither the old one nor a move.
    for node in cluster.nodes() {
        cluster.stop(node).await.expect("it stops");
        cluster.start_node(node).expect("it starts");
        cluster.wait_serving(GROUP).await.expect("all serve");
    }
    assert_eq!(query(&client, "version").await, "2 after 2");

    // The old module cannot read what the new one writes.
    let told = upgrade(&cluster, &["rollback"]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert_says(
        &told.stderr,
        &["kv 0.1.0 reads snapshots of the formats 1 to 1", "writes format 2"],
    );
    // Between equal formats it goes both ways.
    upgraded(&cluster, "fixed", &[]).await;
    assert_eq!(query(&client, "version").await, "3 after 3");
    let told = upgrade(&cluster, &["rollback"]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(query(&client, "version").await, "2 after 4");
    assert_equal_states(&mut cluster, GROUP).await;
    cluster.stop_all().await.expect("they stop");
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_changes_nothing() {
    let mut cluster = nodes().await;
    let client = cluster.client().expect("its address is valid");
    let next = guest("next");
    for (key, says) in
        [("trap-in-restore", "trap in restore"), ("refuse-restore", "cannot be taken over")]
    {
        apply(&client, &format!("set {key} 1")).await;
        let told = upgrade(&cluster, &["start", &next]).await;
        assert_eq!(told.code, Some(1), "{told:?}");
        assert_says(&told.stderr, &["is aborted", says]);
        assert_eq!(query(&client, &format!("get {key}")).await, "1");
        apply(&client, &format!("del {key}")).await;
    }
    let told = upgrade(&cluster, &["status"]).await;
    assert_says(&told.stdout, &["is aborted: node"]);
    let nowhere = "ab".repeat(32);
    let kv = guest("kv");
    for (words, code, says) in [
        (&["start", &kv][..], 1, "the group runs module"),
        (&["start", &nowhere], 1, "no node has the module: stage it first"),
        (&["start", "nowhere.wasm"], 2, "nowhere.wasm: No such file"),
        (&["stage", "/etc/hostname"], 1, "/etc/hostname: "),
        (&["start", &next, "--resume-at", "2"], 1, "the group is not halted at entry 2"),
        (&["start", &next, "--abandon", "2"], 2, "--resume-at"),
        (&["abort"], 1, "no upgrade is under way"),
        (&["rollback"], 1, "was not upgraded yet"),
    ] {
        let told = upgrade(&cluster, words).await;
        assert_eq!(told.code, Some(code), "{words:?}: {told:?}");
        assert_says(&told.stderr, &[says]);
    }
    let staged = upgrade(&cluster, &["stage", &next, "--json"]).await;
    let staged: serde_json::Value = serde_json::from_str(&staged.stdout).expect("it is JSON");
    assert_eq!((&staged["version"], &staged["snapshot_format"]), (&"2.0.0".into(), &2.into()));
    let id = staged["module"].as_str().expect("it has one").to_owned();
    let told = upgrade(&cluster, &["start", &id]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(query(&client, "version").await, "2 after 2");
    cluster.stop_all().await.expect("they stop");
}

/// As FAULTS A1 was seen, and taken on by a module that bears the entry: on three nodes, with one
/// down.
#[tokio::test]
async fn another_module_applies_the_entry_at_which_all_halt() {
    let mut cluster = nodes().await;
    let client = cluster.client().expect("its address is valid");
    upgraded(&cluster, "next", &[]).await;
    apply(&client, "set a 1").await;
    cluster.kill(3).expect("it runs");
    let session = client.open_session().await.expect("a majority is up");
    let poison = tokio::spawn(async move { session.apply("set poison 1").await });
    let halted = async |cluster: &Cluster| {
        let told = lockstep(&["faults", "--endpoint", cluster.address(1), "--json"]).await;
        let line = told.stdout.lines().next()?.to_owned();
        let told: serde_json::Value = serde_json::from_str(&line).ok()?;
        told["entry"].as_u64().filter(|entry| *entry > 0)
    };
    let entry = cluster.wait_for("the group to halt", PATIENCE, halted).await.expect("it halts");
    let told = upgrade(&cluster, &["start", &guest("fixed")]).await;
    assert_says(&told.stderr, &[&format!("--resume-at {entry}")]);
    let (index, fixed) = (entry.to_string(), guest("fixed"));
    let words = ["start", &fixed, "--resume-at", &index, "--abandon", "3"];
    let taken = async |cluster: &Cluster| {
        let told = upgrade(cluster, &words).await;
        let early = ["is not halted at", "does not lead", "is not heard", "goes on, so"];
        (!early.iter().any(|it| told.stderr.contains(it))).then_some(told)
    };
    let told = cluster.wait_for("the order to be taken", PATIENCE, taken).await.expect("it is");
    assert_eq!(told.code, Some(0), "{told:?}");
    let _ = poison.await.expect("it does not panic");
    assert_eq!(query(&client, "get poison").await, "1");
    assert_eq!(query(&client, "version").await, "3 after 3");
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("all serve");
    assert_equal_states(&mut cluster, GROUP).await;
    cluster.stop_all().await.expect("they stop");
}
