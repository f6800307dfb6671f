//! Memory near its limit, with the real engine: commands are refused before a state machine uses
//! all its memory, and what it freed is given back by itself, one replica after the other.

use std::time::Duration;

use lockstep_client::v1::GroupStatus;
use lockstep_client::{Client, Consistency, Error, Options, Outcome};
use lockstep_core::limits::{COMMAND_BYTES_MAX, ENTRY_COMMANDS_MAX, OUTCOME_BYTES_MAX};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;
use tokio::task::JoinSet;

use crate::solo::{apply, assert_logs, assert_says, query};

const GROUP: &str = "kv";
const VALUE_BYTES: usize = 60_000;
/// More values than fit into the memory of these groups.
const VALUES_MAX: usize = 800;

/// A cluster whose state machines may have 32 MiB of memory, which is the least.
async fn small_cluster(nodes: u16) -> Cluster {
    let mut spec = Spec::of_guest(GROUP, nodes).expect("it is built");
    spec.groups[0].settings.push("memory = \"32MiB\"".to_owned());
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster
}

fn client(cluster: &Cluster, relief: bool) -> Client {
    let options = Options { deadline: Duration::from_secs(30), relief, ..Options::default() };
    cluster.client_of(GROUP, options).expect("its addresses are valid")
}

/// Sets one value after the other until one is refused; returns how many were set.
async fn fill(client: &Client) -> usize {
    // In a session, since a busy machine may hold a leader up until another one leads.
    let session = client.open_session().await.expect("a session");
    for key in 0..VALUES_MAX {
        let value = "x".repeat(VALUE_BYTES);
        match session.apply(format!("set k{key} {value}")).await {
            Ok(reply) => assert_eq!(reply.outcome, Outcome::Ok("".into())),
            Err(Error::Refused { refusal, message, .. }) => {
                assert_eq!(refusal, "memory-high", "{message}");
                assert_says(&message, &["limit 33554432", "25165824", "--relief"]);
                return key;
            }
            Err(other) => panic!("value {key}: {other}"),
        }
    }
    panic!("{VALUES_MAX} values of {VALUE_BYTES} bytes were taken");
}

/// Waits until every node has given back memory and serves; returns their statuses.
async fn all_rebuilt(cluster: &mut Cluster) -> Vec<GroupStatus> {
    let rebuilt = async |cluster: &Cluster| {
        let mut all = Vec::new();
        for node in cluster.running() {
            let status = cluster.group(node, GROUP).await?;
            (status.rebuilds > 0 && status.state == "serving").then_some(())?;
            all.push(status);
        }
        Some(all)
    };
    cluster.wait_for("every state machine to be rebuilt", PATIENCE, rebuilt).await.expect("it is")
}

/// When each rebuild begins and ends, according to a node's log.
fn spans(log: &str) -> Vec<(String, String)> {
    let states: Vec<(String, bool)> = log
        .lines()
        .filter(|line| line.contains("replica state"))
        .filter_map(|line| {
            let time = line.split_whitespace().next()?;
            Some((time.to_owned(), line.contains("\"rebuilding\"")))
        })
        .collect();
    let pairs = states.windows(2).filter(|pair| pair[0].1);
    pairs.map(|pair| (pair[0].0.clone(), pair[1].0.clone())).collect()
}

#[tokio::test]
async fn what_was_freed_comes_back_one_replica_after_the_other() {
    let mut cluster = small_cluster(3).await;
    let count = fill(&client(&cluster, false)).await;
    // Memory in use is not given back, so most values are deleted first.
    let relief = client(&cluster, true).open_session().await.expect("a session");
    let kept = count / 4;
    for key in kept..count {
        let freed = relief.apply(format!("del k{key}")).await.expect("it frees memory").outcome;
        assert!(matches!(&freed, Outcome::Ok(value) if value.len() == VALUE_BYTES), "k{key}");
    }
    for status in all_rebuilt(&mut cluster).await {
        let GroupStatus { node, guest_memory_bytes: bytes, .. } = status;
        assert!(bytes < 16 << 20, "node {node} has {bytes} bytes");
        assert_eq!((status.rebuilds, status.rebuilds_in_vain), (1, 0), "node {node}");
        assert!(status.rebuilds_gave_back_bytes > 8 << 20, "node {node}: {status:?}");
    }

    // A node does not wait until its log is written.
    let told = async |cluster: &Cluster| {
        let nodes = cluster.nodes().into_iter();
        let all: Vec<_> = nodes.flat_map(|node| spans(&cluster.log_text(node))).collect();
        (all.len() >= 3).then_some(all)
    };
    let mut all =
        cluster.wait_for("three rebuilds in the logs", PATIENCE, told).await.expect("they are");
    all.sort();
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two at once: {all:?}");

    let client = client(&cluster, false);
    assert_eq!(apply(&client, "set more 1").await, "");
    assert_eq!(query(&client, "len").await, (kept + 1).to_string());
    for key in 0..kept {
        assert_eq!(query(&client, &format!("get k{key}")).await.len(), VALUE_BYTES, "k{key}");
    }
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_group_of_one_gives_back_what_was_freed() {
    let mut cluster = small_cluster(1).await;
    let count = fill(&client(&cluster, false)).await;
    let relief = client(&cluster, true);
    for key in 1..count {
        relief.apply(format!("del k{key}")).await.expect("it frees memory");
    }
    let status = all_rebuilt(&mut cluster).await.remove(0);
    assert!(status.guest_memory_bytes < 8 << 20, "{status:?}");
    let says = ["state=\"rebuilding\"", "the state machine was rebuilt", "gave_back="];
    assert_logs(&mut cluster, 1, &says).await;
    let client = client(&cluster, false);
    assert_eq!(apply(&client, "set more 1").await, "");
    let local = client.query("len", Consistency::Local).await.expect("it is asked");
    assert_eq!(local.outcome, Outcome::Ok("2".into()));
    cluster.stop_all().await.expect("it stops");
}

/// The longest commands and answers, one after the other and many at a time, are taken until memory
/// is high. However little memory a group may have, none of them halts it.
#[tokio::test]
async fn the_least_memory_is_enough_for_the_longest_commands() {
    let mut cluster = small_cluster(1).await;
    let (plain, relief) = (client(&cluster, false), client(&cluster, true));
    let longest = COMMAND_BYTES_MAX - 20;
    let mut key = 0;
    for client in [&plain, &relief] {
        let refusal = loop {
            let value = "x".repeat(if key % 2 == 0 { 600_000 } else { longest });
            key += 1;
            match client.apply(format!("set k{key} {value}")).await {
                Ok(_none) => assert!(key < 100, "{key} values are taken"),
                Err(Error::Refused { refusal, .. }) => break refusal,
                Err(other) => panic!("value {key}: {other}"),
            }
        };
        assert_eq!(refusal, "memory-high");
    }
    assert_eq!(cluster.group(1, GROUP).await.expect("it answers").state, "memory high");
    assert!(!query(&plain, "len").await.is_empty(), "it answers");
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn the_least_memory_is_enough_for_the_longest_answers() {
    let mut spec = Spec::of_guest("hostile", 1).expect("it is built");
    spec.groups[0].settings.push("memory = \"32MiB\"".to_owned());
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("hostile").await.expect("it serves");
    let options = Options { deadline: Duration::from_secs(60), ..Options::default() };
    let mut calls = JoinSet::new();
    // A connection may hold no more answers than this at a time.
    for _ in 0..2 * ENTRY_COMMANDS_MAX / 256 {
        let client = cluster.client_of("hostile", options.clone()).expect("its address is valid");
        for _ in 0..256 {
            let client = client.clone();
            calls.spawn(async move { client.apply(format!("answer {OUTCOME_BYTES_MAX}")).await });
        }
    }
    while let Some(call) = calls.join_next().await {
        let reply = call.expect("it does not panic").expect("it is applied");
        assert!(matches!(&reply.outcome, Outcome::Ok(answer) if answer.len() == OUTCOME_BYTES_MAX));
    }
    assert_eq!(cluster.group(1, "hostile").await.expect("it answers").state, "serving");
    cluster.stop_all().await.expect("it stops");
}
