//! The metrics' port, as a scraper sees it.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use lockstep_tests::cluster::Cluster;
use lockstep_tests::observe::PATIENCE;

use crate::solo::{GROUP, MODULE, apply, assert_says, spec};

/// The operators' reference.
const REFERENCE: &str = include_str!("../../docs/operating/reference.md");

/// Metrics that have no row until what they measure happens, which it does not in this test.
const RARE: &[&str] = &["lockstep_log_stalled_seconds", "lockstep_snapshots_stalled_seconds"];

/// The names in the first column of the reference's tables of metrics, without their labels.
fn documented() -> BTreeSet<&'static str> {
    let (_, tables) = REFERENCE.split_once("\n## Metrics\n").expect("the page has the section");
    let cells = tables.lines().filter_map(|row| row.strip_prefix("| `")?.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split("`, `"));
    names.filter_map(|name| name.split(['{', '`']).next()).collect()
}

/// The names that a scrape describes; those of counters get the `_total` that their rows have.
fn described(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let named = types.filter_map(|line| line.split_once(' ')).map(|(name, kind)| {
        let total = if kind == "counter" && !name.ends_with("_total") { "_total" } else { "" };
        format!("{name}{total}")
    });
    named.collect()
}

/// Fetches `path`; returns the status line with the headers, in lower case, and the body.
fn scrape(address: &str, path: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and ends");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
    (head.to_ascii_lowercase(), body.to_owned())
}

/// The value in the row that begins with `row`.
fn value(text: &str, row: &str) -> f64 {
    let found = text.lines().find(|line| line.starts_with(row));
    let line = found.unwrap_or_else(|| panic!("no row begins with {row}: {text}"));
    line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a value")
}

/// Checks the rules of `promtool check metrics` that concern this text.
fn check_metrics(text: &str) {
    let described = |kind: &str, name: &str| text.contains(&format!("# {kind} {name} "));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = family.filter(|family| described("TYPE", family)).unwrap_or(name);
        assert!(described("HELP", name) && described("TYPE", name), "{name} is not described");
        let is_counter = text.contains(&format!("# TYPE {name} counter"));
        assert_eq!(is_counter, name.ends_with("_total"), "{name}");
        for unit in ["milliseconds", "_ms", "_minutes", "kilobytes", "_mib"] {
            assert!(!name.contains(unit), "{name}: seconds and bytes are the base units");
        }
    }
}

/// Gives the cluster's only node an address for its metrics and returns it. A cluster has 16 ports
/// to itself, and its nodes take the first ones.
fn metrics_of(cluster: &Cluster) -> String {
    let (host, port) = cluster.address(1).rsplit_once(':').expect("host:port");
    let address = format!("{host}:{}", port.parse::<u16>().expect("a port") + 8);
    let listens = format!("metrics-listen = \"{address}\"\n{}", cluster.configuration(1));
    cluster.configure(1, &listens).expect("it can be written");
    address
}

/// While a node starts, a scrape shows that the process runs and is not ready.
#[tokio::test]
async fn a_node_that_starts_shows_that_it_does() {
    let mut cluster = Cluster::prepare(spec()).expect("a directory");
    let address = metrics_of(&cluster);
    // The start reads the module, here a pipe that nobody writes to.
    let module = cluster.root().join("slow.wasm");
    let made = std::process::Command::new("mkfifo").arg(&module).status();
    assert!(made.expect("mkfifo runs").success());
    let configured = cluster.configuration(1).replace(MODULE, &module.display().to_string());
    let listens = format!("metrics-listen = \"{address}\"\n{configured}");
    cluster.configure(1, &listens).expect("it can be written");
    cluster.start_node(1).expect("it starts");
    let listening = async |_: &Cluster| TcpStream::connect(&address).ok();
    cluster.wait_for("the metrics' port", PATIENCE, listening).await.expect("it listens");
    let (head, text) = scrape(&address, "/metrics", "*/*");
    assert_says(&head, &["200 ok"]);
    check_metrics(&text);
    assert_eq!(value(&text, "lockstep_ready "), 0.0);
    assert_eq!(value(&text, "lockstep_stderr_lines_lost_total "), 0.0);
    assert!(!text.contains("lockstep_group_state"), "nothing is known of its groups: {text}");
    cluster.stop(1).await.expect("it ends while it starts");
}

/// Covers V1 V4.
#[tokio::test]
async fn metrics_are_served_and_count() {
    let mut spec = spec();
    spec.settings.push("snapshot-budget = \"64MiB\"".to_owned());
    // The second snapshot does not fit under this cap.
    spec.groups[0].settings.push("snapshot-cap = \"8KiB\"".to_owned());
    let mut cluster = Cluster::prepare(spec).expect("a directory");
    let address = metrics_of(&cluster);
    cluster.start_node(1).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("its address is valid");
    apply(&client, "set a 1").await;
    client.checkpoint().await.expect("it leads");
    let failed = async |cluster: &Cluster| {
        (cluster.group(1, GROUP).await?.captures_failed > 0).then_some(())
    };
    cluster.wait_for("a capture to fail", PATIENCE, failed).await.expect("it fails");

    let (head, text) = scrape(&address, "/metrics", "application/openmetrics-text;q=0.5,*/*;q=0.1");
    assert_says(&head, &["200 ok", "content-type: application/openmetrics-text"]);
    assert!(text.ends_with("# EOF\n"), "it is whole: {text}");
    let (documented, described) = (documented(), described(&text));
    for name in &described {
        assert!(documented.contains(name.as_str()), "{name} is not in the reference");
    }
    for name in documented.iter().filter(|name| !RARE.contains(name)) {
        assert!(described.contains(*name), "{name} is in the reference, but is not served");
    }
    let of = |name: &str, more: &str| format!("{name}{{group=\"{GROUP}\"{more}}}");
    assert_eq!(value(&text, "lockstep_ready "), 1.0);
    assert_eq!(value(&text, &of("lockstep_group_leads", "")), 1.0);
    assert!(value(&text, &of("lockstep_leader_changes_total", "")) >= 1.0);
    for times in ["commit", "apply"] {
        assert!(value(&text, &of(&format!("lockstep_{times}_seconds_count"), "")) >= 1.0);
    }
    assert!(value(&text, "lockstep_log_fsync_seconds_count ") >= 1.0);
    let method = |name: &str, code: &str| format!("{name}{{method=\"Apply\"{code}}}");
    assert!(value(&text, &method("lockstep_request_seconds_count", "")) >= 1.0);
    assert!(value(&text, &method("lockstep_requests_total", ",code=\"OK\"")) >= 1.0);
    assert_eq!(value(&text, &of("lockstep_group_state", ",state=\"serving\"")), 1.0);
    assert!(value(&text, &of("lockstep_applied_index", "")) >= 2.0);
    assert!(value(&text, &of("lockstep_snapshots_failed_total", "")) >= 1.0);
    let refused = ",producer=\"local\",reason=\"no_space\"";
    assert!(value(&text, &of("lockstep_reservations_refused_total", refused)) >= 1.0);
    assert_eq!(value(&text, &of("lockstep_snapshot_bytes", ",class=\"live\"")), 0.0);
    assert!(value(&text, &of("lockstep_disk_available_bytes", "")) > 0.0);
    let (head, text) = scrape(&address, "/metrics", "*/*");
    assert_says(&head, &["200 ok", "content-type: text/plain; version=0.0.4"]);
    check_metrics(&text);
    let (head, _) = scrape(&address, "/elsewhere", "*/*");
    assert_says(&head, &["404"]);
    cluster.stop_all().await.expect("it stops");
}
