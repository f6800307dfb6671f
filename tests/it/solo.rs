//! Clusters of one node, and checks of what a node refuses and must leave alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_client::{Client, Outcome, Session};
use lockstep_tests::cluster::{Cluster, Spec};
use lockstep_tests::process::{Output, run};

/// How long a refusal may take: it is quick, but a busy machine delays it.
pub(crate) const REFUSAL_PATIENCE: Duration = Duration::from_secs(30);

/// The group of these clusters.
pub(crate) const GROUP: &str = "reg";
/// The module of that group, which is built in and needs no compiler.
pub(crate) const MODULE: &str = "native:register";

pub(crate) fn spec() -> Spec {
    Spec::of_module(GROUP, MODULE, 1)
}

/// A node that was started, given commands and stopped again.
pub(crate) async fn stopped_node(commands: &[&str]) -> Cluster {
    let mut cluster = started_node(commands).await;
    cluster.stop_all().await.expect("it stops");
    cluster
}

/// A node that was started and given commands.
pub(crate) async fn started_node(commands: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(spec()).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("its address is valid");
    for command in commands {
        apply(&client, command).await;
    }
    cluster
}

/// Applies a command outside of any session; returns the answer's text.
pub(crate) async fn apply(client: &Client, command: &str) -> String {
    ok(client.apply(command.to_owned()).await.map(|reply| reply.outcome), command)
}

/// Applies a command in a session; returns the answer's text.
pub(crate) async fn apply_once(session: &Session, command: &str) -> String {
    ok(session.apply(command.to_owned()).await.map(|reply| reply.outcome), command)
}

/// The answer to a linearizable query.
pub(crate) async fn query(client: &Client, request: &str) -> String {
    let reply = client.query(request.to_owned(), lockstep_client::Consistency::Linearizable).await;
    ok(reply.map(|reply| reply.outcome), request)
}

fn ok(outcome: Result<Outcome, lockstep_client::Error>, what: &str) -> String {
    match outcome {
        Ok(Outcome::Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        other => panic!("`{what}` was answered {other:?}"),
    }
}

/// All nodes take a snapshot at one checkpoint, and the snapshots are equal.
pub(crate) async fn assert_equal_states(cluster: &mut Cluster, group: &str) {
    let client = cluster.client().expect("its address is valid");
    let captured = cluster.capture(&client, group).await.expect("all take a snapshot");
    captured.equal().expect("one state");
}

/// Runs `lockstep` with these arguments to its end.
pub(crate) async fn lockstep(args: &[&str]) -> Output {
    let binary = lockstep_tests::cluster::binary().expect("it is built");
    run(&binary, args, REFUSAL_PATIENCE).await.expect("it ends")
}

/// Runs `lockstep serve` with a node's configuration, which it must refuse with this exit code;
/// returns its error output.
pub(crate) async fn refused(cluster: &Cluster, node: u16, code: i32) -> String {
    let config = cluster.config_file(node).display().to_string();
    let output = lockstep(&["serve", "--config", &config]).await;
    assert_eq!(output.code, Some(code), "{output:?}");
    output.stderr
}

/// Runs `lockstep serve`, which must exit with 2, say all of `says` and leave the node's data
/// directory as it is.
pub(crate) async fn refused_untouched(cluster: &Cluster, node: u16, says: &[&str]) {
    let data = cluster.data_dir(node);
    let before = contents(&data);
    let said = refused(cluster, node, 2).await;
    assert_eq!(before, contents(&data), "the data directory was touched: {said}");
    assert_says(&said, says);
}

pub(crate) fn assert_says(said: &str, says: &[&str]) {
    for word in says {
        assert!(said.contains(word), "it does not say {word:?}: {said}");
    }
}

/// Waits until the log of a node has all of `says`: a node does not wait until its log is written.
pub(crate) async fn assert_logs(cluster: &mut Cluster, node: u16, says: &[&str]) {
    let has = async |cluster: &Cluster| {
        let log = cluster.log_text(node);
        says.iter().all(|word| log.contains(word)).then_some(())
    };
    let what = format!("node {node} to log {says:?}");
    cluster.wait_for(&what, REFUSAL_PATIENCE, has).await.expect("it does");
}

/// Every file below a directory, with a digest of its bytes.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory can be read") {
            let path = entry.expect("its entries as well").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let bytes = std::fs::read(&path).expect("a file can be read");
                found.insert(path, blake3::hash(&bytes));
            }
        }
    }
    found
}
