//! A project that `lockstep new` writes, from its first file to a component that holds its
//! contract, with nothing of the checkout but the binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use lockstep_tests::cluster::binary;

use crate::solo::assert_says;

/// Runs `lockstep` in a folder. What cargo needs was fetched for the examples.
fn lockstep(folder: &Path, args: &[&str]) -> Output {
    Command::new(binary().expect("it is built"))
        .args(args)
        .current_dir(folder)
        .env("CARGO_NET_OFFLINE", "true")
        // Flags of the environment, which hide all others from cargo, change nothing.
        .env("RUSTFLAGS", "--cfg anybodys")
        // With a folder of its own for each run, all dependencies would be built each time.
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("project-target"))
        .output()
        .expect("it starts")
}

fn prints(folder: &Path, args: &[&str]) -> String {
    let output = lockstep(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

/// Has the machine call a function of a package outside of the project, which may panic.
fn use_a_package_beside(project: &Path) {
    let beside = project.with_file_name("beside");
    fs::create_dir_all(beside.join("src")).expect("there is space");
    let manifest = "[package]\nname = \"beside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    fs::write(beside.join("Cargo.toml"), manifest).expect("there is space");
    let checks = "pub fn check(bytes: usize) { assert!(bytes != 7, \"{bytes}\") }\n";
    fs::write(beside.join("src/lib.rs"), checks).expect("there is space");
    let change = |path: &str, from: &str, to: &str| {
        let text = fs::read_to_string(project.join(path)).expect("it is there");
        assert!(text.contains(from), "{path} has no {from}");
        fs::write(project.join(path), text.replacen(from, to, 1)).expect("there is space");
    };
    let depends = "[dependencies]\nbeside = { path = \"../beside\" }";
    change("Cargo.toml", "[dependencies]", depends);
    let checked = "if key.len() > KEY_BYTES_MAX {";
    change("src/lib.rs", checked, &format!("beside::check(key.len());\n                {checked}"));
}

#[test]
fn a_new_project_builds_and_holds_its_contract() {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("projects");
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home).expect("there is space");
    // The folder may lie in this checkout, whose style is not the project's.
    fs::write(home.join("rustfmt.toml"), "").expect("there is space");
    let told = prints(&home, &["new", "order-book"]);
    assert_says(&told, &["order-book: a state machine in Rust", "lockstep test order-book.wasm"]);

    let project = home.join("order-book");
    let mut format = Command::new("cargo");
    let format = format.args(["fmt", "--check"]).current_dir(&project).output();
    let format = format.expect("it starts");
    assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stdout));
    use_a_package_beside(&project);
    let told = prints(&project, &["build", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("it is one JSON object");
    assert_eq!(told["name"], "order-book");
    let exports = told["exports"].to_string();
    assert_says(&exports, &["/state-machine@", "/digest@", "/self-test@"]);
    let component = fs::read(project.join("order-book.wasm")).expect("it was written");
    assert!(component.windows(14).any(|at| at == b"/beside/beside"), "the beginning of its paths");
    let paths = String::from_utf8_lossy(&component);
    assert!(!paths.contains(&*home.to_string_lossy()), "a path of this machine is in it");
    assert!(!project.join("target").exists() && !project.join("order-book.wasm.partial").exists());

    assert_says(&prints(&project, &["check", "order-book.wasm"]), &["order-book 0.1.0"]);
    assert_says(&prints(&project, &["inspect", "order-book.wasm"]), &["with names"]);
    let told = prints(&project, &["test", "order-book.wasm", "--cases", "40"]);
    assert_says(&told, &["40 cases hold", "packing"]);

    let again = lockstep(&home, &["new", "order-book"]);
    assert_eq!(again.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&again.stderr), &["the folder is not empty"]);
}

/// What does not compile, and what no node would accept, writes nothing.
#[test]
fn a_build_that_fails_writes_nothing() {
    let home = tempfile::tempdir().expect("there is space");
    let none = lockstep(home.path(), &["build"]);
    assert_eq!(none.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&none.stderr), &["no project is here", "lockstep new"]);

    prints(home.path(), &["new", "broken", "--dir", "."]);
    fs::write(home.path().join("src/lib.rs"), "fn broken(").expect("there is space");
    let broken = lockstep(home.path(), &["build"]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(!home.path().join("broken.wasm").exists());
}
