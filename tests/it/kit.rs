//! The author's kit as an author uses it: the real binary, on components.
//!
//! `tests/guests/planted` has one bug at a time. `lockstep test` finds each in a small case, says
//! how to repeat it, and accuses nobody else.

mod prompt;
mod reports;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_tests::cluster::{binary, guest_file};
use lockstep_tests::process::{Output, run};
use serde_json::Value;

use crate::solo::{assert_says, lockstep};

/// How long a command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The file of a guest that `cargo xtask guests` built.
fn guest(name: &str) -> String {
    guest_file(name).expect("it is built").display().to_string()
}

/// The templates that lie beside an example.
fn templates(example: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    root.join(example).join("commands.txt").display().to_string()
}

/// The one JSON object that was printed.
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Runs a line of a shell in which `lockstep` is the binary under test.
async fn shell(line: &str) -> Output {
    let binary = binary().expect("it is built");
    let folder = binary.parent().expect("it lies in a folder").display();
    let line = format!("PATH='{folder}':\"$PATH\"; {line}");
    run("/bin/sh".as_ref(), &["-c", &line], PATIENCE).await.expect("it ends")
}

/// Runs `lockstep test` with more than the usual patience.
async fn test(args: &[&str]) -> Output {
    let args = [&["test"], args].concat();
    run(&binary().expect("it is built"), &args, PATIENCE).await.expect("it ends")
}

/// The seeds to try, or the one that is given.
fn seeds() -> Vec<String> {
    let given = std::env::var("SEED").ok();
    given.map_or_else(|| (1..=3).map(|seed| seed.to_string()).collect(), |seed| vec![seed])
}

/// The bug is found with every seed, by this property, in a case of at most this many steps and
/// commands. The line that is told repeats it, to the last word.
async fn check(bug: &str, property: &str, (steps, commands): (usize, usize)) {
    for seed in seeds() {
        let args = [&guest("planted"), "--config", bug, "--seed", &seed, "--json"];
        let output = test(&args).await;
        let story = format!("{bug}, SEED={seed}: {output:?}");
        assert_eq!(output.code, Some(1), "{story}");
        let told = json(&output);
        assert_eq!(told["ok"], false, "{story}");
        let failure = &told["failure"];
        assert_eq!(failure["property"], property, "{story}");
        let case = failure["steps"].as_array().expect("a case is a list");
        let made = case.iter().filter_map(|step| step["commands"].as_array()).map(Vec::len);
        let made: usize = made.sum();
        assert!(case.len() <= steps && made <= commands, "{made} commands; {story}");
        assert!(failure["means"].as_str().is_some_and(|text| text.len() > 20), "{story}");

        let repeat = failure["repeat"].as_str().expect("it says how to repeat it");
        assert!(repeat.starts_with("lockstep test ") && repeat.contains("--case "), "{story}");
        let again = shell(&format!("{repeat} --json")).await;
        assert_eq!(again.code, Some(1), "{again:?}");
        let again = json(&again);
        for part in ["property", "case", "step", "steps", "differs", "fault"] {
            assert_eq!(again["failure"][part], failure[part], "{part}: {story}");
        }
    }
}

#[tokio::test]
async fn a_hash_tables_order_in_an_answer() {
    check("hash-order", "restore", (4, 5)).await;
}

#[tokio::test]
async fn a_field_that_is_not_in_the_snapshot() {
    check("forgotten-field", "restore", (3, 2)).await;
}

#[tokio::test]
async fn a_field_that_restore_forgets() {
    check("careless-restore", "again", (3, 2)).await;
}

#[tokio::test]
async fn a_query_that_changes_the_state() {
    check("query-mutates", "query", (1, 0)).await;
}

#[tokio::test]
async fn an_answer_that_depends_on_packing() {
    check("packing", "packing", (1, 2)).await;
}

#[tokio::test]
async fn a_cache_that_a_restore_forgets() {
    check("stale-cache", "restore", (6, 6)).await;
}

#[tokio::test]
async fn a_static_that_restore_does_not_rebuild() {
    check("static", "restore", (2, 1)).await;
}

#[tokio::test]
async fn alarms_that_are_not_in_the_snapshot() {
    check("forgotten-alarms", "restore", (5, 4)).await;
}

#[tokio::test]
async fn a_query_that_emits_or_sets_the_timer() {
    check("query-emits", "no-trap", (1, 0)).await;
    check("query-sets-timer", "no-trap", (1, 0)).await;
    for (bug, says) in [
        ("query-emits", "events.emit was called outside of `apply` and `wake`"),
        ("query-sets-timer", "the timer was set outside of `init`, `apply` and `wake`"),
    ] {
        let output = test(&[&guest("planted"), "--config", bug, "--seed", "1"]).await;
        assert_says(
            &output.stdout,
            &["fails (seed 1): no-trap", "a query failed: ", "trap in query", says],
        );
    }
}

/// A failure as a person reads it.
#[tokio::test]
async fn a_failure_reads_well() {
    let output = test(&[&guest("planted"), "--config", "static", "--seed", "1"]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_says(
        &output.stdout,
        &[
            "planted 0.1.0: case ",
            "fails (seed 1): restore",
            "goes on in another way",
            "  entry     `price`",
            "the answer to command 1 differs:",
            "the first instance     `3`",
            "the restored instance  `0`",
            "to repeat it:\n  lockstep test ",
            " --config static --seed 1 --case ",
        ],
    );
    assert_eq!(output.stderr, "");
}

/// Nothing is found in a guest, and all properties were tried.
async fn check_clean(name: &str, more: &[&str], cases: &str) -> Value {
    let file = guest(name);
    let args = [&[file.as_str(), "--seed", "11", "--cases", cases, "--json"], more].concat();
    let output = test(&args).await;
    assert_eq!(output.code, Some(0), "{name}: {output:?}");
    let told = json(&output);
    assert_eq!(told["failure"], Value::Null, "{name}");
    assert_eq!(told["cases"].to_string(), cases, "{name}");
    assert_eq!(told["properties"].as_array().map(Vec::len), Some(7), "{name}: packing is claimed");
    let seen = &told["seen"];
    for (what, least) in [("commands", 1000), ("queries", 100), ("restores", 100)] {
        assert!(seen[what].as_u64().is_some_and(|count| count > least), "{name}: {told}");
    }
    told
}

#[tokio::test]
async fn a_guest_without_a_bug_is_not_accused() {
    let told = check_clean("planted", &[], "150").await;
    let fired = told["seen"]["timers_fired"].as_u64();
    assert!(fired.is_some_and(|count| count > 100), "{told}");
}

#[tokio::test]
async fn examples_with_a_self_test_are_not_accused() {
    for name in ["lock", "queue"] {
        let told = check_clean(name, &[], "150").await;
        let fired = told["seen"]["timers_fired"].as_u64();
        assert!(fired.is_some_and(|count| count > 50), "{name}: {told}");
    }
}

#[tokio::test]
async fn an_example_on_engines_of_others_is_not_accused() {
    let told = check_clean("documents", &[], "150").await;
    let count = |what: &str| told["seen"][what].as_u64().unwrap_or(0);
    assert!(count("rejected") * 10 < count("commands") * 6, "{told}");
    assert!(count("queries") > 100, "{told}");
}

#[tokio::test]
async fn examples_with_templates_are_not_accused() {
    for name in ["counter", "kv", "bank"] {
        let file = templates(name);
        let told = check_clean(name, &["--commands", &file], "150").await;
        let count = |what: &str| told["seen"][what].as_u64().unwrap_or(0);
        // Some are refused and some are not.
        assert!(count("rejected") * 10 < count("commands") * 8, "{name}: {told}");
        assert!(count("rejected") > 100, "{name}: {told}");
    }
    let file = templates("kv");
    let told = check_clean("kv", &["--commands", &file, "--config", "watch"], "100").await;
    assert!(told["seen"]["events"].as_u64().is_some_and(|count| count > 500), "{told}");
}

/// Templates in a file of a directory of their own.
fn written(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("commands.txt");
    fs::write(&file, text).expect("it can be written");
    let file = file.display().to_string();
    (dir, file)
}

#[tokio::test]
async fn a_wake_that_is_never_tested_is_noted() {
    let (_dir, file) = written("set {word} {0..9}");
    let output =
        test(&[&guest("planted"), "--commands", &file, "--seed", "1", "--cases", "5"]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_says(
        &output.stdout,
        &[
            "`wake` is exported, and no case set the timer",
            "no query was tried",
            "--independent-of-packing",
        ],
    );
}

/// A limit that a group would have is met, told, and part of the line that repeats the case.
#[tokio::test]
async fn the_limits_are_those_of_a_group() {
    let (_dir, file) = written("spin 5000000");
    let hostile = guest("hostile");
    let args = [&hostile, "--commands", &file, "--seed", "1", "--cases", "2", "--json"];
    let output = test(&args).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let limits = &json(&output)["limits"];
    assert_eq!(limits["memory_bytes"], 1_u64 << 30, "{limits}");

    let tight = ["--memory", "64MiB", "--entry-fuel", "10000000", "--fuel", "7"];
    let output = test(&[&args[..], &tight].concat()).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    let told = json(&output);
    let limits = ["memory_bytes", "entry_fuel", "command_fuel"];
    let limits = limits.map(|it| told["limits"][it].as_u64());
    assert_eq!(limits, [Some(64 << 20), Some(10_000_000), Some(7)]);
    let failure = &told["failure"];
    assert!(failure["fault"].as_str().is_some_and(|fault| fault.contains("fuel")), "{failure}");
    let repeat = failure["repeat"].as_str().expect("it says how to repeat it");
    assert_says(repeat, &[" --memory 64MiB --entry-fuel 10000000 --command-fuel 7 "]);
    let again = shell(&format!("{repeat} --json")).await;
    assert_eq!(json(&again)["failure"]["fault"], failure["fault"]);

    for command in ["test", "run"] {
        let output = lockstep(&[command, &guest("planted"), "--memory", "1MiB"]).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert_says(&output.stderr, &["memory is 1048576; use 33554432 to"]);
    }
    let long = "x".repeat(64 * 1024 + 1);
    for command in ["test", "run", "bench", "dev"] {
        let output = lockstep(&[command, &guest("planted"), "--config", &long]).await;
        assert_eq!(output.code, Some(2), "{command}");
        assert_says(&output.stderr, &["config has 65537 bytes, the limit is 65536"]);
    }
}

/// What is no answer to an entry is a trap that says what the contract wants.
#[tokio::test]
async fn answers_of_the_wrong_length_are_named() {
    for (command, says) in [
        ("too-few", "0 outcomes for 1 commands: `apply` must answer every command, in order"),
        ("descending", "the answers end at 0, in data of 1 bytes"),
        ("rejects-beyond", "do not ascend, or there is no command 1"),
        ("omits-twice", "more commands are rejected or omitted than there are outcomes"),
    ] {
        let (_dir, file) = written(command);
        let output = test(&[&guest("hostile"), "--commands", &file, "--seed", "1"]).await;
        assert_eq!(output.code, Some(1), "{output:?}");
        let step = format!("entry     `{command}`");
        assert_says(&output.stdout, &["no-trap", "in apply", says, &step, "--commands "]);
    }
}

/// Each refusal is a sentence and an exit code: 2 if other arguments help.
#[tokio::test]
async fn what_cannot_be_tried_is_refused() {
    let refused = async |text: &str, more: &[&str], code, says: &[&str]| {
        let (_dir, file) = written(text);
        for command in ["test", "bench"] {
            let planted = guest("planted");
            let args = [&[command, &planted, "--commands", &file], more].concat();
            let output = lockstep(&args).await;
            assert_eq!(output.code, Some(code), "{args:?}: {output:?}");
            assert_eq!(output.stdout, "", "{args:?}");
            assert_says(&output.stderr, says);
        }
    };
    let none = ["commands.txt: no line is the template of a command", "`set {word} {0..9}`"];
    refused("", &[], 2, &none).await;
    refused("# nothing\n?{word}\n", &[], 2, &none).await;
    refused("set {wrd} 1", &[], 2, &["line 1, column 5", "unknown placeholder `{wrd}`"]).await;
    refused("set a {1..", &[], 2, &["line 1, column 7", "is not closed"]).await;
    refused("#! fast\nx", &[], 2, &["unknown header `fast`", "independent-of-packing"]).await;
    let config = ["--config", "no-such-bug"];
    for command in ["test", "bench"] {
        let output = lockstep(&[&[command, &guest("planted")], &config[..]].concat()).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert_says(&output.stderr, &["there is no such bug", "--config TEXT"]);
    }

    let output = lockstep(&["test", &guest("counter")]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert_says(&output.stderr, &["does not export `self-test`", "--commands FILE"]);
    let output = lockstep(&["test", &guest("kv"), "--commands", "/nowhere"]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert_says(&output.stderr, &["/nowhere", "give a file of templates"]);
}
