//! Small runs of `cargo xtask chaos`, `killloop`, `transfer` and `demo`, and one retry by hand.

use std::time::Duration;

use lockstep_client::v1::lockstep_client::LockstepClient;
use lockstep_client::v1::{ApplyRequest, OpenSessionRequest, apply_response};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::demo::Demo;
use lockstep_tests::rng;
use lockstep_tests::tell::Teller;
use lockstep_tests::{bank, killloop, transfer};

use crate::solo::{apply, query};

#[tokio::test(flavor = "multi_thread")]
async fn every_transfer_is_accounted_for_when_leaders_are_killed() {
    let plan =
        bank::Plan { time: Duration::from_secs(15), kills: 2, clients: 8, seed: rng::seed(1) };
    let figures = bank::run(plan, &mut Teller::new("bank")).await.expect("every promise is kept");
    assert!(figures.acknowledged > 0 && figures.retried_across_leaders > 0, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_comes_back_each_time() {
    let plan = killloop::Plan {
        times: 5,
        node: 1,
        seed: rng::seed(1),
        limit: Duration::from_secs(30),
        compare_every: 5,
        life: Duration::from_millis(500),
    };
    let figures =
        killloop::run(plan, &mut Teller::new("kill loop")).await.expect("every promise is kept");
    assert_eq!((figures.back_after.len(), figures.comparisons), (5, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_takes_little_memory() {
    let plan = transfer::Plan { state_bytes: 32 << 20, limit_bytes: 20 << 20 };
    let figures =
        transfer::run(plan, &mut Teller::new("transfer")).await.expect("every promise is kept");
    assert!(figures.snapshot_bytes >= plan.state_bytes, "{figures:?}");
}

/// Runs the steps of `cargo xtask demo`.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_comes_true() {
    let mut demo = Demo::start(Teller::new("demo")).await.expect("it starts");
    demo.tell().await.expect("every step succeeds");
    demo.stop().await.expect("all exit with 0");
}

/// A client loses its answer with the leader. It retries at the next leader with the same session
/// and sequence, after another client has moved money: it gets the balances of its first attempt,
/// and the money has moved once.
#[tokio::test]
async fn a_retry_across_a_change_of_leader_gets_the_first_outcome() {
    let spec = Spec::of_guest("bank", 3).expect("it is built");
    let mut cluster = Cluster::start(spec).expect("it starts");
    let leader = cluster.wait_serving("bank").await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    apply(&client, "open a 100").await;
    apply(&client, "open b 100").await;
    let session = wire(&cluster, leader)
        .await
        .open_session(OpenSessionRequest { group: String::new(), nonce: 7 })
        .await
        .expect("a session")
        .into_inner()
        .session;
    let request = ApplyRequest {
        group: String::new(),
        session,
        sequence: 1,
        lowest_unanswered: 1,
        command: "transfer once a b 10".into(),
        relief: false,
    };
    let first = wire(&cluster, leader).await.apply(request.clone()).await.expect("an answer");
    let first = first.into_inner();
    assert_eq!(first.outcome, Some(apply_response::Outcome::Ok("90 110".into())));
    apply(&client, "transfer other b a 50").await;

    cluster.kill(leader).expect("it runs");
    let next = cluster.wait_leader("bank", Some(leader)).await.expect("another one leads");
    let again = wire(&cluster, next).await.apply(request).await.expect("an answer");
    assert_eq!(again.into_inner(), first, "the first outcome, not a new one");
    assert_eq!(query(&client, "count once").await, "1");
    assert_eq!(query(&client, "balance a").await, "140");
    cluster.stop_all().await.expect("they stop");
}

async fn wire(cluster: &Cluster, node: u16) -> LockstepClient<tonic::transport::Channel> {
    LockstepClient::connect(format!("http://{}", cluster.address(node))).await.expect("it listens")
}
