//! Data directories that belong to another node, are incomplete or cannot be written: the node
//! refuses them and leaves them as they are.

use std::fs;
use std::path::PathBuf;

use lockstep_tests::cluster::Cluster;

use crate::solo::{
    GROUP, apply, assert_logs, assert_says, contents, lockstep, query, refused, refused_untouched,
    spec, started_node, stopped_node,
};

/// Changes one line of node 1's configuration.
fn reconfigure(cluster: &Cluster, from: &str, to: &str) {
    let good = cluster.configuration(1);
    assert!(good.contains(from), "the configuration has no {from:?}: {good}");
    cluster.configure(1, &good.replacen(from, to, 1)).expect("it can be written");
}

/// Finds the log segment that holds `needle`; returns its path and the offset of `needle`.
pub(crate) fn find_in_log(cluster: &Cluster, needle: &str) -> (PathBuf, usize) {
    let wal = cluster.data_dir(1).join("wal");
    for entry in fs::read_dir(&wal).expect("there is a log") {
        let path = entry.expect("its files can be listed").path();
        let bytes = fs::read(&path).expect("a segment can be read");
        let place = bytes.windows(needle.len()).position(|bytes| bytes == needle.as_bytes());
        if let Some(place) = place {
            return (path, place);
        }
    }
    panic!("{} does not hold {needle:?}", wal.display())
}

fn change(path: &PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("it can be read");
    change(&mut bytes);
    fs::write(path, bytes).expect("it can be written");
}

#[tokio::test]
async fn a_directory_that_another_process_uses_is_refused() {
    let mut cluster = started_node(&["set a 1"]).await;
    let configuration = cluster.configuration(1);
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &["listen on", "another process uses the port", "`listen`"]);
    let (host, port) = cluster.address(1).rsplit_once(':').expect("host:port");
    let other = format!("{host}:{}", port.parse::<u16>().expect("a port") + 8);
    let elsewhere = format!("listen = \"{other}\"\n{configuration}");
    cluster.configure(1, &elsewhere).expect("it can be written");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &["/data", "locked", "another process", "its own data-dir"]);
    let client = cluster.client().expect("its address is valid");
    assert_eq!(query(&client, "get a").await, "1", "the first process still serves");
    cluster.stop_all().await.expect("it stops");
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_refused() {
    let cluster = stopped_node(&["set a 1"]).await;
    reconfigure(&cluster, "cluster = \"test\"", "cluster = \"prod\"");
    let says = ["/data", "cluster=test", "cluster=prod", "nothing was touched", "data-dir"];
    refused_untouched(&cluster, 1, &says).await;
}

#[tokio::test]
async fn a_directory_of_another_node_is_refused() {
    let cluster = stopped_node(&["set a 1"]).await;
    reconfigure(&cluster, "node = 1", "node = 2");
    let good = fs::read_to_string(cluster.config_file(1)).expect("it was written");
    let two = good.replacen("[nodes]\n1 =", "[nodes]\n2 =", 1);
    cluster.configure(1, &two).expect("it can be written");
    refused_untouched(&cluster, 1, &["/data", "node=1", "node=2", "nothing was touched"]).await;
}

#[tokio::test]
async fn a_directory_of_a_newer_format_is_refused() {
    let cluster = stopped_node(&["set a 1"]).await;
    let owner = cluster.data_dir(1).join("node");
    let text = fs::read_to_string(&owner).expect("it has an owner");
    fs::write(&owner, text.replacen("format=1", "format=99", 1)).expect("it can be written");
    let says = ["/data", "format 99", "nothing was touched", "use a newer lockstep"];
    refused_untouched(&cluster, 1, &says).await;
}

#[tokio::test]
async fn a_log_of_a_newer_format_is_refused() {
    let says = ["/wal/", "log format 99", "nothing was touched", "start the newer program"];
    let cluster = stopped_node(&["set needle 1"]).await;
    let (segment, _) = find_in_log(&cluster, "needle");
    change(&segment, |bytes| {
        // The version stands at byte 8 of the header, its checksum at 60.
        bytes[8] = 99;
        let sum = crc32c::crc32c(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&sum);
    });
    refused_untouched(&cluster, 1, &says).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused() {
    let cluster = stopped_node(&[]).await;
    // Even root cannot make a directory in a file.
    reconfigure(&cluster, "data-dir = \"data\"", "data-dir = \"node.toml/data\"");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &["node.toml/data", "create it", "make it writable", "data-dir"]);
}

#[tokio::test]
async fn a_directory_without_its_log_is_refused() {
    let cluster = stopped_node(&["set a 1"]).await;
    fs::remove_dir_all(cluster.data_dir(1).join("wal")).expect("there is a log");
    let says = ["/data", "wal/ is missing", "nothing was touched", "--rejoin"];
    refused_untouched(&cluster, 1, &says).await;
}

#[tokio::test]
async fn a_directory_without_its_owner_is_refused() {
    let cluster = stopped_node(&["set a 1"]).await;
    fs::remove_file(cluster.data_dir(1).join("node")).expect("it has an owner");
    refused_untouched(&cluster, 1, &["/data", "no file `node`", "nothing was touched"]).await;
    fs::write(cluster.data_dir(1).join("node"), "what").expect("it can be written");
    refused_untouched(&cluster, 1, &["/data", "`node` is damaged", "nothing was touched"]).await;
}

/// `--rejoin` sets aside only a data directory that belongs to this node of this cluster.
#[tokio::test]
async fn rejoin_does_not_touch_what_is_anothers() {
    let cluster = stopped_node(&["set a 1"]).await;
    reconfigure(&cluster, "cluster = \"test\"", "cluster = \"elsewhere\"");
    let before = contents(&cluster.data_dir(1));
    let config = cluster.config_file(1).display().to_string();
    let output = lockstep(&["serve", "--config", &config, "--rejoin"]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert_says(&output.stderr, &["cluster=test", "cluster=elsewhere", "nothing was touched"]);
    assert_eq!(contents(&cluster.data_dir(1)), before);
}

/// A start that refuses its module leaves no directory behind.
#[tokio::test]
async fn a_start_that_is_refused_for_its_module_makes_no_directory() {
    let cluster = Cluster::prepare(spec()).expect("a directory");
    reconfigure(&cluster, "native:register", "nowhere.wasm");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &["nowhere.wasm", "correct `module`"]);
    assert!(!cluster.data_dir(1).exists(), "nothing was touched");
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_refused() {
    let cluster = stopped_node(&["set needle 1", "set later 2", "set latest 3"]).await;
    let (segment, place) = find_in_log(&cluster, "needle");
    change(&segment, |bytes| bytes[place] ^= 0x10);
    let name = segment.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
    let says = ["corrupt", &name, "offset", "nothing was touched", "--rejoin"];
    refused_untouched(&cluster, 1, &says).await;
}

#[tokio::test]
async fn a_log_file_that_was_cut_is_refused() {
    let cluster = stopped_node(&["set needle 1", "set later 2"]).await;
    let (segment, place) = find_in_log(&cluster, "later");
    change(&segment, |bytes| bytes.truncate(place));
    refused_untouched(&cluster, 1, &["corrupt", "was truncated", "nothing was touched"]).await;
}

/// A crash in the middle of a write leaves an incomplete batch with nothing after it.
#[tokio::test]
async fn a_torn_tail_recovers() {
    let mut cluster = stopped_node(&["set early 1", "set torn 2"]).await;
    let (segment, place) = find_in_log(&cluster, "torn");
    change(&segment, |bytes| bytes[place..].fill(0));
    cluster.start_node(1).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    assert_logs(&mut cluster, 1, &["torn tail"]).await;
    let client = cluster.client().expect("its address is valid");
    assert_eq!(query(&client, "get early").await, "1", "the complete batch is there");
    assert_eq!(query(&client, "len").await, "1", "the torn batch is not");
    apply(&client, "set torn 3").await;
    cluster.kill(1).expect("it runs");
    cluster.start_node(1).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves again");
    assert_eq!(query(&client, "get torn").await, "3");
    cluster.stop_all().await.expect("it stops");
}
