//! Stopping nodes, strangers, and clocks that are wrong.

use lockstep_client::Options;
use lockstep_core::ids::hex;
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::solo::{GROUP, MODULE, apply, apply_once, assert_logs, assert_says, lockstep, query};

async fn three() -> (Cluster, u16) {
    let mut cluster = Cluster::start(Spec::of_module(GROUP, MODULE, 3)).expect("it starts");
    let leader = cluster.wait_serving(GROUP).await.expect("it serves");
    (cluster, leader)
}

/// A leader that gets SIGTERM hands leadership over before it exits with 0: another node leads at
/// its request, not after a timeout. No acknowledged command is lost.
#[tokio::test]
async fn sigterm_hands_leadership_over_and_exits_with_0() {
    let (mut cluster, leader) = three().await;
    let client = cluster.client().expect("good addresses");
    apply(&client, "set a 1").await;
    let term = cluster.group(leader, GROUP).await.expect("it answers").term;
    let status = cluster.stop(leader).await.expect("it ends within the bound");
    assert!(status.success(), "{status}");
    let next = cluster.wait_leader(GROUP, Some(leader)).await.expect("another one leads");
    let after = cluster.group(next, GROUP).await.expect("it answers").term;
    assert_eq!(after, term + 1, "one campaign was enough");
    assert_says(&cluster.log_text(leader), &["node stopped"]);
    assert_eq!(query(&client, "get a").await, "1");
    cluster.start_node(leader).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves again");
    cluster.stop_all().await.expect("they stop");
}

/// SIGHUP, as log rotation or a closed terminal may send it, does not end a node.
#[tokio::test]
async fn sighup_ends_nothing() {
    let mut cluster = crate::solo::started_node(&["set a 1"]).await;
    signal(&cluster, Signal::HUP);
    let said = async |cluster: &Cluster| cluster.log_text(1).contains("SIGHUP").then_some(());
    cluster.wait_for("the node to say so", PATIENCE, said).await.expect("it does");
    let client = cluster.client().expect("its address is valid");
    assert_eq!(query(&client, "get a").await, "1");
    cluster.stop_all().await.expect("it stops");
}

/// A start may take for ever, here because the module is a pipe that nobody writes to. Meanwhile
/// the node answers health checks, refuses clients, and ends on SIGTERM.
#[tokio::test]
async fn a_start_that_takes_long_is_answered_for_and_can_be_stopped() {
    let mut cluster = Cluster::prepare(Spec::of_module(GROUP, "pipe.wasm", 1)).expect("a place");
    let pipe = cluster.config_file(1).with_file_name("pipe.wasm");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("it is there");
    assert!(made.success(), "{made}");
    cluster.start_node(1).expect("it starts");
    let channel = async |cluster: &Cluster| {
        let address = format!("http://{}", cluster.address(1));
        tonic::transport::Channel::from_shared(address).expect("an address").connect().await.ok()
    };
    let channel = cluster.wait_for("its port", PATIENCE, channel).await.expect("it is open");
    let mut health = HealthClient::new(channel);
    for (service, status) in [
        ("", ServingStatus::NotServing),
        ("readiness", ServingStatus::NotServing),
        ("liveness", ServingStatus::Serving),
    ] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("it is answered").into_inner();
        assert_eq!(answer.status(), status, "{service:?}");
    }
    let told = lockstep(&["query", "--endpoint", cluster.address(1), "--timeout", "1", "x"]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert_says(&told.stderr, &["this node is starting"]);
    let status = cluster.stop(1).await.expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(!cluster.data_dir(1).exists(), "nothing was made");
}

fn signal(cluster: &Cluster, signal: Signal) {
    let id = cluster.process(1).expect("it runs").id();
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).expect("an id above 0");
    kill_process(id, signal).expect("it runs");
}

/// A paused leader is replaced, and follows when it is resumed.
#[tokio::test]
async fn a_leader_that_sleeps_is_replaced() {
    let (mut cluster, leader) = three().await;
    let client = cluster.client().expect("good addresses");
    // In a session, because the paused node accepts a command and does not answer.
    let session = client.open_session().await.expect("a session");
    apply_once(&session, "set a 1").await;
    cluster.process(leader).and_then(|process| process.pause()).expect("it runs");
    let others: Vec<u16> = cluster.nodes().into_iter().filter(|node| *node != leader).collect();
    let replaced = async |cluster: &Cluster| {
        for node in &others {
            let status = cluster.group(*node, GROUP).await?;
            if status.role() == lockstep_client::v1::group_status::Role::Leader {
                return Some(*node);
            }
        }
        None
    };
    cluster.wait_for("another leader", PATIENCE, replaced).await.expect("it is replaced");
    apply_once(&session, "set a 2").await;
    cluster.process(leader).and_then(|process| process.resume()).expect("it runs");
    cluster.wait_serving(GROUP).await.expect("it follows");
    assert_eq!(query(&client, "get a").await, "2");
    cluster.stop_all().await.expect("they stop");
}

/// A process of another cluster runs at a configured address: each side reports the other, and
/// neither is disturbed.
#[tokio::test]
async fn a_peer_of_another_cluster_is_refused() {
    let (mut cluster, _) = three().await;
    cluster.kill(3).expect("it runs");
    cluster.wipe(3).expect("it is stopped");
    let other = cluster.configuration(3).replacen("\"test\"", "\"elsewhere\"", 1);
    cluster.configure(3, &other).expect("it can be written");
    cluster.start_node(3).expect("it starts");
    for (node, peer) in [(1_u16, 3_u16), (3, 1)] {
        let said = async |cluster: &Cluster| {
            let errors = cluster.status(node).await?.peer_errors;
            let error = errors.into_iter().find(|error| error.node == u32::from(peer))?.error;
            error.contains("cluster").then_some(error)
        };
        let what = format!("node {node} to say what is wrong with {peer}");
        let error = cluster.wait_for(&what, PATIENCE, said).await.expect("it says so");
        assert_says(&error, &["test", "elsewhere", "check the addresses"]);
    }
    let client = cluster.client_of("", Options::default()).expect("good addresses");
    apply(&client, "set a 1").await;
    let stranger = cluster.group(3, GROUP).await.expect("it answers");
    assert_eq!(stranger.applied, 0, "it received entries: {stranger:?}");
    cluster.stop_all().await.expect("they stop");
}

/// A node runs on the disk of another group of the same name: each side reports the other as a
/// stranger and accepts nothing from it.
#[tokio::test]
async fn a_disk_of_another_bootstrap_is_a_stranger() {
    let (mut cluster, _) = three().await;
    let first = cluster.group(1, GROUP).await.expect("it answers").lineage;
    cluster.stop_all().await.expect("they stop");
    let data = cluster.data_dir(3);
    let kept = data.with_extension("kept");
    std::fs::rename(&data, &kept).expect("it can be moved");
    cluster.wipe(1).expect("it is stopped");
    cluster.wipe(2).expect("it is stopped");
    for node in cluster.nodes() {
        cluster.start_node(node).expect("it starts");
    }
    cluster.wait_serving(GROUP).await.expect("it serves");
    let second = cluster.group(1, GROUP).await.expect("it answers").lineage;
    assert_ne!(first, second);
    cluster.kill(3).expect("it runs");
    cluster.wipe(3).expect("it is stopped");
    std::fs::rename(&kept, &data).expect("it can be moved");
    cluster.start_node(3).expect("it starts");
    for (node, peer, theirs) in [(3_u16, 1_u32, &second), (1, 3, &first)] {
        let said = async |cluster: &Cluster| {
            let strangers = cluster.group(node, GROUP).await?.strangers;
            strangers.into_iter().find(|stranger| stranger.node == peer)
        };
        let what = format!("node {node} to say that {peer} is a stranger");
        let stranger = cluster.wait_for(&what, PATIENCE, said).await.expect("it says so");
        assert_eq!(stranger.lineage, theirs);
        let shown = lockstep(&["status", "--endpoint", cluster.address(node)]).await;
        let (ours, theirs) = if node == 3 { (&first, &second) } else { (&second, &first) };
        assert_says(&shown.stdout, &["speaks for another group", &hex(ours), &hex(theirs)]);
        let logged = async |cluster: &Cluster| {
            cluster.log_text(node).contains("speaks for another group of this name").then_some(())
        };
        cluster.wait_for("it to log that", PATIENCE, logged).await.expect("it is in the log");
    }
    let client = cluster.client().expect("good addresses");
    apply(&client, "set a 1").await;
    cluster.stop_all().await.expect("they stop");
}

/// A node whose clock is an hour ahead votes and follows, but does not lead while another node can.
#[tokio::test]
async fn a_clock_that_is_an_hour_ahead_never_leads() {
    let spec = Spec::of_module(GROUP, MODULE, 3);
    let mut cluster = Cluster::prepare(spec).expect("a directory");
    let good = cluster.configuration(1);
    let wrong = good.replacen("node = 1\n", "node = 1\ntest-clock-offset-ms = 3600000\n", 1);
    cluster.configure(1, &wrong).expect("it can be written");
    for node in cluster.nodes() {
        cluster.start_node(node).expect("it starts");
    }
    let off = async |cluster: &Cluster| {
        let status = cluster.group(1, GROUP).await?;
        (status.clock_is_off && status.reluctant).then_some(())
    };
    cluster.wait_for("node 1 to be reluctant", PATIENCE, off).await.expect("it knows");
    let says = ["clock is more than 5 s off the others'", "correct it (NTP)"];
    let shown = lockstep(&["status", "--endpoint", cluster.address(1)]).await;
    assert_says(&shown.stdout, &says);
    assert_logs(&mut cluster, 1, &says).await;
    // Node 1 may have won the very first election, before it knew the time of the others.
    let others_lead = async |cluster: &Cluster| cluster.leader(GROUP).await.filter(|l| *l != 1);
    let mut leader = cluster.wait_for("2 or 3 to lead", PATIENCE, others_lead).await.expect("one");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("good addresses");
    for round in 0..2 {
        apply(&client, &format!("set round {round}")).await;
        // A node that lacks an entry cannot be elected, and then node 1 would have to lead.
        let index = cluster.settled_index(&client).await.expect("it is served");
        for node in cluster.nodes() {
            cluster.wait_applied(node, GROUP, index, PATIENCE).await.expect("it follows");
        }
        cluster.kill(leader).expect("it runs");
        let next = cluster.wait_leader(GROUP, Some(leader)).await.expect("there is one");
        assert_eq!(next, 5 - leader, "only the node with a good clock may lead");
        cluster.start_node(leader).expect("it starts");
        cluster.wait_serving(GROUP).await.expect("it serves");
        leader = next;
    }
    cluster.stop_all().await.expect("they stop");
}
