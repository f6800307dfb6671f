//! The rules for Rust files, one function each, and the exceptions from them.

use super::source::{Source, has_word};
use super::{Tree, Violation};

/// Most lines of code in a file.
const FILE_LINES_MAX: usize = 500;
/// Most lines of code in a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Most characters in a line.
pub(super) const COLUMNS_MAX: usize = 100;

/// All that `lockstep-core` may depend on.
const CORE_DEPENDENCIES: [&str; 7] =
    ["blake3", "bytes", "crc32c", "protobuf", "raft", "slog", "thiserror"];

/// A kind of name that only some files may use.
struct Fence {
    rule: &'static str,
    /// The files that the rule is about.
    within: &'static [&'static str],
    /// Beginnings of paths that may not be named in these files.
    names: &'static [&'static str],
    /// Exceptions: beginnings of paths that may be named in these files.
    but: &'static [&'static str],
    /// The files that may name these paths; a folder ends with `/`.
    doors: &'static [&'static str],
    /// Whether tests may name these paths, too.
    tests_may: bool,
    why: &'static str,
}

const FENCES: [Fence; 6] = [
    Fence {
        rule: "core-is-pure",
        within: &["host/core/src/"],
        names: &[
            "std::fs",
            "std::net",
            "std::thread",
            "std::time",
            "std::env",
            "std::process",
            "std::collections::HashMap",
            "std::collections::HashSet",
            "std::collections::hash_map",
            "tokio",
            "rand",
            "getrandom",
        ],
        but: &[],
        // Planted bugs are chosen by the environment; without the feature there are none.
        doors: &["host/core/src/mutant.rs"],
        tests_may: false,
        why: "the core does no IO, reads no clock, draws no randomness and has no unordered map",
    },
    Fence {
        rule: "files-through-the-door",
        within: &["host/src/"],
        names: &["std::fs", "tokio::fs", "rustix"],
        but: &[],
        doors: &[
            "host/src/fs/disk.rs",
            // This file maps memory; the mapped files have no name and are on no disk.
            "host/src/guest/memory.rs",
            // The process logs to descriptors that it inherited.
            "host/src/logging.rs",
            // The configuration is read before there is an `Fs`.
            "host/src/config.rs",
            // These commands run beside a node, on files that are not a node's.
            "host/src/main.rs",
            "host/src/cli.rs",
            "host/src/cli/",
        ],
        tests_may: true,
        why: "only fs/disk.rs names std::fs and rustix; use an `Fs`",
    },
    Fence {
        rule: "wire-in-rpc",
        within: &["host/src/", "host/core/"],
        names: &["prost", "tonic", "tonic_prost", "tonic_health", "tonic_reflection", "h2"],
        but: &[],
        doors: &["host/src/rpc.rs", "host/src/rpc/"],
        tests_may: false,
        why: "only rpc knows prost, tonic and h2; convert in rpc/convert.rs",
    },
    Fence {
        rule: "raft-in-group",
        within: &["host/src/", "host/core/", "host/client/"],
        names: &["raft"],
        but: &["raft::eraftpb"],
        doors: &["host/core/src/group.rs", "host/core/src/group/", "host/core/tests/"],
        tests_may: false,
        why: "only the core's group calls raft; other files may name raft::eraftpb types",
    },
    Fence {
        rule: "wasmtime-in-guest",
        within: &["host/src/"],
        names: &["wasmtime"],
        but: &[],
        doors: &["host/src/guest/"],
        tests_may: false,
        why: "only guest/ knows wasmtime; use a `GuestModule`",
    },
    Fence {
        rule: "wall-clock-through-the-door",
        within: &["host/src/"],
        names: &["std::time::SystemTime"],
        but: &[],
        doors: &["host/src/clock.rs"],
        tests_may: false,
        why: "only clock.rs reads wall time; use a `Clock`",
    },
];

/// A piece of code that only some files may contain.
struct Word {
    rule: &'static str,
    within: &'static str,
    /// The pieces, any of which counts: in code, and with `in_strings` in strings, too.
    any: &'static [&'static str],
    in_strings: bool,
    doors: &'static [&'static str],
    why: &'static str,
}

const WORDS: [Word; 7] = [
    Word {
        rule: "ready-order",
        within: "host/core/",
        any: &[".advance_append(", ".advance_append_async(", ".on_persist_ready(", ".ready()"],
        in_strings: false,
        doors: &["host/core/src/group/ready.rs"],
        why: "only group/ready.rs knows the order in which a Ready is carried out",
    },
    Word {
        rule: "one-owner",
        within: "host/core/src/group/",
        any: &["impl Hosting"],
        in_strings: false,
        doors: &["host/core/src/group/hosting.rs"],
        why: "a concern is a type of its own that gets what it reads or writes",
    },
    Word {
        rule: "recovery-state",
        within: "host/core/src/group/",
        any: &[
            "recovery.bootstrapped =",
            "recovery.commit =",
            "recovery.configuration =",
            "recovery.configuration_index =",
            "recovery.first_index =",
            "recovery.floor =",
            "recovery.lineage =",
            "recovery.previous_term =",
            "recovery.removed =",
            "recovery.snapshots =",
            "recovery.term =",
            "recovery.vote =",
        ],
        in_strings: false,
        doors: &[],
        why: "a RecoveryState is changed by its own methods",
    },
    Word {
        rule: "durable-names",
        within: "host/",
        any: &[".sync_dir(", ".sync_all(", ".sync_data("],
        in_strings: false,
        doors: &["host/src/fs.rs", "host/src/fs/"],
        why: "names are made durable by fs::make_durable, bytes by File::sync",
    },
    Word {
        rule: "snapshot-paths",
        within: "host/",
        any: &[".fsnap"],
        in_strings: true,
        doors: &["host/src/store/layout.rs"],
        why: "only store/layout.rs spells a snapshot's path",
    },
    Word {
        rule: "unsafe",
        within: "",
        any: &["unsafe "],
        in_strings: false,
        doors: &[
            // Each block there has a SAFETY note.
            "host/src/guest/cache.rs",
            "host/src/guest/lift.rs",
            "host/src/guest/lift/",
            "host/src/guest/memory.rs",
            "guest-sdk/src/memory.rs",
            // Guests that misbehave on purpose.
            "tests/guests/",
        ],
        why: "unsafe code lives in guest/{cache,lift,memory}.rs, the SDK's memory.rs and \
              tests/guests/ only",
    },
    Word {
        rule: "ignored-test",
        within: "",
        any: &["#[ignore"],
        in_strings: false,
        doors: &[],
        why: "a test runs or is deleted",
    },
];

/// Appends the violations in one file.
pub(super) fn check(source: &Source, violations: &mut Vec<Violation>) {
    let mut report = |line: usize, rule: &'static str, why: String| {
        violations.push(Violation { file: source.path.to_owned(), line: line + 1, rule, why });
    };
    shape(source, &mut report);
    comments(source, &mut report);
    fences(source, &mut report);
    words(source, &mut report);
}

/// Appends the violations in manifests.
pub(super) fn check_manifests(tree: &Tree, violations: &mut Vec<Violation>) {
    const FILE: &str = "host/core/Cargo.toml";
    let mut section = "";
    for (line, text) in tree.text(FILE).unwrap_or_default().lines().enumerate() {
        if text.starts_with('[') {
            section = text;
        } else if section == "[dependencies]" && !text.starts_with('#') {
            let name = text.split(['.', ' ', '=']).next().unwrap_or_default();
            if !name.is_empty() && !CORE_DEPENDENCIES.contains(&name) {
                violations.push(Violation {
                    file: FILE.to_owned(),
                    line: line + 1,
                    rule: "core-is-pure",
                    why: format!("{name}: the list of the core's dependencies is closed"),
                });
            }
        }
    }
}

fn shape(source: &Source, report: &mut impl FnMut(usize, &'static str, String)) {
    if source.path.ends_with("/mod.rs") {
        report(0, "no-mod-rs", "the file of a module `foo` is `foo.rs`".to_owned());
    }
    let first = source.raw.iter().position(|line| !line.trim().is_empty());
    let documented = first.is_some_and(|line| source.raw[line].starts_with("//!"));
    let tests = source.path.rsplit('/').next() == Some("tests.rs");
    if !documented && !tests {
        let why = "a module opens with `//!`: what it owns and promises, what it leaves to others";
        report(first.unwrap_or(0), "module-doc", why.to_owned());
    }
    let lines = source.code_lines(0..source.code.len());
    if lines > FILE_LINES_MAX {
        let why = format!("{lines} lines of code; the limit is {FILE_LINES_MAX}");
        report(0, "file-size", why);
    }
    for function in source.functions() {
        let lines = source.code_lines(function.lines.clone());
        if lines > FUNCTION_LINES_MAX {
            let why = format!(
                "{} has {lines} lines of code; the limit is {FUNCTION_LINES_MAX}",
                function.name
            );
            report(function.lines.start, "function-size", why);
        }
    }
    for (line, text) in source.raw.iter().enumerate() {
        let columns = text.chars().count();
        if columns > COLUMNS_MAX {
            let why = format!("{columns} columns; the limit is {COLUMNS_MAX}");
            report(line, "columns", why);
        }
    }
}

fn comments(source: &Source, report: &mut impl FnMut(usize, &'static str, String)) {
    for (line, text) in source.comments.iter().enumerate() {
        for word in ["TODO", "FIXME", "XXX"] {
            if has_word(text, word) {
                report(line, "todo", format!("{word}: what is left to do belongs in an issue"));
            }
        }
    }
}

fn fences(source: &Source, report: &mut impl FnMut(usize, &'static str, String)) {
    let near: Vec<&Fence> =
        FENCES.iter().filter(|fence| is_one_of(source.path, fence.within)).collect();
    let near = near.into_iter().filter(|fence| !is_one_of(source.path, fence.doors));
    let paths = source.paths();
    for fence in near {
        for (line, path) in &paths {
            let named = fence.names.iter().any(|name| begins(path, name));
            let granted = fence.but.iter().any(|name| begins(path, name))
                || fence.tests_may && source.is_test(*line);
            if named && !granted {
                report(*line, fence.rule, format!("`{path}`: {}", fence.why));
            }
        }
    }
}

fn words(source: &Source, report: &mut impl FnMut(usize, &'static str, String)) {
    for word in &WORDS {
        if !source.path.starts_with(word.within) || is_one_of(source.path, word.doors) {
            continue;
        }
        for line in 0..source.code.len() {
            let code = &source.code[line];
            let comment = source.comments[line].trim();
            // Comments are not searched: only the text before them counts.
            let raw = source.raw[line].strip_suffix(comment).unwrap_or(source.raw[line]);
            let text = if word.in_strings { raw } else { code };
            if let Some(found) = word.any.iter().find(|piece| text.contains(**piece)) {
                report(line, word.rule, format!("`{}`: {}", found.trim(), word.why));
            }
        }
    }
}

fn is_one_of(path: &str, places: &[&str]) -> bool {
    places
        .iter()
        .any(|place| if place.ends_with('/') { path.starts_with(place) } else { path == *place })
}

/// Whether a path is this name or begins with it.
fn begins(path: &str, name: &str) -> bool {
    path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
