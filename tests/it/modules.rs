//! Modules that a node refuses at its start, and a module other than the one that its group runs.

use std::fs;

use lockstep_client::{Consistency, Options, Outcome};
use lockstep_tests::cluster::{Cluster, Spec, guest_file};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{apply, assert_says, lockstep, refused};

/// A node with this module, prepared but not started.
fn node_with(module: &str) -> Cluster {
    Cluster::prepare(Spec::of_module("kv", module, 1)).expect("a directory")
}

#[tokio::test]
async fn a_module_that_is_missing_is_refused() {
    let cluster = node_with("kv.wasm");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &["group \"kv\"", "kv.wasm", "No such file", "correct `module`"]);
}

/// `serve` and `check` refuse a module with exit code 1 and in the same words.
#[tokio::test]
async fn a_module_that_is_no_component_is_refused() {
    let cluster = node_with("core.wasm");
    let file = cluster.config_file(1).with_file_name("core.wasm");
    let core = wat::parse_str("(module)").expect("the smallest module there is");
    fs::write(&file, core).expect("it can be written");
    let said = refused(&cluster, 1, 1).await;
    let says = ["core.wasm", "core module, not a component", "wasm-tools component new"];
    assert_says(&said, &says);
    assert_says(&said, &["group \"kv\""]);
    let checked = lockstep(&["check", &file.display().to_string()]).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert_says(&checked.stderr, &says);
}

/// What `check` and `serve` refuse, they refuse alike: with the same message and exit code 1, and
/// without creating a directory.
#[tokio::test]
async fn modules_that_do_not_fit_are_refused_by_both_commands() {
    let cluster = node_with("bad.wasm");
    let file = cluster.config_file(1).with_file_name("bad.wasm");
    let guests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("guests");
    let component = |name: &str| wat::parse_file(guests.join(name)).expect("it is well-formed");
    let limit = 64 << 20;
    type Row = (&'static str, Option<Vec<u8>>, &'static [&'static str]);
    let rows: [Row; 5] = [
        ("wasi", Some(component("wasi.wat")), &["imports WASI", "wasm32-unknown-unknown"]),
        ("world", Some(component("wrong-version.wat")), &["another version of the world", "SDK"]),
        ("export", Some(component("missing-export.wat")), &["does not export", "export!"]),
        ("text", Some(b"(component)".to_vec()), &["text form", "wasm-tools parse"]),
        // A sparse file, which is refused for its size without being read.
        ("large", None, &["the module has 68719476736 bytes, the limit is 67108864", "strip"]),
    ];
    for (what, bytes, says) in rows {
        match bytes {
            Some(bytes) => fs::write(&file, bytes).expect("it can be written"),
            None => {
                let large = fs::File::create(&file).expect("it can be written");
                large.set_len(1024 * limit).expect("the filesystem takes holes");
            }
        }
        let said = refused(&cluster, 1, 1).await;
        assert_says(&said, says);
        assert_says(&said, &["group \"kv\"", "bad.wasm"]);
        let checked = lockstep(&["check", &file.display().to_string()]).await;
        assert_eq!(checked.code, Some(1), "{what}: {checked:?}");
        assert_says(&checked.stderr, says);
        assert!(!cluster.data_dir(1).exists(), "{what}: nothing was made");
    }
    let missing = lockstep(&["check", "nowhere.wasm"]).await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert_says(&missing.stderr, &["nowhere.wasm", "No such file", "give the path"]);
}

#[tokio::test]
async fn a_native_module_that_is_unknown_is_refused() {
    let cluster = node_with("native:abacus");
    let said = refused(&cluster, 1, 2).await;
    assert_says(&said, &["\"abacus\"", "hash-chain, register or ballast:BYTES"]);
}

#[tokio::test]
async fn a_good_module_is_shown() {
    let file = guest_file("kv").expect("it is built").display().to_string();
    let checked = lockstep(&["check", &file]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert_says(&checked.stdout, &["kv", "lockstep:fsm"]);
}

/// One node starts with another module in its file than its group was bootstrapped with. It runs
/// the group's all the same: from its own disk, or from another node if it has lost that.
#[tokio::test]
async fn a_replica_runs_the_module_that_its_log_names() {
    let kv = guest_file("kv").expect("it is built").display().to_string();
    let counter = guest_file("counter").expect("it is built").display().to_string();
    let mut cluster = Cluster::start(Spec::of_module("store", &kv, 3)).expect("it starts");
    cluster.wait_serving("store").await.expect("it serves");
    let store = cluster.client_of("store", Options::default()).expect("good addresses");
    apply(&store, "set a 1").await;
    let named = cluster.group(3, "store").await.expect("it answers").module;

    cluster.stop(3).await.expect("it stops");
    let good = cluster.configuration(3);
    cluster.configure(3, &good.replacen(&kv, &counter, 1)).expect("it can be written");
    for wiped in [false, true] {
        if wiped {
            cluster.stop(3).await.expect("it stops");
            cluster.wipe(3).expect("it is down");
        }
        cluster.start_node(3).expect("it starts");
        cluster.wait_serving("store").await.expect("it serves with the group's module");
        let value = format!("{wiped}");
        apply(&store, &format!("set a {value}")).await;
        let applied = store.query("len", Consistency::Linearizable).await.expect("it answers");
        let index = applied.applied_index;
        cluster.wait_applied(3, "store", index, PATIENCE).await.expect("it follows");
        let reply = store.query_at(cluster.address(3), "get a").await.expect("it answers");
        assert_eq!(reply.outcome, Outcome::Ok(value.into()), "wiped: {wiped}");
        assert_eq!(cluster.group(3, "store").await.expect("it answers").module, named);
    }
    cluster.stop_all().await.expect("they stop");
}
