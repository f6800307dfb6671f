//! Many clients connected to real nodes.

use std::net::TcpStream;

use lockstep_client::{Client, Options};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{GROUP, MODULE, apply, query};

/// Each node has far more idle connections than file descriptors. Other clients still get in, the
/// log still continues in new segments, and no node exits.
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
    let client = cluster.client().expect("its address is valid");
    let value = "v".repeat(50_000);
    for n in 0..100 {
        apply(&client, &format!("set key{n} {value}")).await;
    }
    for node in cluster.nodes() {
        let other = Client::connect([cluster.address(node)], Options::default());
        let other = other.expect("its address is valid");
        assert_eq!(query(&other, "len").await, "100");
    }
    // Followers have applied the commands, too: their peer links were not cut.
    let caught_up = async |cluster: &Cluster| {
        for node in cluster.nodes() {
            let status = cluster.group(node, GROUP).await?;
            if status.applied < 100 {
                return None;
            }
        }
        Some(())
    };
    cluster.wait_for("every node to apply them", PATIENCE, caught_up).await.expect("they do");
    cluster.check_running().expect("every node runs");
    drop(idle);
    cluster.stop_all().await.expect("it stops");
}
