//! Rust and C agree, and a difference that was planted is found. The other languages need tools
//! from registries: `cargo xtask languages` has them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use lockstep_host::guest::component::ComponentModule;
use lockstep_tests::cluster::{binary, guest_file};
use lockstep_tests::rng;

use crate::agree::{Comparison, Machine, Plan};
use crate::build::{example, run};

fn load(name: &'static str, file: &Path) -> Machine {
    let bytes = fs::read(file).expect("it was built");
    let module = ComponentModule::load(&bytes).expect("a node would load it");
    Machine { name, module: Arc::new(module) }
}

/// The example in Rust, and the one in C with some of its text replaced; `None` without a compiler.
fn machines(replace: &[(&str, &str)]) -> Option<[Machine; 2]> {
    if !can_compile_c() {
        eprintln!("NOT RUN: no clang here");
        return None;
    }
    let dir = tempfile::tempdir().expect("there is space");
    let mut text = fs::read_to_string(example("c/kv/kv.c")).expect("it is there");
    for (from, to) in replace {
        assert_eq!(text.matches(from).count(), 1, "`{from}`");
        text = text.replace(from, to);
    }
    fs::write(dir.path().join("kv.c"), text).expect("there is space");
    let file = dir.path().join("kv.wasm");
    let mut build = Command::new(binary().expect("it is built"));
    build.arg("build").arg(dir.path()).arg("-o").arg(&file).env("LOCKSTEP_CACHE_DIR", "");
    run(&mut build).expect("it compiles");
    let rust = guest_file("kv").expect("`cargo xtask guests` built it");
    Some([load("Rust", &rust), load("C", &file)])
}

fn can_compile_c() -> bool {
    Command::new("clang").arg("--version").output().is_ok_and(|it| it.status.success())
}

fn compare(machines: &[Machine], commands: u64, seed: u64) -> Result<()> {
    let mut comparison = Comparison::begin(machines, Plan { commands, seed })?;
    loop {
        if let Some(seen) = comparison.step()? {
            return seen.enough();
        }
    }
}

#[test]
fn rust_and_c_agree() {
    let Some(machines) = machines(&[]) else { return };
    compare(&machines, 20_000, rng::seed(1)).unwrap_or_else(|difference| panic!("{difference:#}"));
}

/// Each of these differences in the C example is found.
#[test]
fn what_differs_is_found() {
    let check = |replace: &[(&str, &str)], found: &str| {
        let Some(machines) = machines(replace) else { return };
        let difference = compare(&machines, 20_000, 1).expect_err("they differ");
        let said = format!("{difference:#}");
        assert!(said.contains(found), "{replace:?}: {said}");
    };
    let text = ("\"there is no such key\"", "\"there is no such Key\"");
    check(&[text], "the answer to command");
    // A number at the edge of what there is.
    check(&[("max - digit) / 10", "max - 9) / 10")], "the answer to command");
    // Shown by a query only.
    check(&[("byte == '\\n' ? \"\\\\n\"", "byte == '\\n' ? \"\\\\N\"")], "the answer to the query");
    // What is in the snapshot, and in no answer.
    let lengths = ("ls_write_block(there->key);", "ls_write_block(there->key), ls_write_u64(0);");
    check(&[lengths], "the snapshot, from byte");
    // A restored machine that lacks something.
    let forgets = ("last = key;", "last = key; if (count == 9) there_is_no = 1;");
    let declared = ("static uint64_t count;", "static uint64_t count; static int there_is_no;");
    let uses =
        ("if (there == NULL) return LS_OK;", "if (there == NULL || there_is_no) return LS_OK;");
    check(&[declared, forgets, uses], "restored from the snapshot of Rust");
    // A damaged snapshot that is taken.
    let order = ("ls_compare(last, key) >= 0", "ls_compare(last, key) == 2");
    check(&[order], "restoring a snapshot");
}
