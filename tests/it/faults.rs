//! State machines that trap: the replica tries once more, then halts and reports the cause;
//! everything else goes on.

use std::time::Duration;

use lockstep_client::v1::GroupStatus;
use lockstep_client::{Client, Consistency, Error, Options, Outcome};
use lockstep_tests::cluster::{Cluster, GroupSpec, Spec, guest_file};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{GROUP, apply, assert_says, lockstep, query, started_node};

/// How many attempts in a row may end with an unknown outcome.
const REQUESTS_MAX: usize = 9;

/// A client with a short deadline, because retries cannot help against the refusals here.
fn impatient(cluster: &Cluster, group: &str) -> Client {
    let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
    cluster.client_of(group, options).expect("its address is valid")
}

async fn halted(cluster: &mut Cluster, group: &str) -> GroupStatus {
    let halted = async |cluster: &Cluster| {
        cluster.group(1, group).await.filter(|status| status.state == "halted")
    };
    cluster.wait_for("the group to halt", PATIENCE, halted).await.expect("it halts")
}

/// Repeats a request until its outcome is known: on a slow machine the deadline may end an attempt
/// halfway.
async fn end<T>(request: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..REQUESTS_MAX {
        match request().await {
            Err(Error::Unknown { .. }) => {}
            known => return known,
        }
    }
    request().await
}

/// Commands and queries must be refused with messages that contain all of `says`.
async fn assert_refuses(client: &Client, says: &[&str]) {
    let applied = end(async || client.apply("set z 1").await.map(|reply| reply.outcome)).await;
    let query = async || client.query("len", Consistency::Linearizable).await;
    let asked = end(async || query().await.map(|reply| reply.outcome)).await;
    for answer in [applied, asked] {
        match answer {
            Err(Error::Refused { refusal, message, .. }) => {
                assert_eq!(refusal, "halted", "{message}");
                assert_says(&message, says);
            }
            other => panic!("a halted group answered {other:?}"),
        }
    }
}

/// Starts one node with a group of the hostile guest and waits until it serves.
async fn hostile_node() -> Cluster {
    let spec = Spec::of_guest("hostile", 1).expect("it is built");
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("hostile").await.expect("it serves");
    cluster
}

#[tokio::test]
async fn a_command_that_faults_twice_halts_the_replica() {
    let mut cluster = started_node(&["set a 1"]).await;
    let client = impatient(&cluster, GROUP);
    let pending = client.apply("fault boom").await.expect_err("it has no answer");
    assert!(matches!(pending, Error::Unknown { .. }), "it is in the log: {pending:?}");
    let status = halted(&mut cluster, GROUP).await;
    assert_says(&status.cause, &["trap in apply", "boom"]);
    assert!(status.guest_faults > 0, "it is counted: {status:?}");
    assert_refuses(&client, &["trap in apply", "boom"]).await;
    assert_answers_from_before(&mut cluster).await;

    // The entry is in the log, so a restarted process halts there again, for the same cause.
    cluster.stop(1).await.expect("it stops");
    cluster.start_node(1).expect("it starts");
    let status = halted(&mut cluster, GROUP).await;
    assert_says(&status.cause, &["trap in apply", "boom"]);
    assert_answers_from_before(&mut cluster).await;
    cluster.stop_all().await.expect("it stops");
}

/// Local queries are answered from the state before the faulting entry, and the answers say so.
async fn assert_answers_from_before(cluster: &mut Cluster) {
    let stands = async |cluster: &Cluster| {
        let status = cluster.group(1, GROUP).await?;
        status.cause.contains("local queries are answered as of entry").then_some(status)
    };
    let status = cluster.wait_for("local answers", PATIENCE, stands).await.expect("it is built");
    let client = impatient(cluster, GROUP);
    let reply = client.query("get a", Consistency::Local).await.expect("it is answered");
    assert_eq!(reply.outcome, Outcome::Ok("1".into()));
    assert_eq!(reply.applied_index, status.applied);
    assert_says(&reply.halted.expect("it says so"), &["trap in apply", "boom"]);
    let shown = ["query", "--endpoint", cluster.address(1), "--group", GROUP, "--local", "get a"];
    let shown = lockstep(&shown).await;
    assert_says(&shown.stdout, &["1"]);
    assert_says(&shown.stderr, &["the replica is halted at", "boom"]);
}

/// What the hostile guest can be told to do, and the class of the fault that it causes.
const DEEDS: [(&str, &str); 3] =
    [("panic", "trap"), ("grow", "out of memory"), ("loop", "out of fuel")];

/// The cause names the class of the fault: the limit that was exceeded, or a trap.
#[tokio::test]
async fn a_component_that_faults_halts_with_the_class_of_its_fault() {
    for (deed, class) in DEEDS {
        let mut cluster = hostile_node().await;
        let client = impatient(&cluster, "hostile");
        assert_eq!(apply(&client, "nothing").await, "");
        client.apply(deed).await.expect_err("it has no answer");
        let status = halted(&mut cluster, "hostile").await;
        let way_out = "if every voter halts there, `lockstep faults` shows the ways on";
        assert_says(&status.cause, &[&format!("{class} in apply at index"), way_out]);
        assert_refuses(&client, &[class, way_out, "try another node"]).await;
        cluster.stop_all().await.expect("it stops");
    }
}

#[tokio::test]
async fn an_init_that_faults_halts_its_group_alone() {
    let hostile = guest_file("hostile").expect("it is built").display().to_string();
    let mut spec = Spec::of_module("other", "native:register", 1);
    for (deed, _class) in DEEDS {
        let mut group = GroupSpec::new(deed, &hostile);
        group.settings.push(format!("config = \"init {deed}\""));
        spec.groups.push(group);
    }
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("other").await.expect("it serves");
    for (deed, class) in DEEDS {
        let status = halted(&mut cluster, deed).await;
        let says = format!("{class} in init");
        assert_says(&status.cause, &[&says]);
        assert_refuses(&impatient(&cluster, deed), &[&says]).await;
    }
    let other = cluster.client_of("other", Options::default()).expect("its address is valid");
    apply(&other, "set a 1").await;
    assert_eq!(query(&other, "get a").await, "1");
    cluster.stop_all().await.expect("it stops");
}

/// A guest may give an endless reason for its failure: the status holds a bounded part of it.
#[tokio::test]
async fn endless_reasons_leave_the_status_small() {
    let mut spec = Spec::of_guest("hostile", 1).expect("it is built");
    let mut group = spec.groups[0].clone();
    group.name = "wordy".to_owned();
    group.settings.push("config = \"init reject 60000000\"".to_owned());
    spec.groups.push(group);
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("hostile").await.expect("it serves");
    let status = halted(&mut cluster, "wordy").await;
    assert_says(&status.cause, &["refused in init", "rrrr"]);
    assert!(status.cause.len() < 4096, "{} bytes", status.cause.len());

    // The reason of a failed snapshot is in another field of the status.
    let client = impatient(&cluster, "hostile");
    apply(&client, "snapshot fail 60000000").await;
    client.checkpoint().await.expect("the leader takes it");
    let failed = async |cluster: &Cluster| {
        let status = cluster.group(1, "hostile").await?;
        (status.captures_failed > 0).then_some(status)
    };
    let status =
        cluster.wait_for("a capture to fail", PATIENCE, failed).await.expect("it is shown");
    assert_says(&status.last_capture_error, &["the guest wrote no snapshot", "eeee"]);
    assert!(status.last_capture_error.len() < 4096, "{} bytes", status.last_capture_error.len());

    let shown = lockstep(&["status", "--endpoint", cluster.address(1)]).await;
    assert!(shown.stdout.len() < 16_384, "{} bytes", shown.stdout.len());
    assert!(cluster.log_text(1).len() < 65_536, "{} bytes", cluster.log_text(1).len());
    cluster.stop_all().await.expect("it stops");
}

/// A query that fails the live state machine costs a rebuild. For a minute that query and its
/// caller are refused; all other callers are answered.
#[tokio::test]
async fn a_query_that_costs_a_rebuild_is_refused_with_its_caller() {
    let mut cluster = started_node(&["set a 1"]).await;
    let client = impatient(&cluster, GROUP);
    let refusal = async |client: &Client, query: &str| match client
        .query(query.to_owned(), Consistency::Linearizable)
        .await
    {
        Err(Error::Refused { refusal, message, .. }) => (refusal, message),
        other => panic!("{query} was answered {other:?}"),
    };
    let (word, message) = refusal(&client, "fault riddle").await;
    assert_eq!(word, "query-faulted", "{message}");
    assert_says(&message, &["trap in query", "riddle", "do not repeat it"]);
    let (word, message) = refusal(&client, "get a").await;
    assert_eq!(word, "queries-refused", "{message}");
    assert_says(&message, &["a query of this caller", "ask again in a minute"]);
    let other = impatient(&cluster, GROUP);
    assert_eq!(query(&other, "get a").await, "1", "others are answered");
    let (word, message) = refusal(&other, "fault riddle").await;
    assert_eq!(word, "queries-refused", "{message}");
    assert_says(&message, &["this very query"]);
    assert_eq!(query(&other, "get a").await, "1", "the refusals changed nothing");
    assert_eq!(apply(&client, "set a 2").await, "1", "the state is what it was");
    let told = async |cluster: &Cluster| {
        let status = cluster.group(1, GROUP).await?;
        (status.guest_faults > 0).then_some(status)
    };
    let status = cluster.wait_for("the fault to be counted", PATIENCE, told).await.expect("it is");
    assert_eq!((status.state.as_str(), status.guest_faults), ("serving", 1), "{status:?}");
    cluster.stop_all().await.expect("it stops");
}

/// A query that loops or takes all memory is ended by a limit, and its refusal names the limit.
/// Commands and other queries go on, however often such a query is sent.
#[tokio::test]
async fn a_query_ends_by_the_limit_that_it_meets() {
    let mut cluster = hostile_node().await;
    let client = impatient(&cluster, "hostile");
    let deeds = [("loop", "out of fuel"), ("grow", "out of memory"), ("panic", "trap")];
    for (deed, class) in deeds.into_iter().cycle().take(6) {
        match client.query(deed, Consistency::Linearizable).await {
            Err(Error::Refused { refusal, message, .. }) => {
                let much = class != "trap";
                let (word, advice) = if much {
                    ("query-too-much", "ask for less")
                } else {
                    ("query-faulted", "do not repeat it")
                };
                assert_eq!(refusal, word, "{message}");
                assert_says(&message, &[&format!("{class} in query"), advice]);
            }
            other => panic!("{deed} was answered {other:?}"),
        }
        assert_eq!(apply(&client, "nothing").await, "", "the group goes on");
        assert_eq!(query(&client, "answer 3").await, "aaa", "and answers");
    }
    cluster.stop_all().await.expect("it stops");
}

/// Only the snapshot that traps fails: the group goes on, and a later snapshot succeeds.
#[tokio::test]
async fn a_snapshot_that_faults_is_not_taken_and_nothing_else_happens() {
    let mut cluster = hostile_node().await;
    // After a failed snapshot the next checkpoint is refused for a while, so this client is
    // patient.
    let client = cluster.client_of("hostile", Options::default()).expect("its address is valid");
    // A loop is left out: it runs until the fuel of a snapshot is used up, which takes minutes.
    for (round, (deed, class)) in DEEDS.into_iter().take(2).enumerate() {
        apply(&client, &format!("snapshot {deed}")).await;
        client.checkpoint().await.expect("the leader takes it");
        let failed = async |cluster: &Cluster| {
            let status = cluster.group(1, "hostile").await?;
            (status.captures_failed > round as u64).then_some(status)
        };
        let status =
            cluster.wait_for("a capture to fail", PATIENCE, failed).await.expect("it is shown");
        assert_says(&status.last_capture_error, &[&format!("{class} in snapshot")]);
        assert_eq!((status.state.as_str(), status.snapshots.len()), ("serving", 0), "{status:?}");
    }
    let shown = lockstep(&["status", "--endpoint", cluster.address(1)]).await;
    assert_says(&shown.stdout, &["the last snapshot failed and will be retried: "]);
    apply(&client, "snapshot nothing").await;
    client.checkpoint().await.expect("the leader takes it");
    let taken = async |cluster: &Cluster| {
        let status = cluster.group(1, "hostile").await?;
        (status.snapshots.len() == 1).then_some(status)
    };
    let status = cluster.wait_for("a capture", PATIENCE, taken).await.expect("it is taken");
    assert_eq!(status.last_capture_error, "", "the error is cleared");
    cluster.stop_all().await.expect("it stops");
}
