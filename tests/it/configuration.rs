//! What `lockstep serve` refuses before it touches the disk: a bad configuration, a port in use.

use std::net::TcpListener;

use lockstep_tests::cluster::Cluster;

use crate::solo::{assert_says, lockstep, refused, spec};

/// Replaces `from` with `to` in a good configuration; `lockstep serve` must exit with 2 and print
/// all of `says`.
async fn check(from: &str, to: &str, says: &[&str]) {
    let cluster = Cluster::prepare(spec()).expect("a directory");
    let good = cluster.configuration(1);
    assert!(good.contains(from), "the configuration has no {from:?}: {good}");
    cluster.configure(1, &good.replacen(from, to, 1)).expect("it can be written");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, says);
    assert_says(&said, &["node.toml"]);
    assert!(!cluster.data_dir(1).exists(), "a data directory was made: {said}");
}

#[tokio::test]
async fn an_unknown_key_is_refused() {
    check("data-dir =", "data-dri =", &["data-dri", "data-dir"]).await;
}

#[tokio::test]
async fn a_bad_address_is_refused() {
    check("[nodes]\n1 = \"127.", "[nodes]\n7 = \"nowhere\"\n1 = \"127.", &["nowhere", "host:port"])
        .await;
}

#[tokio::test]
async fn a_duplicate_group_is_refused() {
    let twice = "[[groups]]\nname = \"reg\"\nmodule = \"native:register\"\n\n[[groups]]";
    check("[[groups]]", twice, &["\"reg\"", "configured twice"]).await;
}

#[tokio::test]
async fn a_duplicate_node_id_is_refused() {
    check("[nodes]", "[nodes]\n01 = \"127.0.0.1:1\"", &["node 1", "listed twice"]).await;
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_refused() {
    let output = lockstep(&["serve", "--config", "/nowhere/node.toml"]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert_says(&output.stderr, &["/nowhere/node.toml", "No such file"]);
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_help_with_0() {
    let wrong = lockstep(&["serve", "--cofnig", "x"]).await;
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert_says(&wrong.stderr, &["--cofnig", "--config"]);
    let help = lockstep(&["--help"]).await;
    assert_eq!(help.code, Some(0), "{help:?}");
    assert_says(&help.stdout, &["serve", "dev", "apply", "query", "status", "check", "snapshot"]);
}

#[tokio::test]
async fn a_port_in_use_is_refused() {
    let cluster = Cluster::prepare(spec()).expect("a directory");
    let _taken = TcpListener::bind(cluster.address(1)).expect("nobody else has this address");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &[cluster.address(1), "in use", "stop it or change `listen`"]);
}
