//! Modules that a node refuses at its start, and a module other than the one that its group was
//! bootstrapped with.

use std::fs;

use lockstep_client::{Error, Options};
use lockstep_tests::cluster::{Cluster, Spec, guest_file};
use lockstep_tests::observe::PATIENCE;

use crate::solo::{apply, assert_says, lockstep, query, refused};

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

/// One node starts with another module for one of its two groups. Its replica of that group halts
/// and reports which module it has and which it wants; the other nodes go on, and the other group
/// does not notice.
#[tokio::test]
async fn a_module_that_differs_from_the_install_entry_halts_its_group() {
    let kv = guest_file("kv").expect("it is built").display().to_string();
    let counter = guest_file("counter").expect("it is built").display().to_string();
    let spec = Spec::of_module("store", &kv, 3).with_group("other", "native:register");
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving("store").await.expect("it serves");
    cluster.wait_serving("other").await.expect("it serves");
    let store = cluster.client_of("store", Options::default()).expect("good addresses");
    let other = cluster.client_of("other", Options::default()).expect("good addresses");
    apply(&store, "set a 1").await;

    cluster.stop(3).await.expect("it stops");
    let good = cluster.configuration(3);
    cluster.configure(3, &good.replacen(&kv, &counter, 1)).expect("it can be written");
    cluster.start_node(3).expect("it starts");
    let halted = async |cluster: &Cluster| {
        let status = cluster.group(3, "store").await?;
        (status.state == "halted").then_some(status.cause)
    };
    let cause = cluster.wait_for("node 3 to halt", PATIENCE, halted).await.expect("it halts");
    assert_says(&cause, &["wrong module", "have", "want", "put the wanted component in place"]);
    let serves = async |cluster: &Cluster| {
        (cluster.group(3, "other").await?.state == "serving").then_some(())
    };
    cluster.wait_for("the other group to serve", PATIENCE, serves).await.expect("it serves");

    let refused = store.query_at(cluster.address(3), "get a").await.expect_err("it is halted");
    match refused {
        Error::Refused { refusal, message, .. } => {
            assert_eq!(refusal, "halted");
            assert_says(&message, &["\"store\"", "halted", "wrong module", "another node"]);
        }
        other => panic!("a halted group answered {other:?}"),
    }
    apply(&other, "set b 2").await;
    apply(&store, "set a 3").await;
    assert_eq!(query(&store, "get a").await, "3", "the group goes on without node 3");

    cluster.stop(3).await.expect("it stops");
    cluster.configure(3, &good).expect("it can be written");
    cluster.start_node(3).expect("it starts");
    cluster.wait_serving("store").await.expect("it serves again with the module it wanted");
    cluster.stop_all().await.expect("they stop");
}
