//! What `check`, `inspect` and `bench` print: shapes, no figures that another machine has not.

use std::fs;

use serde_json::Value;

use super::{guest, json, templates, written};
use crate::guests::refusals::{component, text};
use crate::solo::{assert_says, lockstep};

async fn printed(args: &[&str]) -> String {
    let output = lockstep(args).await;
    assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
    output.stdout
}

#[tokio::test]
async fn a_check_as_json() {
    let file = guest("lock");
    let output = lockstep(&["check", &file, "--json"]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let told = json(&output);
    assert_eq!(output.stdout.lines().count(), 1);
    assert_eq!(told["name"], "lock");
    assert_eq!(told["snapshot_format"], 1);
    assert_eq!(told["hints"], Value::Array(vec![]));
    assert_eq!(told["sha256"].as_str().map(str::len), Some(64));
    let bytes = fs::metadata(&file).expect("it is built").len();
    assert_eq!(told["file_bytes"].as_u64(), Some(bytes));
    let exports = told["exports"].to_string();
    assert_says(&exports, &["lockstep:fsm/state-machine@", "lockstep:fsm/wake@"]);
    assert_says(&told["imports"].to_string(), &["lockstep:fsm/timer@"]);

    let output = lockstep(&["check", &templates("kv"), "--json"]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_eq!(output.stdout, "", "a refusal is no object");
    assert_says(&output.stderr, &["commands.txt", "this is not WebAssembly"]);
}

#[tokio::test]
async fn an_inspection() {
    let file = guest("planted");
    let said = printed(&["inspect", &file]).await;
    assert_says(
        &said,
        &[
            "planted 0.1.0",
            "  wake       exported",
            "  digest     exported",
            "  self-test  exported",
            "  sizes      file ",
            "core modules, with names",
            "  limits     of a group with the default profile:",
        ],
    );
    let said = printed(&["inspect", &guest("counter")]).await;
    assert_says(&said, &["  wake       not exported", "  self-test  not exported"]);

    let told = json(&lockstep(&["inspect", &file, "--json"]).await);
    assert_eq!(told["optional_exports"]["wake"], true);
    for part in ["file_bytes", "code_bytes", "data_bytes", "custom_bytes"] {
        assert!(told["sizes"][part].as_u64().is_some_and(|bytes| bytes > 0), "{part}: {told}");
    }
    assert!(told["functions"]["named"].as_u64().is_some_and(|count| count > 10), "{told}");
    let limits = told["limits"].as_array().expect("a list");
    assert!(!limits.is_empty());
    assert!(limits.iter().all(|it| it["name"].is_string() && it["value"].is_u64()), "{told}");
}

#[tokio::test]
async fn a_measurement() {
    let file = guest("planted");
    let quick = ["--each-ms", "20", "--seed", "3"];
    let told = json(&lockstep(&[&["bench", &file, "--json"], &quick[..]].concat()).await);
    let batches = told["batches"].as_array().expect("a list");
    let sizes: Vec<_> = batches.iter().filter_map(|it| it["commands_in_entry"].as_u64()).collect();
    assert_eq!(sizes, [1, 16, 128]);
    for batch in batches {
        for part in ["commands", "fuel_per_command"] {
            assert!(batch[part].as_u64().is_some_and(|count| count > 0), "{part}: {told}");
        }
        assert!(batch["ns_per_command"].as_f64().is_some_and(|ns| ns > 0.0), "{told}");
    }
    for part in ["snapshot_bytes", "memory_bytes", "commands"] {
        assert!(told[part].as_u64().is_some_and(|count| count > 0), "{part}: {told}");
    }
    for part in ["snapshot_seconds", "restore_seconds"] {
        assert!(told[part].as_f64().is_some_and(|seconds| seconds > 0.0), "{part}: {told}");
    }

    let said = printed(&[&["bench", &file], &quick[..]].concat()).await;
    assert_says(&said, &["COMMANDS/ENTRY", "NS/COMMAND", "FUEL/COMMAND", "snapshot  ", "restore "]);
    let (_dir, refused) = written("nonsense");
    let said = printed(&[&["bench", &file, "--commands", &refused], &quick[..]].concat()).await;
    assert_says(&said, &["commands were refused, such as: ", "expected `set KEY N`"]);
}

/// What `check` says of a component that a node accepts, and that is a mistake nevertheless.
#[tokio::test]
async fn a_timer_without_a_wake_is_a_hint() {
    // The name "t", the version "1", and 1 for both formats of snapshots.
    let info = r#"1) (data (i32.const 100) "t1") (data (i32.const 16)
        "\64\00\00\00\01\00\00\00\65\00\00\00\01\00\00\00\01\00\00\00\01\00\00\00""#;
    let timer = "(module (import \"lockstep:fsm/timer@0.2.0\" \"cancel\" (func))";
    let shell = text("shell").replace("$MEMORY", info).replace("$DESCRIBE", "i32.const 16");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("fsm.wasm");
    fs::write(&file, component(shell.replacen("(module", timer, 1))).expect("it can be written");
    let file = file.display().to_string();
    let said = printed(&["check", &file]).await;
    assert_says(&said, &["t 1\n", "  hint       it imports `timer` and does not export `wake`"]);
    let told = json(&lockstep(&["check", &file, "--json"]).await);
    assert_says(&told["hints"].to_string(), &["`export!(Type: wake)`"]);
}
