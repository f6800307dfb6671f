//! Many clients at real nodes.

use std::net::TcpStream;

use lockstep_client::{Client, Options};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{GROUP, MODULE, apply, query};

/// Nodes with few descriptors, and at each of them far more idle connections than those: other
/// clients get in, the log goes on from segment to segment, and no node ends.
#[tokio::test]
async fn idle_connections_take_no_descriptor_that_is_needed() {
    const DESCRIPTORS: u32 = 128;
    const IDLE: usize = 300;
    let mut cluster = Cluster::prepare(Spec::of_module(GROUP, MODULE, 3)).expect("it is written");
    for node in cluster.nodes() {
        cluster.start_node_limited(node, DESCRIPTORS).expect("it starts");
    }
    cluster.wait_serving(GROUP).await.expect("it serves");
    let mut idle = Vec::new();
    for node in cluster.nodes() {
        for _ in 0..IDLE {
            idle.push(TcpStream::connect(cluster.address(node)).expect("it listens"));
        }
    }
    let client = cluster.client().expect("its address is one");
    let value = "v".repeat(50_000);
    for n in 0..100 {
        apply(&client, &format!("set key{n} {value}")).await;
    }
    for node in cluster.nodes() {
        let other = Client::connect([cluster.address(node)], Options::default());
        let other = other.expect("its address is one");
        assert_eq!(query(&other, "len").await, "100");
    }
    // Followers have it too: their links were not cut.
    let caught_up = async |cluster: &Cluster| {
        for node in cluster.nodes() {
            let status = cluster.group(node, GROUP).await?;
            if status.applied < 100 {
                return None;
            }
        }
        Some(())
    };
    cluster.wait_for("everybody to have it", PATIENCE, caught_up).await.expect("they do");
    cluster.check_running().expect("nobody ended");
    drop(idle);
    cluster.stop_all().await.expect("it stops");
}
