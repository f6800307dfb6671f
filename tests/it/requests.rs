//! Refused requests, one by one: the word, the gRPC code, the message, and that nothing was
//! applied.

use lockstep_client::v1::lockstep_client::LockstepClient;
use lockstep_client::v1::{ApplyRequest, QueryRequest};
use lockstep_client::{Client, Consistency, Error, Options};
use lockstep_core::limits;
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::solo::{apply, apply_once, assert_says, lockstep, query};

const GROUP: &str = "kv";

async fn kv_node() -> (Cluster, Client) {
    let mut cluster = Cluster::start(Spec::of_guest(GROUP, 1).expect("it is built"));
    let cluster_ref = cluster.as_mut().expect("it starts");
    cluster_ref.wait_serving(GROUP).await.expect("it serves");
    let client = cluster_ref.client().expect("its address is valid");
    (cluster.expect("it started"), client)
}

/// The bare gRPC client, for what `lockstep_client` hides.
async fn wire(cluster: &Cluster) -> LockstepClient<Channel> {
    let address = format!("http://{}", cluster.address(1));
    LockstepClient::connect(address)
        .await
        .expect("it listens")
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
}

fn assert_refused(status: &Status, code: Code, refusal: &str, says: &[&str]) {
    let word = |key: &str| {
        let value = status.metadata().get(key).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(word("lockstep-refusal").as_deref(), Some(refusal), "{status:?}");
    assert_eq!(word("lockstep-outcome").as_deref(), Some("nothing"), "{status:?}");
    assert_says(status.message(), says);
}

#[tokio::test]
async fn an_unknown_group_is_refused() {
    let (mut cluster, _) = kv_node().await;
    let request =
        ApplyRequest { group: "vk".to_owned(), command: "set a 1".into(), ..Default::default() };
    let status = wire(&cluster).await.apply(request).await.expect_err("it has no such group");
    assert_refused(&status, Code::NotFound, "unknown-group", &["\"vk\"", "kv"]);

    let options = Options { group: "vk".to_owned(), ..Options::default() };
    let client = cluster.client_of("vk", options).expect("its address is valid");
    let refused = client.apply("set a 1").await.expect_err("it has no such group");
    assert!(matches!(refused, Error::Refused { attempts: 1, .. }), "{refused:?}");

    let endpoint = cluster.address(1).to_owned();
    let output = lockstep(&["apply", "--endpoint", &endpoint, "--group", "vk", "set a 1"]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_says(&output.stderr, &["\"vk\"", "kv"]);
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_command_over_the_limit_is_refused() {
    let (mut cluster, client) = kv_node().await;
    let head = "set big ";
    let fits = format!("{head}{}", "x".repeat(limits::COMMAND_BYTES_MAX - head.len()));
    apply(&client, &fits).await;
    let over = format!("{fits}x");
    let request = ApplyRequest { command: over.into(), ..Default::default() };
    let status = wire(&cluster).await.apply(request).await.expect_err("it is over the limit");
    let limit = limits::COMMAND_BYTES_MAX.to_string();
    assert_refused(&status, Code::InvalidArgument, "too-large", &["command of", &limit]);
    assert_eq!(query(&client, "len").await, "1", "only the first was applied");
    cluster.stop_all().await.expect("it stops");
}

/// The client itself refuses requests that no server accepts, and reports that they were not sent.
#[tokio::test]
async fn what_no_server_takes_is_refused_by_the_client() {
    let (mut cluster, client) = kv_node().await;
    let huge = "x".repeat(9 << 20);
    let session = client.open_session().await.expect("a session");
    let refused = [
        client.apply(huge.clone()).await.map(drop),
        session.apply(huge.clone()).await.map(drop),
        client.query(huge, Consistency::Linearizable).await.map(drop),
    ];
    for refused in refused {
        match refused {
            Err(Error::Refused { refusal, message, .. }) => {
                assert_eq!(refusal, "too-large");
                assert_says(&message, &["9437184 bytes", "over the limit"]);
            }
            other => panic!("nine mebibytes came back as {other:?}"),
        }
    }
    assert_eq!(query(&client, "len").await, "0");
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_query_over_the_limit_is_refused() {
    let (mut cluster, client) = kv_node().await;
    let over = "x".repeat(limits::COMMAND_BYTES_MAX + 1);
    let request = QueryRequest { request: over.into(), ..Default::default() };
    let status = wire(&cluster).await.query(request).await.expect_err("it is over the limit");
    let limit = limits::COMMAND_BYTES_MAX.to_string();
    assert_refused(&status, Code::InvalidArgument, "too-large", &["query of", &limit, "split it"]);
    assert_eq!(query(&client, "len").await, "0", "others go on");
    cluster.stop_all().await.expect("it stops");
}

/// The command is applied; only its answer is replaced, and the next command is answered as usual.
#[tokio::test]
async fn an_answer_over_the_limit_is_a_rejection() {
    let (mut cluster, client) = kv_node().await;
    let session = client.open_session().await.expect("a session");
    let value = "x".repeat(limits::OUTCOME_BYTES_MAX + 1);
    apply_once(&session, &format!("set a {value}")).await;
    // `set` answers with the previous value.
    match session.apply("set a short").await {
        Err(Error::AnswerTooLarge { message }) => {
            let (have, limit) = (value.len().to_string(), limits::OUTCOME_BYTES_MAX.to_string());
            assert_says(&message, &[&have, &limit, "was applied"]);
        }
        other => panic!("an answer over the limit came as {other:?}"),
    }
    assert_eq!(apply_once(&session, "set a shorter").await, "short", "it was applied");
    cluster.stop_all().await.expect("it stops");
}

/// A group has a bounded number of sessions: `lockstep apply` closes its own, also if it fails.
#[tokio::test]
async fn a_command_without_an_outcome_leaves_no_session_open() {
    let (mut cluster, _) = kv_node().await;
    let endpoint = cluster.address(1).to_owned();
    let long = format!("set a {}", "x".repeat(limits::OUTCOME_BYTES_MAX + 1));
    let set = lockstep(&["apply", "--endpoint", &endpoint, &long]).await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    // `set` answers with the previous value, which is over the limit.
    let failed = lockstep(&["apply", "--endpoint", &endpoint, "set a short"]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert_says(&failed.stderr, &["over the limit", "was applied"]);
    let closed = async |cluster: &Cluster| {
        let group = cluster.group(1, GROUP).await?;
        (group.sessions == 0).then_some(())
    };
    cluster.wait_for("no session to be open", PATIENCE, closed).await.expect("both were closed");
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_query_answer_over_the_limit_says_so() {
    let (mut cluster, client) = kv_node().await;
    for key in ["a", "b"] {
        apply(&client, &format!("set {key} {}", "x".repeat(600 << 10))).await;
    }
    let request = QueryRequest { request: "scan  9".into(), ..Default::default() };
    let status = wire(&cluster).await.query(request).await.expect_err("it is over the limit");
    let limit = limits::QUERY_ANSWER_BYTES_MAX.to_string();
    let says = ["over the limit", &limit, "ask for less"];
    assert_refused(&status, Code::InvalidArgument, "query-too-much", &says);
    assert_eq!(query(&client, "len").await, "2", "other queries go on");
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_node_that_is_not_there_is_named() {
    let output = lockstep(&["status", "--endpoint", "127.0.0.1:1"]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_says(&said, &["127.0.0.1:1"]);
}
