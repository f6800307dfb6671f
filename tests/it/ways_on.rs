//! How a halted group goes on, with real processes: an entry is skipped, a limit is raised. And how
//! a group is frozen.

use std::time::Duration;

use lockstep_client::{Client, Error, Options, Outcome};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;
use lockstep_tests::process::Output;

use crate::solo::{apply, apply_once, assert_equal_states, assert_says, lockstep, query};

const GROUP: &str = "hostile";

async fn hostile_nodes(settings: &[&str]) -> Cluster {
    let mut spec = Spec::of_guest(GROUP, 3).expect("it is built");
    spec.groups[0].settings.extend(settings.iter().map(|line| (*line).to_owned()));
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster
}

/// A client that gives up soon, for commands that nobody answers.
fn impatient(cluster: &Cluster) -> Client {
    let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
    cluster.client_of(GROUP, options).expect("its address is valid")
}

/// Runs `lockstep WORDS --endpoint …` with all nodes.
async fn order(cluster: &Cluster, words: &[&str]) -> Output {
    let endpoints = cluster.endpoints();
    lockstep(&[words, &["--endpoint", &endpoints, "--timeout", "20"]].concat()).await
}

/// Waits until these nodes are halted, and know of each other that they are; returns the entry.
async fn halted(cluster: &mut Cluster, nodes: &[u16]) -> u64 {
    for node in nodes {
        let is = async |cluster: &Cluster| {
            let status = cluster.group(*node, GROUP).await?;
            status.cause.contains("local queries are answered").then_some(())
        };
        cluster.wait_for("a node to halt", PATIENCE, is).await.expect("it halts");
    }
    let endpoint = cluster.address(nodes[0]).to_owned();
    let told = lockstep(&["faults", "--endpoint", &endpoint, "--json"]).await;
    assert_eq!(told.code, Some(4), "{told:?}");
    let line = told.stdout.lines().next().expect("a replica is halted");
    let told: serde_json::Value = serde_json::from_str(line).expect("it is one JSON object");
    told["entry"].as_u64().expect("an entry is to blame")
}

/// Gives an order, again while the voters have not told each other that they are halted.
async fn ordered(cluster: &mut Cluster, words: &[&str]) -> Output {
    let given = async |cluster: &Cluster| {
        let told = order(cluster, words).await;
        let early = ["is not halted at", "does not lead"].iter().any(|it| told.stderr.contains(it));
        (!early).then_some(told)
    };
    cluster.wait_for("an order to be taken", PATIENCE, given).await.expect("it is taken or refused")
}

/// As FAULTS A1 and A2 were seen: an entry at which every replica halts, one node being down. The
/// group goes on without it; the node that was down follows.
#[tokio::test]
async fn a_poison_entry_is_skipped() {
    let mut cluster = hostile_nodes(&[]).await;
    let client = cluster.client().expect("its address is valid");
    apply(&client, "nothing").await;
    cluster.kill(3).expect("it runs");
    let session = client.open_session().await.expect("a majority is up");
    apply_once(&session, "nothing").await;
    impatient(&cluster).apply("panic").await.expect_err("it has no answer");
    let entry = halted(&mut cluster, &[1, 2]).await;

    let shown = order(&cluster, &["faults", "--commands"]).await;
    let index = entry.to_string();
    let skip = format!("lockstep skip --index {index} --abandon NODE    without the entry");
    let silent = format!("no answer from {}: ", cluster.address(3));
    assert_says(&shown.stdout, &[&skip, "panic", "trap in apply", &silent]);
    let refused = ordered(&mut cluster, &["skip", "--index", &(entry + 1).to_string()]).await;
    assert_says(&refused.stderr, &["the group is halted at entry"]);
    let refused = ordered(&mut cluster, &["skip", "--index", &index]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_says(&refused.stderr, &["node 3 is not heard", "abandon"]);
    let done = ordered(&mut cluster, &["skip", "--index", &index, "--abandon", "3"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_says(&done.stdout, &[&format!("entry {index} is skipped")]);

    apply_once(&session, "nothing").await;
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("all serve");
    assert_equal_states(&mut cluster, GROUP).await;

    // Snapshots contain it: no node comes to the entry again.
    for node in [1, 2] {
        cluster.stop(node).await.expect("it stops");
        cluster.start_node(node).expect("it starts");
    }
    cluster.wait_serving(GROUP).await.expect("all serve");
    apply_once(&session, "nothing").await;
    let shown = order(&cluster, &["faults"]).await;
    assert_eq!((shown.code, shown.stdout.as_str()), (Some(0), "no replica is halted\n"));
    cluster.kill(3).expect("it runs");
    let shown = order(&cluster, &["faults", "--json"]).await;
    assert_eq!(shown.code, Some(4), "{shown:?}");
    let silent = format!("\"unreachable\":\"{}\"", cluster.address(3));
    assert_says(&shown.stdout, &[&silent]);
    let shown = order(&cluster, &["faults"]).await;
    assert_says(&shown.stdout, &["no replica that answers is halted"]);
    cluster.stop_all().await.expect("it stops");
}

/// A command needs more memory than the group may have.
#[tokio::test]
async fn a_limit_that_was_too_low_is_raised() {
    let mut cluster = hostile_nodes(&["memory = \"32MiB\""]).await;
    let client = cluster.client().expect("its address is valid");
    let session = client.open_session().await.expect("all are up");
    apply_once(&session, "nothing").await;
    cluster.kill(3).expect("it runs");
    impatient(&cluster).apply("fill 40000000").await.expect_err("it has no answer");
    let entry = halted(&mut cluster, &[1, 2]).await;
    let shown = order(&cluster, &["faults"]).await;
    assert_says(&shown.stdout, &["out of memory in apply", "lockstep limits --memory"]);
    let refused = order(&cluster, &["limits", "--memory", "1MiB"]).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_says(&refused.stderr, &["memory is 1048576; use 33554432 to"]);
    let refused = order(&cluster, &["limits"]).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let done = ordered(&mut cluster, &["limits", "--memory", "128MiB"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");

    apply_once(&session, "nothing").await;
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("all serve");
    assert_equal_states(&mut cluster, GROUP).await;
    let status = cluster.group(3, GROUP).await.expect("it answers");
    assert!(status.applied > entry && status.guest_memory_bytes > 40_000_000, "{status:?}");
    let refused = ordered(&mut cluster, &["limits", "--memory", "48MiB"]).await;
    assert_says(&refused.stderr, &["has", "bytes of memory", "at most 80 % of it"]);
    cluster.stop_all().await.expect("it stops");
}

/// A group whose policy is to skip goes on by itself; a client's call is told of it, once and
/// again.
#[tokio::test]
async fn a_policy_skips_by_itself() {
    let mut cluster = hostile_nodes(&[]).await;
    let client = cluster.client().expect("its address is valid");
    let session = client.open_session().await.expect("all are up");
    assert_eq!(order(&cluster, &["on-fault", "skip"]).await.code, Some(0));
    // The client may give up while the replicas are halted.
    match session.apply("panic").await {
        Err(Error::Skipped { message }) => assert_says(&message, &["skipped", "no effect"]),
        Err(Error::Unknown { message, .. }) => assert_says(&message, &["is halted"]),
        other => panic!("{other:?}"),
    }
    cluster.wait_serving(GROUP).await.expect("it goes on by itself");
    apply_once(&session, "nothing").await;
    assert_equal_states(&mut cluster, GROUP).await;
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_frozen_group_takes_no_commands() {
    let mut cluster = hostile_nodes(&[]).await;
    let client = cluster.client().expect("its address is valid");
    apply(&client, "nothing").await;
    let done = order(&cluster, &["freeze", "--json"]).await;
    assert_says(&done.stdout, &["{\"index\":"]);
    match impatient(&cluster).apply("nothing").await {
        Err(Error::Refused { refusal, message, .. }) => {
            assert_eq!(refusal, "frozen");
            assert_says(&message, &["lockstep unfreeze"]);
        }
        other => panic!("{other:?}"),
    }
    query(&client, "nothing").await;
    let waits = tokio::spawn({
        let client = client.clone();
        async move { client.apply("nothing").await.map(|reply| reply.outcome) }
    });
    assert_eq!(order(&cluster, &["unfreeze"]).await.code, Some(0));
    let answer = waits.await.expect("it does not panic");
    assert!(matches!(answer, Ok(Outcome::Ok(_))), "{answer:?}");
    cluster.stop_all().await.expect("it stops");
}
