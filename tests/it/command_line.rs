//! The commands as a person types them: what they print, and their exit codes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockstep_client::{Client, Options};
use lockstep_tests::cluster::{STOP_PATIENCE, binary, guest_file, last_lines};
use lockstep_tests::observe::PATIENCE;
use lockstep_tests::process::Process;
use rustix::process::{Pid, Signal, kill_process};

use crate::solo::{assert_says, lockstep};

/// How often a wait checks its condition.
const POLL: Duration = Duration::from_millis(50);

/// Waits until `condition` returns a value; if it does not, panics with the end of `log`.
async fn wait_for<T>(what: &str, log: &Path, condition: impl AsyncFn() -> Option<T>) -> T {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if let Some(found) = condition().await {
            return found;
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("timed out waiting for {what}; {}", last_lines(log, 10))
}

/// Runs a command that must succeed and returns what it printed.
async fn prints(args: &[&str]) -> String {
    let output = lockstep(args).await;
    assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
    output.stdout
}

/// Starts `lockstep dev` with this many nodes in a directory; returns once it has printed their
/// endpoints.
async fn dev(dir: &Path, nodes: &str) -> (Process, String) {
    // The log of an earlier run must not be taken for this one's.
    let _ = fs::remove_file(dir.join("log"));
    let (kv, log) = (guest_file("kv").expect("it is built"), dir.join("log"));
    let (kv, data) = (kv.display().to_string(), dir.join("data").display().to_string());
    let args = ["dev", &kv, "--nodes", nodes, "--data-dir", &data];
    let process = Process::start(&binary().expect("it is built"), &args, &log).expect("it starts");
    let told = async || {
        let text = fs::read_to_string(&log).ok()?;
        // A newline shows that the line was printed to its end.
        let (_, rest) = text.split_once("lockstep status --endpoint ")?;
        rest.split_once('\n').map(|(endpoint, _)| endpoint.to_owned())
    };
    let endpoint = wait_for("the endpoint to be printed", &log, told).await;
    (process, endpoint)
}

fn command_from_stdin(dir: &Path, endpoint: &str, command: &str) -> String {
    let file = dir.join("command");
    fs::write(&file, command).expect("it can be written");
    let output = Command::new(binary().expect("it is built"))
        .args(["apply", "--endpoint", endpoint])
        .stdin(Stdio::from(fs::File::open(&file).expect("it was written")))
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).expect("it is text")
}

#[tokio::test]
async fn a_cluster_to_try_things_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut process, endpoint) = dev(dir.path(), "1").await;
    let at = ["--endpoint", &endpoint];
    let with = |words: &[&'static str]| -> Vec<String> {
        let (command, rest) = words.split_first().expect("there is a command");
        [command].into_iter().chain(&at).chain(rest).map(|word| (*word).to_owned()).collect()
    };
    let run = async |words: &[&'static str]| {
        let args = with(words);
        prints(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
    };

    assert_eq!(run(&["apply", "set city Basel"]).await, "\n", "there was no value before");
    assert_eq!(run(&["apply", "set city Bern"]).await, "Basel\n");
    assert_eq!(run(&["query", "get city"]).await, "Bern\n");
    assert_eq!(run(&["query", "--local", "get city"]).await, "Bern\n");
    let json = run(&["query", "--json", "get city"]).await;
    assert_says(&json, &["\"answer\":\"Bern\"", "\"ok\":true", "\"applied_index\":"]);
    let json = run(&["apply", "--json", "set city Chur"]).await;
    assert_says(&json, &["\"answer\":\"Bern\"", "\"attempts\":1", "\"leader_changed\":false"]);
    let rejected = lockstep(&["apply", at[0], at[1], "cas city Genf Zug"]).await;
    assert_eq!(rejected.code, Some(1), "{rejected:?}");
    assert_says(&rejected.stderr, &["rejected: "]);
    assert_eq!(rejected.stdout, "");
    assert_eq!(command_from_stdin(dir.path(), &endpoint, "set city Sion\n"), "Chur\n");
    assert_eq!(run(&["query", "get city"]).await, "Sion\n", "the last newline is not part of it");

    let table = run(&["status"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "a heading, a replica and the group's lineage: {table}");
    assert_says(lines[0], &["GROUP", "NODE", "ROLE", "STATE", "APPLIED", "SNAPSHOTS"]);
    assert_says(lines[1], &["dev", &endpoint, "leader", "serving"]);
    assert_says(lines[2], &["dev has the lineage "]);
    let json = run(&["status", "--json"]).await;
    assert!(json.starts_with("[{") && json.ends_with("}]\n"), "it is an array: {json}");
    assert_says(&json, &["\"group\":\"dev\"", "\"state\":\"serving\"", "\"role\":\"leader\""]);

    let data = dir.path().join("data/node-1").display().to_string();
    assert_says(&prints(&["snapshot", "list", "--data-dir", &data]).await, &["no snapshots"]);
    let client = Client::connect([endpoint.as_str()], Options::default()).expect("an address");
    client.checkpoint().await.expect("it leads");
    let listed = async || {
        let text = prints(&["snapshot", "list", "--data-dir", &data]).await;
        (!text.starts_with("no snapshots")).then_some(text)
    };
    let text = wait_for("a snapshot", &dir.path().join("log"), listed).await;
    assert_says(&text, &["GROUP", "DIGEST", "FILE", ".fsnap"]);
    let json = prints(&["snapshot", "list", "--json", "--data-dir", &data]).await;
    assert_eq!(json.lines().count(), 1, "one object, one line: {json}");
    assert_says(&json, &["\"group\":\"dev\"", "\"digest\":\"", ".fsnap\""]);

    interrupt(&mut process, dir.path()).await;
    let nobody = lockstep(&["status", at[0], at[1], "--timeout", "1"]).await;
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert_says(&nobody.stderr, &[&endpoint]);
}

/// Sends SIGINT, as Ctrl-C does; the process must exit with 0.
async fn interrupt(process: &mut Process, dir: &Path) {
    let id = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("an id above 0");
    kill_process(id, Signal::INT).expect("it runs");
    let status = process.ended(STOP_PATIENCE).await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", last_lines(&dir.join("log"), 10));
}

/// Three nodes in one process replicate to each other, and the next run finds all their data.
#[tokio::test]
async fn a_cluster_of_three_in_one_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut process, endpoints) = dev(dir.path(), "3").await;
    let all: Vec<&str> = endpoints.split(',').collect();
    assert_eq!(all.len(), 3, "{endpoints}");
    for (number, endpoint) in all.iter().enumerate() {
        let command = format!("set from-{number} {number}");
        assert_eq!(prints(&["apply", "--endpoint", endpoint, &command]).await, "\n");
    }
    for endpoint in &all {
        assert_eq!(prints(&["query", "--endpoint", endpoint, "get from-2"]).await, "2\n");
    }
    let table = prints(&["status", "--endpoint", all[0]]).await;
    assert_eq!(table.matches("serving").count(), 3, "one node reports all three: {table}");
    assert_eq!(table.matches("leader").count(), 1, "{table}");
    interrupt(&mut process, dir.path()).await;

    let (mut process, endpoints) = dev(dir.path(), "3").await;
    assert_eq!(prints(&["query", "--endpoint", &endpoints, "get from-1"]).await, "1\n");
    interrupt(&mut process, dir.path()).await;
}

/// `lockstep dev` exits with 1 if a module is refused, or if no replica can serve.
#[tokio::test]
async fn a_cluster_that_cannot_serve_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, data) = (dir.path().join("fsm.wasm"), dir.path().join("data"));
    fs::write(&file, wat::parse_str("(module)").expect("it is a module")).expect("it is written");
    let (file, data) = (file.display().to_string(), data.display().to_string());
    let refused = lockstep(&["dev", &file, "--data-dir", &data]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_says(&refused.stderr, &[&file, "core module, not a component"]);
    assert!(!Path::new(&data).exists(), "nothing was made");

    let hostile = guest_file("hostile").expect("it is built").display().to_string();
    let halted = lockstep(&["dev", &hostile, "--nodes", "1", "--config", "init fail"]).await;
    assert_eq!(halted.code, Some(1), "{halted:?}");
    assert_says(
        &halted.stdout,
        &["the replica at 127.0.0.1:", "is halted: refused in init", "ask its author"],
    );
    assert_says(&halted.stderr, &["no replica can serve"]);
}

/// Commands that read a data directory name the one that does not exist.
#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    for command in ["list", "verify", "why"] {
        let output = lockstep(&["snapshot", command, "--data-dir", "/nowhere/at/all"]).await;
        assert_eq!(output.code, Some(1), "{output:?}");
        assert_says(&output.stderr, &["/nowhere/at/all", "give a node's data directory"]);
    }
}

#[tokio::test]
async fn every_command_has_a_help() {
    let commands: &[&[&str]] = &[
        &[],
        &["serve"],
        &["dev"],
        &["apply"],
        &["query"],
        &["status"],
        &["check"],
        &["snapshot"],
        &["snapshot", "list"],
        &["snapshot", "verify"],
        &["snapshot", "why"],
        &["recover"],
        &["group"],
        &["group", "drop"],
    ];
    for command in commands {
        let mut args = command.to_vec();
        args.push("--help");
        let text = prints(&args).await;
        let usage = format!("Usage: lockstep {}", command.join(" "));
        assert_says(&text, &[usage.trim_end(), "Example"]);
    }
}

#[tokio::test]
async fn what_is_no_command_is_a_usage_error() {
    let wrong: &[&[&str]] = &[
        &[],
        &["install"],
        &["serve"],
        &["apply", "--endpoint"],
        &["dev", "kv.wasm", "--nodes", "8"],
        &["apply", "--endpoint", "nowhere", "set a 1"],
    ];
    for args in wrong {
        let output = lockstep(args).await;
        assert_eq!(output.code, Some(2), "{args:?}: {output:?}");
        assert_eq!(output.stdout, "", "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}
