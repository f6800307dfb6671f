//! The rules for documents: what they name exists, and what exists is named.
//!
//! * A relative link leads to a file or folder of the checkout.
//! * A name in backquotes that looks like a file of the checkout is one; `{a,b}` is expanded.
//! * Every record in `docs/decisions` is linked from the index there, every source file of the
//!   product is in the map of ARCHITECTURE.md, every document in `docs` is linked from somewhere.
//! * The plugin in the README is the one that the SDK's doc test compiles.

use super::{Tree, Violation};

/// The folders whose files the map names one by one.
const MAPPED: [&str; 4] = ["host/src/", "host/core/src/", "host/client/src/", "guest-sdk/src/"];
/// A name in backquotes that begins like this counts as a path.
const TOPS: [&str; 11] = [
    "host/",
    "guest-sdk/",
    "examples/",
    "tests/",
    "xtask/",
    "wit/",
    "docs/",
    ".ci/",
    ".cargo/",
    "src/",
    "./",
];
/// A name in backquotes that ends like this counts as a file at the root.
const ENDS: [&str; 3] = [".md", ".toml", ".rs"];
const MAP: &str = "ARCHITECTURE.md";
const INDEX: &str = "docs/decisions/README.md";
/// Where the plugin in the README comes from.
const PLUGIN: &str = "guest-sdk/src/lib.rs";

/// Appends the violations in documents.
pub(super) fn check(tree: &Tree, violations: &mut Vec<Violation>) {
    let mut named = Vec::new();
    let mut linked = Vec::new();
    for (file, text) in tree.files.iter().filter(|(file, _)| file.ends_with(".md")) {
        for (line, span) in text.lines().enumerate().flat_map(|(n, t)| spans(n, t)) {
            match span {
                Span::Link(target) => match resolve(file, &target) {
                    Some(path) if tree.has(&path) => linked.push((file.clone(), path)),
                    _ => report(violations, file, line, "dead-link", format!("missing: {target}")),
                },
                Span::Code(code) => {
                    let paths = expand(&code).into_iter().filter(|path| looks_like_ours(path));
                    for path in paths {
                        if !tree.has(path.trim_start_matches("./")) {
                            let why = format!("{path} is not in the checkout");
                            report(violations, file, line, "named-file", why);
                        }
                        named.push((file.clone(), path));
                    }
                }
            }
        }
    }
    for (file, _) in &tree.files {
        let test = file.contains("/tests/") || file.ends_with("/tests.rs");
        let mapped = MAPPED.iter().any(|folder| file.starts_with(folder)) && !test;
        if mapped && file.ends_with(".rs") && !named.contains(&(MAP.to_owned(), file.clone())) {
            let why = format!("not in the code map of {MAP}: add a line for it");
            report(violations, file, 0, "code-map", why);
        }
        let page = file.starts_with("docs/") && file.ends_with(".md") && file != INDEX;
        let record = file.starts_with("docs/decisions/");
        if page && !linked.iter().any(|(from, to)| to == file && (!record || from == INDEX)) {
            let from = if record { INDEX } else { "any document" };
            report(violations, file, 0, "not-linked", format!("not linked from {from}"));
        }
    }
    plugin(tree, violations);
}

fn report(
    violations: &mut Vec<Violation>,
    file: &str,
    line: usize,
    rule: &'static str,
    why: String,
) {
    violations.push(Violation { file: file.to_owned(), line: line + 1, rule, why });
}

/// Checks that the plugin in the README is the text of the one in the SDK's documentation.
fn plugin(tree: &Tree, violations: &mut Vec<Violation>) {
    let (Some(readme), Some(sdk)) = (tree.text("README.md"), tree.text(PLUGIN)) else {
        return;
    };
    let docs: Vec<&str> = sdk
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    let tested = block(docs.iter().copied(), "```");
    let shown = block(readme.lines(), "```rust");
    if shown.is_some() && shown != tested {
        let line = readme.lines().position(|line| line == "```rust").unwrap_or(0);
        let why = format!("the plugin shown is not the first doc test of {PLUGIN}");
        report(violations, "README.md", line, "readme-plugin", why);
    }
}

/// The lines between this fence and the next.
fn block<'a>(lines: impl Iterator<Item = &'a str>, fence: &str) -> Option<Vec<&'a str>> {
    let mut lines = lines.skip_while(|line| *line != fence).skip(1).peekable();
    lines.peek()?;
    Some(lines.take_while(|line| *line != "```").collect())
}

/// What a line of a document points to.
enum Span {
    /// The target of a link, unless the link leads to another site or only to a place on the page.
    Link(String),
    /// The text in backquotes.
    Code(String),
}

fn spans(line: usize, text: &str) -> Vec<(usize, Span)> {
    let mut found = Vec::new();
    if text.starts_with("    ") || text.starts_with("```") {
        return found;
    }
    for rest in text.split("](").skip(1) {
        let target = rest.split([')', '#']).next().unwrap_or_default();
        if !target.is_empty() && !target.contains("://") {
            found.push((line, Span::Link(target.to_owned())));
        }
    }
    let code = text.split('`').skip(1).step_by(2);
    found.extend(code.map(|code| (line, Span::Code(code.to_owned()))));
    found
}

/// Where a link in `file` leads, relative to the checkout's root; `None` if out of it.
fn resolve(file: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Expands `a/{b,c}.rs` to `a/b.rs` and `a/c.rs`; one pair of braces, as in the map.
fn expand(code: &str) -> Vec<String> {
    match code.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?))) {
        Some((head, (names, tail))) => {
            names.split(',').map(|name| format!("{head}{}{tail}", name.trim())).collect()
        }
        None => vec![code.to_owned()],
    }
}

fn looks_like_ours(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let at_root = !path.contains('/')
        && path.chars().next().is_some_and(char::is_uppercase)
        && ENDS.iter().any(|end| path.ends_with(end));
    path.chars().all(plain) && (at_root || TOPS.iter().any(|top| path.starts_with(top)))
}
