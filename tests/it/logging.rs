//! What a node writes to standard error, and readers that stop reading or go away.

use std::io::{BufRead as _, BufReader, PipeReader};

use lockstep_client::Options;
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::process::run;

use crate::solo::{GROUP, REFUSAL_PATIENCE, apply, spec};

/// A node that logs more than a pipe holds, and the reading end of its standard error.
async fn talkative(more: &[&str]) -> (Cluster, PipeReader) {
    let mut cluster = Cluster::prepare(spec()).expect("a directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let surround = |command: &mut std::process::Command| {
        command.env("LOCKSTEP_LOG", "trace").stderr(writer);
    };
    cluster.start_node_as(1, more, surround).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    (cluster, reader)
}

async fn serves_and_stops(mut cluster: Cluster) {
    let client = cluster.client().expect("its address is valid");
    for number in 0..200 {
        apply(&client, &format!("set a {number}")).await;
    }
    cluster.stop_all().await.expect("it stops in time, with 0");
}

#[tokio::test]
async fn a_reader_that_stops_reading_stops_nothing() {
    let (cluster, reader) = talkative(&[]).await;
    serves_and_stops(cluster).await;
    drop(reader);
}

#[tokio::test]
async fn a_reader_that_is_gone_ends_nothing() {
    let (cluster, reader) = talkative(&[]).await;
    drop(reader);
    serves_and_stops(cluster).await;
}

#[tokio::test]
async fn lines_are_objects_for_who_wants_them() {
    let (cluster, reader) = talkative(&["--log-format", "json"]).await;
    let lines = std::thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map(|line| line.expect("it is read"));
        let objects = lines.map(|line| {
            let object = serde_json::from_str::<serde_json::Value>(&line);
            object.unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        objects.filter(|object| object["message"] == "node started").count()
    });
    serves_and_stops(cluster).await;
    assert_eq!(lines.join().expect("all are objects"), 1);
}

/// The reason why a node did not start has the same format as everything else that it logs.
#[tokio::test]
async fn the_reason_of_an_end_is_an_object_too() {
    let args = ["serve", "--config", "/nowhere/node.toml", "--log-format", "json"];
    let output = crate::solo::lockstep(&args).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    let last = output.stderr.lines().last().expect("it says why");
    let said: serde_json::Value = serde_json::from_str(last).expect("it is an object");
    assert_eq!(said["level"], "ERROR");
    assert!(said["message"].as_str().is_some_and(|why| why.contains("/nowhere")), "{last}");
}

/// A guest may log only a limited amount a second; the node counts the rest and reports it once.
#[tokio::test]
async fn a_guest_that_says_too_much_is_cut_short() {
    let spec = Spec::of_guest("hostile", 1).expect("it is built");
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("hostile").await.expect("it serves");
    let client = cluster.client_of("hostile", Options::default()).expect("its address is valid");
    apply(&client, "say-often 20000").await;
    cluster.stop_all().await.expect("it stops");
    let log = cluster.log_text(1);
    let lines = log.matches("guest log").count();
    assert!((1..2_000).contains(&lines), "{lines} lines");
    assert_eq!(log.matches("the guest logs too much").count(), 1, "{log}");
}

/// What a guest logs of an entry is not logged again when a restart replays the entry.
#[tokio::test]
async fn a_replay_is_silent() {
    let spec = Spec::of_guest("hostile", 1).expect("it is built");
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("hostile").await.expect("it serves");
    let client = cluster.client_of("hostile", Options::default()).expect("its address is valid");
    // The log records the commit index with the next entry: the last two commands make sure that it
    // covers the others.
    for command in ["say 3", "say 3", "say 3", "nothing", "nothing"] {
        apply(&client, command).await;
    }
    for _ in 0..2 {
        cluster.stop(1).await.expect("it stops");
        cluster.start_node(1).expect("it starts");
        cluster.wait_serving("hostile").await.expect("it serves");
    }
    apply(&client, "say 4").await;
    cluster.stop_all().await.expect("it stops");
    let log = cluster.log_text(1);
    assert_eq!(log.matches("mmm").count(), 4, "{log}");
}

/// A `config` that is not the group's has no effect, and a start says so.
#[tokio::test]
async fn a_configuration_of_its_own_is_told() {
    let mut cluster = Cluster::start(spec()).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster.stop(1).await.expect("it stops");
    let told = "`config` differs from the group's, which was fixed at its bootstrap";
    assert_eq!(cluster.log_text(1).matches(told).count(), 0);
    let text = cluster.configuration(1) + "\nconfig = \"another\"\n";
    cluster.configure(1, &text).expect("it can be written");
    cluster.start_node(1).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster.stop_all().await.expect("it stops");
    assert_eq!(cluster.log_text(1).matches(told).count(), 1, "{}", cluster.log_text(1));
}

/// A command succeeds if its reader closes the pipe early, and fails if its output is lost.
#[tokio::test]
async fn a_command_whose_output_nobody_takes_does_not_panic() {
    let mut cluster = crate::solo::started_node(&[]).await;
    let shell = |to: &str| {
        let binary = cluster.binary().display();
        format!("{binary} status --endpoint {} {to}", cluster.address(1))
    };
    let away = format!("set -o pipefail; {}", shell("| true"));
    let full = shell("> /dev/full");
    for (line, code, says) in [(away, 0, ""), (full, 1, "standard output: ")] {
        let bash = std::path::Path::new("/bin/bash");
        let output = run(bash, &["-c", &line], REFUSAL_PATIENCE).await.expect("it ends");
        assert_eq!(output.code, Some(code), "{line}: {output:?}");
        assert!(output.stderr.contains(says), "{line}: {output:?}");
        assert!(!output.stderr.contains("panic"), "{line}: {output:?}");
    }
    cluster.stop_all().await.expect("it stops");
}
