//! Planted violations, one row each, and look-alikes that are not violations.

use super::source::Source;
use super::*;

/// Checks a tree of these files and compares `file:line: rule` of each violation.
#[track_caller]
fn check(files: &[(&str, &str)], expect: &[&str]) {
    let mut files: Vec<(String, String)> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    files.sort();
    let found: Vec<String> = Tree { files: files.clone() }
        .check()
        .iter()
        .map(|found| format!("{}:{}: {}", found.file, found.line, found.rule))
        .collect();
    assert_eq!(found, expect, "{files:?}");
}

/// Checks one Rust file that is documented and is in the map; its line 2 is the first of `text`.
#[track_caller]
fn check_rust(path: &str, text: &str, expect: &[&str]) {
    let text = format!("//! Documented.\n{text}");
    let map = format!("`{path}`");
    let expect: Vec<String> = expect.iter().map(|found| format!("{path}:{found}")).collect();
    let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
    check(&[(path, &text), ("ARCHITECTURE.md", &map)], &expect);
}

#[test]
fn modules_open_with_their_documentation() {
    check_rust("xtask/src/a.rs", "", &[]);
    check(&[("xtask/src/a.rs", "\nuse std::fs;\n")], &["xtask/src/a.rs:2: module-doc"]);
    check(&[("xtask/src/a.rs", "")], &["xtask/src/a.rs:1: module-doc"]);
    check(&[("xtask/src/a/tests.rs", "use super::*;\n")], &[]);
    check_rust("xtask/src/a/mod.rs", "", &["1: no-mod-rs"]);
}

#[test]
fn sizes_are_measured_in_lines_of_code() {
    let lines = |n: usize| "const A: u8 = 1;\n\n// Said.\n/* and\n said */\n".repeat(n);
    check_rust("xtask/src/a.rs", &lines(500), &[]);
    check_rust("xtask/src/a.rs", &lines(501), &["1: file-size"]);

    let function = |n: usize| {
        format!("pub fn long(a: [u8; 2]) -> u8 {{\n{}}}\n", "    // Why.\n    step();\n".repeat(n))
    };
    check_rust("xtask/src/a.rs", &function(68), &[]);
    check_rust("xtask/src/a.rs", &format!("\n{}", function(69)), &["3: function-size"]);
    let braces =
        format!("fn odd() {{\n{}}}\n", "    say(\"}\", '}', r#\"}\"}\"#); // }\n".repeat(69));
    check_rust("xtask/src/a.rs", &braces, &["2: function-size"]);

    let line = |n: usize| format!("// {}\n", "\u{fc}".repeat(n - 3));
    check_rust("xtask/src/a.rs", &line(100), &[]);
    check_rust("xtask/src/a.rs", &line(101), &["2: columns"]);
}

#[test]
fn comments_leave_nothing_to_do() {
    check_rust("xtask/src/a.rs", "// TODO: more\n", &["2: todo"]);
    check_rust("xtask/src/a.rs", "/* a\n FIXME\n*/\n", &["3: todo"]);
    check_rust("xtask/src/a.rs", "const A: &str = \"TODO\"; // TODOS\n", &[]);
}

#[test]
fn the_core_is_pure() {
    const CORE: &str = "host/core/src/a.rs";
    check_rust(CORE, "use std::fs;\n", &["2: core-is-pure"]);
    check_rust(CORE, "use std::collections::{BTreeMap, HashMap};\n", &["2: core-is-pure"]);
    check_rust(
        CORE,
        "use std::{\n    fmt,\n    time::{self, Instant as I},\n};\n",
        &["4: core-is-pure", "4: core-is-pure"],
    );
    check_rust(CORE, "fn f() { std::thread::yield_now(); }\n", &["2: core-is-pure"]);
    check_rust(CORE, "pub(crate) use tokio::sync::mpsc;\n", &["2: core-is-pure"]);
    check_rust(CORE, "// std::fs\nconst A: &str = \"std::fs\";\nuse crate::std_fs::a;\n", &[]);
    check_rust("xtask/src/a.rs", "use std::fs;\n", &[]);

    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# tokio\nbytes.workspace = true\n\
                    tokio.workspace = true\n[dev-dependencies]\nrand = \"1\"\n";
    check(&[("host/core/Cargo.toml", manifest)], &["host/core/Cargo.toml:6: core-is-pure"]);
}

#[test]
fn doors_are_the_only_way() {
    check_rust("host/src/wal.rs", "use std::fs::File;\n", &["2: files-through-the-door"]);
    check_rust("host/src/wal.rs", "use rustix::fs;\n", &["2: files-through-the-door"]);
    check_rust("host/src/fs/disk.rs", "use std::fs::File;\n", &[]);
    let test = "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nuse std::fs;\n";
    check_rust("host/src/wal.rs", test, &["6: files-through-the-door"]);

    check_rust("host/src/node.rs", "use tonic::Status;\n", &["2: wire-in-rpc"]);
    check_rust("host/src/rpc/convert.rs", "use prost::Message as _;\n", &[]);
    check_rust("host/client/src/lib.rs", "use tonic::Status;\n", &[]);

    check_rust("host/src/node.rs", "use raft::{eraftpb::Entry, RawNode};\n", &["2: raft-in-group"]);
    check_rust("host/core/src/entry.rs", "fn f(entry: &raft::eraftpb::Entry) {}\n", &[]);
    check_rust("host/core/src/group/reads.rs", "use raft::RawNode;\n", &[]);

    check_rust("host/src/store.rs", "use wasmtime::Engine;\n", &["2: wasmtime-in-guest"]);
    let clock = "use std::time::{Duration, SystemTime};\n";
    check_rust("host/src/node.rs", clock, &["2: wall-clock-through-the-door"]);
    check_rust("host/src/clock.rs", clock, &[]);
}

#[test]
fn what_one_file_knows_no_other_says() {
    let group = "host/core/src/group/reads.rs";
    check_rust(group, "fn f() { raw.advance_append(ready); }\n", &["2: ready-order"]);
    check_rust("host/core/src/group/ready.rs", "fn f() { raw.ready(); }\n", &[]);
    check_rust("host/src/store.rs", "fn f() { fs.sync_dir(p); }\n", &["2: durable-names"]);
    check_rust("host/src/fs.rs", "fn f() { fs.sync_dir(p); }\n", &[]);
    check_rust("host/src/store.rs", "const A: &str = \"a.fsnap\"; // b\n", &["2: snapshot-paths"]);
    check_rust("host/src/store.rs", "const A: u8 = 1; // a.fsnap\n", &[]);
    check_rust("host/src/store/layout.rs", "const A: &str = \".fsnap\";\n", &[]);
    check_rust("guest-sdk/src/a.rs", "fn f() { unsafe { g() } }\n", &["2: unsafe"]);
    check_rust("xtask/src/a.rs", "#[test]\n#[ignore]\nfn f() {}\n", &["3: ignored-test"]);
    check_rust("xtask/src/a.rs", "// #[ignore] and unsafe \n", &[]);
}

#[test]
fn documents_name_what_is_there() {
    let docs = "[a](docs/a.md) [b](docs/b.md#part)\n`host/src/{fs,gone}.rs` `host/src/` `gone.rs`\n\
                `GONE.md` `a/b` [web](https://x.y/z.md) [here](#part)\n\n    \
                `docs/in-a-block.md`\n";
    let files = [
        ("README.md", docs),
        ("docs/a.md", "[up](../README.md) [out](../../x) [code](../host/src)\n"),
        ("host/src/fs.rs", "//! Documented.\n"),
        ("ARCHITECTURE.md", "`host/src/fs.rs`\n"),
    ];
    check(
        &files,
        &[
            "README.md:1: dead-link",
            "README.md:2: named-file",
            "README.md:3: named-file",
            "docs/a.md:1: dead-link",
        ],
    );
}

#[test]
fn what_is_there_is_named() {
    let files = [
        ("ARCHITECTURE.md", "`host/src/{a, b}.rs`\n"),
        ("docs/decisions/0001-a.md", ""),
        ("docs/decisions/0002-b.md", ""),
        ("docs/decisions/README.md", "[1](0001-a.md)\n"),
        ("docs/lost.md", "[2](decisions/0002-b.md)\n"),
        ("host/src/a.rs", "//! A.\n"),
        ("host/src/a/tests.rs", "//! Tests of A.\n"),
        ("host/src/b.rs", "//! B.\n"),
        ("host/src/c.rs", "//! C.\n"),
    ];
    check(
        &files,
        &[
            "docs/decisions/0002-b.md:1: not-linked",
            "docs/lost.md:1: not-linked",
            "host/src/c.rs:1: code-map",
        ],
    );
}

#[test]
fn the_plugin_in_the_readme_is_the_one_that_is_tested() {
    let sdk = "//! Docs.\n//!\n//! ```\n//! use a;\n//!\n//! fn b() {}\n//! ```\n";
    let map = ("ARCHITECTURE.md", "`guest-sdk/src/lib.rs`\n");
    let with = |readme| [("guest-sdk/src/lib.rs", sdk), ("README.md", readme), map];
    check(&with("# A\n\n```rust\nuse a;\n\nfn b() {}\n```\n"), &[]);
    check(&with("# A\n\n```rust\nuse a;\n\nfn c() {}\n```\n"), &["README.md:3: readme-plugin"]);
    check(&with("# A\n\n```rust\nuse a;\n```\n"), &["README.md:3: readme-plugin"]);
}

#[test]
fn code_comments_and_strings_are_told_apart() {
    let text =
        "a /* b /* c */ d */ e // f\n\"g // \\\" h\" i 'j' 'k: '\\'' b\"l\" br#\"m\"\nn\"# o\n";
    let source = Source::new("a.rs", text);
    let code: Vec<String> = source
        .code
        .iter()
        .map(|line| line.chars().filter(|c| !c.is_whitespace() && !"\"~".contains(*c)).collect())
        .collect();
    assert_eq!(code, ["ae", "i'k:", "o"]);
    let comments: String = source.comments.concat().chars().filter(|c| c.is_alphabetic()).collect();
    assert_eq!(comments, "bcdf");
    for (raw, code) in source.raw.iter().zip(&source.code) {
        assert_eq!(raw.chars().count(), code.chars().count());
    }
}

#[test]
fn functions_and_paths_are_found() {
    let text = "fn a();\nfn b() -> [u8; 3] {\n    fn c() {}\n}\nimpl Fn for X {}\n\
                pub use m::{n::{self, o}, p as q};\nlet x = r::s(t);\n";
    let source = Source::new("a.rs", text);
    let functions: Vec<_> =
        source.functions().into_iter().map(|f| (f.name, f.lines.start, f.lines.end)).collect();
    assert_eq!(functions, [("b".to_owned(), 1, 4), ("c".to_owned(), 2, 3)]);
    let paths: Vec<String> = source.paths().into_iter().map(|(_, path)| path).collect();
    assert_eq!(paths, ["m::n::self", "m::n::o", "m::p", "r::s"]);
}

#[test]
fn modules_do_not_import_each_other_in_a_circle() {
    let check = |first: &str, second: &str, expect: &[&str]| {
        let files = [
            ("host/src/guest/a.rs", format!("//! A.\n{first}")),
            ("host/src/guest/b.rs", format!("//! B.\n{second}")),
            ("host/src/guest/b/c.rs", "//! C.\nuse super::d;\n".to_owned()),
            ("ARCHITECTURE.md", "`host/src/guest/{a,b}.rs` `host/src/guest/b/c.rs`".to_owned()),
        ];
        let files: Vec<_> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
        super::tests::check(&files, expect);
    };
    check("use super::b::f;\n", "use crate::fs::a;\n", &[]);
    check("use super::b::f;\n", "#[cfg(test)]\nmod tests {\n    use super::super::a;\n}\n", &[]);
    check(
        "use super::b::f;\n",
        "use crate::guest::{a::g, x};\n",
        &[
            "host/src/guest/a.rs:1: import-circle",
            "host/src/guest/b.rs:1: import-circle",
            "host/src/guest/b/c.rs:1: import-circle",
        ],
    );
}

#[test]
fn words_that_are_not_used_are_found_wherever_they_stand() {
    let table = "| word | in the field | not used | meaning here |\n|---|---|---|---|\n\
                 | corrupt | corrupt | addled, gone off | bad |\n| egg | | | of a hen |\n\n\
                 In prose, name the subject; do not write *somehen* or *somecock*.\n";
    let check = |text: &str, expect: &[&str]| {
        let text = format!("//! Documented.\n{text}");
        let map = format!("{table}\n`xtask/src/a.rs`");
        super::tests::check(&[("xtask/src/a.rs", &text), ("ARCHITECTURE.md", &map)], expect);
    };
    check("fn corrupt_egg() {}\n", &[]);
    check("// The addler has gone, off it is.\n", &["xtask/src/a.rs:2: unused-word"]);
    check("fn is_addled() {}\n", &["xtask/src/a.rs:2: unused-word"]);
    check("struct AddledEgg;\n", &["xtask/src/a.rs:2: unused-word"]);
    check("// An egg of Somehen.\n", &["xtask/src/a.rs:2: unused-word"]);
    check("// An addler is no word.\n// Gone-off eggs.\n", &["xtask/src/a.rs:3: unused-word"]);
}
